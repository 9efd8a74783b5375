"""The structure of a Markdown text: its headings, and the front matter before them."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt

from gircse_rag.documents.front_matter import front_matter_end, read_title

_PARSER = MarkdownIt("commonmark").disable("inline")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Outline:
    """Headings of a Markdown text, in order.

    Attributes:
        body: offset of the text after the front matter.
        title: title in the front matter, which is above all headings; None if there is none.
        starts: offset where each heading starts.
        paths: path of headings from there on, outermost first.
    """

    body: int
    starts: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]
    title: str | None = None

    def path_at(self, offset: int) -> tuple[str, ...]:
        """The path of headings above the character at `offset`."""
        above = bisect.bisect_right(self.starts, offset)
        path = self.paths[above - 1] if above else ()
        return path if self.title is None or path[:1] == (self.title,) else (self.title, *path)


NO_OUTLINE = Outline(0, (), ())
"""The outline of a text that is not Markdown."""


def read_outline(text: str) -> Outline:
    """Find the headings of a Markdown text. Headings inside block quotes and lists belong to those and are left out."""
    body = front_matter_end(text)
    line_starts = [body, *(match.end() for match in _LINE_END.finditer(text, body))]
    path: list[tuple[int, str]] = []
    starts, paths = [], []
    for token, content in pairwise(_PARSER.parse(text[body:])):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            depth = int(token.tag[1:])
            path = [*((above, title) for above, title in path if above < depth), (depth, content.content)]
            starts.append(line_starts[token.map[0]])
            paths.append(tuple(title for _, title in path))
    return Outline(body, tuple(starts), tuple(paths), read_title(text) if body else None)
