"""Attention against plain attention, and the engine against the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gircse_rag.checkpoint import Checkpoint
from gircse_rag.engine.attention import KERNEL_TOLERANCE, PagedPlan, plan_difference
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.products import Form, packed_form
from gircse_rag.errors import first_line
from gircse_rag.hardware import dtype_of, has_float16_products, multiplies_bfloat16
from gircse_rag.selfcheck.finding import Figures, SkippedError
from gircse_rag.selfcheck.samples import Vectors, distance, engine, reference, sample_vectors
from gircse_rag.weights import DecoderConfig, DecoderWeights

FLOAT32_LIMIT = 1e-6  # 1 - cos, up to K = 5
ROUNDING_FACTOR = 10.0  # half precision: of the reference's own distance to float32 in that dtype; sweeps reach 7 times
HALF_FLOOR = 1e-5  # a smaller limit than this would fail by chance
PLAIN_LIMIT = 1e-4  # of attention in float32
SCHEDULES: dict[str, dict[str, Any]] = {"together": {}, "chunks of 48 rows": {"token_budget": 48, "max_running": 8}}


def check_attention(config: DecoderConfig, device: torch.device, dtype: str, paged: bool) -> Figures:
    """Largest difference of an attention plan from plain attention in float32, with the model's heads."""
    kind = _usable(dtype, device)
    if not paged:
        plan = partial(GatheredPlan, num_heads=config.num_attention_heads)
        difference = plan_difference(plan, config, device, kind, paged=False)
        return {"difference": difference}, {"difference": PLAIN_LIMIT if dtype == "float32" else KERNEL_TOLERANCE}
    if device.type != "cuda" or dtype == "float32":
        needs = "the paged kernel needs CUDA and float16 or bfloat16"
        raise SkippedError(f"{needs}; elsewhere the engine gathers keys and values")
    try:
        difference = plan_difference(PagedPlan, config, device, kind, paged=True)
    except (TypeError, ImportError) as error:
        lacks = f"torch {torch.__version__} has no varlen_attn with a block table"
        raise SkippedError(f"{lacks}: {first_line(error)}") from error
    return {"difference": difference}, {"difference": KERNEL_TOLERANCE}


def check_congruence(
    exact: Checkpoint,
    load: Callable[..., Checkpoint],
    device: torch.device,
    dtype: str,
    expected: Vectors,
) -> Figures:
    """Largest 1 - cos between the engine in `dtype`, in several schedules, and the reference in float32.

    In half precision the limit depends on how far the reference itself is from float32 in that dtype.

    Args:
        expected: the reference's vectors in float32; filled by the first call.
    """
    kind = _usable(dtype, device)
    if not expected:
        expected.update(sample_vectors(reference(exact)))
    checkpoint = load(dtype=kind)
    figures: dict[str, float] = {}
    limit = FLOAT32_LIMIT
    if kind != torch.float32 and packed_form(DecoderWeights.of(checkpoint.model).embeddings) is not Form.FBGEMM:
        figures["reference"] = distance(sample_vectors(reference(checkpoint)), expected)
        limit = max(HALF_FLOOR, ROUNDING_FACTOR * figures["reference"])
    for schedule, options in SCHEDULES.items():
        with engine(checkpoint, **options) as embedder:  # on a GPU its cache takes half of the free memory
            figures[schedule] = distance(sample_vectors(embedder), expected)
            if not options:
                figures["one by one"] = distance(sample_vectors(embedder, size=1), expected)
    return figures, dict.fromkeys((*SCHEDULES, "one by one"), limit)


def check_deterministic(load: Callable[..., Checkpoint], device: torch.device, dtype: str) -> Figures:
    """Number of vectors whose bits differ between texts together and one by one, with `deterministic=True`."""
    if device.type != "cpu":
        raise SkippedError("deterministic=True is for a CPU")
    with engine(load(dtype=_usable(dtype, device)), deterministic=True) as embedder:
        together, alone = sample_vectors(embedder), sample_vectors(embedder, size=1)
    differing = sum(int((together[role] != alone[role]).any(axis=1).sum()) for role in together)
    return {"different vectors": float(differing)}, {"different vectors": 0.0}


def _usable(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "bfloat16" and not multiplies_bfloat16(device):
        raise SkippedError(f"{device} does not multiply bfloat16 natively")
    if dtype == "float16" and device.type == "cpu" and not has_float16_products():
        raise SkippedError("this CPU has no products with float16 weights (FBGEMM)")
    return dtype_of(dtype, device)
