"""Check the vLLM plugin on a machine with GPUs: `python scripts/check_vllm_gpu.py [--out report.json]`.

Needs `pip install "gircse-rag[vllm]"` and this repository. It cannot run on a CPU, where vLLM has neither the V2 runner
nor CUDA graphs; docs/operate/vllm.md has the CPU checks. Each case runs one engine in its own process:

    eager            the V2 runner (vLLM's default on a GPU), no CUDA graphs
    graphs           the V2 runner, compiled, piecewise CUDA graphs
    V1 graphs        the V1 runner, compiled, piecewise CUDA graphs
    async            the V2 runner, scheduling one step ahead
    preemption       a KV cache too small for all running requests
    tensor parallel  two ranks, if there are two GPUs

Each case embeds real texts twice (the second time with prefix-cache hits), with K in {1, 5, 20} mixed in every batch,
and is compared with the reference loop in float32 on the same GPU. A float32 case passes at cos >= 0.99999 for K <= 5
and >= 0.999 for K = 20. A bfloat16 case passes if its mean distance from the float32 reference is at most twice that of
the bfloat16 reference. The exit code is 1 if any case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STEPS = (1, 5, 20)
CASES: dict[str, dict[str, Any]] = {
    "eager": {"options": {"enforce_eager": True}, "runner": "1"},
    "graphs": {"options": {}, "runner": "1"},
    "V1 graphs": {"options": {}, "runner": "0"},
    "async": {"options": {"async_scheduling": True}, "runner": "1"},
    "preemption": {"options": {"num_gpu_blocks_override": 48, "max_num_seqs": 16}, "runner": "1"},
    "tensor parallel": {"options": {"tensor_parallel_size": 2}, "runner": "1", "gpus": 2},
}


def run_engine(folder: str, requests_file: str, vectors_file: str, dtype: str, options: str) -> None:
    """Run one case in this process: read requests from one file, write the vectors of both passes to another."""
    from vllm import LLM, PoolingParams

    requests = json.loads(Path(requests_file).read_text())
    chosen = {"max_model_len": 640, "max_num_seqs": 64, "max_num_batched_tokens": 512, "block_size": 16}
    llm = LLM(folder, dtype=dtype, gpu_memory_utilization=0.4, **{**chosen, **json.loads(options)})
    prompts = [{"prompt_token_ids": ids} for ids, _ in requests]
    params = [PoolingParams(extra_kwargs={"steps": steps}) for _, steps in requests]
    vectors = []
    for order in (slice(None), slice(None, None, -1)):
        outputs = llm.embed(prompts[order], pooling_params=params[order], use_tqdm=False)
        vectors.append([output.outputs.embedding for output in outputs][order])
    Path(vectors_file).write_text(json.dumps(vectors))


def main() -> int:
    import numpy as np
    import torch

    from gircse_rag.backend import Refinement, Request
    from gircse_rag.backends.reference import ReferenceBackend
    from gircse_rag.backends.vllm.export import export
    from gircse_rag.checkpoint import load_checkpoint
    from gircse_rag.tokens import encode
    from tests.vllm.texts import real_texts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA GPU found; for the CPU suite run `make test-vllm`")

    def refine(dtype: torch.dtype, requests: list[Request]) -> Any:
        checkpoint = load_checkpoint(arguments.model, dtype=dtype, device="cuda")
        backend = ReferenceBackend(checkpoint.model, temperature=checkpoint.spec.temperature)
        outcomes = [outcome for _, outcome in backend.refine(requests)]
        assert all(isinstance(outcome, Refinement) for outcome in outcomes), outcomes
        return np.array([outcome.vector for outcome in outcomes if isinstance(outcome, Refinement)])

    with tempfile.TemporaryDirectory() as scratch:
        folder = export(arguments.model, Path(scratch) / "exported")
        checkpoint = load_checkpoint(arguments.model, dtype=torch.float32, device="cpu")
        requests = [
            Request(
                encode(
                    checkpoint.tokenizer, checkpoint.spec, text, role="query" if i % 2 else "document", instruction=None
                ).token_ids,
                STEPS[i % 3],
            )
            for i, text in enumerate(real_texts(arguments.texts))
        ]
        del checkpoint
        exact = refine(torch.float32, requests)
        half = refine(torch.bfloat16, requests)
        torch.cuda.empty_cache()
        spread = float(1 - (exact * half).sum(-1).mean())
        requests_file, vectors_file = Path(scratch) / "requests.json", Path(scratch) / "vectors.json"
        requests_file.write_text(json.dumps([(request.token_ids, request.steps) for request in requests]))
        report: dict[str, Any] = {
            "gpu": torch.cuda.get_device_name(),
            "gpus": torch.cuda.device_count(),
            "texts": len(requests),
            "bfloat16_reference": spread,
            "cases": {},
        }
        for name, case in CASES.items():
            for dtype in ("float32", "bfloat16"):
                label = f"{name}, {dtype}"
                if case.get("gpus", 1) > torch.cuda.device_count():
                    report["cases"][label] = {"passed": None, "why": "not enough GPUs"}
                    continue
                vectors_file.unlink(missing_ok=True)
                command = [
                    sys.executable,
                    __file__,
                    "--engine",
                    str(folder),
                    str(requests_file),
                    str(vectors_file),
                    dtype,
                ]
                done = subprocess.run(
                    [*command, json.dumps(case["options"])],
                    env={**os.environ, "VLLM_USE_V2_MODEL_RUNNER": case["runner"]},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode or not vectors_file.exists():
                    report["cases"][label] = {"passed": False, "why": done.stderr[-3000:]}
                else:
                    report["cases"][label] = judge(
                        np, json.loads(vectors_file.read_text()), exact, requests, dtype, spread
                    )
                print(label, json.dumps(report["cases"][label])[:400], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(case["passed"] is False for case in report["cases"].values()))


def judge(np: Any, passes: Any, exact: Any, requests: Any, dtype: str, spread: float) -> dict[str, Any]:
    """Compare the vectors of both passes, (2, n, d), with the float32 reference, (n, d), and judge the case."""
    cosines = (np.array(passes) * exact).sum(-1).min(axis=0)  # the worse of both passes
    by_steps = {steps: cosines[[request.steps == steps for request in requests]] for steps in STEPS}
    result: dict[str, Any] = {f"min_cos_k{steps}": float(values.min()) for steps, values in by_steps.items()}
    result["mean_distance"] = float(1 - cosines.mean())
    if dtype == "float32":
        result["passed"] = bool(min(by_steps[1].min(), by_steps[5].min()) >= 0.99999 and by_steps[20].min() >= 0.999)
    else:
        result["passed"] = bool(result["mean_distance"] <= 2 * spread)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--engine"]:
        try:
            run_engine(*sys.argv[2:])
        except Exception:
            traceback.print_exc()
            sys.exit(1)
    else:
        sys.exit(main())
