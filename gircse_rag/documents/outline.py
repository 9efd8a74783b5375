"""The structure of a Markdown text: its headings, and the front matter before them."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt

_PARSER = MarkdownIt("commonmark").disable("inline")
_LINE_END = re.compile(r"\r\n|\r|\n")
# Lines of YAML: `key: value`, comments; below a key also items, indented lines, blank lines and closing brackets.
_FIRST_LINE = re.compile(r"#|[^\s#\-\[{>*|!&%@`].*?:(?:[ \t]|$)")
_LINE = re.compile(rf"{_FIRST_LINE.pattern}|[ \t]|$|-(?:[ \t]|$)|[\]}}]")
_FENCE = re.compile(r"---[ \t]*$")
_CLOSING_FENCE = re.compile(r"(?:---|\.\.\.)[ \t]*$")


@dataclass(frozen=True)
class Outline:
    """Headings of a Markdown text, in order.

    Attributes:
        body: offset of the text after the front matter.
        starts: offset where each heading starts.
        paths: path of headings from there on, outermost first.
    """

    body: int
    starts: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]

    def path_at(self, offset: int) -> tuple[str, ...]:
        """The path of headings above the character at `offset`."""
        above = bisect.bisect_right(self.starts, offset)
        return self.paths[above - 1] if above else ()


NO_OUTLINE = Outline(0, (), ())
"""The outline of a text that is not Markdown."""


def read_outline(text: str) -> Outline:
    """Find the headings of a Markdown text. Headings inside block quotes and lists belong to those and are left out."""
    body = _front_matter_end(text)
    line_starts = [body, *(match.end() for match in _LINE_END.finditer(text, body))]
    path: list[tuple[int, str]] = []
    starts, paths = [], []
    for token, content in pairwise(_PARSER.parse(text[body:])):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            depth = int(token.tag[1:])
            path = [*((above, title) for above, title in path if above < depth), (depth, content.content)]
            starts.append(line_starts[token.map[0]])
            paths.append(tuple(title for _, title in path))
    return Outline(body, tuple(starts), tuple(paths))


def _front_matter_end(text: str) -> int:
    """The offset after YAML front matter: `---`, lines of a mapping, `---` or `...`. 0 if `text` begins otherwise.

    Prose between two thematic breaks is not front matter, because its lines are not those of a mapping.
    """
    if not text.startswith("---"):
        return 0
    start, expected = 0, _FENCE
    for line_end in _LINE_END.finditer(text):
        line, start = text[start : line_end.start()], line_end.end()
        if expected is not _FENCE and _CLOSING_FENCE.match(line):
            return start
        if not expected.match(line):
            return 0
        expected = _FIRST_LINE if expected is _FENCE else _LINE
    return len(text) if expected is not _FENCE and _CLOSING_FENCE.match(text, start) else 0
