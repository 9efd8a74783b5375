"""`gircse doctor --deep`: does the engine compute on this device what the reference computes, and how fast?

    attention      each attention plan against plain attention in float32, per dtype; the paged kernel needs CUDA
    congruence     the engine in each dtype and schedule against the reference in float32
    deterministic  whether `deterministic=True` gives the same bits together and one by one, per dtype; on a CPU
    graph          a refinement step captured as a CUDA graph, replayed on new inputs, against the step itself
    speed          documents and queries per second beside the reference, and one query alone
    vllm           whether the installed vLLM can host the plugin, and which runners it has

Each check passes, fails (with figures and limits), or is skipped for a reason. No check raises.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.selfcheck.congruence import check_attention, check_congruence, check_deterministic
from gircse_rag.selfcheck.finding import Check, Finding, run_check
from gircse_rag.selfcheck.graph import check_graph
from gircse_rag.selfcheck.samples import Vectors
from gircse_rag.selfcheck.speed import check_speed
from gircse_rag.selfcheck.vllm import check_vllm
from gircse_rag.weights import DecoderWeights

__all__ = ["Finding", "self_check"]

DTYPES = ("float32", "bfloat16", "float16")
BUDGET = 480.0  # seconds after which no further check starts, so that all of them end within ten minutes


def self_check(name: str, device: torch.device) -> Iterator[Finding]:
    """Run all checks with a checkpoint on a device; yields each result when it is known.

    Args:
        name: a bundled name, a folder or a Hub id. It is loaded once per dtype.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    started = time.monotonic()
    load = partial(load_checkpoint, name, device=device)
    exact = load(dtype=torch.float32)
    config = DecoderWeights.of(exact.model).config
    expected: Vectors = {}
    checks: dict[str, Check] = {}
    for dtype in DTYPES:
        for layout in ("gathered", "paged"):
            checks[f"attention, {layout}, {dtype}"] = partial(check_attention, config, device, dtype, layout == "paged")
    for dtype in DTYPES:
        checks[f"congruence, {dtype}"] = partial(check_congruence, exact, load, device, dtype, expected)
    for dtype in DTYPES:
        checks[f"deterministic, {dtype}"] = partial(check_deterministic, load, device, dtype)
    checks["graph"] = partial(check_graph, load, device)
    checks["speed"] = partial(check_speed, load, device)
    checks["vllm"] = check_vllm
    for label, check in checks.items():
        if time.monotonic() - started > BUDGET:
            yield Finding(label, "skipped", f"out of time: the checks before it took {BUDGET:.0f} seconds")
        else:
            yield run_check(label, check)
