from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gircse_rag import Embedder
from gircse_rag.backends.vllm import export
from gircse_rag.install_hint import install_command
from tests.disk import SmallDisks
from tests.unit.cli.conftest import Gircse


def test_export_writes_a_folder_that_every_command_accepts(gircse: Gircse, tiny_folder: Path, tmp_path: Path) -> None:
    result = gircse("export", tmp_path / "merged", "--model", tiny_folder, "--json")
    assert result.code == 0
    assert result.json["fingerprint"] == Embedder.from_pretrained(str(tiny_folder), device="cpu").fingerprint
    embedded = gircse("embed", "a text", "--model", tmp_path / "merged", "--json")
    assert embedded.json["fingerprint"] == result.json["fingerprint"]
    again = gircse("export", tmp_path / "merged", "--model", tiny_folder)
    assert again.code == 5 and "is not empty" in again.err


@pytest.mark.parametrize("part", [0.02, 0.5, 0.8, 0.95, 0.99])
def test_an_export_to_a_full_disk_says_so_and_leaves_nothing(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, small_disks: SmallDisks, part: float
) -> None:
    assert gircse("export", tmp_path / "whole", "--model", tiny_folder).code == 0
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    disk = small_disks.mount(f"{int(needed * part)}")
    result = gircse("export", disk / "merged", "--model", tiny_folder)
    assert (result.code, result.out) == (5, "")
    message = f"error: could not write {disk / 'merged'}: No space left on device; nothing was left there"
    assert result.err.splitlines() == [message]
    assert not list(disk.iterdir())


def test_serve_without_vllm_names_the_extra(gircse: Gircse, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    result = gircse("serve", "--model", tiny_folder)
    assert result.code == 3 and install_command("vllm") in result.err


@pytest.mark.parametrize("plugins, expected", [(None, {"gircse"}), ("mine,other", {"mine", "other", "gircse"})])
def test_serve_execs_vllms_server_with_our_plugin(
    gircse: Gircse,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plugins: str | None,
    expected: set[str],
) -> None:
    """Checks the command without starting the server; tests/vllm starts it."""
    started = []
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    for _ in range(2):  # the second time nothing is exported
        result = gircse("serve", "--model", tiny_folder, "--port", "8123", "--tensor-parallel-size", "2")
        assert result.code == 0, result.err
    assert "first use" not in result.err
    (_, command, environment), second = started
    assert second[1] == command
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert Path(options["--model"]).is_relative_to(tmp_path / "cache")
    assert options["--served-model-name"] == str(tiny_folder)
    assert options["--port"] == "8123" and options["--tensor-parallel-size"] == "2"
    assert expected <= set(environment["VLLM_PLUGINS"].split(","))
    assert "GIRCSE_ACCEPT_TOKEN_IDS" not in environment
    assert gircse("serve", "--model", tiny_folder, "--accept-token-ids").code == 0
    assert "--accept-token-ids" not in started[-1][1] and started[-1][2]["GIRCSE_ACCEPT_TOKEN_IDS"] == "1"
    assert options["--dtype"] in ("bfloat16", "float32")  # vLLM's own choice would be float16
    for chosen in (["--dtype", "float16"], ["--dtype=float16"]):
        assert gircse("serve", "--model", tiny_folder, *chosen).code == 0
        assert started[-1][1].count("--dtype") == chosen.count("--dtype")


def test_serve_notices_another_model_under_the_same_name(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(os, "execve", lambda _, command, __: started.append(command))
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    model = shutil.copytree(tiny_folder, tmp_path / "mine")
    assert gircse("serve", "--model", model).code == 0
    (model / "gircse.json").write_text('{"document_steps": 3}')
    assert gircse("serve", "--model", model).code == 0
    first, second = (Path(command[command.index("--model") + 1]) for command in started)
    assert first != second
    steps = [Embedder.from_pretrained(str(folder), device="cpu").spec.document_steps for folder in (first, second)]
    assert steps == [5, 3]


def test_an_export_that_another_process_finished_first_is_served(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(os, "execve", lambda *_: None)
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    write = export.export

    def export_twice(model: str, folder: Path, **options: Any) -> Path:
        write(model, folder, **options)
        return write(model, folder, **options)

    monkeypatch.setattr(export, "export", export_twice)
    assert gircse("serve", "--model", tiny_folder).code == 0
