"""Backend, tokenizer and spec for `Embedder.from_pretrained(backend="vllm")`."""

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


def load_in_process(name: str, *, dtype: torch.dtype, revision: str | None = None, preset: str | None = None) -> Loaded:
    """Load a checkpoint into a vLLM engine in this process, on the device that vLLM chooses.

    Raises:
        MissingExtraError: vLLM is not installed.
        CheckpointError: the checkpoint cannot be loaded.
        GircseError: vLLM cannot run it.
    """
    require("vllm", "vllm")
    checkpoint = load_checkpoint(name, dtype=dtype, device="cpu", revision=revision, preset=preset)
    with tempfile.TemporaryDirectory(prefix="gircse-") as scratch:
        folder = write(checkpoint, Path(scratch) / "merged")
        tokenizer, spec = checkpoint.tokenizer, checkpoint.spec
        del checkpoint  # vLLM reads the weights again
        backend = VllmBackend(folder, spec, dtype=spec.dtype)
    return backend, tokenizer, spec


def connect_to_server(name: str, url: str, revision: str | None = None) -> Loaded:
    """Connect to a running server. Reads only the tokenizer of checkpoint `name`, and its adapter's hash if any.

    Raises:
        GircseError: no server answers at `url`.
        SpecMismatchError: the server has another model than `name`.
        CheckpointError: `name` cannot be found.
    """
    backend = ServerBackend(url)
    try:
        tokenizer, known = load_tokenizer(name, revision)
        spec = backend.spec
        for field, value in known.items():
            if getattr(spec, field) != value:
                raise SpecMismatchError(
                    f"{url} serves {spec.describe()}, which is not {name}: {field} differs; pass the name of the "
                    "server's model, or the url of another server"
                )
    except BaseException:
        backend.close()
        raise
    return backend, tokenizer, spec
