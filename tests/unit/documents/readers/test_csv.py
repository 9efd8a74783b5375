from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.documents.readers.csv import read_csv
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.qdrant import Document
from tests.unit.documents.readers import read, read_one, reason


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
        ("text,a,a", {}, "two columns have the name 'a'"),
        ("", {}, "empty"),
        ("text", {}, "no rows below the header"),
        ('"text', {}, "bad quotes in the row of lines 1 to 1"),
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
        b"a\rb,1",
        b'"a,\nb"',
        b"last,1",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
    documents, skipped = read(tmp_path / "a.csv")
    assert [(d.id, d.text) for d in documents] == [("a.csv:1", "two\nlines"), ("a.csv:9", "last")]
    assert [(s.line, s.reason.partition(":")[0]) for s in skipped] == [
        (4, "the row has 1 cells, the header 2"),
        (5, "the row has 3 cells, the header 2"),
        (6, "not UTF-8 text; convert the file first"),
        (7, "binary"),
        (8, "the field 'text' is missing, empty or not a string"),
        (9, "not CSV"),
        (10, "the row has 1 cells, the header 2 (the row ends in line 11)"),
    ]


# Without tabs: a quoted cell of a TSV whose every line looks like a row is read as rows.
_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t"), max_size=20)


@given(st.lists(st.tuples(_CELL.filter(str.strip), _CELL), min_size=1, max_size=8), st.sampled_from([".csv", ".tsv"]))
def test_rows_written_by_csv_are_read_back(rows: list[tuple[str, str]], suffix: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, "excel" if suffix == ".csv" else "excel-tab")
    writer.writerows([("text", "other"), *rows])
    source = Source(io.BytesIO(written.getvalue().encode()), "p", "p", suffix)
    found = [(d.text, d.metadata["other"]) for d in read_csv(source) if isinstance(d, Document)]
    assert found == rows


def test_a_cell_of_a_megabyte_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text\n{'a' * 1_000_000}\n")
    assert len(read_one(tmp_path / "a.csv").text) == 1_000_000


_QUOTES = [
    'id,text\n1,good\n2,"first\n3,second\n4,third\n',
    'id,text\n1,good\n2,"first\n3,"second\n4,third\n',
    'id,text\n1,good\n2,"he said "hello\nsecond,line" and left"\n4,third\n',
    'id,text\n1,good\n2,"quo"ted\n3,second\n',
]


@pytest.mark.parametrize("content", _QUOTES)
def test_bad_quotes_end_a_csv_because_the_next_row_may_begin_anywhere(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    (document,), (skipped,) = read(tmp_path / "a.csv")
    assert document.id == "a.csv#1"
    assert "bad quotes in the row of lines 3 to" in skipped.reason and "from line 3 on" in skipped.reason


def test_a_quote_that_is_never_closed_ends_a_csv_at_the_size_limit(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"open\n' + f"2,{'a' * 2**20}\n" * 9 + "3,ghost\n")
    assert "from line 2 on" in reason(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("line", "cell"),
    [
        ('1\t"Yes," he said.', '"Yes," he said.'),
        ('1\t"open', '"open'),
        ('"one"\t"quoted"', "quoted"),
        ('1\t"says ""yes"""', 'says "yes"'),
        ('1\t"two\nlines"', "two\nlines"),
        ('1\t"', '"'),
        ('"1\tx"', 'x"'),
    ],
)
def test_a_cell_of_a_tsv_that_begins_with_a_quote_is_quoted_only_if_it_ends_so(
    tmp_path: Path, line: str, cell: str
) -> None:
    (tmp_path / "a.tsv").write_text(f'key\ttext\n{line}\n2\tsecond\n3\tlast"\n')
    documents, skipped = read(tmp_path / "a.tsv")
    assert skipped == []
    assert [d.text for d in documents] == [cell, "second", 'last"']


def test_an_overlong_line_ends_a_tsv_after_the_rows_before_it(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tn\n"open\t1\nsecond\t2\n' + "a" * (MAX_BYTES + 1) + "\nlast\t3\n")
    documents, (skipped,) = read(tmp_path / "a.tsv")
    assert [d.text for d in documents] == ['"open', "second"] and "line 4 is longer" in skipped.reason


def test_a_header_of_very_many_names_is_read_in_linear_time(tmp_path: Path) -> None:
    """Quadratic time would take an hour."""
    names = [f"c{number}" for number in range(500_000)]
    (tmp_path / "wide.csv").write_text(",".join([*names, names[-1]]) + "\nx\n")
    assert "two columns have the name 'c499999'" in reason(tmp_path / "wide.csv")
