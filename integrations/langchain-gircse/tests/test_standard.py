"""LangChain's standard test suites, with no test overridden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gircse_rag.qdrant import open_client
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, VectorStoreIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_gircse import GircseEmbeddings
from langchain_gircse.qdrant import GircseQdrantVectorStore


class _Params:
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_folder: Path) -> None:
        self.folder = tiny_folder

    @property
    def embeddings_class(self) -> type[GircseEmbeddings]:
        return GircseEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": str(self.folder), "dtype": "float32", "device": "cpu"}


class TestUnit(_Params, EmbeddingsUnitTests):
    pass


class TestIntegration(_Params, EmbeddingsIntegrationTests):
    pass


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, embeddings: GircseEmbeddings, tmp_path: Path) -> Iterator[VectorStore]:
        client = open_client(tmp_path)
        yield GircseQdrantVectorStore(client, "langchain", embeddings)
        client.close()
