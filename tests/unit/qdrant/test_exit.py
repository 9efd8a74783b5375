"""A client that is still open at exit is closed without a traceback, and its store is intact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gircse_rag.qdrant import open_client, search
from tests.stand_in import StandIn

# The cycle keeps the client until the interpreter clears its modules, when imports no longer work.
PROGRAM = """
import sys
from gircse_rag.qdrant import Document, ingest, open_client
from tests.stand_in import StandIn

client = open_client(sys.argv[1], engine=sys.argv[2])
client.itself = client
sys.keep = client
ingest([Document("a", "cats purr")], collection="docs", embedder=StandIn(), client=client)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "edge"])
def test_an_open_client_is_closed_at_exit(tmp_path: Path, engine: str) -> None:
    if engine == "edge":
        pytest.importorskip("qdrant_edge")
    store = str(tmp_path / "store")
    done = subprocess.run([sys.executable, "-c", PROGRAM, store, engine], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    client = open_client(store)
    assert [hit.document for hit in search("cats", collection="docs", embedder=StandIn(), client=client)] == ["a"]
    client.close()
