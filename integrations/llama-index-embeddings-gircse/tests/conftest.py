"""Fixtures shared by all integrations come from `integrations/fixtures.py`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))
from integrations.fixtures import recording_backend, smollm2, tiny_embedder, tiny_folder  # noqa: F401

from llama_index.embeddings.gircse import GircseEmbedding


@pytest.fixture
def embed_model(tiny_embedder) -> GircseEmbedding:  # noqa: F811
    return GircseEmbedding(embedder=tiny_embedder)
