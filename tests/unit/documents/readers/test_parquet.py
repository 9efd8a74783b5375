from __future__ import annotations

import datetime
import subprocess
import sys
import textwrap
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gircse_rag.qdrant import Document, SkippedFile, read_documents
from tests.unit.documents.readers import read, reason

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def _parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_a_parquet_gives_one_document_per_row_with_json_values(tmp_path: Path) -> None:
    columns = {
        "text": ["one", "two"],
        "id": [5, None],
        "day": [datetime.date(2026, 1, 2), None],
        "at": [datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)] * 2,
        "price": [Decimal("12.34"), Decimal("1.00")],
        "tags": [["a", "b"], []],
        "metadata": [{"lang": "en"}, {"lang": "de"}],
        "score": [float("nan"), 0.5],
    }
    assert read(_parquet(tmp_path / "a.parquet", columns))[0] == [
        Document(
            "a.parquet#5",
            "one",
            {"day": "2026-01-02", "at": "2026-01-02T03:04:05+00:00", "price": 12.34, "tags": ["a", "b"], "score": None}
            | {"lang": "en"},
        ),
        Document(
            "a.parquet:2",
            "two",
            {"day": None, "at": "2026-01-02T03:04:05+00:00", "price": 1.0, "tags": [], "score": 0.5, "lang": "de"},
        ),
    ]


def test_nested_strings_are_read_as_they_are(tmp_path: Path) -> None:
    """Strings inside lists and maps are decoded as dictionaries; equal ones, none and slices must not matter."""
    tags = [["a", "b", None, "a"], [], None, ["b"]] * 20
    people = [[{"name": "x", "tags": ["t", "t"]}], [{"name": None, "tags": None}], None, []] * 20
    maps = [[("k", "v"), ("l", None)], [], None, [("k", "w")]] * 20
    columns = {
        "text": [f"text {n}" for n in range(80)],
        "tags": tags,
        "people": people,
        "map": pa.array(maps, pa.map_(pa.string(), pa.string())),
    }
    documents, skipped = read(_parquet(tmp_path / "a.parquet", columns, row_group_size=30))
    assert skipped == []
    assert [dict(each.metadata) for each in documents] == [
        {"tags": tags[n], "people": people[n], "map": None if maps[n] is None else dict(maps[n] or [])}
        for n in range(80)
    ]


def test_a_row_with_a_value_that_json_cannot_hold_is_skipped(tmp_path: Path) -> None:
    columns = {
        "text": ["bytes", "good", "endless", None],
        "raw": [b"x", None, None, None],
        "number": [1.0, 2.0, float("inf"), 4.0],
    }
    documents, skipped = read(_parquet(tmp_path / "a.parquet", columns))
    assert documents == [Document("a.parquet:2", "good", {"raw": None, "number": 2.0})]
    assert [s.reason.removesuffix("; remove it or make it text") for s in skipped] == [
        "row 1: the field 'raw' cannot be metadata: JSON has no type for bytes",
        "row 3: the field 'number' cannot be metadata: JSON has no type for float (inf)",
        "row 4: the field 'text' is missing, empty or not a string",
    ]


def test_an_invalid_or_empty_parquet_or_one_without_text_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    assert "not readable as Parquet" in reason(tmp_path / "a.parquet")
    assert "no column 'text'" in reason(_parquet(tmp_path / "b.parquet", {"body": ["a"]}))
    assert reason(_parquet(tmp_path / "c.parquet", {"text": pa.array([], pa.string())})) == "empty"


def test_a_damaged_parquet_gives_the_rows_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _parquet(path, {"text": [f"row {n}" for n in range(100)]}, row_group_size=50, compression="zstd")
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    documents, (skipped,) = read(path)
    assert len(documents) == 50 and skipped.reason.startswith("damaged after row 50")


FOOTERS = """
    import sys
    from pathlib import Path
    from tests.unit.documents.readers import read

    path = Path(sys.argv[1])
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    skipped = 0
    for at in range(footer, footer + 60):
        for flip in (0x01, 0x10, 0xFF):
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            skipped += len(read(path)[1])
    print(skipped)
"""


@pytest.mark.slow
def test_a_damaged_parquet_footer_does_not_end_the_process(tmp_path: Path) -> None:
    """Runs in a child process, because pyarrow can abort its process on a damaged footer."""
    path = _parquet(tmp_path / "a.parquet", {"text": ["one", "two"], "n": [1, 2], "other": ["x", "y"]})
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FOOTERS), str(path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0 and int(child.stdout) > 50, child.stderr[-500:]


def test_a_parquet_that_declares_too_large_an_unpacked_size_is_refused(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"text": ["a" * 30_000_000, "b"]}, compression="zstd")
    assert path.stat().st_size < 10_000
    assert "30,0" in reason(path) and "8 MiB" in reason(path)


