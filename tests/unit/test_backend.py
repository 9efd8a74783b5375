"""Every local backend fails bad requests individually and releases its model on close."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.lazy import LazyBackend
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.errors import GircseError, InputError
from tests import tiny
from tests.processes import run_in_fork
from tests.unit.backends.test_paged import SPEC, assert_same, requests

BackendFactory = Callable[[Any], PagedBackend | ReferenceBackend | LazyBackend]


def paged(model: Any) -> PagedBackend:
    return PagedBackend(model, SPEC)


def lazy(model: Any) -> LazyBackend:
    loaded = [(PagedBackend(model, SPEC), SPEC)]
    return LazyBackend(loaded.pop, SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("factory", [paged, ReferenceBackend, lazy])
def test_a_closed_backend_releases_its_model(factory: BackendFactory) -> None:
    model = tiny.model()
    weights = [weakref.ref(model.get_input_embeddings().weight), weakref.ref(model.model.norm.weight)]
    closed = factory(model)
    dimension = closed.dimension
    assert len(list(closed.refine([Request((1, 2), 2)]))) == 1
    closed.close()
    closed.close()
    del model
    gc.collect()
    assert [weight() for weight in weights] == [None, None]
    assert closed.dimension == dimension
    with pytest.raises(GircseError, match="closed"):
        list(closed.refine([Request((1, 2), 2)]))


@pytest.mark.parametrize("factory", [paged, ReferenceBackend, lazy])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Request((1, 400), 2), "token id 400 is outside the model's vocabulary of 400"),
        (Request((-1, 4), 2), "token id -1"),
        (Request((1, 2), 0), "steps must be an integer from 1"),
        (Request((1, 2), 2.0), "steps must be an integer from 1"),  # type: ignore[arg-type]
        (Request((1, 2), 2, top_k=401), "top_k must be from 0 to"),
        (Request((), 2), "at least one token"),
    ],
)
def test_a_malformed_request_fails_alone(factory: BackendFactory, bad: Request, message: str) -> None:
    good = requests(3, 4)
    found = dict(factory(tiny.model()).refine([*good[:2], bad, *good[2:]]))
    assert isinstance(found[2], InputError)
    assert message in str(found.pop(2))
    expected = dict(ReferenceBackend(tiny.model()).refine(good))
    assert_same(dict(enumerate(found[index] for index in (0, 1, 3, 4))), expected)


def test_a_forward_error_in_the_reference_fails_only_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    forward = model.model.forward

    def failing(**arguments: Any) -> Any:
        if arguments.get("input_ids") is not None and arguments["input_ids"][0, 0] == 7:
            raise RuntimeError("out of memory")
        return forward(**arguments)

    monkeypatch.setattr(model.model, "forward", failing)
    found = dict(ReferenceBackend(model).refine([Request((1, 2), 2), Request((7, 2), 2), Request((3, 2), 2)]))
    assert isinstance(found[1], GircseError)
    assert "out of memory" in str(found[1])
    assert isinstance(found[0], Refinement)
    assert isinstance(found[2], Refinement)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def _assert_refused(backend: PagedBackend | ReferenceBackend | LazyBackend) -> None:
    with pytest.raises(GircseError, match="loaded before the process forked; load it in the new process"):
        list(backend.refine([Request((1, 2), 2)]))
    backend.close()


@needs_fork
@pytest.mark.parametrize("factory", [paged, ReferenceBackend, lazy])
def test_a_loaded_backend_is_refused_in_a_fork(factory: BackendFactory) -> None:
    backend = factory(tiny.model())
    before = dict(backend.refine([Request((1, 2), 2)]))
    run_in_fork(lambda: _assert_refused(backend))
    assert_same(dict(backend.refine([Request((1, 2), 2)])), before)  # the fork closed nothing here


@needs_fork
def test_a_fork_while_a_lazy_backend_loads_does_not_hang() -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load() -> Any:
        loading.set()
        go_on.wait()
        return ReferenceBackend(tiny.model()), SPEC

    backend = LazyBackend(load, SPEC)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(backend.refine([Request((1, 2), 2)])))
    thread.start()
    loading.wait()
    try:
        run_in_fork(lambda: _assert_refused(backend))
    finally:
        go_on.set()
        thread.join()
    assert len(results) == 1


@needs_fork
def test_a_lazy_backend_that_was_not_loading_loads_in_each_process() -> None:
    backend = LazyBackend(lambda: (ReferenceBackend(tiny.model()), SPEC), SPEC)

    def check() -> None:
        assert len(list(backend.refine([Request((1, 2), 2)]))) == 1
        run_in_fork(lambda: _assert_refused(backend))  # loaded here by now

    run_in_fork(check)
    check()
