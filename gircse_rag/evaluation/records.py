"""Reading the evaluation formats: gzip or plain lines in, checked rows out, every complaint with its file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gircse_rag.errors import InputError

TSV_HEADERS = {"qrels": ["query-id", "corpus-id", "score"], "sts": ["score", "sentence1", "sentence2"]}


def resolve(path: Path) -> Path:
    """`path`, or `path` with `.gz`, whichever is a file.

    Raises:
        InputError: neither is.
    """
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise InputError(f"evaluation file {path} (or {path.name}.gz) is missing")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its newline) of a UTF-8 file, gzipped or not; blank lines are skipped."""
    path = resolve(path)
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="\n")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8", newline="\n") as handle
        ):
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: unreadable after line {number} ({error}); fetch or unpack the file again") from error


def records(
    path: Path, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects of `path` that hold a string in every one of `fields` (and, if present, in `optional`).

    Raises:
        InputError: a line that is not such an object, by its number.
    """
    path = resolve(path)
    for number, line in lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg}): {line[:80]!r}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object with {', '.join(fields)}: {line[:80]!r}")
        for field in fields:
            if not isinstance(row.get(field), str):
                raise InputError(f"{path}, line {number}: {field!r} must be a string; this line has {sorted(row)}")
        for field in optional:
            if not isinstance(row.get(field, ""), str):
                raise InputError(f"{path}, line {number}: {field!r} must be a string where it is given")
        yield number, row


def texts(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """`records` whose first field is a text to embed, and so may not be empty."""
    path = resolve(path)
    for number, row in records(path, fields):
        if not row[fields[0]].strip():
            raise InputError(f"{path}, line {number}: {fields[0]!r} is empty; there is nothing to embed")
        yield number, row


def table(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a tab-separated file with the header of `kind` ("qrels" or "sts") and as many columns.

    Raises:
        InputError: another header, or a row with another number of columns, by its line number.
    """
    path = resolve(path)
    header = TSV_HEADERS[kind]
    first = True
    for number, line in lines(path):
        cells = line.split("\t")
        if first:
            first = False
            if cells != header:
                raise InputError(f"{path}, line {number}: the header must be {header} (tab separated), found {cells}")
            continue
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(header)} tab-separated columns expected, found {len(cells)}")
        yield number, cells
    if first:
        raise InputError(f"{path}: the file is empty; its first line must be {header} (tab separated)")


def number_in(path: Path, line: int, cell: str) -> float:
    """`cell` as a finite number.

    Raises:
        InputError: it is none.
    """
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{path}, line {line}: the score {cell!r} is not a number")
    return value
