"""A checkpoint's name and where it shall run -> its backend, tokenizer and spec."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from gircse_rag.backends.lazy import LazyBackend
from gircse_rag.checkpoint.locate import locate
from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.hardware import device_of, dtype_of
from gircse_rag.spec import EmbeddingSpec, check_steps

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from gircse_rag.backend import Backend

    Loaded = tuple[Backend, Tokenizer | PreTrainedTokenizerBase, EmbeddingSpec]
    LoadedWithRotation = tuple[Backend, Tokenizer | PreTrainedTokenizerBase, EmbeddingSpec, Rotation | None]

BackendName = Literal["paged", "reference", "vllm"]
BACKENDS: tuple[BackendName, ...] = ("paged", "reference", "vllm")


def load_backend(
    name: str | os.PathLike[str],
    *,
    backend: BackendName,
    device: str,
    dtype: str,
    steps: int | None,
    url: str | None,
    lazy: bool,
    revision: str | None,
    preset: str | None,
    deterministic: bool,
    dimensions: int | None,
) -> LoadedWithRotation:
    """Load a checkpoint with its rotation. `Embedder.from_pretrained` describes the arguments.

    Raises:
        CheckpointError: the model cannot be loaded.
        InputError: an argument is invalid.
    """
    loaded, tokenizer, spec = _load(name, backend, device, dtype, steps, url, lazy, revision, preset, deterministic)
    rotation = Rotation.read(locate(os.fspath(name), revision).folder)
    if rotation is not None and spec.rotation_hash is None and len(rotation.rows) != spec.dimension:
        raise CheckpointError(
            f"{name}: its rotation is for {len(rotation.rows)} dimensions, but its vectors have {spec.dimension}; they "
            "belong to different models: remove the folder `rotation`, or get it again"
        )
    if dimensions is not None:
        spec = spec.shortened(dimensions, None if rotation is None else rotation.hash)
    return loaded, tokenizer, spec, rotation


def _load(
    name: str | os.PathLike[str],
    backend: BackendName,
    device: str,
    dtype: str,
    steps: int | None,
    url: str | None,
    lazy: bool,
    revision: str | None,
    preset: str | None,
    deterministic: bool,
) -> Loaded:
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} does not exist; it is one of {', '.join(BACKENDS)}")
    if steps is not None:
        check_steps(steps)
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise InputError(f"name must be a bundled name, a folder or a Hub id, not {name!r}")
    if url is not None and backend != "vllm":
        raise InputError(f"url is for backend='vllm'; the backend {backend!r} computes in this process")
    if deterministic and backend != "paged":
        raise InputError(f"deterministic=True is for backend='paged', not {backend!r}")
    name = os.fspath(name)
    if backend == "vllm":
        return _load_vllm(name, device, dtype, steps, url, revision, preset)
    here = device_of(device)
    options: dict[str, Any] = {"dtype": dtype_of(dtype, here, float16_weights=backend == "paged"), "revision": revision}

    def load() -> Loaded:
        if backend == "reference":
            return _load_reference(name, steps, device=here, preset=preset, **options)
        return _load_paged(name, steps, deterministic, device=here, preset=preset, **options)

    if lazy and preset is None:
        from gircse_rag.checkpoint import load_spec

        known = load_spec(name, **options)
        if known is not None:
            tokenizer, spec = known[0], _with_steps(known[1], steps)

            def load_late() -> tuple[Backend, EmbeddingSpec]:
                late, _, actual = load()
                return late, actual

            return LazyBackend(load_late, spec), tokenizer, spec
    return load()


def _with_steps(spec: EmbeddingSpec, steps: int | None) -> EmbeddingSpec:
    return spec if steps is None else replace(spec, document_steps=steps)


def _load_paged(name: str, steps: int | None, deterministic: bool, **options: Any) -> Loaded:
    from gircse_rag.backends.paged import PagedBackend
    from gircse_rag.checkpoint import load_weights

    prepared = load_weights(name, **options)
    spec = _with_steps(prepared.spec, steps)
    return PagedBackend(prepared.weights, spec, deterministic=deterministic), prepared.tokenizer, spec


def _load_reference(name: str, steps: int | None, **options: Any) -> Loaded:
    from gircse_rag.backends.reference import ReferenceBackend
    from gircse_rag.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(name, **options)
    spec = _with_steps(checkpoint.spec, steps)
    backend = ReferenceBackend(checkpoint.model, temperature=spec.temperature, pools_prompt=spec.pools_prompt)
    return backend, checkpoint.tokenizer, spec


def _load_vllm(
    name: str, device: str, dtype: str, steps: int | None, url: str | None, revision: str | None, preset: str | None
) -> Loaded:
    from gircse_rag.backends.vllm import connect

    if device != "auto" or (url is not None and dtype != "auto"):
        raise InputError("vLLM chooses its device, and a server also its dtype: leave device and dtype at 'auto'")
    if url is not None and preset is not None:
        raise InputError("preset is for a folder that this process loads; the server at url has its model's spec")
    if url is None:
        weights_dtype = dtype_of(dtype, device_of("auto"))
        backend, tokenizer, spec = connect.load_in_process(name, dtype=weights_dtype, revision=revision, preset=preset)
    else:
        backend, tokenizer, spec = connect.connect_to_server(name, url, revision)
    return backend, tokenizer, _with_steps(spec, steps)
