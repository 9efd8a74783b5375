"""The command in "not installed" messages works for a clone, for an installed clone and for a release."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from gircse_rag import install_hint
from gircse_rag.install_hint import install_command

ROOT = Path(__file__).parents[2]


def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, direct_url: str | None) -> None:
    """Pretend that the package runs from site-packages."""
    monkeypatch.setattr(install_hint, "_ROOT", tmp_path / "site-packages")
    record = SimpleNamespace(read_text=lambda name: direct_url if name == "direct_url.json" else None)
    monkeypatch.setattr(install_hint, "distribution", lambda name: record)


def test_in_a_clone_the_command_names_the_clone() -> None:
    words = shlex.split(install_command("train"))
    assert words == ["pip", "install", "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[train]"]
    assert Path(words[3]).is_file() and (ROOT / "pyproject.toml").is_file()


def test_an_installed_clone_is_installed_again_with_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    _installed(monkeypatch, tmp_path, json.dumps({"url": clone.as_uri(), "dir_info": {}}))
    assert install_command("pdf") == 'pip install "gircse-rag[pdf]"', "the clone is gone"
    (clone / "pyproject.toml").touch()
    assert shlex.split(install_command("pdf")) == ["pip", "install", f"{clone}[pdf]"]
    (clone / "constraints.txt").touch()
    assert shlex.split(install_command("pdf")) == ["pip", "install", "-c", f"{clone}/constraints.txt", f"{clone}[pdf]"]


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"url": "https://example.org/gircse_rag.whl"}'])
def test_a_release_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: str | None) -> None:
    _installed(monkeypatch, tmp_path, record)
    assert install_command("train") == 'pip install "gircse-rag[train]"'


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gircse_rag").rglob("*.py"))
    named = set(re.findall(r'(?:require\("[\w.]+", |install_command\(["\'])["\']?(\w+)', sources))
    assert named and named <= extras.keys()
