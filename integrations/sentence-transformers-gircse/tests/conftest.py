"""Fixtures shared by all integrations come from `integrations/fixtures.py`."""

import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).parents[3]))
from integrations.fixtures import RecordingBackend, smollm2, tiny_embedder, tiny_folder  # noqa: F401

from sentence_transformers_gircse import GircseModule


@pytest.fixture
def model(tiny_folder: Path) -> SentenceTransformer:  # noqa: F811
    return SentenceTransformer(modules=[GircseModule(str(tiny_folder), dtype="float32", device="cpu")], device="cpu")


@pytest.fixture
def recording_backend(model: SentenceTransformer) -> RecordingBackend:
    """Record the requests to the model's embedder."""
    embedder = model[0].embedder
    embedder.backend = RecordingBackend(embedder.backend, embedder)
    return embedder.backend
