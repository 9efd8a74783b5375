"""`gircse ingest`, our store and LlamaIndex's own store read and write the same collection."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gircse_rag import Embedder
from gircse_rag.qdrant import Document, ingest, open_client, search
from gircse_rag.qdrant.foreign import make_node
from gircse_rag.qdrant.points import point_id
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from llama_index.core import Document as LlamaDocument
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct

from llama_index.embeddings.gircse import GircseEmbedding
from llama_index.embeddings.gircse.qdrant import GircseQdrantVectorStore

DOCUMENTS = [Document(f"d{number}", text, {"number": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    client = open_client(tmp_path / "qdrant")
    yield client
    client.close()


@pytest.fixture
def store(client: QdrantClient, embed_model: GircseEmbedding) -> GircseQdrantVectorStore:
    ingest(DOCUMENTS, collection="docs", embedder=embed_model.embedder, client=client)
    return GircseQdrantVectorStore("docs", client, embed_model)


@pytest.fixture
def index(store: GircseQdrantVectorStore, embed_model: GircseEmbedding) -> VectorStoreIndex:
    return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)


def test_reads_what_gircse_ingested(index: VectorStoreIndex, client: QdrantClient, tiny_embedder: Embedder) -> None:
    ours = search("heap", collection="docs", embedder=tiny_embedder, client=client, mode="dense")
    theirs = index.as_retriever(similarity_top_k=5).retrieve("heap")
    assert [(hit.id, hit.text, hit.metadata, hit.document) for hit in ours] == [
        (node.node_id, node.text, node.metadata, node.node.ref_doc_id) for node in theirs
    ]
    assert [hit.score for hit in ours] == pytest.approx([node.score for node in theirs], abs=1e-6)


def test_llama_indexs_own_store_reads_texts_and_writes(
    store: GircseQdrantVectorStore, client: QdrantClient, embed_model: GircseEmbedding
) -> None:
    plain = QdrantVectorStore("docs", client=client, dense_vector_name="gircse", text_key="page_content")
    index = VectorStoreIndex.from_vector_store(plain, embed_model=embed_model)
    index.insert(LlamaDocument(text="written by LlamaIndex", metadata={"by": "llama"}))
    nodes = index.as_retriever(similarity_top_k=9).retrieve("x")
    assert {node.text for node in nodes} == {*TEXTS, "written by LlamaIndex"}
    assert len(search("x", collection="docs", embedder=embed_model.embedder, client=client)) == 4


@pytest.mark.parametrize("key", ["doc_id", "document_id", "ref_doc_id"])
def test_a_document_is_found_by_each_of_llama_indexs_names(index: VectorStoreIndex, key: str) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key=key, value="d1")])
    assert [node.text for node in index.as_retriever(filters=filters).retrieve("x")] == [TEXTS[1]]


def test_an_ingested_document_is_deleted_by_its_id(index: VectorStoreIndex, store: GircseQdrantVectorStore) -> None:
    index.delete_ref_doc("d1")
    assert {node.text for node in store.get_nodes()} == {*TEXTS} - {TEXTS[1]}


def test_points_of_an_earlier_version_with_a_node_are_read(store: GircseQdrantVectorStore) -> None:
    """They hold text and metadata a second time, in the node, and are not embedded again."""
    (point,) = store.client.retrieve("docs", [point_id("d1", 0)], with_vectors=True)
    node = make_node(point.id, point.payload)
    former = {"_node_content": json.dumps(node), "_node_type": "TextNode", "document_id": "d1", "ref_doc_id": "d1"}
    store.client.set_payload("docs", former, points=[point.id])
    (found,) = store.get_nodes([str(point.id)])
    assert (found.text, found.ref_doc_id, found.metadata["number"]) == (TEXTS[1], "d1", 1)


def test_gircse_reads_inserted_nodes_and_ingest_keeps_them(
    index: VectorStoreIndex, client: QdrantClient, tiny_embedder: Embedder
) -> None:
    index.insert(LlamaDocument(text="a new text", metadata={"by": "llama"}, doc_id="mine"))
    again = ingest(DOCUMENTS, collection="docs", embedder=tiny_embedder, client=client)
    assert (again.unchanged, again.embedded) == (3, 0)
    hits = search("new", collection="docs", embedder=tiny_embedder, client=client)
    assert ("a new text", {"by": "llama"}, None) in [(hit.text, hit.metadata, hit.document) for hit in hits]
    index.delete_ref_doc("mine")
    assert client.count("docs").count == 3


def test_filters_match_points_of_any_writer(index: VectorStoreIndex) -> None:
    index.insert(LlamaDocument(text="a new text", metadata={"number": 1}))
    filters = MetadataFilters(filters=[MetadataFilter(key="number", value=1)])
    found = index.as_retriever(similarity_top_k=9, filters=MetadataFilters(filters=[filters])).retrieve("x")
    assert {node.text for node in found} == {TEXTS[1], "a new text"}


def test_a_filter_on_a_key_with_a_space(index: VectorStoreIndex) -> None:
    index.insert(LlamaDocument(text="a new text", metadata={"Release Date": "2020"}))
    filters = MetadataFilters(filters=[MetadataFilter(key="Release Date", value="2020")])
    assert [node.text for node in index.as_retriever(filters=filters).retrieve("x")] == ["a new text"]


def test_metadata_is_stored_as_json(store: GircseQdrantVectorStore, embed_model: GircseEmbedding) -> None:
    created = datetime.datetime(2020, 1, 2)
    node = TextNode(text="a new text", metadata={"created": created, "score": float("nan"), "sizes": {1: "a"}})
    store.add(embed_model([node]))
    (point,) = store.client.retrieve("docs", [node.node_id])
    metadata = {"created": "2020-01-02T00:00:00", "score": None, "sizes": {"1": "a"}}
    assert point.payload["metadata"] == json.loads(point.payload["_node_content"])["metadata"] == metadata
    assert point.payload["own_id"] == node.node_id
    for bad in ("\ud800", object()):
        with pytest.raises(ValueError, match=r"not JSON|unknown type"):
            node = TextNode(text="bad", metadata={"bad": bad}, excluded_embed_metadata_keys=["bad"])
            store.add(embed_model([TextNode(text="good"), node]))
    assert store.client.count("docs").count == 4


def test_two_instructions(
    index: VectorStoreIndex, embed_model: GircseEmbedding, recording_backend: RecordingBackend
) -> None:
    other = embed_model.model_copy(update={"query_instruction": INSTRUCTION})
    index.as_retriever().retrieve("x")
    index.as_retriever(embed_model=other).retrieve("x")
    vector = embed_model.get_query_embedding("x", instruction=INSTRUCTION)
    index.as_retriever().retrieve(QueryBundle("x", embedding=vector))
    plain, instructed = (render_query(embed_model.embedder, "x", each) for each in (None, INSTRUCTION))
    assert recording_backend.prompts == [plain, instructed, instructed]


def test_gircse_uses_a_new_collection(client: QdrantClient, embed_model: GircseEmbedding) -> None:
    store = GircseQdrantVectorStore("new", client, embed_model)
    context = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex.from_documents(
        [LlamaDocument(text=text) for text in TEXTS], storage_context=context, embed_model=embed_model
    )
    assert len(search("x", collection="new", embedder=embed_model.embedder, client=client)) == 3
    report = ingest(DOCUMENTS, collection="new", embedder=embed_model.embedder, client=client)
    assert report.added == 3


def test_nodes_keep_metadata_and_source(store: GircseQdrantVectorStore, embed_model: GircseEmbedding) -> None:
    node = TextNode(
        text="a new text",
        metadata={"tags": ["a", "b"]},
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="mine")},
    )
    store.add(embed_model([node]))
    (found,) = store.get_nodes([node.node_id])
    assert (found.text, found.metadata, found.ref_doc_id) == ("a new text", {"tags": ["a", "b"]}, "mine")


def test_an_edge_store_takes_nodes(embed_model: GircseEmbedding, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "edge", engine="edge")
    store = GircseQdrantVectorStore("docs", client, embed_model)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    index.insert(LlamaDocument(text="a new text"))
    assert [node.text for node in index.as_retriever().retrieve("x")] == ["a new text"]
    client.close()


def test_another_model_is_refused(store: GircseQdrantVectorStore, client: QdrantClient, tiny_folder: Path) -> None:
    other = GircseEmbedding(model_name=str(tiny_folder), steps=7, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="document_steps: this embedder 7"):
        GircseQdrantVectorStore("docs", client, other)


def test_points_of_other_writers_with_invalid_json_are_read(index: VectorStoreIndex, client: QdrantClient) -> None:
    vector = index._embed_model.get_text_embedding("x")
    payload = {"page_content": "x", "metadata": {"score": float("inf")}}
    client.upsert("docs", [PointStruct(id=7, vector={"gircse": vector}, payload=payload)])
    (best, *_) = index.as_retriever().retrieve("x")
    assert (best.text, best.metadata) == ("x", {"score": float("inf")})


@pytest.mark.parametrize(
    ("operator", "value", "found"),
    [
        (FilterOperator.EQ, 1, {1}),
        (FilterOperator.EQ, 1.0, {1}),
        (FilterOperator.NE, 1, {0, 2}),
        (FilterOperator.GT, 0, {1, 2}),
        (FilterOperator.LTE, 1.5, {0, 1}),
        (FilterOperator.IN, [0, 2.0], {0, 2}),
        (FilterOperator.NIN, [0, 2], {1}),
    ],
)
@pytest.mark.parametrize("condition", list(FilterCondition))
def test_comparisons_with_numbers(
    index: VectorStoreIndex, operator: FilterOperator, value: Any, found: set[int], condition: FilterCondition
) -> None:
    comparison = MetadataFilter(key="number", operator=operator, value=value)
    filters = MetadataFilters(filters=[comparison], condition=condition)
    nodes = index.as_retriever(filters=filters, similarity_top_k=9).retrieve("x")
    expected = {0, 1, 2} - found if condition == FilterCondition.NOT else found
    assert {node.metadata["number"] for node in nodes} == expected


def test_a_range_of_dates(index: VectorStoreIndex) -> None:
    for year in (2019, 2021):
        index.insert(LlamaDocument(text=f"of {year}", metadata={"day": f"{year}-05-01"}))
    after = MetadataFilter(key="day", operator=FilterOperator.GTE, value="2020-01-01")
    named = MetadataFilter(key="day", operator=FilterOperator.IN, value=["2019-05-01", "2021-05-01"])
    nested = MetadataFilters(filters=[after, MetadataFilters(filters=[named])])
    assert [node.text for node in index.as_retriever(filters=nested).retrieve("x")] == ["of 2021"]


@pytest.mark.parametrize(("operator", "value"), [(FilterOperator.EQ, float("nan")), (FilterOperator.GT, 2**53 + 1)])
def test_numbers_that_qdrant_would_round_are_refused(
    index: VectorStoreIndex, operator: FilterOperator, value: float
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="number", operator=operator, value=value)])
    with pytest.raises(ValueError, match="query_filter 'number'"):
        index.as_retriever(filters=filters).retrieve("x")
