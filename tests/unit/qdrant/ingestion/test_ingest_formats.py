"""Every file format, ingested into the real embedded Qdrant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from gircse_rag.documents.chunking import Chunker
from gircse_rag.qdrant import ingest, read_documents, search
from tests.stand_in import StandIn
from tests.unit.documents.readers.test_docx import paragraph, write_docx

fpdf = pytest.importorskip("fpdf")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def _every_format(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("plain tortoise")
    (folder / "b.md").write_text("# Zoo\n\n## Birds\n\nfeathered albatross\n")
    (folder / "c.html").write_text("<h1>Zoo</h1><p>hairy bison</p>")
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=12)
    for text in ("striped zebra", "spotted leopard"):
        pdf.add_page()
        pdf.cell(text=text + " words" * 6)
    pdf.output(str(folder / "d.pdf"))
    (folder / "e.csv").write_text("id,text\n1,woolly mammoth\n")
    (folder / "f.jsonl").write_text(json.dumps({"id": "g", "text": "sleepy dormouse"}))
    pq.write_table(pa.table({"text": ["scaly pangolin"]}), folder / "g.parquet")
    (folder / "i.json").write_text(json.dumps([{"id": 3, "text": "grumpy walrus"}]))
    cell = {"cell_type": "markdown", "source": "# Sea\n\nsinging whale"}
    (folder / "j.ipynb").write_text(json.dumps({"nbformat": 4, "metadata": {}, "cells": [cell]}))
    write_docx(folder / "k.docx", paragraph("nimble gazelle"))
    (folder / "h.py").write_text("def cunning_fox():\n    return None\n")
    return folder


def test_every_format_is_searchable_and_embedded_once(tmp_path: Path, client: QdrantClient, embedder: StandIn) -> None:
    folder = _every_format(tmp_path / "zoo")
    report = ingest(read_documents(folder), collection="zoo", embedder=embedder, client=client)
    assert (report.added, report.failed, report.skipped) == (11, [], [])
    again = ingest(read_documents(folder), collection="zoo", embedder=embedder, client=client)
    assert (again.unchanged, again.embedded) == (11, 0)
    expected = {
        "plain tortoise": ("a.txt", {}),
        "feathered albatross": ("b.md", {"headings": ["Zoo"]}),
        "hairy bison": ("c.html", {"headings": ["Zoo"]}),
        "spotted leopard" + " words" * 6: ("d.pdf", {"page": 2}),
        "woolly mammoth": ("e.csv#1", {}),
        "sleepy dormouse": ("f.jsonl#g", {}),
        "scaly pangolin": ("g.parquet:1", {}),
        "grumpy walrus": ("i.json#3", {}),
        "singing whale": ("j.ipynb", {"headings": ["Sea"]}),
        "nimble gazelle": ("k.docx", {}),
        "cunning_fox(): def": ("h.py", {}),
    }
    for question, (document, place) in expected.items():
        (hit,) = search(f"? {question}", collection="zoo", embedder=embedder, client=client, limit=1)
        assert hit.metadata["source"] == document
        assert hit.metadata["_chunk"] | place == hit.metadata["_chunk"]


def test_another_chunker_cuts_every_document_again(tmp_path: Path, client: QdrantClient, embedder: StandIn) -> None:
    folder = _every_format(tmp_path / "zoo")
    ingest(read_documents(folder), collection="zoo", embedder=embedder, client=client)
    chunker = Chunker(embedder.tokenizer, embedder.spec, by="sentences", max_tokens=30)
    report = ingest(read_documents(folder), collection="zoo", embedder=embedder, client=client, chunker=chunker)
    assert report.updated == 11
