"""The paged backend against the reference on tiny random models, under all kinds of schedules."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.engine import engine, sweeps
from gircse_rag.engine.kv_cache import bytes_per_block
from gircse_rag.engine.scheduler import Chunk
from gircse_rag.errors import CheckpointError, GircseError, InputError
from gircse_rag.spec import EmbeddingSpec
from tests import tiny
from tests.unit.engine.test_decoder import needs_float16_products


@pytest.fixture(autouse=True)
def _sweep_until_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the engine without its sweep tolerance, which has its own tests."""
    monkeypatch.setattr(sweeps, "TOLERANCE_FLOAT32", 0.0)
    monkeypatch.setattr(engine, "MIN_SETTLED_FLOAT32", 0.0)
    monkeypatch.setattr(engine, "MAX_SWEEP_SEQUENCES", 48)


SPEC = EmbeddingSpec(base_model="tiny", base_hash="0", tokenizer_hash="0", dimension=32)


def backend(model: PreTrainedModel, *, rows: int | None = None, **options: Any) -> PagedBackend:
    """A backend whose cache holds `rows` rows."""
    if rows is not None:
        size = options.setdefault("block_size", 4)
        options["cache_bytes"] = rows // size * bytes_per_block(model.config, size, torch.float32)
    return PagedBackend(model, SPEC, **options)


def requests(seed: int, number: int = 24, **options: Any) -> list[Request]:
    """Prompts of 1-90 tokens, K from 1 to 7; every second prompt starts with the same 19 tokens."""
    rng = random.Random(seed)
    start = tuple(rng.randrange(400) for _ in range(19))
    prompts = []
    for i in range(number):
        body = tuple(rng.randrange(400) for _ in range(rng.choice([1, 2, 5, 9, 30, 71])))
        prompts.append(Request(start + body if i % 2 else body, rng.randint(1, 7), **options))
    return prompts


def refinements(outcomes: dict[int, Refinement | GircseError]) -> dict[int, Refinement]:
    errors = {index: outcome for index, outcome in outcomes.items() if isinstance(outcome, GircseError)}
    assert not errors
    return {index: outcome for index, outcome in outcomes.items() if isinstance(outcome, Refinement)}


