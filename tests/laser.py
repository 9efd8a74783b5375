"""LaSER's published quick start, transcribed for tests: left padding, the model's own cache, no code of the library.

https://github.com/ignorejjj/LaSER (MIT), src/scripts/quick_start.py: `laser_encode`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests import tiny

# The part of Qwen3's chat template that renders one message of a user.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@torch.no_grad()
def encode(model: PreTrainedModel, texts: list[list[int]], steps: int) -> Tensor:
    """(n, d): the embeddings of n texts with `steps` >= 1 states each, in the model's dtype."""
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    table = model.get_input_embeddings().weight
    inputs, cache, hidden = table[ids], None, []
    for step in range(steps):
        output = model(
            inputs_embeds=inputs,
            attention_mask=mask,
            past_key_values=cache,
            output_hidden_states=True,
            use_cache=True,
        )
        hidden.append(output.hidden_states[-1][:, -1])
        if step < steps - 1:  # the last state makes no soft token
            inputs = (torch.softmax(output.logits[:, -1], dim=-1) @ table)[:, None]
            cache, mask = output.past_key_values, torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return torch.nn.functional.normalize(torch.stack(hidden, dim=1).mean(dim=1), dim=-1)


def tokenizer() -> PreTrainedTokenizerFast:
    """`tiny.tokenizer` with a chat template and its tokens, as Qwen3's has them."""
    made = tiny.tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.add_tokens(["<think>", "</think>"])
    made.chat_template = CHAT_TEMPLATE
    return made


def folder(path: Path, **options: Any) -> Path:
    """A folder in the layout of `Alibaba-NLP/LaSER-Qwen3-0.6B`: a merged Qwen3 and its tokenizer, no gircse.json."""
    model, made = tiny.model("qwen3", **options), tokenizer()
    if len(made) > 400:
        model.resize_token_embeddings(len(made), mean_resizing=False)
    model.save_pretrained(path)
    made.save_pretrained(path)
    return path
