"""The structure of a Markdown text: its headings, its tables, and the front matter before them."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt

from gircse_rag.documents.front_matter import front_matter_end, read_title
from gircse_rag.documents.tables import Table

_PARSER = MarkdownIt("commonmark").disable("inline")
_TABLE_PARSER = MarkdownIt("commonmark").disable("inline").enable("table")
# The line below a table's header, of more than one column.
_TABLE_RULE = re.compile(r"(?:\A|[\r\n])(?=[^\r\n]*-)[ \t>:-]*\|[-:| \t]*(?=[\r\n]|\Z)")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Outline:
    """Headings and tables of a Markdown text, in order.

    Attributes:
        body: offset of the text after the front matter.
        title: title in the front matter, which is above all headings; None if there is none.
        starts: offset where each heading starts.
        paths: path of headings from there on, outermost first.
        tables: tables with words in the header and at least one row.
    """

    body: int
    starts: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]
    title: str | None = None
    tables: tuple[Table, ...] = ()

    def path_at(self, offset: int) -> tuple[str, ...]:
        """The path of headings above the character at `offset`."""
        above = bisect.bisect_right(self.starts, offset)
        path = self.paths[above - 1] if above else ()
        return path if self.title is None or path[:1] == (self.title,) else (self.title, *path)


NO_OUTLINE = Outline(0, (), ())
"""The outline of a text that is not Markdown."""


def may_have_tables(text: str) -> bool:
    """Whether a line of a Markdown text looks like the rule below a table's header. False if there is no table."""
    return _TABLE_RULE.search(text) is not None


def read_outline(text: str) -> Outline:
    """Find the headings and tables of a Markdown text.

    Headings inside block quotes and lists belong to those and are left out.
    """
    body = front_matter_end(text)
    line_starts = [body, *(match.end() for match in _LINE_END.finditer(text, body))]
    parser = _TABLE_PARSER if may_have_tables(text) else _PARSER
    path: list[tuple[int, str]] = []
    starts, paths, tables = [], [], []
    for token, content in pairwise(parser.parse(text[body:])):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            depth = int(token.tag[1:])
            path = [*((above, title) for above, title in path if above < depth), (depth, content.content)]
            starts.append(line_starts[token.map[0]])
            paths.append(tuple(title for _, title in path))
        elif token.type == "table_open" and token.map is not None:
            first, behind = token.map
            rows = line_starts[first + 2 : behind]
            end = line_starts[behind] if behind < len(line_starts) else len(text)
            if rows and any(map(str.isalnum, text[line_starts[first] : line_starts[first + 1]])):
                tables.append(Table(line_starts[first], end, tuple(rows)))
    return Outline(body, tuple(starts), tuple(paths), read_title(text) if body else None, tuple(tables))