def assert_same(found: dict[int, Any], expected: dict[int, Any], tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for index, refinement in expected.items():
        assert found[index].trajectory.dtype == np.float32
        assert found[index].trajectory.shape == refinement.trajectory.shape
        assert np.abs(found[index].trajectory - refinement.trajectory).max() <= tolerance


def assert_idle(paged: PagedBackend) -> None:
    """Assert that no sequence is left and every block is free or cached."""
    paged._step_engine()
    scheduler = paged._engine.scheduler
    assert not scheduler.has_work
    scheduler.check_integrity()
    assert paged._blocks.num_available == paged._blocks.num_blocks - 1


MIXES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chunked prefill": {"token_budget": 7, "max_running": 3},
    "preemption": {"rows": 240, "max_running": 12},
    "one at a time": {"max_running": 1, "token_budget": 2},
    "no prefix cache": {"prefix_caching": False},
    "big blocks": {"block_size": 16},
    "blocks of one": {"block_size": 1},
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mix", MIXES)
def test_equals_the_reference(family: str, tied: bool, mix: str) -> None:
    model = tiny.model(family, tied=tied)
    batch = requests(1)
    expected = refinements(dict(ReferenceBackend(model).refine(batch)))
    paged = backend(model, **MIXES[mix])
    for order in (1, -1):  # the second pass hits cached prefixes
        numbers = list(range(len(batch)))[::order]
        found = {numbers[i]: outcome for i, outcome in paged.refine([batch[n] for n in numbers])}
        assert_same(refinements(found), expected)
    assert (paged._blocks.num_hits > 0) == (mix != "no prefix cache")
    assert (paged._engine.scheduler.num_preemptions > 0) == (mix == "preemption")
    assert_idle(paged)


@needs_float16_products
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mix", MIXES)
def test_float16_weights_equal_the_float32_reference_of_the_same_weights(family: str, tied: bool, mix: str) -> None:
    batch = requests(1)
    expected = refinements(dict(ReferenceBackend(tiny.model(family, tied=tied).half().float()).refine(batch)))
    paged = backend(tiny.model(family, tied=tied).half(), **MIXES[mix])
    assert paged._engine.runner.dtype == torch.float32
    for order in (1, -1):
        numbers = list(range(len(batch)))[::order]
        found = {numbers[i]: outcome for i, outcome in paged.refine([batch[n] for n in numbers])}
        assert_same(refinements(found), expected)
    assert_idle(paged)


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    token_budget=st.integers(2, 60),
    running=st.integers(1, 9),
    size=st.sampled_from([1, 3, 4, 16]),
    rows=st.integers(128, 400),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_equals_the_reference_under_any_schedule(
    seed: int, token_budget: int, running: int, size: int, rows: int
) -> None:
    model = tiny.model("qwen3")
    batch = requests(seed, 10)
    paged = backend(model, rows=rows, block_size=size, token_budget=max(token_budget, running + 1), max_running=running)
    assert_same(refinements(dict(paged.refine(batch))), dict(ReferenceBackend(model).refine(batch)))
    assert_idle(paged)


def test_the_comparison_detects_wrong_cached_blocks() -> None:
    model = tiny.model()
    batch = requests(1)
    paged = backend(model)
    dict(paged.refine(batch))
    for pool in paged._engine.runner._cache.keys:
        pool[1:] = pool[1:].roll(1, 0)  # cached prefixes now hold another block's keys
    found, expected = dict(paged.refine(batch)), dict(ReferenceBackend(model).refine(batch))
    with pytest.raises(AssertionError):
        assert_same(found, expected)


def test_the_model_is_not_modified() -> None:
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    implementation = model.config._attn_implementation
    modules = [type(module) for module in model.modules()]
    dict(backend(model).refine(requests(2, 4)))
    assert model.config._attn_implementation == implementation
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_temperature_reaches_the_soft_token() -> None:
    model = tiny.model()
    hot = EmbeddingSpec(base_model="t", base_hash="0", tokenizer_hash="0", dimension=32, temperature=0.5)
    batch = requests(3, 4)
    expected = dict(ReferenceBackend(model, temperature=0.5).refine(batch))
    assert_same(dict(PagedBackend(model, hot).refine(batch)), expected)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("texts", [1, 2])
def test_sweeps_converge_to_the_exact_result(steps: int, texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_SWEEP_ROWS", 45)
    model = tiny.model(tied=False)
    paged = backend(model)
    forwards = count_rows(paged, monkeypatch)
    for seed in range(16, 20):
        batch = [Request(request.token_ids, steps) for request in requests(seed, texts)]
        forwards.clear()
        assert_same(refinements(dict(paged.refine(batch))), dict(ReferenceBackend(model).refine(batch)))
        assert len(forwards) <= 1 + steps
        if steps >= engine.MIN_SWEEP_STEPS:
            assert steps * texts in forwards, "nothing was swept"
    assert_idle(paged)


def test_sweeps_save_forwards_within_their_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(tied=False)
    paged = backend(model)
    forwards = count_rows(paged, monkeypatch)
    monkeypatch.setattr(sweeps, "TOLERANCE_FLOAT32", 0.001)
    batch = [Request(request.token_ids, 8) for request in requests(21, 8)]
    expected = refinements(dict(ReferenceBackend(model).refine(batch)))
    for index, request in enumerate(batch):
        ((_, found),) = paged.refine([request])
        assert isinstance(found, Refinement)
        assert found.steps == 8
        assert found.vector @ expected[index].vector > 0.9999
    assert len(forwards) < 8 * 9


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_float32_sweeps_stay_within_the_promised_tolerance(
    family: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert sweeps.TOLERANCE_FLOAT32 > 0
    model = tiny.model(family, tied=tied)
    paged = backend(model)
    batch = [Request(request.token_ids, 5) for request in requests(33, 12)]
    expected = refinements(dict(ReferenceBackend(model).refine(batch)))
    for index, request in enumerate(batch):
        ((_, found),) = paged.refine([request])
        assert isinstance(found, Refinement)
        assert found.vector @ expected[index].vector >= 0.99999
        assert np.abs(found.trajectory - expected[index].trajectory).max() <= 1e-3


def test_drafts_run_with_the_prompt_and_save_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "TOLERANCE_FLOAT32", 0.01)
    paged = backend(tiny.model(tied=False))
    forwards = count_rows(paged, monkeypatch)
    request = Request(requests(5, 1)[0].token_ids, 6)
    ((_, expected),) = ReferenceBackend(tiny.model(tied=False)).refine([request])
    assert isinstance(expected, Refinement)
    counts, first = [], []
    for _ in range(2):
        forwards.clear()
        ((_, found),) = paged.refine([request])
        assert isinstance(found, Refinement)
        assert found.vector @ expected.vector > 0.999
        counts.append(len(forwards))
        first.append(forwards[0])
    assert counts[1] < counts[0], "drafts from the same query must save forwards"
    assert first[1] > 6, "the first forward must hold the drafts"


def test_several_texts_at_once_do_not_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    paged = backend(tiny.model(tied=False))
    forwards = count_rows(paged, monkeypatch)
    batch = [Request(request.token_ids, 5) for request in requests(7, 3)]
    dict(paged.refine(batch))
    assert forwards[1:] == [3] * 5


def test_sweeping_stops_for_a_model_that_does_not_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sweeps, "TOLERANCE_FLOAT32", 0.0)
    paged = backend(tiny.model(tied=False))
    forwards = count_rows(paged, monkeypatch)
    by_query = []
    for request in requests(34, 12):
        forwards.clear()
        dict(paged.refine([Request(request.token_ids, 5)]))
        by_query.append(forwards[:])
    assert 5 in by_query[0], "the first query must be swept"
    assert by_query[-1][1:] == [1] * 5, "the last query must not be swept"


@pytest.mark.parametrize(("dtype", "swept"), [(torch.float32, False), (torch.bfloat16, True)])
def test_slowly_settling_sweeps_are_skipped_in_float32_only(
    dtype: torch.dtype, swept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    paged = backend(tiny.model(tied=False).to(dtype))
    monkeypatch.setattr(paged._engine, "_settled_per_sweep", 1.6)
    forwards = count_rows(paged, monkeypatch)
    dict(paged.refine([Request(requests(34, 1)[0].token_ids, 5)]))
    assert (max(forwards[1:]) > 1) == swept


def test_sweeps_beside_long_prompts_are_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    paged = backend(model, token_budget=32, max_running=4)
    batch = [Request(tuple(i % 400 for i in range(n)), 9) for n in (300, 2, 200, 3)]
    assert_same(refinements(dict(paged.refine(batch))), dict(ReferenceBackend(model).refine(batch)))
    assert_idle(paged)


def count_rows(paged: PagedBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of rows of each forward."""
    forwards: list[int] = []
    forward = paged._engine.runner.forward

    def counting(chunks: list[Chunk]) -> torch.Tensor:
        forwards.append(sum(chunk.num_rows for chunk in chunks))
        return forward(chunks)

    monkeypatch.setattr(paged._engine.runner, "forward", counting)
    return forwards


def test_soft_tokens_are_the_most_probable_of_each_step() -> None:
    model = tiny.model()
    batch = [*requests(4, 5, top_k=3), *requests(5, 5)]
    expected = refinements(dict(ReferenceBackend(model).refine(batch)))
    found = refinements(dict(backend(model).refine(batch)))
    for index in range(5):
        for ours, theirs in zip(found[index].soft_tokens or [], expected[index].soft_tokens or [], strict=True):
            assert [token for token, _ in ours] == [token for token, _ in theirs]
            assert np.allclose([w for _, w in ours], [w for _, w in theirs], atol=1e-5)
    assert all(found[index].soft_tokens is None for index in range(5, 10))


def test_only_settled_sequences_stop_early() -> None:
    model = tiny.model()
    batch = [Request(r.token_ids, 12, tolerance=0.02 if i % 2 else None) for i, r in enumerate(requests(6))]
    expected = dict(ReferenceBackend(model).refine(batch))
    found = refinements(dict(backend(model).refine(batch)))
    assert_same(found, expected)
    assert all(found[i].steps == 12 for i in range(0, len(batch), 2))
    assert min(found[i].steps for i in range(1, len(batch), 2)) < 12


def test_short_requests_overtake_long_ones() -> None:
    order = [index for index, _ in backend(tiny.model()).refine([Request((1, 2), 20), Request((3, 4), 1)])]
    assert order == [1, 0]


def test_an_endless_iterator_is_consumed_lazily() -> None:
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        for number in count():
            pulled += 1
            yield Request((number % 400, number // 400), 1)

    paged = backend(tiny.model(), rows=400, max_running=16)
    stream: Any = paged.refine(endless())
    assert pulled == 0
    seen = {next(stream)[0] for _ in range(100)}
    assert len(seen) == 100
    assert pulled <= 100 + 32
    stream.close()
    assert_idle(paged)


def test_an_abandoned_iterator_frees_its_blocks() -> None:
    paged = backend(tiny.model(), rows=400)
    kept = paged.refine(requests(7))
    next(kept)
    abandoned = paged.refine(requests(8))
    next(abandoned)
    del abandoned
    gc.collect()
    assert len(list(kept)) == 23
    assert_idle(paged)


def test_closing_before_the_first_result() -> None:
    paged = backend(tiny.model())
    stream: Any = paged.refine(requests(9))
    stream.close()
    assert_idle(paged)


def test_an_iterator_that_raises_frees_its_blocks() -> None:
    def broken() -> Iterator[Request]:
        for number in range(50):
            if number > 40:
                raise OSError("the file ended")
            yield Request((number % 400, 1, 2), 2)

    paged = backend(tiny.model(), max_running=16)
    with pytest.raises(OSError, match="the file ended"):
        list(paged.refine(broken()))
    assert_idle(paged)


def test_threads_share_the_engine() -> None:
    model = tiny.model()
    paged = backend(model, rows=2000)
    batches = {seed: requests(seed, 6) for seed in range(32)}
    expected = {seed: dict(ReferenceBackend(model).refine(batches[seed])) for seed in batches}
    found: dict[int, dict[int, Any]] = {}
    start = threading.Barrier(32)

    def work(seed: int) -> None:
        start.wait()
        found[seed] = dict(paged.refine(batches[seed]))

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found.keys() == expected.keys()
    for seed in batches:
        assert_same(found[seed], expected[seed])
    assert_idle(paged)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 1), "at least one token"),
        (Request(tuple(range(50)), 20), "do not fit the KV cache of 64 rows"),
        (Request((1,), 1024), "do not fit the model's window of 1024"),
    ],
)
def test_an_impossible_request_fails_alone(request_: Request, message: str) -> None:
    model = tiny.model()
    good = [Request((1, 2, 3), 2), Request((4,), 3)]
    found = dict(backend(model, rows=64).refine([good[0], request_, good[1]]))
    assert isinstance(found[1], InputError)
    assert message in str(found[1])
    expected = dict(ReferenceBackend(model).refine(good))
    assert_same({0: found[0], 1: found[2]}, expected)


def test_a_cache_that_fits_no_text_fails_each_text() -> None:
    found = dict(backend(tiny.model(), rows=0).refine([Request((1, 2), 1), Request((3,), 1)]))
    assert all(isinstance(outcome, InputError) for outcome in found.values())


def poison(monkeypatch: pytest.MonkeyPatch, token: int) -> None:
    """Make one token's embedding NaN."""
    lookup = torch.nn.functional.embedding

    def poisoned(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return lookup(ids, *args, **kwargs).masked_fill((ids == token)[..., None], float("nan"))

    monkeypatch.setattr(torch.nn.functional, "embedding", poisoned)


@pytest.mark.parametrize("rows", [None, 150])
def test_a_nan_fails_its_text_alone_and_leaves_nothing_behind(
    rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 399)
    model = tiny.model()
    body = [Request(tuple(i % 390 for i in r.token_ids), r.steps) for r in requests(10)]
    batch = list(body)
    bad = [3, 8, 20]
    for index in bad:
        batch[index] = Request((*batch[index].token_ids, 399, 5), batch[index].steps)
    paged = backend(model, rows=rows)
    for _ in range(2):
        found = dict(paged.refine(batch))
        assert sorted(i for i, outcome in found.items() if isinstance(outcome, GircseError)) == bad
        assert "NaN" in str(found[3])
    expected = dict(ReferenceBackend(model).refine([r for i, r in enumerate(batch) if i not in bad]))
    rest = [found[i] for i in range(len(batch)) if i not in bad]
    assert_same(dict(enumerate(rest)), expected)
    assert_idle(paged)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=needs_float16_products)]
)
def test_a_nan_does_not_reach_the_rows_before_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that share only the prefix before the NaN succeed; texts that share the NaN fail."""
    poison(monkeypatch, 399)
    start = tuple(range(41))
    batch = [Request((*start, 399, *range(9)), 4), Request(start, 3), Request((*start, 7), 4), Request((5, 6), 2)]
    batch += [Request((*start, 399, *range(9), 8), 1)]
    paged = PagedBackend(tiny.model().to(dtype), SPEC)
    found = dict(paged.refine(batch))
    assert paged._blocks.num_hits > 0
    assert [i for i in range(len(batch)) if isinstance(found[i], GircseError)] == [0, 4]
    if dtype == torch.float32:
        expected = dict(ReferenceBackend(tiny.model()).refine(batch[1:4]))
        assert_same({i: found[i + 1] for i in range(3)}, expected)
    assert_idle(paged)


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    token_budget=st.integers(2, 60),
    running=st.integers(1, 9),
    size=st.sampled_from([1, 4, 16]),
    rows=st.integers(128, 300),
    bfloat16=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_nan_fails_only_its_texts_under_any_schedule(
    seed: int, token_budget: int, running: int, size: int, rows: int, bfloat16: bool
) -> None:
    rng = random.Random(seed)
    batch = [Request(tuple(i % 399 for i in r.token_ids), rng.choice([1, 12])) for r in requests(seed, 8)] * 2
    bad = sorted(rng.sample(range(len(batch)), 4))
    for index in bad:  # the NaN goes inside a text whose prefix others share
        ids = list(batch[index].token_ids)
        ids.insert(rng.randint(0, len(ids)), 399)
        batch[index] = Request(tuple(ids), batch[index].steps)
    model = tiny.model().bfloat16() if bfloat16 else tiny.model()
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 399)
        paged = backend(
            model, rows=rows, block_size=size, token_budget=max(token_budget, running + 1), max_running=running
        )
        for _ in range(2):  # the second pass reuses blocks that held NaN
            found = dict(paged.refine(batch))
            assert sorted(i for i, outcome in found.items() if isinstance(outcome, GircseError)) == bad
    if not bfloat16:
        good = [i for i in range(len(batch)) if i not in bad]
        expected = dict(ReferenceBackend(model).refine([batch[i] for i in good]))
        assert_same({n: found[i] for n, i in enumerate(good)}, expected)
    assert_idle(paged)


def test_a_failing_forward_fails_its_texts_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    paged = backend(model)
    batch = requests(11, 6)
    layer = paged._engine.runner.decoder.layers[0]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory")))
        found = dict(paged.refine(batch))
    assert all("out of memory" in str(outcome) for outcome in found.values())
    assert len(found) == 6
    assert_same(dict(paged.refine(batch)), dict(ReferenceBackend(model).refine(batch)))
    assert_idle(paged)


def test_an_interrupt_reaches_the_caller_and_leaves_a_usable_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    paged = backend(model)
    batch = requests(12, 6)
    layer = paged._engine.runner.decoder.layers[0]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(paged.refine(batch))
    assert_same(dict(paged.refine(batch)), dict(ReferenceBackend(model).refine(batch)))


def test_an_interrupt_of_one_thread_fails_the_texts_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = backend(tiny.model())
    other = paged.refine([*requests(13, 3), Request((1, 2), 200)])
    for _ in range(3):
        next(other)  # the long request is still running
    with monkeypatch.context() as patch:
        patch.setattr(paged._engine.runner, "forward", lambda chunks: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(paged.refine(requests(14, 2)))
    ((index, outcome),) = other
    assert index == 3
    assert isinstance(outcome, GircseError)


def test_a_closed_backend_raises() -> None:
    paged = backend(tiny.model())
    stream = paged.refine(requests(13))
    next(stream)
    paged.close()
    paged.close()
    with pytest.raises(GircseError, match="closed"):
        list(stream)
    with pytest.raises(GircseError, match="closed"):
        list(paged.refine([]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sliding_window", 64, "sliding window of 64"),
        ("attn_logit_softcapping", 50.0, "attn_logit_softcapping"),
        ("hidden_act", "gelu", "not gelu"),
    ],
)
def test_unsupported_model_configs_are_refused(name: str, value: object, message: str) -> None:
    model = tiny.model("mistral")
    setattr(model.config, name, value)
    with pytest.raises(CheckpointError, match=message):
        backend(model)


def test_other_families_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(type(model.config), "model_type", "gemma2")
    with pytest.raises(CheckpointError, match="this is gemma2"):
        backend(model)


def test_a_sliding_window_longer_than_any_sequence_is_fine() -> None:
    model = tiny.model("mistral")
    model.config.sliding_window = 1024
    batch = requests(14, 4)
    assert_same(dict(backend(model).refine(batch)), dict(ReferenceBackend(model).refine(batch)))


def test_bfloat16_stays_near_the_float32_reference() -> None:
    model = tiny.model()
    batch = requests(15)
    expected = refinements(dict(ReferenceBackend(model).refine(batch)))
    yardstick = refinements(dict(ReferenceBackend(tiny.model().bfloat16()).refine(batch)))
    found = refinements(dict(PagedBackend(tiny.model().bfloat16(), SPEC).refine(batch)))
    ours, theirs = (
        np.mean([1 - outcomes[i].vector @ expected[i].vector for i in expected]) for outcomes in (found, yardstick)
    )
    assert ours <= 3 * theirs
