from __future__ import annotations

import pytest
from rich.table import Table

from gircse_rag.cli.output import emit, note, note_some

LITERAL = ["faq.csv:100: too long", "a:smile:b.txt: empty", "C:\\new\\", "[bold]x[/bold] \\[red]", "[/]"]


@pytest.mark.parametrize("message", LITERAL)
def test_notes_and_results_are_literal(capsys: pytest.CaptureFixture[str], message: str) -> None:
    note("warning", message)
    note_some("failed", [message], 1)
    table = Table("column")
    table.add_row(message)
    emit(message, table)
    captured = capsys.readouterr()
    assert captured.err == f"warning: {message}\nfailed: {message}\n"
    assert captured.out.startswith(f"{message}\n") and captured.out.count(message) == 2
