"""Small vLLM engines in this process, and helpers that look into them."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.backends.vllm.export import export
from gircse_rag.checkpoint import load_checkpoint
from tests import tiny

BLOCK = 32  # the smallest block size for vLLM's CPU attention


@contextlib.contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """A `vllm.LLM` in float32. On exit, its scheduler must be idle and hold no slot."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    chosen: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 128,
        "block_size": BLOCK,
        "enforce_eager": True,
        "disable_log_stats": True,
    }
    llm = LLM(str(folder), **{**chosen, **options})
    try:
        yield llm
        if options.get("tensor_parallel_size", 1) == 1:
            scheduler = scheduler_of(llm)
            assert not scheduler.get_num_unfinished_requests()
            assert len(scheduler.slots) == 0
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def params(steps: int | None = None) -> Any:
    from vllm import PoolingParams

    return PoolingParams() if steps is None else PoolingParams(extra_kwargs={"steps": steps})


def embed(llm: Any, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
    prompts = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
    outputs = llm.embed(prompts, pooling_params=[params(request.steps) for request in requests], use_tqdm=False)
    return [np.asarray(output.outputs.embedding, dtype=np.float32) for output in outputs]


def add(llm: Any, name: str, request: Request) -> str:
    """Hand one request to the engine without waiting; returns the engine's own id for it."""
    from vllm.inputs import tokens_input

    before = set(scheduler_of(llm).requests)
    params_ = params(request.steps)
    params_.task = "embed"
    llm.llm_engine.add_request(name, tokens_input(prompt_token_ids=list(request.token_ids)), params_)
    (internal,) = set(scheduler_of(llm).requests) - before
    return str(internal)


def finish(llm: Any) -> dict[str, NDArray[np.float32]]:
    """Step until all requests are done. Returns vectors by the names given to `add`; fails if a request never ends."""
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(20_000):
        if not llm.llm_engine.has_unfinished_requests():
            return found
        for output in llm.llm_engine.step():
            found[output.request_id] = output.outputs.data.numpy()
    raise AssertionError(f"still unfinished: {sorted(scheduler_of(llm).requests)}")


def step(llm: Any) -> None:
    llm.llm_engine.step()


def plain_folder(path: Path, family: str = "llama", *, tied: bool = True) -> Path:
    """A tiny random model whose vectors reveal a wrong or missing soft token: cos(z_4, z_5) < 0.9993.

    Unlike that of tests.tiny, its refinement does not settle at once. It is not chaotic: z_20 in float32 and float64
    agree to 1e-6. vLLM's CPU attention needs heads of width 32.
    """
    model = tiny.model(family, tied=tied, head_dim=32, scale=0.3)
    for name, weight in model.named_parameters():
        if "_proj" in name:
            weight.mul_(2)
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def tiny_folder(path: Path, family: str = "llama", *, tied: bool = True) -> Path:
    """Export a `plain_folder` for vLLM; the original stays in `path/plain`."""
    return export(str(plain_folder(path / "plain", family, tied=tied)), path / "exported")


def reference(folder: Path, requests: Sequence[Request], *, dtype: str = "float32") -> list[NDArray[np.float32]]:
    checkpoint = load_checkpoint(str(folder), dtype=getattr(torch, dtype), device="cpu")
    spec = checkpoint.spec
    backend = ReferenceBackend(checkpoint.model, temperature=spec.temperature, pools_prompt=spec.pools_prompt)
    return [outcome.vector for _, outcome in backend.refine(requests) if isinstance(outcome, Refinement)]


def some_requests(seed: int, number: int, *, longest: int = 200, steps: Sequence[int] = (1, 5, 20)) -> list[Request]:
    """Random token ids; half share a prefix, and lengths near the block size are frequent."""
    rng = random.Random(seed)
    start = tuple(rng.randrange(400) for _ in range(BLOCK + 8))
    requests = []
    for i in range(number):
        length = rng.choice([1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, rng.randint(1, longest)])
        body = tuple(rng.randrange(400) for _ in range(length))
        requests.append(Request(start + body if i % 2 else body, rng.choice(steps)))
    return requests


def assert_same(found: Sequence[Any], expected: Sequence[Any], *, cosine: float = 0.99999) -> None:
    assert len(found) == len(expected)
    for vector, target in zip(found, expected, strict=True):
        assert np.isfinite(vector).all()
        assert abs(np.linalg.norm(vector) - 1) < 1e-4
        assert float(vector @ target) >= cosine
