"""The installed `gircse` command with the real model, in a subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gircse_rag import Embedder

pytestmark = pytest.mark.model

GIRCSE = str(Path(sys.executable).parent / "gircse")
PRECISE = ["--dtype", "float32", "--device", "cpu"]


def gircse(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GIRCSE, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, check=False)


def test_embed_agrees_with_the_library(tmp_path: Path, smollm2: Embedder) -> None:
    texts = ["a cat sat on the mat", "two"]
    lines = "".join(f"{text}\n" for text in texts)
    ran = gircse("embed", "--role", "document", "--json", *PRECISE, cwd=tmp_path, stdin=lines)
    assert ran.returncode == 0, ran.stderr
    output = json.loads(ran.stdout)
    assert output["fingerprint"] == smollm2.fingerprint
    vectors = np.array([row["vector"] for row in output["embeddings"]], np.float32)
    np.testing.assert_allclose(vectors, smollm2.embed_documents(texts), atol=1e-5)


def test_ingest_then_search(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "zip.md").write_text("# zipfile\n\nRead and write ZIP archives.\n")
    (tmp_path / "notes" / "heap.txt").write_text("A heap queue hands out the smallest item first.\n")
    store = ["--collection", "notes", "--path", "store", "--json", *PRECISE]
    report = gircse("ingest", "notes", *store, cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["added"] == 2
    found = gircse("search", "A heap queue hands out the smallest item first.", *store, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert {hit["document"] for hit in json.loads(found.stdout)["hits"]} == {"zip.md", "heap.txt"}


def test_explain_and_doctor(tmp_path: Path) -> None:
    ran = gircse("explain", "bank", "--instruction", "find money", "--instruction", "find rivers", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("Instruct: find money")
    assert "cosine between the instructions" in ran.stdout
    doctor = gircse("doctor", "--json", cwd=tmp_path)
    states = {check["name"]: check["state"] for check in json.loads(doctor.stdout)["checks"]}
    assert (doctor.returncode, states["model"]) == (0, "ok")
