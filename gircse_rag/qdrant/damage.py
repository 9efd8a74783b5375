"""What `verify` finds: `Damage` and `VerifyReport`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Damage:
    """A point, a document or a collection that is not as it was written.

    Attributes:
        document: id of the document; None if the point does not tell, or if the collection itself is damaged.
        point: id of the point in Qdrant; None if the whole document is meant, or the collection.
        chunk: position of the point in the document; None if it is unknown or no point is meant.
        reason: what differs, for people to read.
    """

    document: str | None
    point: str | None
    chunk: int | None
    reason: str

    def __str__(self) -> str:
        name = f"point {self.point}" if self.document is None else self.document
        if self.document is None and self.point is None:
            return self.reason
        return f"{name}{'' if self.chunk is None else f', chunk {self.chunk}'}: {self.reason}"


@dataclass
class VerifyReport:
    """The result of `verify`.

    Attributes:
        points: number of points that `ingest` wrote.
        documents: number of documents they belong to.
        damaged: what is not as it was written.
        unchecked: number of points that an earlier version wrote, without checksums. Only their ids, their texts and
            the length of their vectors were checked.
        foreign: number of points that other tools wrote; they have no checksums and were not checked.
        vectors_checked: False if the collection stores vectors in less than 32 bits, which changes them.
        repaired: with `repair`, number of points that were marked or deleted.
    """

    points: int = 0
    documents: int = 0
    damaged: list[Damage] = field(default_factory=list)
    unchecked: int = 0
    foreign: int = 0
    vectors_checked: bool = True
    repaired: int = 0

    def __repr__(self) -> str:
        vectors = "" if self.vectors_checked else ", vectors_checked=False"
        return (
            f"VerifyReport(points={self.points}, documents={self.documents}, damaged={len(self.damaged)}, "
            f"unchecked={self.unchecked}, foreign={self.foreign}, repaired={self.repaired}{vectors})"
        )
