from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from gircse_rag import Embedder
from gircse_rag.checkpoint import prepared
from tests import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a model hub
# Local stores sync every write, and on a disk the waits doubled the time of their tests.
if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")
os.environ.setdefault("RAY_worker_niceness", "0")  # at its default of 15, the other tests starve Ray's workers
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def _own_prepared_files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the prepared files of tiny models out of the user's cache."""
    if "model" not in request.keywords:
        monkeypatch.setattr(prepared, "cache_folder", lambda: tmp_path / "cache")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of model families other than Llama as slow: `make unit` runs one family, `make test` all."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("family", "llama") != "llama":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as a Hugging Face folder."""
    return tiny.folder(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(params=["paged", "reference"])
def tiny_embedder(tiny_folder: Path, request: pytest.FixtureRequest) -> Embedder:
    return Embedder.from_pretrained(str(tiny_folder), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def smollm2() -> Embedder:
    """The bundled SmolLM2 model in float32, fetched on first use."""
    return Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu")
