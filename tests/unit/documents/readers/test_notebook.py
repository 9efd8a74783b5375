from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gircse_rag.documents import Chunker
from tests.unit.documents.readers import read_one, reason
from tests.unit.documents.test_chunking import SPEC, TOKENIZER


def _write(folder: Path, value: Any) -> Path:
    path = folder / "a.ipynb"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def _cell(kind: str, source: Any, **fields: Any) -> dict[str, Any]:
    return {"cell_type": kind, "source": source, "metadata": {}, **fields}


def _notebook(*cells: Any, **fields: Any) -> dict[str, Any]:
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells), **fields}


def test_cells_become_markdown_without_outputs(tmp_path: Path) -> None:
    output = {"output_type": "stream", "name": "stdout", "text": ["unseen\n"]}
    notebook = _notebook(
        _cell("markdown", ["# Load\n", "\n", "Read the file."]),
        _cell("code", "x = 1\ns = '```'\n", outputs=[output], execution_count=1),
        _cell("code", ""),
        _cell("unknown", "unseen"),
        _cell("raw", "as it is"),
        metadata={"kernelspec": {"language": "Python", "name": "python3"}},
    )
    document = read_one(_write(tmp_path, notebook))
    assert document.text == "# Load\n\nRead the file.\n\n````python\nx = 1\ns = '```'\n````\n\nas it is"
    assert document.markdown and document.metadata == {"language": "python"}
    chunks = Chunker(TOKENIZER, SPEC).cut(document)
    assert {chunk.headings for chunk in chunks} == {("Load",)}


def test_front_matter_in_the_first_cell_is_metadata(tmp_path: Path) -> None:
    document = read_one(
        _write(tmp_path, _notebook(_cell("raw", "---\ntitle: Pumps\n---"), _cell("markdown", "Seals.")))
    )
    assert document.metadata == {"title": "Pumps"}
    assert [chunk.text for chunk in Chunker(TOKENIZER, SPEC).cut(document)] == ["Seals."]


def test_a_notebook_of_version_3_is_read(tmp_path: Path) -> None:
    cells = [{"cell_type": "heading", "level": 2, "source": "Load"}, {"cell_type": "code", "input": ["x = 1"]}]
    old = {"nbformat": 3, "metadata": {}, "worksheets": [{"cells": cells}]}
    assert read_one(_write(tmp_path, old)).text == "## Load\n\n```\nx = 1\n```"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "not JSON"),
        ('{"nbformat": 4, "cells": [{', "not JSON"),
        ("[" * 200_000, "not JSON that Python can read"),
        ({"cells": []}, "there is no field 'nbformat'"),
        ({"nbformat": 4}, "there is no list 'cells'"),
        ({"nbformat": 3}, "'worksheets' is not a list"),
        (_notebook(3), "a cell is not an object"),
        (_notebook(_cell("code", {"a": 1})), "the source of a cell is not text"),
        (_notebook(_cell("code", ["a", 1])), "the source of a cell is not text"),
        (_notebook(_cell("code", " \n")), "all cells are empty"),
        (_notebook(_cell("markdown", "a" * (8 * 2**20 + 1))), "more than 8 MiB of text"),
    ],
)
def test_what_is_no_notebook_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    assert message in reason(_write(tmp_path, value))


def test_pictures_in_outputs_do_not_count(tmp_path: Path) -> None:
    picture = {"output_type": "display_data", "data": {"image/png": "A" * (9 * 2**20)}}
    assert read_one(_write(tmp_path, _notebook(_cell("code", "plot()", outputs=[picture])))).text == "```\nplot()\n```"
    path = tmp_path / "a.ipynb"
    with path.open("ab") as file:
        file.truncate(64 * 2**20 + 1)
    assert "the limit is 64 MiB" in reason(path)
