"""`deterministic=True`: the bits of a vector depend on its text alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gircse_rag import Embedder
from gircse_rag.backend import Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.errors import InputError
from tests import tiny
from tests.unit.backends.test_paged import SPEC, assert_same, backend, refinements, requests
from tests.unit.engine.test_decoder import needs_float16_products

BATCH = [*requests(5, 12), Request(tuple(i * 7 % 400 for i in range(700)), 5)]  # the last takes two forwards


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def alone(model: torch.nn.Module) -> list[np.ndarray]:
    """Each trajectory from a backend of its own, with one thread."""
    torch.set_num_threads(1)
    found = []
    for request in BATCH:
        fresh = PagedBackend(model, SPEC, deterministic=True)
        found.append(refinements(dict(fresh.refine([request])))[0].trajectory)
    return found


SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "chunks": {"token_budget": 37, "max_running": 24},
    "no prefix cache": {"prefix_caching": False},
}
DTYPES = [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=needs_float16_products)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_bits_do_not_depend_on_batch_order_history_and_threads(tied: bool, dtype: torch.dtype) -> None:
    model = tiny.model("qwen3", tied=tied).to(dtype)
    expected = alone(model)
    backends = {name: PagedBackend(model, SPEC, deterministic=True, **options) for name, options in SCHEDULES.items()}

    @given(
        seed=st.integers(0, 10**6),
        size=st.integers(1, len(BATCH)),
        threads=st.integers(1, 2),
        schedule=st.sampled_from(sorted(SCHEDULES)),
    )
    @settings(max_examples=24, deadline=None, suppress_health_check=list(HealthCheck))
    def check(seed: int, size: int, threads: int, schedule: str) -> None:
        paged = backends[schedule]
        torch.set_num_threads(threads)
        numbers = random.Random(seed).sample(range(len(BATCH)), size)
        found = refinements(dict(paged.refine([BATCH[number] for number in numbers])))
        for index, number in enumerate(numbers):
            assert np.array_equal(found[index].trajectory, expected[number])
        assert torch.get_num_threads() == threads

    check()
    for paged in backends.values():
        again = refinements(dict(paged.refine(BATCH)))
        assert all(np.array_equal(again[index].trajectory, row) for index, row in enumerate(expected))
    assert backends["default"].stats.prefix_hits > 0
    if dtype == torch.float32:
        assert_same(again, refinements(dict(ReferenceBackend(model).refine(BATCH))))


def test_preempted_texts_keep_their_bits() -> None:
    model, batch = tiny.model(), requests(1)
    paged = backend(model, rows=240, max_running=12, deterministic=True)
    plain = PagedBackend(model, SPEC, deterministic=True)
    expected = [refinements(dict(plain.refine([request])))[0].trajectory for request in batch]
    found = refinements(dict(paged.refine(batch)))
    assert paged.stats.preemptions > 0
    assert all(np.array_equal(found[index].trajectory, row) for index, row in enumerate(expected))


def test_the_batch_would_show_a_shared_forward() -> None:
    """Without the mode the same texts differ in their last bits, so the test above can fail."""
    model = tiny.model("qwen3")
    together = refinements(dict(PagedBackend(model, SPEC).refine(BATCH)))
    assert any(not np.array_equal(together[i].trajectory, row) for i, row in enumerate(alone(model)))


@pytest.mark.parametrize("lazy", [False, True])
def test_an_embedder_is_deterministic_and_in_the_same_space(tmp_path: Path, lazy: bool) -> None:
    folder = str(tiny.folder(tmp_path / "model"))
    plain = Embedder.from_pretrained(folder, device="cpu", dtype="float32")
    embedder = Embedder.from_pretrained(folder, device="cpu", dtype="float32", deterministic=True, lazy=lazy)
    texts = ["one", "another text", "the way of the world"]
    together = embedder.embed_documents(texts)
    assert all(
        np.array_equal(embedder.embed_documents([text])[0], row) for text, row in zip(texts, together, strict=True)
    )
    assert embedder.fingerprint == plain.fingerprint
    np.testing.assert_allclose(together, plain.embed_documents(texts), atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "vllm"])
def test_other_backends_refuse_the_mode(backend: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"deterministic=True is for backend='paged', not '{backend}'"):
        Embedder.from_pretrained(str(tmp_path), backend=backend, deterministic=True)  # type: ignore[arg-type]


def test_other_devices_refuse_the_mode() -> None:
    with pytest.raises(InputError, match="deterministic=True is for a CPU, not meta"):
        PagedBackend(tiny.model().to("meta"), SPEC, deterministic=True)
