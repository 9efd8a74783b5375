"""A refinement step as a CUDA graph. The engine uses none; this tells whether it could, and what that would gain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gircse_rag.checkpoint import Checkpoint
from gircse_rag.engine.attention import PagedPlan, Plan, Segment, has_paged_kernel
from gircse_rag.engine.decoder import Decoder
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.kv_cache import PAGED_BLOCK_SIZE, KVCache
from gircse_rag.engine.products import packed_form
from gircse_rag.engine.vocabulary import Vocabulary
from gircse_rag.hardware import dtype_of
from gircse_rag.selfcheck.finding import Figures, SkippedError
from gircse_rag.selfcheck.speed import measure_seconds
from gircse_rag.weights import DecoderWeights

ROWS = 32
LIMIT = 1e-4  # 1 - cos

Step = Callable[[], Tensor]


def check_graph(load: Callable[..., Checkpoint], device: torch.device) -> Figures:
    """Capture one refinement step of 32 sequences as a CUDA graph; compare and time it. The engine uses no graphs."""
    if device.type != "cuda":
        raise SkippedError("CUDA graphs need CUDA; the engine does not use them yet")
    return measure_graph(DecoderWeights.of(load(dtype=dtype_of("auto", device)).model), capture_graph)


def measure_graph(weights: DecoderWeights, capture: Callable[[Step], Step]) -> Figures:
    """Compare a captured refinement step with the step itself, on inputs that changed after the capture.

    Args:
        capture: makes a function that replays a step on the same tensors.
    """
    config, embeddings = weights.config, weights.embeddings
    device, dtype = embeddings.device, embeddings.dtype
    form = packed_form(embeddings)
    decoder = Decoder(weights, form)
    vocabulary = Vocabulary(weights, form, decoder.dtype, temperature=1.0)
    paged = has_paged_kernel(config, device, dtype)
    cache = KVCache(config, 1 + ROWS, paged=paged, block_size=PAGED_BLOCK_SIZE, dtype=decoder.dtype, device=device)
    segments = [Segment(1, 8 + 2 * row, [1 + row]) for row in range(ROWS)]
    for pool in (*cache.keys, *cache.values):
        pool[1:].normal_()
    plan: Plan = PagedPlan(cache, segments) if paged else GatheredPlan(cache, segments, config.num_attention_heads)
    positions = torch.tensor([segment.length - 1 for segment in segments], device=device)
    inputs = vocabulary.embed(torch.arange(ROWS, device=device))
    with torch.inference_mode():

        def step() -> Tensor:
            hidden = decoder(inputs, positions, plan)
            return torch.cat((hidden, vocabulary.soft_tokens(hidden).embedding))

        replay = capture(step)
        inputs.copy_(inputs.flip(0))
        replayed = replay().clone()
        cosines = torch.nn.functional.cosine_similarity(replayed.double(), step().double(), dim=-1)
        figures = {"difference": float(1 - cosines.min())}
        figures |= {"step ms": _milliseconds(step, device), "replay ms": _milliseconds(replay, device)}
    return figures, {"difference": LIMIT}


def capture_graph(step: Step) -> Step:
    """Capture `step` as a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries allocate their workspaces outside of the graph
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _milliseconds(step: Step, device: torch.device) -> float:
    """Median of nine runs."""
    return 1000 * float(np.median([measure_seconds(step, device) for _ in range(9)]))
