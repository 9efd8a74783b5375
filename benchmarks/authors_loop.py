"""The baseline for speed: GIRCSE inference as in the authors' code.

It pads on the left to a multiple of 8, batches 32 texts in input order, uses a KV cache, runs the LM head over every
position and collects all hidden states. Model, dtype, threads and token ids are the same as for our engine.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

BATCH_SIZE = 32
PAD_TO_MULTIPLE_OF = 8


@torch.inference_mode()
def embed(model: PreTrainedModel, prompts: list[tuple[int, ...]], steps: int) -> Tensor:
    """Embed prompts: z_steps of each, (n, d) float32 unit rows."""
    batches = [prompts[start : start + BATCH_SIZE] for start in range(0, len(prompts), BATCH_SIZE)]
    return torch.cat([_embed_batch(model, batch, steps) for batch in batches])


def pad(prompts: list[tuple[int, ...]], multiple: int) -> tuple[Tensor, Tensor]:
    """Pad n prompts on the left to a multiple: token ids and mask, (n, width) int64 each."""
    width = -(-max(map(len, prompts)) // multiple) * multiple
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _embed_batch(model: PreTrainedModel, prompts: list[tuple[int, ...]], steps: int) -> Tensor:
    ids, mask = (part.to(model.device) for part in pad(prompts, PAD_TO_MULTIPLE_OF))
    table = model.get_input_embeddings().weight
    inputs = table[ids]
    cache = None
    states = []
    for step in range(steps + 1):
        out = model(
            inputs_embeds=inputs,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        cache = out.past_key_values
        if step:
            states.append(out.hidden_states[-1][:, -1])
        if step < steps:
            weights = torch.softmax(out.logits[:, -1], dim=-1)
            inputs = (weights @ table)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return torch.nn.functional.normalize(torch.stack(states).float().mean(0), dim=-1)
