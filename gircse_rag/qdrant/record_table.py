"""The records of a collection's points, by document: `RecordTable`. In a temporary file, so that memory stays flat."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator

from gircse_rag.qdrant.points import Record


class RecordTable:
    """Collects records, then finds the documents whose points do not fit together."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE records (document, version, number INT, chunks INT, reach INT, fields)")
        self._database.execute("BEGIN")

    def add(self, records: Iterable[Record]) -> None:
        rows = [(r.document, r.version, r.number, r.chunks, r.reach, json.dumps(vars(r))) for r in records]
        self._database.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)

    def count_documents(self) -> int:
        """The number of documents. Call it once, after all records were added."""
        self._database.execute("CREATE INDEX by_document ON records (document, number)")
        ((count,),) = self._database.execute("SELECT count(DISTINCT document) FROM records")
        return int(count)

    def incomplete_documents(self) -> Iterator[tuple[str, list[Record]]]:
        """Yield the documents that are not whole: (id, records in order of their positions)."""
        names = self._database.execute(
            "SELECT document FROM records GROUP BY document HAVING count(*) <> max(chunks) "
            "OR count(DISTINCT version) > 1 OR max(number) >= max(chunks) OR max(reach) > max(chunks)"
        )
        for (name,) in names.fetchall():
            rows = self._database.execute("SELECT fields FROM records WHERE document = ? ORDER BY number", (name,))
            yield name, [Record(**json.loads(fields)) for (fields,) in rows]

    def close(self) -> None:
        self._database.close()
