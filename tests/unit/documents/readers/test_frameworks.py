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


def test_a_langchain_document_without_an_id_is_named_by_what_it_holds() -> None:
    documents = pytest.importorskip("langchain_core.documents")

    def name(text: str, **metadata: object) -> str:
        (found,) = read_documents(documents.Document(text, metadata=metadata))
        assert isinstance(found, Document)
        return found.id

    assert name("a", x=1, y=2) == name("a", y=2, x=1) == "text:a388a20392265b841aead33e9486b0bb"
    assert len({name("a"), name("b"), name("a", x=1)}) == 3


def test_metadata_that_json_cannot_hold_is_named_and_the_rest_goes_on() -> None:
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


def test_all_of_them_together_from_an_iterator_that_is_not_run_ahead_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("file")
    taken = []

    def items():  # type: ignore[no-untyped-def]
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


def test_anything_else_is_an_error_with_its_place() -> None:
    with pytest.raises(InputError, match="item 1 is a dict") as caught:
        read_documents([Document("a", "a"), {"text": "b"}])  # type: ignore[list-item]
    assert caught.value.index == 1
    with pytest.raises(InputError, match="item 0 is a int"):
        list(read_documents(iter([3])))  # type: ignore[arg-type]
