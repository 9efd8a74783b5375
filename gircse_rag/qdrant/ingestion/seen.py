"""The documents an ingest has been given so far: `Seen`. Kept on disk, so a million documents need no memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from gircse_rag.errors import GircseError

_CACHE_KIB = 4096


class Seen:
    """Ids, versions and contents of the documents of one run, in a temporary SQLite file that ends with the process.

    Queries are batched, because handing over the GIL costs more than the query.

    Raises (all methods):
        GircseError: the folder for temporary files is full.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE ids (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self._database.execute("CREATE TABLE contents (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._database.execute("CREATE TABLE failed (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def compare_versions(self, documents: Iterable[tuple[str, str]]) -> list[Literal["new", "same", "different"]]:
        """Compare each (id, version) with the first version given for that id, and remember ids that are new."""
        rows = [(_digest(document), _digest(version)) for document, version in documents]
        first_versions = self._get_or_insert("ids", rows)
        return [
            "new" if first is None else "same" if first == version else "different"
            for (_, version), first in zip(rows, first_versions, strict=True)
        ]

    def add_failed(self, document: str) -> None:
        """Remember the id of a document that was given but is not ingested."""
        with _sqlite_errors():
            self._database.execute("INSERT OR IGNORE INTO failed VALUES (?)", (_digest(document),))

    def find_duplicates(self, documents: Iterable[tuple[str, str]]) -> list[str | None]:
        """For each (id, content), return the id of the first document with that content; None if this is the first."""
        return self._get_or_insert("contents", [(_digest(content), document) for document, content in documents])

    def __contains__(self, document: str) -> bool:
        """Whether a document of this id was given, failed or not."""
        both = "SELECT 1 FROM ids WHERE key = ?1 UNION ALL SELECT 1 FROM failed WHERE key = ?1"
        with _sqlite_errors():
            return self._database.execute(both, (_digest(document),)).fetchone() is not None

    def close(self) -> None:
        self._database.close()

    def _get_or_insert(self, table: str, rows: Sequence[tuple[bytes, Any]]) -> list[Any]:
        """For each (key, value), return the value first given for the key; insert it and return None if it is new."""
        if not rows:
            return []
        marks = ", ".join("?" * len(rows))
        with _sqlite_errors():
            select = f"SELECT key, value FROM {table} WHERE key IN ({marks})"
            known = dict(self._database.execute(select, [key for key, _ in rows]))
            values, new = [], []
            for key, value in rows:
                values.append(known.get(key))
                if key not in known:
                    known[key] = value
                    new += [key, value]
            if new:
                marks = ", ".join(["(?, ?)"] * (len(new) // 2))
                self._database.execute(f"INSERT INTO {table} VALUES {marks}", new)
        return values


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    """Raise SQLite's errors as GircseError."""
    try:
        yield
    except sqlite3.Error as error:
        advice = "free some space, or set SQLITE_TMPDIR to another folder"
        raise GircseError(f"could not write to the folder for temporary files ({error}); {advice}") from error
