from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# vLLM has an environment of its own: make test-vllm
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the tests look into the scheduler
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # binding to cores is slow on a shared machine


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama, exported."""
    from tests.vllm.engines import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("vllm") / "llama")
