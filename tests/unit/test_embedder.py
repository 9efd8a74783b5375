from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gircse_rag import Embedder, GircseWarning
from gircse_rag.backend import Backend
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.errors import GircseError, InputError, SpecMismatchError
from gircse_rag.spec import MAX_STEPS
from tests import tiny


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether vectors are equal up to rounding: batching changes the order of float32 sums."""
    return bool(np.allclose(a, b, rtol=0, atol=1e-6))


TEXTS = ["it's the way", "of the world", "it's the way", '"quoted"']


def test_vectors_are_unit_float32_rows_in_order(tiny_embedder: Embedder) -> None:
    vectors = tiny_embedder.embed_documents(TEXTS)
    assert vectors.shape == (4, tiny_embedder.dimension) == (4, 32)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert same(vectors[0], vectors[2])
    for text, row in zip(TEXTS, vectors, strict=True):
        assert same(tiny_embedder.embed_documents([text])[0], row)


def test_no_texts_give_no_vectors(tiny_embedder: Embedder) -> None:
    for vectors in (tiny_embedder.embed_documents([]), tiny_embedder.embed_queries([])):
        assert vectors.shape == (0, 32) and vectors.dtype == np.float32
    result = tiny_embedder.embed([], trajectory=True, soft_tokens=2)
    assert result.trajectory is not None and result.trajectory.shape == (0, 0, 32)
    assert (result.soft_tokens, result.errors, result.steps.shape) == ([], {}, (0,))


def test_roles_and_instructions_reach_the_model(tiny_embedder: Embedder) -> None:
    document = tiny_embedder.embed_documents(["text"])
    default = tiny_embedder.embed_queries(["text"])
    instructed = tiny_embedder.embed_queries(["text"], instruction="find texts")
    symmetric = tiny_embedder.embed(["text"], role="symmetric", instruction="find texts").vectors
    bare = tiny_embedder.embed(["Instruct: find texts\nQuery:text"], role="document").vectors
    for other in (default, instructed):
        assert np.abs(document - other).max() > 1e-3
    assert np.abs(default - instructed).max() > 1e-3
    assert same(instructed, symmetric)
    assert same(instructed, bare)


def test_the_result_reports_steps_truncation_and_soft_tokens(tiny_embedder: Embedder) -> None:
    with (
        pytest.warns(GircseWarning, match=r"documents take 2, 4 refinement steps"),
        pytest.warns(GircseWarning, match=r"1 of 2 texts is longer than 512 tokens.*positions 1"),
    ):
        result = tiny_embedder.embed(["short", "way " * 1000], "document", steps=[2, 4], trajectory=True, soft_tokens=3)
    assert result.steps.tolist() == [2, 4]
    assert result.truncated.tolist() == [False, True]
    assert result.prompt_tokens.tolist() == [len(tiny.tokenizer()("short")["input_ids"]), 512]
    assert result.trajectory is not None
    assert result.trajectory.shape == (2, 4, 32)
    assert same(result.trajectory[0, 1], result.trajectory[0, 3])
    assert same(result.trajectory[:, -1], result.vectors)
    assert not same(result.trajectory[1, 2], result.trajectory[1, 3])
    assert result.soft_tokens is not None
    assert [len(steps) for steps in result.soft_tokens] == [2, 4]
    assert all(isinstance(token, str) and 0 <= weight <= 1 for token, weight in result.soft_tokens[0][0])
    assert result.errors == {}


def test_optional_results_are_none_by_default(tiny_embedder: Embedder) -> None:
    result = tiny_embedder.embed(["text"])
    assert result.trajectory is None
    assert result.soft_tokens is None


def test_equal_texts_are_computed_once(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    refine = tiny_embedder.backend.refine

    def counting(requests):
        requests = list(requests)
        seen.extend(requests)
        return refine(requests)

    monkeypatch.setattr(tiny_embedder.backend, "refine", counting)
    result = tiny_embedder.embed(TEXTS * 10)
    assert len(seen) == 3
    assert len(result.vectors) == 40
    with pytest.warns(GircseWarning, match="take 1, 2 refinement steps"):
        tiny_embedder.embed(["a", "a"], steps=[1, 2])
    assert len(seen) == 5


def test_steps(tiny_embedder: Embedder) -> None:
    with pytest.warns(GircseWarning, match="queries take 20 refinement steps, the spec's documents 5"):
        long = tiny_embedder.embed(["text"], steps=20, trajectory=True)
    default = tiny_embedder.embed(["text"])
    assert default.steps.tolist() == [5]
    assert long.trajectory is not None
    assert same(long.trajectory[0, 4], default.vectors[0])
    with pytest.warns(GircseWarning, match="queries take auto refinement steps"):
        auto = tiny_embedder.embed(["text"], steps="auto", tolerance=0.5)
    assert 2 <= auto.steps[0] < 20
    assert same(auto.vectors[0], long.trajectory[0, auto.steps[0] - 1])


def test_numpy_steps_and_paths_are_accepted(tiny_folder: Path) -> None:
    embedder = Embedder.from_pretrained(tiny_folder, device="cpu")
    assert embedder.embed(["a", "b"], steps=np.array([5, 5])).steps.tolist() == [5, 5]  # type: ignore[arg-type]
    assert embedder.embed(["a"], steps=np.int64(5)).steps.tolist() == [5]  # type: ignore[arg-type]


def test_document_steps_are_part_of_the_fingerprint(tiny_folder: Path, tiny_embedder: Embedder) -> None:
    deep = Embedder.from_pretrained(str(tiny_folder), dtype="float32", device="cpu", steps=7)
    assert deep.spec.document_steps == 7
    assert deep.fingerprint != tiny_embedder.fingerprint
    assert deep.embed(["text"], "document").steps.tolist() == [7]


@pytest.mark.parametrize("options", [{"backend": "paged"}, {"backend": "reference"}, {"lazy": True}])
def test_shortened_vectors_are_the_leading_components(tiny_folder: Path, options: dict[str, Any]) -> None:
    load = partial(Embedder.from_pretrained, str(tiny_folder), dtype="float32", device="cpu", **options)
    whole, short = load(), load(dimensions=8)
    texts = ["one text", "another"]
    for role in ("query", "document"):
        result = short.embed(texts, role, trajectory=True, steps=[5, 5])
        expected = whole.embed(texts, role, trajectory=True, steps=[5, 5])
        assert expected.trajectory is not None and result.trajectory is not None
        for found, full in ((result.vectors, expected.vectors), (result.trajectory, expected.trajectory)):
            leading = full[..., :8] / np.linalg.norm(full[..., :8], axis=-1, keepdims=True)
            np.testing.assert_allclose(found, leading, atol=1e-6)
    assert short.dimension == 8 and short.embed_queries([]).shape == (0, 8)
    with pytest.raises(SpecMismatchError, match="dimension: this embedder 8, the collection 32"):
        short.spec.check_matches(whole.spec)


@pytest.mark.parametrize("bad", ["", "  ", None, 3, "\ud800", "a\x00"])
def test_a_bad_text_is_reported_before_anything_is_computed(tiny_embedder: Embedder, bad: Any) -> None:
    with pytest.raises(InputError, match="text 1") as caught:
        tiny_embedder.embed_queries(["fine", bad, "fine too"])
    assert caught.value.index == 1


def test_an_error_keeps_its_cause(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = GircseError("the forward failed")
    failed.__cause__ = MemoryError("no room")
    monkeypatch.setattr(tiny_embedder.backend, "refine", lambda requests: iter([(0, failed)]))
    with pytest.raises(GircseError, match="text 0: the forward failed") as caught:
        tiny_embedder.embed(["text"])
    assert caught.value.__cause__ is failed


def test_one_bad_text_does_not_spoil_its_batch(tiny_embedder: Embedder) -> None:
    result = tiny_embedder.embed(["fine", "", "fine too"], trajectory=True, soft_tokens=2, on_error="return")
    assert list(result.errors) == [1]
    assert result.errors[1].index == 1
    assert np.isnan(result.vectors[1]).all()
    assert result.steps.tolist() == [5, 0, 5]
    assert same(result.vectors[[0, 2]], tiny_embedder.embed_queries(["fine", "fine too"]))
    only_bad = tiny_embedder.embed([""], trajectory=True, on_error="return")
    assert only_bad.vectors.shape == (1, 32)


def test_a_backend_failure_is_reported_per_text(tiny_embedder: Embedder) -> None:
    broken = tiny_embedder.tokenizer("fine", add_special_tokens=False)["input_ids"][-1]
    model = tiny.model()
    model.get_input_embeddings().weight[broken] = float("nan")
    spec = tiny_embedder.spec
    backends: dict[str, Callable[[], Backend]] = {
        "PagedBackend": lambda: PagedBackend(model, spec),
        "ReferenceBackend": lambda: ReferenceBackend(model),
    }
    failing = Embedder(backends[type(tiny_embedder.backend).__name__](), tiny_embedder.tokenizer, spec)
    failed = failing.embed(["fine"], on_error="return")
    assert "NaN" in str(failed.errors[0])
    assert np.isnan(failed.vectors).all()
    with pytest.raises(GircseError, match=r"text 0.*NaN"):
        failing.embed(["fine"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "text"}, "single string"),
        ({"texts": 7}, "sequence of strings"),
        ({"texts": ["a"], "role": "passage"}, "query, document, symmetric"),
        ({"texts": ["a"], "role": "document", "instruction": "find"}, "a document takes no instruction"),
        ({"texts": ["a"], "instruction": " "}, "instruction is empty"),
        ({"texts": ["a"], "instruction": 3}, "must be a string"),
        ({"texts": ["a"], "instruction": "a\x00"}, "the instruction holds the control character"),
        ({"texts": ["a"], "instruction": "way " * 3000}, "no room"),
        ({"texts": ["a"], "steps": 0}, f"from 1 to {MAX_STEPS}"),
        ({"texts": ["a"], "steps": -1}, f"from 1 to {MAX_STEPS}"),
        ({"texts": ["a"], "steps": 10_000}, f"from 1 to {MAX_STEPS}"),
        ({"texts": ["a"], "steps": [1, 2]}, "2 entries for 1 text"),
        ({"texts": ["a"], "steps": [[1]]}, f"from 1 to {MAX_STEPS}"),
        ({"texts": ["a"], "steps": "many"}, "or 'auto'"),
        ({"texts": ["a"], "steps": "auto", "tolerance": -1}, "cosine distance"),
        ({"texts": ["a"], "soft_tokens": -1}, "soft_tokens"),
        ({"texts": ["a"], "on_error": "ignore"}, "on_error"),
    ],
)
def test_invalid_embed_arguments_are_refused(tiny_embedder: Embedder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_embedder.embed(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "magic"}, "one of paged, reference"),
        ({"dtype": "int4"}, "float32, bfloat16, float16"),
        ({"device": "abacus"}, "not usable here"),
        ({"steps": 0}, "from 1 to"),
        ({"dimensions": 0}, "dimensions must be an integer from 1 to 32"),
        ({"dimensions": 33}, "dimensions must be an integer from 1 to 32"),
        ({"dimensions": 8.0}, "dimensions must be an integer from 1 to 32"),
        ({"name": ""}, "a bundled name"),
    ],
)
def test_invalid_loading_arguments_are_refused(tiny_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Embedder.from_pretrained(**{"name": str(tiny_folder), **arguments})


def test_many_threads_get_the_same_vectors(tiny_embedder: Embedder) -> None:
    expected = tiny_embedder.embed_queries(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: tiny_embedder.embed_queries(TEXTS), range(16)):
            assert same(found, expected)


def test_a_closed_embedder_raises(tiny_folder: Path) -> None:
    with Embedder.from_pretrained(str(tiny_folder), device="cpu") as embedder:
        embedder.embed_queries(["text"])
    with pytest.raises(GircseError, match="closed"):
        embedder.embed_queries(["text"])


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy, copy.copy])
def test_pickling_and_copying_say_what_to_do(tiny_embedder: Embedder, duplicate: Callable[[object], object]) -> None:
    for held in (tiny_embedder, {"embedder": tiny_embedder}):
        if isinstance(held, Embedder) or duplicate is not copy.copy:  # a shallow copy of a dict shares its values
            with pytest.raises(GircseError, match=r"cannot be pickled or copied.*Embedder.from_pretrained"):
                duplicate(held)
    assert len(tiny_embedder.embed_documents(["still usable"])) == 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_loads_embeds_and_explains_with_an_adapter(tmp_path: Path, family: str) -> None:
    base = tiny.folder(tmp_path / "base", family)
    adapter = tiny.adapter(tmp_path / "adapter", base, family=family)
    plain = Embedder.from_pretrained(str(base), dtype="float32", device="cpu")
    adapted = Embedder.from_pretrained(str(adapter), dtype="float32", device="cpu")
    result = adapted.embed(["text"], soft_tokens=8)
    assert result.soft_tokens is not None
    assert [len(step) for step in result.soft_tokens[0]] == [8] * 5
    assert np.abs(result.vectors - plain.embed_queries(["text"])).max() > 1e-3
