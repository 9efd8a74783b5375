from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from gircse_rag.errors import GircseWarning, InputError, SpecMismatchError
from gircse_rag.spec import MAX_STEPS, EmbeddingSpec, check_steps

SPEC = EmbeddingSpec(base_model="m", base_hash="b" * 64, tokenizer_hash="t" * 64, dimension=32)

OTHER_SPACE: dict[str, Any] = {
    "base_hash": "c" * 64,
    "tokenizer_hash": "c" * 64,
    "adapter_hash": "c" * 64,
    "dimension": 64,
    "rotation_hash": "c" * 64,
    "temperature": 0.5,
    "query_template": "{instruction}: {text}",
    "document_template": "passage: {text}",
    "suffix": "<|end|>",
    "max_length": 256,
    "document_steps": 6,
    "pooling": "mean_with_prompt",
}
SAME_SPACE: dict[str, Any] = {
    "base_model": "elsewhere/m",
    "adapter": "a",
    "default_instruction": "Find it",
    "dtype": "bfloat16",
    "base_revision": "c" * 40,
    "adapter_revision": "d" * 40,
}
ONLY_VALUE = {"normalize"}


def test_every_spec_field_is_covered_here() -> None:
    assert set(OTHER_SPACE) | set(SAME_SPACE) | ONLY_VALUE == {field.name for field in fields(EmbeddingSpec)}


@pytest.mark.parametrize("name", OTHER_SPACE)
def test_fields_that_define_the_space_change_the_fingerprint(name: str) -> None:
    other = replace(SPEC, **{name: OTHER_SPACE[name]})
    assert other.fingerprint != SPEC.fingerprint
    with pytest.raises(SpecMismatchError) as caught:
        SPEC.check_matches(other, ours="mine", theirs="yours")
    message = str(caught.value)
    assert f"  {name}: mine {getattr(SPEC, name)!r}, yours {getattr(other, name)!r}" in message
    assert SPEC.fingerprint[:12] in message
    assert other.fingerprint[:12] in message


@pytest.mark.parametrize("name", SAME_SPACE)
def test_provenance_instruction_and_dtype_keep_the_fingerprint(name: str) -> None:
    assert replace(SPEC, **{name: SAME_SPACE[name]}).fingerprint == SPEC.fingerprint


def test_a_different_dtype_warns() -> None:
    with pytest.warns(GircseWarning, match=r"float32.*bfloat16"):
        SPEC.check_matches(replace(SPEC, dtype="bfloat16"))


def test_json_round_trip() -> None:
    assert EmbeddingSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_the_fingerprint_is_stable() -> None:
    assert SPEC.fingerprint == "ce77bf0d498058d0caa994e235b6506b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "last"}, "pooling 'last' is unknown to this version.*upgrade gircse-rag"),
        ({"normalize": False}, "normalize must be True"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("inf")}, "finite"),
        ({"temperature": "hot"}, "temperature must be float"),
        ({"max_length": 512.0}, "max_length must be int"),
        ({"suffix": None}, "suffix must be str"),
        ({"document_steps": True}, "document_steps must be int"),
        ({"max_length": 0}, "at least 1"),
        ({"document_steps": 0}, "from 1 to"),
        ({"query_template": "{text}"}, "no {instruction}"),
        ({"query_template": "{instruction} {text} end"}, "must end in"),
        ({"document_template": "{text} {text}"}, "must end in"),
    ],
)
def test_invalid_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SPEC, **change)


def test_equal_numbers_of_different_types_give_one_fingerprint() -> None:
    assert replace(SPEC, temperature=1).fingerprint == SPEC.fingerprint


def test_a_spec_that_names_no_pooling_is_gircses() -> None:
    values = SPEC.to_dict()
    del values["pooling"]
    assert EmbeddingSpec.from_dict(values).fingerprint == SPEC.fingerprint


def test_the_number_of_soft_tokens_follows_from_the_pooling() -> None:
    assert SPEC.num_soft_tokens(3) == 3
    assert replace(SPEC, pooling="mean_with_prompt").num_soft_tokens(1) == 0


def test_unknown_and_missing_fields_are_refused() -> None:
    with pytest.raises(InputError, match=r"\['colour'\]"):
        EmbeddingSpec.from_dict({**SPEC.to_dict(), "colour": "red"})
    with pytest.raises(InputError, match="dimension"):
        EmbeddingSpec.from_dict({"base_model": "m", "base_hash": "b", "tokenizer_hash": "t"})


@pytest.mark.parametrize("steps", [0, -1, 10_000, MAX_STEPS + 1, 2.5, "5", True, None])
def test_invalid_steps_are_refused(steps: Any) -> None:
    with pytest.raises(InputError, match=f"from 1 to {MAX_STEPS}"):
        check_steps(steps)
