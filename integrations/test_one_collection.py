"""One collection, written through every door and read through every other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from langchain_gircse import GircseEmbeddings
from langchain_gircse.qdrant import GircseQdrantVectorStore as LangChainStore
from llama_index.core import Document as LlamaDocument
from llama_index.core import VectorStoreIndex
from llama_index.embeddings.gircse import GircseEmbedding
from llama_index.embeddings.gircse.qdrant import GircseQdrantVectorStore as LlamaStore

from gircse_rag import Embedder
from gircse_rag.qdrant import Document, ingest, open_client, search
from integrations.fixtures import INSTRUCTION


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_all_three_write_and_all_three_read_the_same(
    instruction: str | None, tiny_embedder: Embedder, tmp_path: Path
) -> None:
    client = open_client(tmp_path)
    ingest(
        [Document("a", "gzip compresses files", {"by": "gircse"})],
        collection="c",
        embedder=tiny_embedder,
        client=client,
    )
    langchain = LangChainStore(client, "c", GircseEmbeddings(embedder=tiny_embedder))
    langchain.add_texts(["a heap is a tree"], [{"by": "langchain"}])
    embed_model = GircseEmbedding(embedder=tiny_embedder, query_instruction=instruction)
    llama = VectorStoreIndex.from_vector_store(LlamaStore("c", client, embed_model), embed_model=embed_model)
    llama.insert(LlamaDocument(text="a set has no order", metadata={"by": "llama_index"}))

    ours = [
        (hit.text, hit.metadata["by"], hit.score)
        for hit in search("heap", collection="c", embedder=tiny_embedder, client=client, instruction=instruction)
    ]
    vector = langchain.embeddings.embed_query("heap", instruction=instruction)
    through_langchain = [
        (document.page_content, document.metadata["by"], score)
        for document, score in langchain.similarity_search_with_score_by_vector(vector, k=5)
    ]
    retriever = langchain.as_retriever(search_kwargs={"k": 5})
    retrieved = [document.page_content for document in retriever.invoke("heap", instruction=instruction)]
    through_llama = [
        (node.text, node.metadata["by"], node.score) for node in llama.as_retriever(similarity_top_k=5).retrieve("heap")
    ]
    client.close()
    assert {by for _, by, _ in ours} == {"gircse", "langchain", "llama_index"}
    assert retrieved == [text for text, _, _ in ours]
    for other in (through_langchain, through_llama):
        assert [hit[:2] for hit in other] == [hit[:2] for hit in ours]
        np.testing.assert_allclose([hit[2] for hit in other], [hit[2] for hit in ours], atol=1e-6)
