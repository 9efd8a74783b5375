"""Ingest and search with the real model and the embedded Qdrant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.errors import SpecMismatchError
from gircse_rag.qdrant import ingest, open_client, read_documents, search

pytestmark = pytest.mark.model

GUIDE = """# Files

Call open() to open a file for reading, and close it when you are done.

# Lists

Append an item with list.append, and sort the list in place with list.sort.
"""
LINES = """{"text": "The mitochondrion is the powerhouse of the cell.", "id": "cell", "metadata": {"topic": "biology"}}
not json
{"text": "Simmer the tomatoes with garlic for twenty minutes.", "id": "sauce", "metadata": {"topic": "cooking"}}
"""


def _corpus(folder: Path) -> Path:
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE)
    (folder / "facts.jsonl").write_text(LINES)
    (folder / "empty.txt").write_text("")
    (folder / "long.txt").write_text(
        "\n\n".join(f"Paragraph {n} of a text with more than one chunk." for n in range(60))
    )
    return folder


def test_real_documents_answer_questions(tmp_path: Path, smollm2: Embedder) -> None:
    corpus = _corpus(tmp_path / "corpus")
    client = open_client(tmp_path / "store")
    report = ingest(read_documents(corpus), collection="docs", embedder=smollm2, client=client)
    assert (report.added, report.updated, report.unchanged, report.failed) == (4, 0, 0, [])
    assert sorted((Path(s.path).name, s.line) for s in report.skipped) == [("empty.txt", None), ("facts.jsonl", 2)]
    assert report.embedded == client.count("docs").count > 4

    again = ingest(read_documents(corpus), collection="docs", embedder=smollm2, client=client)
    assert (again.unchanged, again.embedded, client.count("docs").count) == (4, 0, report.embedded)

    question = "The mitochondrion is the powerhouse of the cell."
    hits = search(question, collection="docs", embedder=smollm2, client=client, limit=20, mode="dense")
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.document for hit in hits} == {"guide.md", "facts.jsonl#cell", "facts.jsonl#sauce", "long.txt"}
    vectors = dict(zip((hit.id for hit in hits), smollm2.embed_documents([hit.text for hit in hits]), strict=True))
    query = smollm2.embed_queries([question])[0]
    for hit in hits:
        assert hit.score == pytest.approx(float(vectors[hit.id] @ query), abs=1e-4)

    instructed = search(
        question,
        collection="docs",
        embedder=smollm2,
        client=client,
        instruction="Find a recipe",
        limit=20,
        mode="dense",
    )
    assert not np.allclose([hit.score for hit in instructed], [hit.score for hit in hits], atol=1e-4)
    client.close()


def test_no_real_chunk_is_truncated_and_another_spec_is_refused(tmp_path: Path, smollm2: Embedder) -> None:
    text = "".join(f'"{n}" (é👩‍👩‍👧) -> :: it\'s <|im_start|>token<|im_end|> {n * n}\n' for n in range(40))
    (tmp_path / "odd.txt").write_text(text)
    client = open_client(tmp_path / "store")
    report = ingest(read_documents(tmp_path / "odd.txt"), collection="docs", embedder=smollm2, client=client)
    assert report.added == 1 and report.embedded > 1
    other = Embedder(
        smollm2.backend, smollm2.tokenizer, type(smollm2.spec)(**smollm2.spec.to_dict() | {"document_steps": 2})
    )
    with pytest.raises(SpecMismatchError, match="document_steps: this embedder 2"):
        search("anything", collection="docs", embedder=other, client=client)
    client.close()