def test_a_parquet_of_one_row_group_is_decoded_a_few_rows_at_a_time(tmp_path: Path) -> None:
    text = ["".join(np.random.default_rng(n).choice(list("abcdefgh "), 2000)) for n in range(10)]
    path = _parquet(tmp_path / "a.parquet", {"text": [f"{n} {text[n % 10]}" for n in range(20_000)]})
    assert path.stat().st_size > 1_000_000
    before = pa.total_allocated_bytes()
    most = 0
    for _ in read_documents(path):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10_000_000 < 20_000 * 2000


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    arrays = [pa.array(["right"]), pa.array(["wrong"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["text", "text"]), tmp_path / "a.parquet")
    assert "two columns have the name 'text'" in reason(tmp_path / "a.parquet")
    inner = pa.StructArray.from_arrays(arrays, names=["k", "k"])
    assert "the field 'n' cannot be read" in reason(_parquet(tmp_path / "b.parquet", {"text": ["x"], "n": inner}))


@pytest.mark.parametrize(
    ("ids", "type_"),
    [([7.0, None], pa.float64()), ([Decimal(7), None], pa.decimal128(38, 0)), ([7, None], pa.uint64())],
)
def test_an_integer_id_may_be_stored_as_a_float_or_a_decimal(tmp_path: Path, ids: list[Any], type_: Any) -> None:
    documents, skipped = read(_parquet(tmp_path / "a.parquet", {"id": pa.array(ids, type_), "text": ["a", "b"]}))
    assert [d.id for d in documents] == ["a.parquet#7", "a.parquet:2"] and skipped == []


def test_a_float_id_that_is_not_a_whole_number_is_refused(tmp_path: Path) -> None:
    _, skipped = read(_parquet(tmp_path / "a.parquet", {"id": [0.5, 2.0**54], "text": ["a", "b"]}))
    assert ["the field 'id' is a float" in s.reason for s in skipped] == [True, True]


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 2), Decimal("12345678901234567.5"), 3, b"x"])
def test_a_value_of_the_text_column_that_is_not_text_is_refused(tmp_path: Path, value: object) -> None:
    assert "not a string" in reason(_parquet(tmp_path / "a.parquet", {"text": [value]}))


def _many_maps(count: int) -> Any:
    return pa.array([[(f"{n}", "b" * 500_000) for n in range(count)]], pa.map_(pa.string(), pa.string()))


_BOMBS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "compression": (lambda: {"text": ["a" * 7_000_000 + str(n) for n in range(16)]}, "more than 100 times the file"),
    "dictionary": (lambda: {"text": ["a" * 26_000_000] * 8}, "row 8: too large (26,000,"),
    "a row's list": (lambda: {"text": ["a"], "n": [[7] * 3_000_000]}, "row 1: too large (2"),
    "strings in a list": (lambda: {"text": ["a"], "tags": [["a" * 500_000] * 1_000]}, "row 1: too large (500,0"),
    "strings in lists": (lambda: {"text": ["a"] * 9, "tags": [["a" * 500_000] * 100] * 9}, "row 9: too large (50,0"),
    "strings in maps": (lambda: {"text": ["a"], "tags": _many_maps(300)}, "row 1: too large (150,0"),
    "strings in structs": (lambda: {"text": ["a"], "tags": [[{"t": "a" * 500_000}] * 300]}, "row 1: too large (150,0"),
    "lists": (lambda: {"text": ["a"] * 4, "n": [[7] * 3_000_000] * 4}, "more than 100 times the file"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", _BOMBS)
def test_a_small_parquet_that_unpacks_to_over_100_megabytes_is_refused(tmp_path: Path, kind: str) -> None:
    columns, expected = _BOMBS[kind]
    path = _parquet(tmp_path / "a.parquet", columns(), compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 20_000
    before, most, why = pa.total_allocated_bytes(), 0, ""
    for item in read_documents(path):
        assert isinstance(item, SkippedFile)
        why = item.reason
        most = max(most, pa.total_allocated_bytes() - before)
    assert expected in why
    assert most < 100_000_000


def test_a_dictionary_that_is_larger_than_a_document_is_read(tmp_path: Path) -> None:
    topics = pa.array([f"{n} {'a' * 1_000_000}" for n in range(12)]).dictionary_encode()
    documents, skipped = read(_parquet(tmp_path / "a.parquet", {"text": ["x"] * 12, "topic": topics}))
    assert len(documents) == 12 and skipped == []
