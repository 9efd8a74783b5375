"""Cut Markdown tables between rows. A part of a table can be read only below its header, so each part repeats it."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter

Sizes = Callable[[list[str]], list[int]]
"""Numbers of tokens of texts."""
Spans = Iterable[tuple[int, int]]
"""(start, end) of pieces, as offsets in the document."""


@dataclass(frozen=True)
class Table:
    """A Markdown table with a header and rows.

    Attributes:
        start, end: offsets of the header and behind the last row.
        rows: offset of each row. The header and the rule below it end at the first one.
    """

    start: int
    end: int
    rows: tuple[int, ...]

    @property
    def body(self) -> int:
        return self.rows[0]


def table_around(place: int, tables: Sequence[Table]) -> Table | None:
    """The one of `tables`, which are in order, that begins before `place` and ends behind it."""
    before = bisect.bisect_left(tables, place, key=attrgetter("start"))
    return tables[before - 1] if before and place < tables[before - 1].end else None


def cuts_a_table(text: str, pieces: Spans, tables: Sequence[Table]) -> bool:
    """Whether a piece ends inside one of `tables`, before the end of its last row."""
    around = ((stop, table) for _, stop in pieces if (table := table_around(stop, tables)) is not None)
    return any(text[stop : table.end].strip() for stop, table in around)


def skip_repeated_rows(text: str, pieces: Spans, tables: Sequence[Table]) -> Iterator[tuple[int, int]]:
    """Let no piece begin with rows that it repeats from the piece before: their header would be missing."""
    end = 0
    for begin, stop in pieces:
        if begin < end and (table := table_around(begin, tables)) is not None:
            begin = min(end, table.end)
            begin += len(text[begin:stop]) - len(text[begin:stop].lstrip())
        yield begin, stop
        end = stop


def pack_rows(text: str, table: Table, capacity: int, sizes: Sizes, split: Callable[[int, int], Spans]) -> Spans:
    """Pack as many whole rows per piece as fit below the header. The first piece contains the header.

    Args:
        capacity: tokens per piece, with the header.
        split: cuts text[start:end], a row that does not fit, into spans that fit below the header.
    """
    header = text[table.start : table.body]
    bounds = [*table.rows, table.end]
    header_size, *row_sizes = sizes([header, *(text[a:b] for a, b in pairwise(bounds))])
    totals = [0, *accumulate(row_sizes)]  # tokens of the rows before each bound
    begin, packed = table.start, 0  # rows before `packed` are in a piece
    while packed < len(row_sizes):
        last = bisect.bisect_right(totals, totals[packed] + capacity - header_size, lo=packed) - 1
        # Joined rows may have more tokens than the sum of their sizes.
        while last > packed and sizes([header + text[bounds[packed] : bounds[last]]])[0] > capacity:
            last -= 1
        if last > packed:
            yield begin, bounds[packed] + len(text[bounds[packed] : bounds[last]].rstrip())
        else:
            last = packed + 1
            if begin == table.start:
                yield begin, table.start + len(header.rstrip())
            yield from split(bounds[packed], bounds[last])
        begin, packed = bounds[last], last
