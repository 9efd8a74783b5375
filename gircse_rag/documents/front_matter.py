"""YAML front matter of a Markdown text: lines between `---` on the first line and `---` or `...`."""

from __future__ import annotations

import re
from typing import Any

import yaml

_LINE_END = re.compile(r"\r\n|\r|\n")
# Lines of YAML: `key: value`, comments; below a key also items, indented lines, blank lines and closing brackets.
_FIRST_LINE = re.compile(r"#|[^\s#\-\[{>*|!&%@`].*?:(?:[ \t]|$)")
_LINE = re.compile(rf"{_FIRST_LINE.pattern}|[ \t]|$|-(?:[ \t]|$)|[\]}}]")
_FENCE = re.compile(r"---[ \t]*$")
_CLOSING_FENCE = re.compile(r"(?:---|\.\.\.)[ \t]*$")
# PyYAML reads this much in half a second.
_MAX_CHARACTERS = 2**16


class _Loader(yaml.SafeLoader):
    """Reads plain values as YAML 1.2 does: `no` is a string, not False; `12:30` and dates are strings. No aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")  # a few lines of them grow without end
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", list("-+0123456789")),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]{1,2})?", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def front_matter_end(text: str) -> int:
    """The offset after front matter; 0 if `text` begins otherwise.

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


def read_front_matter(text: str) -> dict[str, Any]:
    """The fields of a text's front matter, {} if it has none.

    Front matter that is not YAML, repeats values by aliases, or is longer than 64 KiB is returned as it is, under the
    key `front_matter`: one unquoted colon must not lose the document.
    """
    end = front_matter_end(text)
    if not end:
        return {}
    _, *lines = _LINE_END.split(text[:end].rstrip())
    matter = "\n".join(lines[:-1])
    try:
        if len(matter) > _MAX_CHARACTERS:
            raise yaml.YAMLError("too long")
        fields = yaml.load(matter, _Loader)
        if not isinstance(fields, dict | None):
            raise yaml.YAMLError("not a mapping")
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return {"front_matter": matter}
    return {str(key): value for key, value in (fields or {}).items()}


def read_title(text: str) -> str | None:
    """The field `title` of a text's front matter as one line, or None."""
    title = read_front_matter(text).get("title")
    return None if title is None or isinstance(title, dict | list) else " ".join(str(title).split()) or None
