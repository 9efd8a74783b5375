from __future__ import annotations

import uuid
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError
from gircse_rag.qdrant.foreign import find_former_ids, foreign_id, foreign_payload, make_node, read_payload


def test_a_payload_round_trips() -> None:
    payload = foreign_payload("mine", "text", {"a": [1, {"b": None}]})
    assert read_payload(foreign_id("mine"), payload) == ("mine", "text", {"a": [1, {"b": None}]})


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": "\ud800"}, {1: "a"}, {"x": {2: "b"}}, {"x": object()}])
def test_metadata_that_is_not_json_is_refused(metadata: Any) -> None:
    with pytest.raises(InputError, match=r"'mine' cannot be stored: its metadata"):
        foreign_payload("mine", "text", metadata)


def test_an_id_that_is_not_valid_unicode_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\\ud800' cannot be stored"):
        foreign_payload("\ud800", "text", {})


def test_stored_metadata_is_read_even_if_it_is_not_json() -> None:
    payload = {"own_id": "mine", "page_content": "text", "metadata": {"x": float("inf")}}
    assert read_payload("id", payload) == ("mine", "text", {"x": float("inf")})
    assert make_node("id", payload)["metadata"] == {"x": float("inf")}


@pytest.mark.parametrize("payload", [None, {}, {"gircse": 5}, {"metadata": {"_chunk": 1}}, {"page_content": ["x"]}])
def test_any_payload_becomes_a_node(payload: Any) -> None:
    node = make_node("id", payload)
    assert (node["id_"], node["text"]) == ("id", "") and "relationships" not in node


UUID = "550e8400-e29b-41d4-a716-446655440000"
SPELLINGS = [UUID.replace("-", ""), UUID.upper(), f"{{{UUID}}}", f"urn:uuid:{UUID}"]


def test_each_spelling_of_a_uuid_is_a_point_of_its_own() -> None:
    ids = [foreign_id(own) for own in (UUID, *SPELLINGS, "mine")]
    assert len(set(ids)) == len(ids) and all(str(uuid.UUID(point)) == point for point in ids)
    assert ids[0] == UUID


@pytest.mark.parametrize("own", SPELLINGS)
def test_a_point_written_under_the_uuid_of_another_spelling_is_found(own: str) -> None:
    client = QdrantClient(":memory:")
    client.create_collection("docs", vectors_config={})

    def write(point: str, payload: dict[str, Any]) -> None:
        client.upsert("docs", [models.PointStruct(id=point, vector={}, payload=payload)])

    asked = [own, UUID, "mine"]
    assert find_former_ids(client, "docs", asked) == {}
    write(UUID, foreign_payload(own, "by an earlier version", {}))
    assert find_former_ids(client, "docs", asked) == {own: UUID}
    write(UUID, {"page_content": "by LangChain's own store"})
    assert find_former_ids(client, "docs", asked) == {own: UUID}
    write(UUID, foreign_payload(UUID, "another document", {}))
    assert find_former_ids(client, "docs", asked) == {}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (None, ("id", "", {})),
        ({"page_content": 42, "metadata": [1], "own_id": 5}, ("5", "", {})),
        ({"_node_content": "{"}, ("id", "", {})),
        ({"_node_content": "[" * 10**5}, ("id", "", {})),
        ({"_node_content": {"text": "x"}}, ("id", "", {})),
        ({"_node_content": '{"text": ["x"], "metadata": {"a": 1}}'}, ("id", "", {"a": 1})),
    ],
)
def test_payloads_of_any_type_are_read(payload: Any, expected: object) -> None:
    assert read_payload("id", payload) == expected
