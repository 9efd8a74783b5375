"""Read and check lines of evaluation files, plain or gzipped. Errors name file and line."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gircse_rag.errors import InputError
from gircse_rag.files import open_text

TSV_HEADERS = {"qrels": ["query-id", "corpus-id", "score"], "sts": ["score", "sentence1", "sentence2"]}


def resolve(path: Path) -> Path:
    """Return `path`, or `path` with `.gz`, whichever exists.

    Raises:
        InputError: neither exists.
    """
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise InputError(f"evaluation file {path} (or {path.name}.gz) is missing")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without newline) of a UTF-8 file, plain or gzipped. Skips blank lines."""
    path = resolve(path)
    number = 0
    try:
        with open_text(path, newline="\n") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: unreadable after line {number} ({error}); download or unpack it again") from error


def records(
    path: Path, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, JSON object) of a JSON lines file. `fields`, and `optional` if present, must be strings.

    Raises:
        InputError: a line that is not such an object; the message names its number.
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
                raise InputError(f"{path}, line {number}: {field!r} must be a string if it is given")
        yield number, row


def texts(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `records` whose first field, the text to embed, is not empty."""
    path = resolve(path)
    for number, row in records(path, fields):
        if not row[fields[0]].strip():
            raise InputError(f"{path}, line {number}: {fields[0]!r} is empty; there is nothing to embed")
        yield number, row


def table(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a tab-separated file with the header of `kind` ("qrels" or "sts").

    Raises:
        InputError: a wrong header, or a row with a wrong number of columns; the message names its line.
    """
    path = resolve(path)
    header = TSV_HEADERS[kind]
    rows = ((number, line.split("\t")) for number, line in lines(path))
    number, cells = next(rows, (0, []))
    if not number:
        raise InputError(f"{path}: the file is empty; its first line must be {header} (tab separated)")
    if cells != header:
        raise InputError(f"{path}, line {number}: the header must be {header} (tab separated), found {cells}")
    for number, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(header)} tab-separated columns expected, found {len(cells)}")
        yield number, cells


def parse_number(path: Path, line: int, cell: str) -> float:
    """Parse a finite number.

    Raises:
        InputError: `cell` is no finite number.
    """
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: the score {cell!r} is not a number")
    return value
