from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from qdrant_client import QdrantClient

from gircse_rag import Embedder
from gircse_rag.errors import InputError, StoreError
from gircse_rag.qdrant import Document, ingest, open_client, search
from gircse_rag.qdrant.trajectory import search_trajectory

DOCUMENTS = [Document(f"{number}", f"the way of world number {number}") for number in range(30)]
STEPS = 6


@pytest.fixture(scope="module")
def embedder(tiny_folder: Path) -> Iterator[Embedder]:
    with Embedder.from_pretrained(str(tiny_folder), device="cpu", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantClient]:
    with closing(open_client(tmp_path_factory.mktemp("store"))) as opened:
        ingest(DOCUMENTS, collection="notes", embedder=embedder, client=opened)
        yield opened


@pytest.mark.filterwarnings("ignore:queries take")
@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_each_step_ranks_as_a_search_with_as_many_steps(
    embedder: Embedder, client: QdrantClient, mode: Literal["hybrid", "dense"]
) -> None:
    common = {"collection": "notes", "embedder": embedder, "client": client, "instruction": "find texts", "limit": 4}
    found = search_trajectory("world 7", steps=STEPS, mode=mode, top_k=3, **common)  # type: ignore[arg-type]
    assert found.mode == mode and len(found.hits) == STEPS
    for step, hits in enumerate(found.hits, start=1):
        alone = search("world 7", steps=step, mode=mode, **common)  # type: ignore[arg-type]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-5)
        assert hits[0].id == alone[0].id
    assert found.vectors.shape == (STEPS, embedder.dimension) and found.vectors.dtype == np.float32
    assert [len(step) for step in found.soft_tokens] == [3] * STEPS
    assert found.embed_seconds > 0 and found.rank_seconds > 0


def test_one_forward_embeds_the_question(
    embedder: Embedder, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda *given, **options: calls.append(given) or embed(*given, **options))  # type: ignore[func-returns-value]
    search_trajectory("world 7", collection="notes", embedder=embedder, client=client, steps=STEPS)
    assert len(calls) == 1


def test_bad_input(embedder: Embedder, client: QdrantClient) -> None:
    with pytest.raises(InputError, match="limit"):
        search_trajectory("a", collection="notes", embedder=embedder, client=client, limit=0)
    with pytest.raises(InputError, match="do not change the lexical ranking"):
        search_trajectory("a", collection="notes", embedder=embedder, client=client, mode="lexical")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="string"):
        search_trajectory(7, collection="notes", embedder=embedder, client=client)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty"):
        search_trajectory(" ", collection="notes", embedder=embedder, client=client)
    with pytest.raises(StoreError, match="none"):
        search_trajectory("a", collection="none", embedder=embedder, client=client)
