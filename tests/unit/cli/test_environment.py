from __future__ import annotations

import socket
from contextlib import closing
from importlib.metadata import metadata
from pathlib import Path

import pytest

from gircse_rag.checkpoint.bundled import BUNDLED
from gircse_rag.cli.options import needs_fetching
from gircse_rag.prompts import INSTRUCTIONS
from tests import tiny
from tests.qdrant_shim import Shim
from tests.unit.cli.conftest import Gircse


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_models_lists_what_is_fetched(gircse: Gircse, empty_cache: Path) -> None:
    result = gircse("models", "--json")
    assert (result.code, result.err) == (0, "")
    assert {model["name"]: model["fetched"] for model in result.json["models"]} == dict.fromkeys(BUNDLED, False)
    (empty_cache / "smollm2-135m-base").mkdir(parents=True)
    assert all(model["fetched"] for model in gircse("models", "--json").json["models"])
    table = gircse("models")
    assert (table.code, table.err) == (0, "")
    assert all(name in table.out for name in BUNDLED)


def test_instructions_lists_the_names(gircse: Gircse) -> None:
    result = gircse("instructions", "--json")
    assert (result.code, result.err, result.json) == (0, "", INSTRUCTIONS)
    table = gircse("instructions")
    assert (table.code, table.err) == (0, "") and all(name in table.out for name in INSTRUCTIONS)
    assert table.out.count("(default)") == 1


def test_needs_fetching_looks_at_the_model_and_its_base(empty_cache: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert needs_fetching("smollm2-135m") and needs_fetching("smollm2-135m-base")
    assert not needs_fetching(str(tiny_folder)) and not needs_fetching("owner/model")
    assert needs_fetching(str(tiny.adapter(tmp_path / "adapter", "smollm2-135m-base")))
    (empty_cache / "smollm2-135m-base").mkdir(parents=True)
    assert not needs_fetching("smollm2-135m")


def test_doctor_finds_a_sound_machine_ok(gircse: Gircse, tiny_model: list[str]) -> None:
    result = gircse("doctor", *tiny_model[:2], "--json")
    assert (result.code, result.err, result.json["ok"]) == (0, "", True)
    checks = {check["name"]: check for check in result.json["checks"]}
    assert {"gircse-rag", "libraries", "threads", "bfloat16", "cache", "model", "qdrant"} <= set(checks)
    assert "torch 2." in checks["libraries"]["found"]
    assert checks["model"]["state"] == "ok" and "d=32" in checks["model"]["found"]
    table = gircse("doctor", *tiny_model[:2])
    assert (table.code, table.err) == (0, "")
    assert "BROKEN" not in table.out


def test_doctor_notes_a_missing_model_and_does_not_fetch_it(gircse: Gircse, empty_cache: Path) -> None:
    result = gircse("doctor", "--json")
    states = {check["name"]: (check["state"], check["found"]) for check in result.json["checks"]}
    assert (result.code, states["model"][0]) == (0, "note")
    assert "not downloaded yet" in states["model"][1]
    assert not empty_cache.exists()


def test_doctor_does_not_fetch_a_hub_model(gircse: Gircse, tmp_path: Path) -> None:
    for model in ("owner/model", tiny.adapter(tmp_path / "adapter", "owner/base")):
        checks = {check["name"]: check for check in gircse("doctor", "--model", model, "--json").json["checks"]}
        assert checks["model"]["state"] == "note" and "is a Hub id" in checks["model"]["found"]


def test_doctor_names_broken_parts_and_exits_1(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in tiny_folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("QDRANT_URL", f"http://127.0.0.1:{port}")
    result = gircse("doctor", "--model", damaged, "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    broken = {check["name"]: check["found"] for check in result.json["checks"] if check["state"] == "broken"}
    assert set(broken) == {"model", "qdrant"}
    assert str(damaged) in broken["model"]
    assert "does not answer" in broken["qdrant"]
    assert "BROKEN" in gircse("doctor", "--model", damaged).out


@pytest.mark.slow
@pytest.mark.parametrize("debug", [False, True])
def test_a_password_in_the_url_is_never_printed(
    gircse: Gircse, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    if debug:
        monkeypatch.setenv("GIRCSE_DEBUG", "1")
    with Shim() as shim:
        for url in (shim.url, "http://127.0.0.1:1", "http://host:port", "ftp://host"):
            secret = url.replace("://", "://me:pa/S3CRET@")
            monkeypatch.setenv("QDRANT_URL", secret)
            results = [gircse("doctor", *tiny_model[:2], *json) for json in ([], ["--json"])]
            monkeypatch.delenv("QDRANT_URL")
            results.append(gircse("search", "x", "--collection", "docs", "--url", secret, *tiny_model))
            for result in results:
                assert "S3CRET" not in result.out + result.err and "pa/" not in result.out + result.err
            host = url.partition("://")[2]
            assert host in results[1].out


def test_doctor_reports_a_cache_that_is_not_a_folder(gircse: Gircse, empty_cache: Path) -> None:
    empty_cache.write_text("a file is in the way")
    result = gircse("doctor", "--json")
    assert result.code == 1
    assert [check["name"] for check in result.json["checks"] if check["state"] == "broken"] == ["cache"]


def test_doctor_checks_every_extra(gircse: Gircse, tiny_model: list[str]) -> None:
    offered = set(metadata("gircse-rag").get_all("Provides-Extra") or []) - {"readers", "dev"}
    checks = gircse("doctor", *tiny_model[:2], "--json").json["checks"]
    assert {check["name"].removeprefix("extra ") for check in checks if check["name"].startswith("extra ")} == offered
