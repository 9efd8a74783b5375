"""Writes an HTML tree of lxml as Markdown: headings, lists, quotes, tables, code and emphasis.

The tree is walked once, without recursion:

    text and running elements ──> pieces ──(a block begins or ends)──> lines, each below the prefix of its containers
                                                                       ("> ", "* ", the indentation of a list item)

Only elements write Markdown. A line of text that would read as structure (a heading, a list item, a fence) gets a
backslash; within a line nothing is escaped, because the text is embedded as words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gircse_rag.documents.readers.source import MAX_BYTES
from gircse_rag.errors import InputError

# Elements inside running text. All others stand apart on the page: blocks begin a paragraph, the rest (buttons,
# pictures, custom elements) get a space on both sides.
_RUNNING_TAGS = (
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd mark nobr q rb rp rt rtc ruby s samp small "
    "span strike strong sub sup time tt u var wbr"
)
_BLOCK_TAGS = (
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li listing main menu nav ol p pre search section "
    "summary table tbody td tfoot th thead tr ul xmp"
)
_RUNNING, _BLOCKS = frozenset(_RUNNING_TAGS.split()), frozenset(_BLOCK_TAGS.split())
_LISTS = frozenset(("ul", "ol", "menu", "dir"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_VERBATIM = frozenset(("pre", "listing", "xmp"))
_MARKS = {
    **dict.fromkeys(("b", "strong"), "**"),
    **dict.fromkeys(("i", "em"), "*"),
    **dict.fromkeys(("s", "strike", "del"), "~~"),
    **dict.fromkeys(("code", "kbd", "samp", "tt"), "`"),
}
_BULLETS = "*+-"
# Stands for <br> among the pieces. Parsed HTML never contains it.
_BREAK = "\0"
_SPACE = re.compile(r"[ \t\n\f\r]+")
_NUMBER = re.compile(r"[0-9]{1,9}")
_LINE_END = re.compile(r"\r\n?")
# Columns that a table cell may span; pages that give more would use up memory.
_MAX_SPAN = 64
# A line of text that Markdown reads as structure: a heading or its underline, a rule, a table's rule, a list item, a
# quote, a fence, or HTML. The backslash goes where the match ends.
_STRUCTURE = re.compile(
    r"(?=#{1,6}(?:\s|$)|[-+*](?:\s|$)|[-=*_|:+][-=*_|:+\s]*$|>|`{3,}[^`]*$|~{3}|<[!?/a-zA-Z])|[0-9]{1,9}(?=[.)](?:\s|$))"
)
_CLOSING_HASHES = re.compile(r"(?:(?<=\s)|^)(?=#+$)")


@dataclass(slots=True)
class _Container:
    """A list item or a quote: the prefix of its first line, and of the lines below."""

    first: str
    below: str
    used: bool = False


@dataclass(slots=True)
class _List:
    """An open list. `number` is of its next item; None if the items have bullets."""

    number: int | None
    written: bool = False


class MarkdownWriter:
    """Writes the tree given to `write`; use it once."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 0
        self._pieces: list[str] = []
        self._marks: dict[str, list[int]] = {}  # mark -> [position of its first piece, elements open]
        self._containers: list[_Container] = []
        self._lists: list[_List] = []
        self._items: list[tuple[_List | None, _Container]] = []
        self._verbatim = 0
        self._inside: list[str] = []  # the open heading or table cell, and all blocks in it
        self._tables: list[list[list[str]]] = []

    def write(self, root: Any, etree: Any) -> str:
        """Return the Markdown of `root`, an element without comments and invisible elements.

        Raises:
            InputError: the Markdown is larger than `MAX_BYTES`.
        """
        for event, element in etree.iterwalk(root, events=("start", "end")):
            if event == "start":
                self._start(element)
                self._text(element.text)
            else:
                self._end(element)
                if element is not root:
                    self._text(element.tail)
        self._flush()
        return "\n".join(self._lines)

    def _text(self, text: str | None) -> None:
        if text:
            self._pieces.append(text.replace("\xad", ""))  # soft hyphens would split words

    def _start(self, element: Any) -> None:
        tag = element.tag
        if tag in _MARKS:
            self._open_mark(_MARKS[tag])
        elif tag == "br":
            self._pieces.append("\n" if self._verbatim else " " if self._inside else _BREAK)
        elif tag == "q":
            self._pieces.append('"')
        elif tag == "img":
            self._text(f" {element.get('alt') or ''} ")
        elif self._verbatim and tag in _BLOCKS:
            self._verbatim += tag in _VERBATIM
            self._end_verbatim_line()
        elif self._inside and tag in _BLOCKS:
            self._inside.append(tag)
            self._pieces.append(" ")
        elif tag in _BLOCKS:
            self._flush()
            self._start_block(element, tag)
        elif tag not in _RUNNING and not self._verbatim:
            self._pieces.append(" ")

    def _start_block(self, element: Any, tag: str) -> None:
        if tag in _HEADINGS or (tag in ("td", "th") and self._tables):
            self._inside.append(tag)
        elif tag in _VERBATIM:
            self._verbatim = 1
        elif tag in _LISTS:
            self._lists.append(_List(_number(element.get("start"), 1) if tag == "ol" else None))
        elif tag == "li":
            self._start_item(element)
        elif tag == "blockquote":
            self._containers.append(_Container("> ", "> "))
        elif tag == "hr":
            self._emit(["___"])  # "---" could begin front matter
        elif tag == "table":
            self._tables.append([])
        elif tag == "tr" and self._tables:
            self._tables[-1].append([])

    def _end(self, element: Any) -> None:
        tag = element.tag
        if tag in _MARKS:
            self._close_mark(_MARKS[tag])
        elif tag == "q":
            self._pieces.append('"')
        elif self._verbatim and tag in _BLOCKS:
            self._verbatim -= tag in _VERBATIM
            if self._verbatim:
                self._end_verbatim_line()
            else:
                self._emit_verbatim()
        elif self._inside and tag in _BLOCKS:
            self._inside.pop()
            if self._inside:
                self._pieces.append(" ")
            elif tag in _HEADINGS:
                self._emit_heading(int(tag[1]))
            else:
                self._end_cell(element)
        elif tag in _BLOCKS:
            self._flush()
            self._end_block(tag)
        elif tag not in _RUNNING and not self._verbatim:
            self._pieces.append(" ")

    def _end_block(self, tag: str) -> None:
        if tag in _LISTS:
            self._lists.pop()
        elif tag == "li":
            self._items.pop()
            self._containers.pop()
        elif tag == "blockquote":
            self._containers.pop()
        elif tag == "table":
            self._emit_table(self._tables.pop())

    def _open_mark(self, mark: str) -> None:
        if not self._verbatim:
            self._marks.setdefault(mark, [len(self._pieces), 0])[1] += 1

    def _close_mark(self, mark: str) -> None:
        if not self._verbatim:
            self._marks[mark][1] -= 1
            if not self._marks[mark][1]:
                self._wrap(mark, self._marks.pop(mark)[0])

    def _wrap(self, mark: str, first: int) -> None:
        """Put `mark` around the pieces from `first` on, inside their outer white space."""
        text = "".join(self._pieces[first:])
        content = text.strip(" \t\n\f\r\0")
        if content:
            start = text.index(content)
            before, after = text[:start], text[start + len(content) :]
            if mark == "`":
                content = content.replace(_BREAK, " ")
                longest = max(map(len, re.findall("`+", content)), default=0)
                mark *= longest + 1
                content = f" {content} " if longest else content
            text = f"{before}{mark}{content}{mark}{after}"
        self._pieces[first:] = [text]

    def _take(self) -> str:
        """Return the pieces as text without superfluous white space. Open marks end here and begin again."""
        for mark, opened in reversed(self._marks.items()):
            self._wrap(mark, opened[0])
            opened[0] = 0
        text = _SPACE.sub(" ", "".join(self._pieces))
        self._pieces.clear()
        return text.strip(" \0")

    def _flush(self) -> None:
        """Write the pieces as paragraphs: <br> ends a line, two of them a paragraph."""
        paragraph: list[str] = []
        for line in self._take().split(_BREAK):
            stripped = line.strip(" ")
            if structure := _STRUCTURE.match(stripped):
                stripped = f"{structure[0]}\\{stripped[structure.end() :]}"
            if stripped:
                paragraph.append(stripped)
            elif paragraph:
                self._emit(paragraph, hard_breaks=True)
                paragraph = []
        self._emit(paragraph, hard_breaks=True)

    def _emit(self, lines: list[str], *, hard_breaks: bool = False) -> None:
        """Write a block of lines, below a blank line unless it begins an item of a tight list."""
        if not lines:
            return
        if self._lines:
            blank = "".join(container.below for container in self._containers if container.used).rstrip()
            self._add(*([] if self._begins_tight_item() else [blank]))
        for owner, container in self._items:
            if owner is not None and not container.used:
                owner.written = True
        last = len(lines) - 1
        for index, line in enumerate(lines):
            prefix = "".join(c.below if c.used else c.first for c in self._containers)
            for container in self._containers:
                container.used = True
            end = "  " if hard_breaks and index < last else ""
            self._add((prefix + line + end) if line else prefix.rstrip())

    def _add(self, *lines: str) -> None:
        self._lines += lines
        self._size += sum(len(line.encode(errors="surrogatepass")) + 1 for line in lines)
        if self._size > MAX_BYTES:
            raise InputError(f"its text is larger than {MAX_BYTES // 2**20} MiB; split the page")

    def _begins_tight_item(self) -> bool:
        """Whether the next line begins an item below its list's last one, or below the text of an outer item."""
        if not self._items or (first := next((c for c in self._containers if not c.used), None)) is None:
            return False
        owner, container = next(((o, c) for o, c in self._items if not c.used), (None, None))
        if owner is None or container is not first:
            return False
        # Markdown lets only bullets and "1." follow a paragraph without a blank line.
        nested = self._items[0][1].used and (container.first == "1. " or owner.number is None)
        return owner.written or nested

    def _start_item(self, element: Any) -> None:
        owner = self._lists[-1] if self._lists else None
        if owner is None or owner.number is None:
            marker = _BULLETS[max(len(self._lists) - 1, 0) % len(_BULLETS)] + " "
        else:
            number = _number(element.get("value"), owner.number)
            owner.number = number + 1
            marker = f"{number}. "
        container = _Container(marker, " " * len(marker))
        self._containers.append(container)
        self._items.append((owner, container))

    def _emit_heading(self, level: int) -> None:
        if title := self._take():
            self._emit(["#" * level + " " + _CLOSING_HASHES.sub(r"\\", title)])

    def _end_verbatim_line(self) -> None:
        if self._pieces and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\n")

    def _emit_verbatim(self) -> None:
        text = _LINE_END.sub("\n", "".join(self._pieces)).rstrip().lstrip("\n")
        self._pieces.clear()
        if text:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            self._emit([fence, *text.split("\n"), fence])

    def _end_cell(self, element: Any) -> None:
        rows = self._tables[-1] or [[]]
        self._tables[-1] = rows
        span = min(max(_number(element.get("colspan"), 1), 1), _MAX_SPAN)
        rows[-1] += [self._take().replace("|", r"\|"), *[""] * (span - 1)]

    def _emit_table(self, rows: list[list[str]]) -> None:
        rows = [row for row in rows if any(row)]
        if rows:
            width = max(map(len, rows))
            head = rows[0] + [""] * (width - len(rows[0]))
            self._emit([f"| {' | '.join(row)} |" for row in (head, ["---"] * width, *rows[1:])])


def _number(value: str | None, default: int) -> int:
    return int(value) if value is not None and _NUMBER.fullmatch(value.strip()) else default
