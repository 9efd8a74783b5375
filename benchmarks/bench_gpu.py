"""Compare the paged engine with the authors' loop on a GPU; write JSON.

    python benchmarks/bench_gpu.py OUT.json [smollm2-135m] [qwen2.5-7b]

Weights are random, because speed does not depend on them. Model shapes and text lengths are real.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import authors_loop
from gircse_rag.backend import Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.spec import EmbeddingSpec

Prompts = list[tuple[int, ...]]

SHAPES = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    ),
}


def random_model(name: str) -> PreTrainedModel:
    """Create a model of the named shape in bfloat16 on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def prompts(vocabulary: int, number: int, *, shared: int, low: int, mode: int, high: int) -> list[tuple[int, ...]]:
    """Make random prompts: `shared` common tokens, then a triangular number of tokens between `low` and `high`."""
    rng = random.Random(0)
    prefix = tuple(rng.randrange(vocabulary) for _ in range(shared))
    lengths = [int(rng.triangular(low, high, mode)) for _ in range(number)]
    return [prefix + tuple(rng.randrange(vocabulary) for _ in range(length)) for length in lengths]


def measure_seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def bench(name: str) -> dict[str, Any]:
    model = random_model(name)
    spec = EmbeddingSpec(base_model=name, base_hash="0", tokenizer_hash="0", dimension=model.config.hidden_size)
    backend = PagedBackend(model, spec)
    number, vocabulary = (2048 if name == "smollm2-135m" else 512), model.config.vocab_size
    mixes = {
        "documents": prompts(vocabulary, number + 64, shared=0, low=5, mode=40, high=150),
        "queries": prompts(vocabulary, number + 64, shared=19, low=3, mode=6, high=18),
    }

    def ours(part: Prompts) -> float:
        return measure_seconds(lambda: list(backend.refine(Request(prompt, 5) for prompt in part)))

    def theirs(part: Prompts) -> float:
        return measure_seconds(lambda: authors_loop.embed(model, part, 5).cpu())

    result: dict[str, Any] = {"paged_kernel": backend._engine.runner._cache.paged}
    for mix, texts in mixes.items():
        ours(texts[:64])
        theirs(texts[:32])
        half = number // 2
        pairs = [(ours(part), theirs(part)) for part in (texts[64 : 64 + half], texts[64 + half :])]
        result[mix] = [{"ours": half / a, "authors": half / b, "ratio": b / a} for a, b in pairs]
    for label, sweeping in (("sequential", False), ("sweeps", True)):
        backend._engine.sweeping = sweeping
        pairs = [(ours([text]), theirs([text])) for text in mixes["queries"][:20]]
        a, b = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        result[f"one query, {label}"] = {"ours_ms": a, "authors_ms": b}
    result["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def main() -> None:
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(SHAPES)
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "results": {},
    }
    for name in names:
        report["results"][name] = bench(name)
        out.write_text(json.dumps(report, indent=1))
        print(json.dumps(report["results"][name], indent=1), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
