"""Fixtures shared by all integrations come from `integrations/fixtures.py`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))
from integrations.fixtures import recording_backend, smollm2, tiny_embedder, tiny_folder  # noqa: F401

from langchain_gircse import GircseEmbeddings


@pytest.fixture
def embeddings(tiny_embedder) -> GircseEmbeddings:  # noqa: F811
    return GircseEmbeddings(embedder=tiny_embedder)
