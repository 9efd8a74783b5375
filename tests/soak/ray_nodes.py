"""`ingest_on_ray` on two Ray nodes, one of which is killed in the middle: a machine that disappears.

    python -m pytest tests/soak/ray_nodes.py

Not part of `make test`: six processes start, and each imports torch.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from gircse_rag.backend import Refinement, Request
from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError
from gircse_rag.qdrant.ingestion import ray_runner
from tests.qdrant_shim import Shim
from tests.soak.kills import ExactBackend, ExactEmbedder, assert_same, read_state
from tests.unit.qdrant.ingestion.test_ray import COUNT, corpus, ingest_in_process, ingest_with_ray

ray = pytest.importorskip("ray", reason="needs gircse-rag[ray]")
pytest.importorskip("ray.data", reason="needs gircse-rag[ray]")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

WORKERS = 4
# The head, which has the reader, can hold all workers once the other node is gone. A lost node is noticed in 2 seconds.
HEAD = {"num_cpus": WORKERS, "object_store_memory": 100_000_000, "include_dashboard": False}
OTHER: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100_000_000}
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


class NodeBackend(ExactBackend):
    """Notes the Ray node of each batch, and takes its time."""

    def __init__(self, nodes: Path) -> None:
        super().__init__()
        self._nodes = nodes

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        with self._nodes.open("a") as file:
            file.write(ray.get_runtime_context().get_node_id() + "\n")
        time.sleep(0.1)
        return super().refine(requests)


def embedder_on_node(log: Path, nodes: Path) -> Embedder:
    return ExactEmbedder(log, words=NodeBackend(nodes))


@pytest.fixture
def nodes() -> Iterator[tuple[Cluster, Any]]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "_system_config": NOTICE})
    try:
        other = cluster.add_node(**OTHER)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        yield cluster, other
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_killed_node_loses_nothing(
    nodes: tuple[Cluster, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, other = nodes
    log, used = tmp_path / "embedded", tmp_path / "nodes"
    monkeypatch.setattr(ray_runner, "_DOCUMENTS_PER_PART", 16)
    expected = QdrantClient(":memory:")
    one = ingest_in_process(expected, corpus(1))
    killed = []

    def kill_once_busy() -> None:
        deadline = time.monotonic() + 180  # the workers import torch first, on few cores
        while time.monotonic() < deadline:
            if used.exists() and used.read_text().split().count(other.node_id) >= 2:
                killed.append(len(log.read_text().split()))
                cluster.remove_node(other, allow_graceful=False)  # SIGKILL of the raylet; its workers die with it
                return
            time.sleep(0.02)

    with Shim() as shim:
        killer = threading.Thread(target=kill_once_busy)
        killer.start()
        report = ingest_with_ray(
            shim, partial(corpus, 1), embedder=partial(embedder_on_node, log, used), workers=WORKERS
        )
        killer.join()
        assert killed and killed[0] < one.embedded, "the node was killed too late, or was never used"
        assert [node["Alive"] for node in ray.nodes()].count(True) == 1
        assert report.failed == [] and report.added + report.unchanged == COUNT
        with shim.paused():
            assert_same(read_state(shim.store), read_state(expected))
    assert set(used.read_text().split()) == {other.node_id, ray.get_runtime_context().get_node_id()}
