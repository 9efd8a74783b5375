"""Presets: the spec fields of published checkpoints that have no gircse.json.

A Hub id of `HUB_PRESETS` has its preset; a local folder gets one by `preset=`. No preset is guessed from weights or
from the name of a folder.

LaSER (arXiv 2603.01425, https://github.com/ignorejjj/LaSER) pools h_0..h_{K-1} with K = 3. Its code renders a query as
`Instruct: {instruction}\\nQuery: {text}` and a document as the bare text, then

    laser              puts both into the tokenizer's chat template, as a user's turn, and appends an empty think block;
                       8192 tokens. Its training and its evaluation do so (`add_chat_template`): use this one
    laser-quickstart   embeds them as they are; 512 tokens. Its quick start does so

and adds the tokenizer's own special tokens, if there are any (Qwen3's has none).
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from gircse_rag.checkpoint.locate import Located
from gircse_rag.checkpoint.spec_file import SPEC_FILE
from gircse_rag.errors import CheckpointError, InputError, first_line

_LASER: dict[str, Any] = {
    "pooling": "mean_with_prompt",
    "query_template": "Instruct: {instruction}\nQuery: {text}",
    "document_template": "{text}",
    "document_steps": 3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laser": {**_LASER, "suffix": "<think>\n\n</think>\n\n", "max_length": 8192},
    "laser-quickstart": {**_LASER, "max_length": 512},
}
IN_CHAT_TEMPLATE = frozenset({"laser"})
HUB_PRESETS = {f"Alibaba-NLP/LaSER-Qwen3-{size}": "laser" for size in ("0.6B", "4B", "8B")}


def check_preset(preset: str | None) -> None:
    """Refuse an unknown preset.

    Raises:
        InputError: there is no such preset.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"preset {preset!r} does not exist; it is one of {', '.join(PRESETS)}")


def preset_fields(
    located: Located, preset: str | None, tokenizer: PreTrainedTokenizerBase, window: int
) -> dict[str, Any]:
    """Spec fields of the preset of a checkpoint; {} if it has none.

    Args:
        preset: a name of `PRESETS`; None uses the one of the Hub id, if it has one.
        tokenizer: the checkpoint's, whose chat template and special tokens are used.
        window: positions of the model; a longer max_length is reduced to it.

    Raises:
        InputError: there is no such preset, or gircse.json sets the fields already.
        CheckpointError: the tokenizer has no chat template, or one that the preset cannot use.
    """
    check_preset(preset)
    has_file = (located.folder / SPEC_FILE).exists()
    if preset is None:
        preset = HUB_PRESETS.get(located.name) if located.revision is not None and not has_file else None
        if preset is None:
            return {}
    elif has_file:
        raise InputError(f"{located.folder / SPEC_FILE} describes {located.name} already; leave preset {preset!r} out")
    fields = dict(PRESETS[preset])
    head, tail = _special_tokens(tokenizer, located.name)
    if preset in IN_CHAT_TEMPLATE:
        before, after = _chat_template(tokenizer, located.name)
        head, tail = head + before, fields["suffix"] + tail
        fields["suffix"] = after
    for template in ("query_template", "document_template"):
        fields[template] = head + fields[template]
    fields["suffix"] = fields.get("suffix", "") + tail
    fields["max_length"] = min(fields["max_length"], window - fields["document_steps"])
    return fields


def _chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[str, str]:
    """What the chat template writes before and after a user's first message."""
    mark = "{text}"
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # no template, or one that fails: jinja2 has errors of its own
        raise CheckpointError(
            f"{name}: preset 'laser' needs the tokenizer's chat template: {first_line(error)}; add the model's "
            "chat_template.jinja to the folder, or use preset 'laser-quickstart'"
        ) from error
    if not isinstance(rendered, str) or rendered.count(mark) != 1 or "{instruction}" in rendered:
        raise CheckpointError(f"{name}: the chat template changes its message, so it is no template for embeddings")
    before, after = rendered.split(mark)
    return before, after


def _special_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[str, str]:
    """The special tokens that the tokenizer adds before and after every text, as strings."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    head, tail = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (full[:start], full[start + len(plain) :]))
    if tokenizer(head + "a" + tail, add_special_tokens=False)["input_ids"] != full:
        raise CheckpointError(f"{name}: the tokenizer adds special tokens that a text cannot contain: {full} for 'a'")
    return head, tail
