"""`gircse ingest --runner ray`, on a Ray that the command starts, into a server over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.qdrant_shim import Shim
from tests.soak.kills import assert_same, state
from tests.unit.cli.conftest import Gircse

ray = pytest.importorskip("ray", reason="needs gircse-rag[ray]")
pytest.importorskip("ray.data", reason="needs gircse-rag[ray]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    rows = [{"key": n, "body": f"row {n} of a table.\n\nIt has {n % 7} legs and more words."} for n in range(1200)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "guide.md").write_text("# Files\n\nOpen a file with open().\n\n# Lists\n\nSort a list with sorted().\n")
    (made / "copy.txt").write_text("# Files\n\nOpen a file with open().\n\n# Lists\n\nSort a list with sorted().\n")
    (made / "latin.txt").write_bytes(b"K\xe4fer")
    return made


def test_two_workers_make_the_collection_that_one_process_makes(
    gircse: Gircse, tiny_model: list[str], folder: Path, tmp_path: Path
) -> None:
    """With every option that a worker has to know: how rows are read and documents cut, and the source."""
    options = ["--collection", "docs", "--text-field", "body", "--id-field", "key", "--chunk-tokens", "60"]
    options += ["--chunk-by", "headings", "--source", "mine", "--json", *tiny_model]
    with Shim() as alone, Shim() as shim:
        expected = gircse("ingest", folder, "--url", alone.url, *options)
        assert (expected.code, expected.json["added"]) == (1, 1202)
        assert expected.json["embedded"] > 1202 and expected.json["duplicated"] == 1
        on_ray = ["--url", shim.url, "--runner", "ray", "--workers", "2", *options]
        ran = gircse("ingest", "in", *on_ray)
        assert ran.code == 1 and not ray.is_initialized(), "the Ray that it started has ended"
        assert ran.err == expected.err and "latin.txt" in ran.err
        same = {"seconds": 0, "retries": 0}
        assert ran.json | same == expected.json | same
        with shim.quiet(), alone.quiet():
            assert_same(state(shim.store), state(alone.store), exact=False)
        (folder / "latin.txt").unlink()
        (folder / "copy.txt").unlink()
        again = gircse("ingest", folder, *on_ray, "--sync")
        assert (again.code, again.json["embedded"], again.json["unchanged"]) == (0, 0, 1201)
        assert (again.json["gone"], again.json["removed"]) == (["copy.txt"], 1)
        found = gircse("search", "a table", "--collection", "docs", "--url", shim.url, "--json", *tiny_model)
        scores = [hit["score"] for hit in found.json["hits"]]
        assert len(scores) == 5 and np.all(np.diff(scores) <= 0)


@pytest.mark.parametrize("options", [[], ["--path", "store"]])
def test_without_a_server_it_is_refused(
    gircse: Gircse, tiny_model: list[str], folder: Path, options: list[str]
) -> None:
    ran = gircse("ingest", folder, "--collection", "docs", "--runner", "ray", *options, *tiny_model)
    assert (ran.code, ran.out) == (5, "") and "run a Qdrant server and give its --url" in ran.err
    assert not (folder.parent / "store").exists() and not ray.is_initialized()
