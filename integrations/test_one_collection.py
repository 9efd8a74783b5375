"""Every integration reads what every other integration wrote to the same collection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from haystack import Document as HaystackDocument
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder, GircseTextEmbedder
from haystack_integrations.document_stores.gircse import GircseQdrantDocumentStore as HaystackStore
from langchain_gircse import GircseEmbeddings
from langchain_gircse.qdrant import GircseQdrantVectorStore as LangChainStore
from langchain_qdrant import QdrantVectorStore as LangChainBuiltinStore
from llama_index.core import Document as LlamaDocument
from llama_index.core import VectorStoreIndex
from llama_index.embeddings.gircse import GircseEmbedding
from llama_index.embeddings.gircse.qdrant import GircseQdrantVectorStore as LlamaStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaBuiltinStore

from gircse_rag.qdrant import Document, ingest, search
from gircse_rag.qdrant.schema import VECTOR
from integrations.fixtures import INSTRUCTION


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_all_integrations_read_the_same_collection(instruction: str | None, tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_folder), "dtype": "float32", "device": ComponentDevice.from_str("cpu")}
    haystack = HaystackStore("c", GircseDocumentEmbedder(**settings), path=str(tmp_path))
    client, embedder = haystack.client, haystack.embedder.embedder
    ingest([Document("a", "gzip compresses files", {"by": "gircse"})], collection="c", embedder=embedder, client=client)
    haystack.write_documents([HaystackDocument(content="a list is ordered", meta={"by": "haystack"})])
    langchain = LangChainStore(client, "c", GircseEmbeddings(embedder=embedder))
    langchain.add_texts(["a heap is a tree"], [{"by": "langchain"}])
    embed_model = GircseEmbedding(embedder=embedder, query_instruction=instruction)
    llama = VectorStoreIndex.from_vector_store(LlamaStore("c", client, embed_model), embed_model=embed_model)
    llama.insert(LlamaDocument(text="a set has no order", metadata={"by": "llama_index"}))
    LangChainBuiltinStore(client, "c", langchain.embeddings, vector_name=VECTOR).add_texts(
        ["a tuple"], [{"by": "langchain built-in"}]
    )
    builtin = VectorStoreIndex.from_vector_store(
        LlamaBuiltinStore("c", client=client, dense_vector_name=VECTOR), embed_model=embed_model
    )
    builtin.insert(LlamaDocument(text="a deque", metadata={"by": "llama_index built-in"}))

    expected = [
        (hit.text, hit.metadata["by"], hit.score)
        for hit in search(
            "heap", collection="c", embedder=embedder, client=client, instruction=instruction, limit=9, mode="dense"
        )
    ]
    vector = langchain.embeddings.embed_query("heap", instruction=instruction)
    through_langchain = [
        (document.page_content, document.metadata["by"], score)
        for document, score in langchain.similarity_search_with_score_by_vector(vector, k=9)
    ]
    retriever = langchain.as_retriever(search_kwargs={"k": 9})
    retrieved = [document.page_content for document in retriever.invoke("heap", instruction=instruction)]
    through_llama = [
        (node.text, node.metadata["by"], node.score) for node in llama.as_retriever(similarity_top_k=9).retrieve("heap")
    ]
    vector = GircseTextEmbedder(**settings).run("heap", instruction=instruction)["embedding"]
    through_haystack = [(each.content, each.meta["by"], each.score) for each in haystack.query(vector, None, 9)]
    client.close()
    writers = {"gircse", "haystack", "langchain", "llama_index", "langchain built-in", "llama_index built-in"}
    assert {by for _, by, _ in expected} == writers
    assert retrieved == [text for text, _, _ in expected]
    for other in (through_langchain, through_llama, through_haystack):
        assert [hit[:2] for hit in other] == [hit[:2] for hit in expected]
        np.testing.assert_allclose([hit[2] for hit in other], [hit[2] for hit in expected], atol=1e-6)
