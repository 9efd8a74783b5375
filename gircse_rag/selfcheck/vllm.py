"""Whether the installed vLLM can host the plugin."""

from __future__ import annotations

import os
from importlib.util import find_spec

from gircse_rag.selfcheck.finding import Figures, SkippedError


def check_vllm() -> Figures:
    """Whether the installed vLLM suits the plugin; which of its two model runners it has."""
    if find_spec("vllm") is None:
        raise SkippedError("vLLM is not installed")
    from gircse_rag.backends.vllm.plugin.checks import check_vllm as check

    check()
    runners = {"V1 runner": "vllm.v1.worker.gpu_model_runner", "V2 runner": "vllm.v1.worker.gpu.model_runner"}
    figures = {label: float(find_spec(module) is not None) for label, module in runners.items()}
    forced = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    return figures | ({} if forced not in ("0", "1") else {"VLLM_USE_V2_MODEL_RUNNER": float(forced)}), {}
