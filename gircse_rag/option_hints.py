"""What replaces the options of other libraries' embedding classes: `explain_option`.

Users bring them along from HuggingFaceEmbeddings, OpenAIEmbeddings, LlamaIndex's and Haystack's embedders.
"""

from __future__ import annotations

from collections.abc import Collection

_UNIT_LENGTH = "vectors always have unit length"
_PROGRESS = ("show_progress", "progress_bar")
_ONE_PROCESS = "one process uses all cores; several: `gircse ingest --runner ray`"

_HINTS: dict[str, tuple[tuple[str, ...], str]] = {
    "model": (("model_name",), ""),
    "model_name": (("model",), ""),
    "model_id": (("model", "model_name"), ""),
    "model_kwargs": (("device", "dtype"), ""),
    "torch_dtype": (("dtype",), ""),
    "precision": (("dtype",), ""),
    "encode_kwargs": (("batch_size", "embed_batch_size"), _UNIT_LENGTH),
    "query_encode_kwargs": (("query_instruction",), _UNIT_LENGTH),
    "chunk_size": (("batch_size", "embed_batch_size"), ""),
    "batch_size": (("embed_batch_size",), "the engine forms its own batches"),
    "normalize": ((), _UNIT_LENGTH),
    "normalize_embeddings": ((), _UNIT_LENGTH),
    "show_progress": (_PROGRESS, ""),
    "show_progress_bar": (_PROGRESS, ""),
    "progress_bar": (_PROGRESS, ""),
    "prefix": (("query_instruction",), "documents take none"),
    "suffix": ((), "templates are part of the checkpoint (gircse.json)"),
    "query_prefix": (("query_instruction",), ""),
    "instruction": (("query_instruction",), ""),
    "embed_instruction": (("query_instruction",), "documents take none"),
    "text_instruction": (("query_instruction",), "documents take none"),
    "cache_folder": ((), "set HF_HOME for Hub models, GIRCSE_CACHE for bundled ones"),
    "cache_dir": ((), "set HF_HOME for Hub models, GIRCSE_CACHE for bundled ones"),
    "token": ((), "set HF_TOKEN"),
    "trust_remote_code": ((), "remote code is never run"),
    "max_length": ((), "it is part of the checkpoint (gircse.json)"),
    "max_seq_length": ((), "it is part of the checkpoint (gircse.json)"),
    "truncate_dim": (("dimensions",), ""),
    "multi_process": ((), _ONE_PROCESS),
    "parallel_process": ((), _ONE_PROCESS),
    "target_devices": (("device",), ""),
}
"""Foreign option -> our options that replace it (where a class has them), and a remark."""


def explain_option(name: str, ours: Collection[str]) -> str | None:
    """Say what replaces the option `name` in a class with the options `ours`; None if nothing is known about it."""
    replacements, remark = _HINTS.get(name, ((), ""))
    use = " and ".join(f"{option}=" for option in replacements if option in ours and option != name)
    advice = "; ".join(part for part in (use and f"use {use}", remark) if part)
    return f"{name} is no option here: {advice}" if advice else None


def explain_options(given: Collection[str], ours: Collection[str]) -> str | None:
    """Explain every option of `given` that `ours` lacks and something is known about; None if there is none."""
    hints = [explain_option(name, ours) for name in given if name not in ours]
    return ". ".join(hint for hint in hints if hint) or None
