"""The bundled model, loaded only when it is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.errors import CheckpointError, GircseError
from gircse_rag.qdrant import Document, ingest, open_client

pytestmark = pytest.mark.model


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-base"])
def test_the_spec_is_known_without_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = Embedder.from_pretrained(name, dtype="float32", device="cpu", steps=3)
    with monkeypatch.context() as patch:
        patch.setattr("gircse_rag.checkpoint.load.load_checkpoint", None)  # a call would fail
        lazy = Embedder.from_pretrained(name, dtype="float32", device="cpu", steps=3, lazy=True)
    assert lazy.spec == eager.spec and lazy.dimension == eager.dimension == lazy.backend.dimension
    assert lazy.tokenizer.backend_tokenizer.to_str() == eager.tokenizer.backend_tokenizer.to_str()


def test_it_is_loaded_once_and_gives_the_same_vectors(smollm2: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu", lazy=True)
    texts = ["a text", "another one"]
    np.testing.assert_allclose(lazy.embed_documents(texts), smollm2.embed_documents(texts), atol=1e-5)
    monkeypatch.setattr("gircse_rag.checkpoint.load.load_checkpoint", None)
    lazy.embed_documents(texts)
    lazy.close()
    with pytest.raises(GircseError):
        lazy.embed_documents(texts)


def test_a_model_that_differs_from_its_spec_is_refused(smollm2: Embedder) -> None:
    from gircse_rag.backends.lazy import LazyBackend

    spec = replace(smollm2.spec, base_hash="another")
    lazy = Embedder(LazyBackend(lambda: (smollm2.backend, smollm2.spec), spec), smollm2.tokenizer, spec)
    with pytest.raises(CheckpointError, match="differs from the spec read before loading"):
        lazy.embed_documents(["a text"])


def test_unchanged_documents_load_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(tmp_path / "store")
    documents = [Document(str(number), f"text {number}") for number in range(3)]
    lazy = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu", lazy=True)
    assert ingest(documents, collection="docs", embedder=lazy, client=client).added == 3
    monkeypatch.setattr("gircse_rag.checkpoint.load.load_checkpoint", None)
    again = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu", lazy=True)
    assert ingest(documents, collection="docs", embedder=again, client=client).unchanged == 3
    client.close()
