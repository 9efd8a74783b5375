"""What an ingest was given so far: `Seen`. It lies on disk, so a million documents take no memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from gircse_rag.errors import GircseError

_CACHE_KIB = 4096


class Seen:
    """Ids, versions and contents of the documents of one run, in a temporary SQLite file that goes with the process.

    It is asked about some documents at a time: each of its statements lets another thread take over, which costs more
    than the statement.

    Raises (all methods):
        GircseError: the folder for temporary files is full.
    """

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("CREATE TABLE ids (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self._file.execute("CREATE TABLE contents (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._file.execute("CREATE TABLE failed (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._file.execute("BEGIN")

    def before(self, documents: Iterable[tuple[str, str]]) -> list[Literal["never", "alike", "different"]]:
        """Whether, and how, each (id, version) was given before; remembers that they were given now, in this order."""
        rows = [(_digest(document), _digest(version)) for document, version in documents]
        found = self._earlier("ids", rows)
        return [
            "never" if there is None else "alike" if there == version else "different"
            for (_, version), there in zip(rows, found, strict=True)
        ]

    def failed(self, document: str) -> None:
        """Remember a document that was given and is not to be ingested."""
        with _told():
            self._file.execute("INSERT OR IGNORE INTO failed VALUES (?)", (_digest(document),))

    def twins(self, documents: Iterable[tuple[str, str]]) -> list[str | None]:
        """For each (id, content) the id of the first document with this content, or None: it is the first itself."""
        return self._earlier("contents", [(_digest(content), document) for document, content in documents])

    def __contains__(self, document: str) -> bool:
        both = "SELECT 1 FROM ids WHERE key = ?1 UNION ALL SELECT 1 FROM failed WHERE key = ?1"
        with _told():
            return self._file.execute(both, (_digest(document),)).fetchone() is not None

    def close(self) -> None:
        self._file.close()

    def _earlier(self, table: str, rows: Sequence[tuple[bytes, Any]]) -> list[Any]:
        """For each (key, value) the value that was given first under its key, or None: this is the first."""
        if not rows:
            return []
        marks = ", ".join("?" * len(rows))
        with _told():
            known = dict(
                self._file.execute(f"SELECT key, value FROM {table} WHERE key IN ({marks})", [key for key, _ in rows])
            )
            found, new = [], []
            for key, value in rows:
                found.append(known.get(key))
                if key not in known:
                    known[key] = value
                    new += [key, value]
            if new:
                marks = ", ".join(["(?, ?)"] * (len(new) // 2))
                self._file.execute(f"INSERT INTO {table} VALUES {marks}", new)
        return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise GircseError(
            f"the folder for temporary files took no more ({error}); make room there, or name another in SQLITE_TMPDIR"
        ) from error
