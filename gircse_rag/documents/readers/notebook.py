"""Reads Jupyter notebooks as Markdown: text cells as they are, code cells as code blocks, no outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.json import parse_json
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.documents.readers.text import markdown_document
from gircse_rag.errors import InputError

# Outputs, which are not read, make notebooks large: pictures are stored as text.
_MAX_FILE = 8 * MAX_BYTES
_LANGUAGE = re.compile(r"[\w+#.-]{1,40}")


def read_notebook(source: Source) -> Iterator[Document]:
    """Read a notebook (nbformat 3 or 4) as one Markdown document. Metadata: `language` of its code, front matter.

    Raises:
        InputError: the file is too large or no notebook, or its cells have no text.
    """
    notebook = parse_json(source.text(_MAX_FILE))
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise InputError("not a notebook: there is no field 'nbformat'")
    language = _find_language(notebook)
    blocks = [block for cell in _find_cells(notebook) if (block := _write_cell(cell, language))]
    text = "\n\n".join(blocks)
    if not text.strip():
        raise InputError("no text: all cells are empty")
    if len(text) > MAX_BYTES:
        raise InputError(f"its cells have more than {MAX_BYTES // 2**20} MiB of text; split the notebook")
    yield markdown_document(source.id, text, {"language": language} if language else {})


def _find_cells(notebook: dict[str, Any]) -> list[Any]:
    """The cells; in nbformat 3 those of all worksheets."""
    owners = notebook.get("worksheets") if notebook["nbformat"] < 4 else [notebook]
    if not isinstance(owners, list):
        raise InputError("not a notebook: 'worksheets' is not a list")
    cells: list[Any] = []
    for owner in owners:
        found = owner.get("cells") if isinstance(owner, dict) else None
        if not isinstance(found, list):
            raise InputError("not a notebook: there is no list 'cells'")
        cells += found
    return cells


def _write_cell(cell: Any, language: str) -> str:
    """The cell as Markdown; "" if it is empty or of a kind that is not text."""
    if not isinstance(cell, dict):
        raise InputError("not a notebook: a cell is not an object")
    kind = cell.get("cell_type")
    source = cell.get("input" if kind == "code" and "input" in cell else "source", "")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        raise InputError("not a notebook: the source of a cell is not text")
    source = source.strip("\n")
    if not source.strip() or kind not in ("markdown", "code", "raw", "heading"):
        return ""
    if kind == "heading":  # nbformat 3
        level = cell.get("level")
        return f"{'#' * (level if isinstance(level, int) and 1 <= level <= 6 else 1)} {' '.join(source.split())}"
    if kind != "code":
        return source
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
    return f"{fence}{language}\n{source}\n{fence}"


def _find_language(notebook: dict[str, Any]) -> str:
    """The language of the code, in lower case, or "" if the notebook does not name it."""
    metadata = notebook.get("metadata")
    for owner, key in (("kernelspec", "language"), ("language_info", "name")):
        about = metadata.get(owner) if isinstance(metadata, dict) else None
        name = about.get(key) if isinstance(about, dict) else None
        if isinstance(name, str) and _LANGUAGE.fullmatch(name):
            return name.lower()
    return ""
