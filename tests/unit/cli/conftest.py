from __future__ import annotations

import copy
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gircse_rag.cli.app import run as run_command
from tests.disk import SmallDisks


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Gircse = Callable[..., Result]


@pytest.fixture
def gircse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gircse:
    """Run `gircse ...` in this process, in an empty folder, as `gircse("embed", "text", stdin=b"...")`."""
    monkeypatch.chdir(tmp_path)
    for variable in ("QDRANT_URL", "GIRCSE_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    access = logging.getLogger("gircse_rag.access")  # the servers' log, which must not stay on this test's stderr
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(access, name, copy.copy(getattr(access, name)))

    def run(*arguments: str | os.PathLike[str], stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            run_command([os.fspath(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(exit.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def tiny_model(tiny_folder: Path) -> list[str]:
    """The options that select the tiny model."""
    return ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[SmallDisks]:
    disks = SmallDisks(tmp_path)
    yield disks
    disks.unmount()
