from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from gircse_rag.errors import InputError
from gircse_rag.qdrant import Document, SkippedFile, read_documents


def test_langchain_documents_keep_id_text_and_metadata() -> None:
    documents = pytest.importorskip("langchain_core.documents")
    day = datetime.date(2026, 1, 2)
    given = documents.Document("text", id="7", metadata={"source": "a.pdf", "page": 3, "day": day})
    expected = Document("7", "text", {"source": "a.pdf", "page": 3, "day": "2026-01-02"})
    assert list(read_documents([given])) == list(read_documents(given)) == [expected]


def test_a_langchain_document_without_an_id_gets_a_content_hash() -> None:
    documents = pytest.importorskip("langchain_core.documents")

    def make_id(text: str, **metadata: object) -> str:
        (found,) = read_documents(documents.Document(text, metadata=metadata))
        assert isinstance(found, Document)
        return found.id

    assert make_id("a", x=1, y=2) == make_id("a", y=2, x=1) == "text:a388a20392265b841aead33e9486b0bb"
    assert len({make_id("a"), make_id("b"), make_id("a", x=1)}) == 3


def test_metadata_that_is_not_json_is_reported_and_the_rest_is_read() -> None:
    documents = pytest.importorskip("langchain_core.documents")
    given = [documents.Document("bad text", metadata={"raw": b"x"}), documents.Document("good", id="g")]
    skipped, good = read_documents(given)
    assert isinstance(skipped, SkippedFile) and "bad text" in str(skipped) and "'raw'" in skipped.reason
    assert good == Document("g", "good")


def test_llama_index_documents_and_nodes_keep_id_text_and_metadata() -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    given = [
        schema.Document(text="whole", id_="d", metadata={"file": "a"}),
        schema.TextNode(text="part", id_="n", metadata={"file": "a"}),
    ]
    assert list(read_documents(given)) == [Document("d", "whole", {"file": "a"}), Document("n", "part", {"file": "a"})]


def test_an_iterator_of_mixed_items_is_read_lazily(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("file")
    taken = []

    def items():
        for item in (Document("ours", "ours"), tmp_path / "a.txt", SkippedFile("p", "why"), str(tmp_path / "no.txt")):
            taken.append(item)
            yield item

    documents = read_documents(items())
    assert taken == []
    assert next(documents) == Document("ours", "ours") and len(taken) == 1
    assert next(documents) == Document("a.txt", "file") and len(taken) == 2
    assert next(documents) == SkippedFile("p", "why")
    missing = next(documents)
    assert isinstance(missing, SkippedFile) and "No such file" in missing.reason


def test_items_of_other_types_raise_with_their_index() -> None:
    with pytest.raises(InputError, match="item 1 is a dict") as caught:
        read_documents([Document("a", "a"), {"text": "b"}])  # type: ignore[list-item]
    assert caught.value.index == 1
    with pytest.raises(InputError, match="item 0 is a int"):
        list(read_documents(iter([3])))  # type: ignore[arg-type]
