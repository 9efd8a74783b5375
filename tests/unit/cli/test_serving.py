from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from gircse_rag import Embedder
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.vllm import export
from gircse_rag.install_hint import install_command
from gircse_rag.serving.service import Service
from tests.disk import SmallDisks
from tests.processes import interruptible
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
    result = gircse("serve", "--backend", "vllm", "--model", tiny_folder)
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
        result = gircse(
            "serve", "--backend", "vllm", "--model", tiny_folder, "--port", "8123", "--tensor-parallel-size", "2"
        )
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
    assert gircse("serve", "--backend", "vllm", "--model", tiny_folder, "--accept-token-ids").code == 0
    assert "--accept-token-ids" not in started[-1][1] and started[-1][2]["GIRCSE_ACCEPT_TOKEN_IDS"] == "1"
    assert options["--dtype"] in ("bfloat16", "float32")  # vLLM's own choice would be float16
    for chosen in (["--dtype", "float16"], ["--dtype=float16"]):
        assert gircse("serve", "--backend", "vllm", "--model", tiny_folder, *chosen).code == 0
        assert started[-1][1].count("--dtype") == 1 and "float16" in started[-1][1]


def test_serve_notices_another_model_under_the_same_name(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(os, "execve", lambda _, command, __: started.append(command))
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    model = shutil.copytree(tiny_folder, tmp_path / "mine")
    assert gircse("serve", "--backend", "vllm", "--model", model).code == 0
    (model / "gircse.json").write_text('{"document_steps": 3}')
    assert gircse("serve", "--backend", "vllm", "--model", model).code == 0
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
    assert gircse("serve", "--backend", "vllm", "--model", tiny_folder).code == 0


def test_serve_keeps_the_key_out_of_vllms_command(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(os, "execve", lambda _, command, environment: started.append((command, environment)))
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    assert gircse("serve", "--backend", "vllm", "--model", tiny_folder, "--api-key", "s3cret").code == 0
    ((command, environment),) = started
    assert "s3cret" not in command and environment["VLLM_API_KEY"] == "s3cret"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size; options of vLLM need --backend vllm"),
        (["--backend", "vllm", "--max-steps", "3"], "--max-steps is not for --backend vllm"),
        (["--backend", "vllm", "--deterministic"], "--deterministic is not for --backend vllm"),
        (["--port", "70000"], "equal to 65535"),
    ],
)
def test_serve_refuses_options_of_the_other_server(gircse: Gircse, arguments: list[str], message: str) -> None:
    result = gircse("serve", *arguments)
    assert result.code == 2 and message in " ".join(result.err.replace("│", "").split())


@pytest.mark.parametrize("options", [[], ["--deterministic"]])
def test_serve_hands_deterministic_to_the_engine(
    gircse: Gircse, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    served: list[bool] = []

    def run(app: object, service: Service, *_: object, **__: object) -> None:
        assert isinstance(service.embedder.backend, PagedBackend)
        served.append(service.embedder.backend._deterministic)

    monkeypatch.setattr("gircse_rag.serving.server.run", run)
    assert gircse("serve", *tiny_model, *options).code == 0
    assert served == [bool(options)]


def test_serve_says_that_the_port_is_taken(gircse: Gircse, tiny_model: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = gircse("serve", *tiny_model, "--port", str(port))
    assert result.code == 5 and f"cannot listen on 127.0.0.1 port {port}" in result.err


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "prometheus_client"])
def test_serve_without_its_extra_names_it(gircse: Gircse, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = gircse("serve")
    assert result.code == 3 and "[server]" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_and_stops_on_a_signal(tiny_model: list[str], signal_number: signal.Signals) -> None:
    command = [sys.executable, "-m", "gircse_rag.cli", "serve", *tiny_model, "--port", "0"]
    environment = {**os.environ, "GIRCSE_API_KEY": "s3cret"}
    with interruptible(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if "serving:" in line).split()[-1]
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer s3cret"}, trust_env=False) as http:
            while http.get("/ready").status_code != 200:
                time.sleep(0.05)
            assert http.post("/v1/embeddings", json={"input": "a text"}, timeout=60).status_code == 200
            assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
        process.send_signal(signal_number)
        rest = process.stderr.read()
        assert process.wait(60) == 0, rest
    assert [json.loads(line)["status"] for line in rest.splitlines() if line.startswith("{")][-1] == 401
    assert "Traceback" not in rest and "s3cret" not in rest
