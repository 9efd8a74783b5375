"""Reads JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import first_duplicate, row_document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError


def read_jsonl(source: Source) -> Iterator[Document | SkippedFile]:
    """Read one document per line; a bad line is skipped with its number."""
    if b"\0" in source.file.read(8192):
        raise InputError("binary: the file contains zero bytes")
    source.file.seek(0)
    empty = True
    for number, line in enumerate(source.lines(), start=1):
        if line is None or line.strip():
            empty = False
            try:
                yield _make_document(line, source, number)
            except InputError as error:
                yield source.skip(str(error), number)
    if empty:
        raise InputError("empty")


def _make_document(line: bytes | None, source: Source, number: int) -> Document:
    if line is None:
        raise InputError(f"too large: the limit is {MAX_BYTES // 2**20} MiB per document")
    try:
        value = json.loads(line.decode(), object_pairs_hook=_make_object)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or endless brackets
        raise InputError(f"not JSON that Python can read: {error}") from error
    return object_document(value, source, number)


def object_document(value: Any, source: Source, number: int) -> Document:
    """Make a document from a JSON value, the `number`-th of its file.

    Raises:
        InputError: it is not an object, its field `metadata` is none, or as `row_document`.
    """
    if not isinstance(value, dict):
        raise InputError(f"a {type(value).__name__}, not an object with a field {source.text_field!r}")
    metadata = value.get("metadata")
    if not isinstance(metadata, dict | None):
        raise InputError(f"the field 'metadata' is a {type(metadata).__name__}, not an object")
    if metadata is None:
        value.pop("metadata", None)
    return row_document(value, source, number)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        name = first_duplicate(name for name, _ in pairs)
        raise InputError(f"the field {name!r} occurs twice in one object; rename one")
    return value
