"""What an ingest was given so far: `Seen`. It lies on disk, so a million documents take no memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from gircse_rag.errors import GircseError

_CACHE_KIB = 4096


class Seen:
    """Ids, versions and contents of the documents of one run, in a temporary SQLite file that goes with the process.

    Raises (all methods):
        GircseError: the folder for temporary files is full.
    """

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("CREATE TABLE ids (id BLOB PRIMARY KEY, version BLOB) WITHOUT ROWID")
        self._file.execute("CREATE TABLE contents (content BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID")
        self._file.execute("CREATE TABLE failed (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._file.execute("BEGIN")

    def before(self, document: str, version: str) -> Literal["never", "alike", "different"]:
        """Whether, and how, `document` was given before; remembers that it was given now."""
        key, value = _digest(document), _digest(version)
        with _told():
            if self._file.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (key, value)).rowcount:
                return "never"
            ((there,),) = self._file.execute("SELECT version FROM ids WHERE id = ?", (key,))
        return "alike" if there == value else "different"

    def failed(self, document: str) -> None:
        """Remember a document that was given and is not to be ingested."""
        with _told():
            self._file.execute("INSERT OR IGNORE INTO failed VALUES (?)", (_digest(document),))

    def twin(self, document: str, content: str) -> str | None:
        """The id of an earlier document with this content, or None if there was none."""
        key = _digest(content)
        with _told():
            if self._file.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (key, document)).rowcount:
                return None
            ((there,),) = self._file.execute("SELECT id FROM contents WHERE content = ?", (key,))
        return str(there)

    def __contains__(self, document: str) -> bool:
        both = "SELECT 1 FROM ids WHERE id = ?1 UNION ALL SELECT 1 FROM failed WHERE id = ?1"
        with _told():
            return self._file.execute(both, (_digest(document),)).fetchone() is not None

    def close(self) -> None:
        self._file.close()


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
