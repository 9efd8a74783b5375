"""The fixtures are shared: `integrations/fixtures.py`."""

import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).parents[3]))
from integrations.fixtures import Watched, smollm2, tiny_embedder, tiny_folder  # noqa: F401

from sentence_transformers_gircse import GircseModule


@pytest.fixture
def model(tiny_folder: Path) -> SentenceTransformer:  # noqa: F811
    return SentenceTransformer(modules=[GircseModule(str(tiny_folder), dtype="float32", device="cpu")], device="cpu")


@pytest.fixture
def watched(model: SentenceTransformer) -> Watched:
    """What the model's embedder is asked to compute."""
    embedder = model[0].embedder
    embedder.backend = Watched(embedder.backend, embedder)
    return embedder.backend
