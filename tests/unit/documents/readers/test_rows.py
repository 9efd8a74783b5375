from __future__ import annotations

import csv
import datetime
import io
import json
import subprocess
import sys
import textwrap
import tracemalloc
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.documents.readers.csv import read_csv
from gircse_rag.documents.readers.rows import json_value
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError
from gircse_rag.qdrant import Document, read_documents
from tests.unit.documents.readers import read, read_one, reason

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def _parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_a_csv_gives_one_document_per_row(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text,topic\r\n7,"Cats, they\r\npurr.",animals\r\n\r\n,Dogs bark.,\r\n')
    assert read(path) == (
        [
            Document("faq.csv#7", "Cats, they\r\npurr.", {"topic": "animals"}),
            Document("faq.csv:2", "Dogs bark.", {"topic": ""}),
        ],
        [],
    )


def test_a_tsv_with_other_column_names(tmp_path: Path) -> None:
    path = tmp_path / "faq.tsv"
    path.write_text("\tkey\tbody\tid\n0\ta\tCats, purr.\t9\n")
    assert read_one(path, text_field="body", id_field="key") == Document(
        "faq.tsv#a", "Cats, purr.", {"column_1": "0", "id": "9"}
    )


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        ("id,body", {}, "no column 'text'; set text_field to one of the columns: id, body"),
        ("text,body", {"id_field": "key"}, "no column 'key'; set id_field to one"),
        ("text,a,a", {}, "the header has the column 'a' twice"),
        ("", {}, "empty"),
        ("text", {}, "no rows below the header"),
        ('"text', {}, "the header is not CSV"),
    ],
)
def test_a_csv_with_a_bad_header_is_skipped(tmp_path: Path, header: str, options: Any, expected: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n" if header else "")
    assert expected in reason(path, **options)


def test_a_bad_row_is_reported_by_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = [
        b"text,n",
        b'"two\nlines",1',
        b"ragged",
        b"a,b,c",
        b"caf\xe9,1",
        b"nul\0,1",
        b" ,1",
        b'"quo"ted,1',
        b"last,1",
        b'"open',
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
    documents, skipped = read(tmp_path / "a.csv")
    assert [(d.id, d.text) for d in documents] == [("a.csv:1", "two\nlines"), ("a.csv:8", "last")]
    assert [(s.line, s.reason.partition(":")[0]) for s in skipped] == [
        (4, "the row has 1 cells, the header 2"),
        (5, "the row has 3 cells, the header 2"),
        (6, "not UTF-8 text; convert the file first"),
        (7, "binary"),
        (8, "the field 'text' is missing, empty or not a string"),
        (9, "not CSV"),
        (11, "not CSV"),
    ]


_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(_CELL.filter(str.strip), _CELL), min_size=1, max_size=8), st.sampled_from([".csv", ".tsv"]))
def test_rows_written_by_csv_are_read_back(rows: list[tuple[str, str]], suffix: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, "excel" if suffix == ".csv" else "excel-tab")
    writer.writerows([("text", "other"), *rows])
    source = Source(io.BytesIO(written.getvalue().encode()), "p", "p", suffix)
    found = [(d.text, d.metadata["other"]) for d in read_csv(source) if isinstance(d, Document)]
    assert found == rows


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


def test_a_parquet_of_one_row_group_is_decoded_a_few_rows_at_a_time(tmp_path: Path) -> None:
    text = ["".join(np.random.default_rng(n).choice(list("abcdefgh "), 2000)) for n in range(10)]
    path = _parquet(tmp_path / "a.parquet", {"text": [f"{n} {text[n % 10]}" for n in range(20_000)]})
    assert path.stat().st_size > 1_000_000
    before = pa.total_allocated_bytes()
    most = 0
    for _ in read_documents(path):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10_000_000 < 20_000 * 2000


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


def test_a_cell_of_a_megabyte_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text\n{'a' * 1_000_000}\n")
    assert len(read_one(tmp_path / "a.csv").text) == 1_000_000


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
    ],
)
def test_values_with_an_obvious_json_form_are_converted(value: object, expected: object) -> None:
    got = json_value(value)
    assert got == expected and type(got) is type(expected)
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
    "value", [b"x", datetime.timedelta(1), float("inf"), Decimal("NaN"), object(), {1: 2}, {"a": {2}}, [b"x"]]
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
