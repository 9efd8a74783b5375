from __future__ import annotations

import csv
import datetime
import json
import tracemalloc
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.documents.readers.rows import json_fields, json_value
from gircse_rag.documents.readers.source import MAX_BYTES
from gircse_rag.errors import InputError
from gircse_rag.qdrant import Document, read_documents
from tests.unit.documents.readers import read, reason

pd = pytest.importorskip("pandas")


def test_rows_are_streamed(tmp_path: Path) -> None:
    rows = [{"id": number, "text": "word " * 2000} for number in range(2000)]
    with (tmp_path / "a.jsonl").open("w") as lines, (tmp_path / "b.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["id", "text"])
        writer.writeheader()
        for row in rows:
            lines.write(json.dumps(row) + "\n")
            writer.writerow(row)
    for name in ("a.jsonl", "b.csv"):
        path = tmp_path / name
        assert path.stat().st_size > 20_000_000
        found = 0
        tracemalloc.start()
        for document in read_documents(path):
            assert isinstance(document, Document)
            found += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found == 2000 and peak < 2_000_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_overlong_line_is_reported_and_never_held_in_memory(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(b'{"text": "first"}\n' if name == "a.jsonl" else b"text\nfirst\n")
        file.write(b" " * 8192)
        file.truncate(200_000_000)
        file.seek(0, 2)
        file.write(b'\n{"text": "third"}\n')
    tracemalloc.start()
    documents, (skipped,) = read(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES
    assert documents[0].text == "first"
    if name == "a.jsonl":
        assert documents[1] == Document("a.jsonl:3", "third")
        assert skipped.line == 2 and "too large" in skipped.reason
    else:
        assert len(documents) == 1 and "line 3 is longer than 8 MiB" in skipped.reason


def test_fields_of_jsonl_can_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "b", "key": 3, "id": 1, "text": "t"}\n{"body": "c"}\n')
    (document,), (skipped,) = read(tmp_path / "a.jsonl", text_field="body", id_field="key")
    assert document == Document("a.jsonl#3", "b", {"id": 1, "text": "t"})
    assert skipped.line == 2 and "the id field 'key' is missing" in skipped.reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime.time(1, 2), "01:02:00"),
        (Decimal("0.1"), 0.1),
        (Decimal("12345678901234567.5"), "12345678901234567.5"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("a/b"), "a/b"),
        (np.float32(0.5), 0.5),
        (np.array([1, 2]), [1, 2]),
        ((1, [True, None]), [1, [True, None]]),
        (float("nan"), None),
        (Decimal("NaN"), None),
        (Decimal(7), 7),
        (Decimal("7.00"), 7.0),
        (Decimal(10**30), str(10**30)),
        (Decimal("1E+400"), "1E+400"),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (np.uint64(2**64 - 1), str(2**64 - 1)),
        (pd.NaT, None),
        (pd.NA, None),
        (pd.Timestamp("2020-01-02T03:04:05"), "2020-01-02T03:04:05"),
        (np.datetime64("NaT"), None),
        (np.timedelta64("NaT"), None),
        (np.datetime64("2020-01-02"), "2020-01-02"),
        (np.datetime64("2020-01-02T03:04:05", "ns"), "2020-01-02T03:04:05"),
        (np.datetime64("2020-01-02T03:04:05.000000001", "ns"), "2020-01-02T03:04:05.000000001"),
        (np.datetime64("20200-01-02", "s"), "20200-01-02T00:00:00"),
        (np.array(["2020-01-02", "NaT"], "M8[ns]"), ["2020-01-02T00:00:00", None]),
        (np.array("2020-01-02", "M8[ns]"), "2020-01-02T00:00:00"),
        (np.array([pd.NA, pd.NaT], object), [None, None]),
    ],
)
def test_values_with_an_obvious_json_form_are_converted(value: object, expected: object) -> None:
    got = json_value(value)
    assert got == expected and type(got) is type(expected)
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        datetime.timedelta(1),
        np.timedelta64(1, "ns"),
        np.array([1], "m8[ns]"),
        np.longdouble(1),
        float("inf"),
        Decimal("sNaN"),
        object(),
        {1: 2},
        {"a": {2}},
        [b"x"],
    ],
)
def test_values_without_a_json_form_raise(value: object) -> None:
    with pytest.raises(InputError):
        json_value(value)


def test_values_that_contain_themselves_raise() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InputError, match="nested more than 64"):
        json_value(value)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_no_decimal_is_rounded(value: Decimal) -> None:
    assert Decimal(str(json_value(value))) == value


def test_an_integer_too_long_to_print_is_an_error_of_its_field() -> None:
    with pytest.raises(InputError, match="the field 'n' cannot be metadata"):
        json_fields({"n": 10**5000})


def test_a_blank_id_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "", "text": "a"}\n{"id": " ", "text": "b"}\n')
    (tmp_path / "b.csv").write_text("id,text\n,a\n ,b\n")
    assert [d.id for d in read(tmp_path)[0]] == ["a.jsonl:1", "a.jsonl:2", "b.csv:1", "b.csv:2"]
    assert ["id field 'id' is missing" in s.reason for s in read(tmp_path, id_field="id")[1]] == [True] * 4


def test_a_field_that_is_also_in_metadata_must_have_the_same_value(tmp_path: Path) -> None:
    line = '{"text": "a", "lang": "en", "metadata": {"lang": "%s"}}\n'
    (tmp_path / "a.jsonl").write_text(line % "en" + line % "de")
    (document,), (skipped,) = read(tmp_path / "a.jsonl")
    assert document.metadata == {"lang": "en"}
    assert skipped.line == 2 and "the field 'lang' is also in 'metadata'" in skipped.reason


@pytest.mark.parametrize("line", ['{"text": "right", "text": "wrong"}', '{"text": "a", "n": [{"k": 1, "k": 1}]}'])
def test_a_name_that_occurs_twice_in_a_json_object_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    assert "occurs twice in one object" in reason(tmp_path / "a.jsonl")


@pytest.mark.slow
def test_an_object_of_very_many_names_is_checked_in_linear_time(tmp_path: Path) -> None:
    """Quadratic time would take an hour."""
    fields = ",".join(f'"c{number}":1' for number in range(500_000))
    (tmp_path / "a.jsonl").write_text(f'{{{fields},"c499999":2}}')
    assert "the field 'c499999' occurs twice in one object" in reason(tmp_path / "a.jsonl")
