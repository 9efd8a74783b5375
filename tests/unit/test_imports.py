"""Imports follow the directions in CONTRIBUTING.md, checked by import-linter (contracts in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter import cli

ROOT = Path(__file__).parents[2]


def test_imports_point_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    failed = cli.lint_imports(no_cache=True)
    assert not failed, capsys.readouterr().out
