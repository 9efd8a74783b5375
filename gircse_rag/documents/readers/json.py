"""Reads JSON: a list of objects as one document per object, any other value as one document of text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.jsonl import object_document
from gircse_rag.documents.readers.rows import first_duplicate
from gircse_rag.documents.readers.source import Source
from gircse_rag.errors import InputError


class _Object(dict[str, Any]):
    """A JSON object. `repeated` is a name that occurs twice in it or in an object inside it, or None."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = first_duplicate(name for name, _ in pairs) if len(self) < len(pairs) else None
        for value in self.values():
            for inner in value if isinstance(value, list) else [value]:
                if self.repeated is None and isinstance(inner, _Object):
                    self.repeated = inner.repeated


def read_json(source: Source) -> Iterator[Document | SkippedFile]:
    """Read a list of objects like the lines of a .jsonl; a bad object is skipped with its number in the reason.

    Raises:
        InputError: the file is too large, empty, or not JSON that Python can read.
    """
    text = source.text()
    if not text.strip():
        raise InputError("empty")
    value = parse_json(text, object_pairs_hook=_Object)
    if not (isinstance(value, list) and value and all(isinstance(each, _Object) for each in value)):
        yield Document(source.id, text)
        return
    for number, row in enumerate(value, start=1):
        try:
            if row.repeated is not None:
                raise InputError(f"the field {row.repeated!r} occurs twice in one object; rename one")
            yield object_document(row, source, number)
        except InputError as error:
            yield source.skip(f"object {number}: {error}")


def parse_json(text: str, **options: Any) -> Any:
    """`json.loads`, whose errors become InputErrors.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or has an integer of thousands of digits.
    """
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at line {error.lineno}, character {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON that Python can read: {error}") from error
