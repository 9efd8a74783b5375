"""What `Embedder.from_pretrained(backend="vllm")` needs: a backend, a tokenizer and a spec."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gircse_rag.backend import Backend
from gircse_rag.backends.vllm.export import write
from gircse_rag.backends.vllm.in_process import VllmBackend
from gircse_rag.backends.vllm.server_client import ServerBackend
from gircse_rag.checkpoint import load_checkpoint, load_tokenizer
from gircse_rag.errors import SpecMismatchError, require
from gircse_rag.spec import EmbeddingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Loaded = tuple[Backend, "PreTrainedTokenizerBase", EmbeddingSpec]


def in_process(name: str, *, dtype: torch.dtype) -> Loaded:
    """An engine of vLLM in this process, on the device that vLLM finds.

    Raises:
        MissingExtraError, CheckpointError, GircseError: vLLM is missing, the checkpoint is damaged, vLLM cannot run it.
    """
    require("vllm", "vllm")
    checkpoint = load_checkpoint(name, dtype=dtype, device="cpu")
    with tempfile.TemporaryDirectory(prefix="gircse-") as scratch:
        folder = write(checkpoint, Path(scratch) / "merged")
        tokenizer, spec = checkpoint.tokenizer, checkpoint.spec
        del checkpoint  # the weights are read again, by vLLM
        backend = VllmBackend(folder, spec, dtype=spec.dtype)
    return backend, tokenizer, spec


def served(name: str, url: str) -> Loaded:
    """A running server. Of the checkpoint `name` only the tokenizer is read, and the adapter's hash if it has one.

    Raises:
        GircseError: no server answers there.
        SpecMismatchError: it serves another model than `name`.
        CheckpointError: `name` cannot be found.
    """
    backend = ServerBackend(url)
    try:
        tokenizer, known = load_tokenizer(name)
        spec = backend.spec
        for field, value in known.items():
            if getattr(spec, field) != value:
                raise SpecMismatchError(
                    f"{url} serves {spec.describe()}, which is not {name}: {field} differs; name the model that the "
                    "server has, or ask another server"
                )
    except BaseException:
        backend.close()
        raise
    return backend, tokenizer, spec
