from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from gircse_rag import INSTRUCTIONS, Embedder
from gircse_rag.errors import GircseError, GircseWarning
from gircse_rag.evaluation.formats import read_pairs, read_retrieval
from gircse_rag.evaluation.scoring import pairs, retrieval
from integrations.fixtures import INSTRUCTION, ROOT, TEXTS, RecordingBackend, render_query, run_page
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from mteb_gircse import GircseEncoder

EVAL = ROOT.parent / "shared" / "data" / "eval"


def metadata(name: str, task_type: str, score: str, prompt: str | None = None) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="local",
        type=task_type,
        prompt=prompt,
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        main_score=score,
    )


class LocalSTS(AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")
    rows: tuple[tuple[float, str, str], ...] = ((5, TEXTS[0], TEXTS[0]), (1, TEXTS[0], TEXTS[1]), (0, "x", TEXTS[2]))

    def load_data(self, **kwargs: Any) -> None:
        columns = dict(zip(("score", "sentence1", "sentence2"), map(list, zip(*self.rows, strict=True)), strict=True))
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10", INSTRUCTION)
    documents: ClassVar = dict(zip("012", TEXTS, strict=True))
    queries: ClassVar = {"q": "a heap"}
    qrels: ClassVar = {"q": {"1": 1}}

    def load_data(self, **kwargs: Any) -> None:
        texts = list(self.documents.values())
        corpus = {"id": list(self.documents), "text": texts, "title": [""] * len(texts)}
        queries = {"id": list(self.queries), "text": list(self.queries.values())}
        split = {"corpus": Dataset.from_dict(corpus), "queries": Dataset.from_dict(queries)}
        self.dataset = {"default": {"test": split | {"relevant_docs": self.qrels, "top_ranked": None}}}
        self.data_loaded = True


@pytest.fixture
def encoder(tiny_folder: Path) -> GircseEncoder:
    return GircseEncoder(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture
def recording_backend(encoder: GircseEncoder) -> RecordingBackend:
    encoder.model.backend = RecordingBackend(encoder.model.backend, encoder.model)
    return encoder.model.backend


def test_evaluate_retrieval(
    encoder: GircseEncoder, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    result = mteb.evaluate(encoder, LocalRetrieval(), cache=None, show_progress_bar=False)
    scores = tiny_embedder.embed_documents(TEXTS) @ tiny_embedder.embed_queries(["a heap"], instruction=INSTRUCTION)[0]
    rank = int((scores > scores[1]).sum())
    assert result.task_results[0].get_score() == pytest.approx(1 / np.log2(rank + 2), abs=1e-4)
    assert sorted(text.strip() for text in recording_backend.prompts) == sorted(
        [*TEXTS, render_query(tiny_embedder, "a heap", INSTRUCTION)]
    )


def test_evaluate_sts_with_the_instruction_on_both_sides(
    encoder: GircseEncoder, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    result = mteb.evaluate(encoder, LocalSTS(), cache=None, show_progress_bar=False)
    assert -1 <= result.task_results[0].get_score() <= 1
    expected = {render_query(tiny_embedder, text, INSTRUCTIONS["similar_sentence"]) for text in ["x", *TEXTS]}
    assert set(recording_backend.prompts) == expected


def test_meta_loads_the_model_again(encoder: GircseEncoder) -> None:
    meta = encoder.mteb_model_meta
    assert meta is not None
    assert (meta.revision, meta.embed_dim, meta.use_instructions) == (encoder.model.fingerprint, 32, True)
    again = mteb.evaluate(meta, LocalSTS(), cache=None, show_progress_bar=False)
    assert again.model_revision == encoder.model.fingerprint
    direct = mteb.evaluate(encoder, LocalSTS(), cache=None, show_progress_bar=False)
    assert again.task_results[0].get_score() == direct.task_results[0].get_score()


def test_instruction_order(tiny_folder: Path) -> None:
    own = {"Named": "python_code", "STS": "A sentence of my own"}
    encoder = GircseEncoder(str(tiny_folder), device="cpu", prompts=own)
    query = PromptType.query
    for name, task_type, prompt, expected in [
        ("Named", "Retrieval", "MTEB's", INSTRUCTIONS["python_code"]),
        ("Other", "Retrieval", "MTEB's", "MTEB's"),
        ("Other", "Retrieval", None, INSTRUCTIONS["question_answering"]),
        ("Other", "STS", None, "A sentence of my own"),
        ("Other", "Clustering", None, INSTRUCTIONS["same_domain"]),
    ]:
        assert encoder.get_instruction(metadata(name, task_type, "x", prompt), query) == expected


def encode(encoder: GircseEncoder, texts: list[str], prompt_type: PromptType | None) -> np.ndarray:
    task = metadata("Task", "Retrieval", "x", INSTRUCTION)
    batches = [{"text": texts[:2]}, {"text": texts[2:]}]
    return encoder.encode(batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=prompt_type)


def test_vectors_are_the_embedders(encoder: GircseEncoder, tiny_embedder: Embedder) -> None:
    documents = tiny_embedder.embed_documents(TEXTS)
    queries = tiny_embedder.embed_queries(TEXTS, instruction=INSTRUCTION)
    np.testing.assert_allclose(encode(encoder, TEXTS, PromptType.document), documents, atol=1e-6, rtol=0)
    np.testing.assert_allclose(encode(encoder, TEXTS, PromptType.query), queries, atol=1e-6, rtol=0)
    np.testing.assert_allclose(encode(encoder, TEXTS, None), queries, atol=1e-6, rtol=0)
    assert np.abs(queries - documents).max() > 1e-2


def test_an_empty_text_is_zeros_and_a_warning(encoder: GircseEncoder, tiny_embedder: Embedder) -> None:
    with pytest.warns(GircseWarning, match="1 of 3 texts are invalid and get zero vectors; first: text 1 is empty"):
        vectors = encode(encoder, ["one", "", "two"], PromptType.document)
    assert not vectors[1].any()
    np.testing.assert_allclose(vectors[[0, 2]], tiny_embedder.embed_documents(["one", "two"]), atol=1e-6, rtol=0)


def test_a_valid_text_that_fails_raises(encoder: GircseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoder.model.embed

    def failing(*args: Any, **options: Any) -> Any:
        result = plain(*args, **options)
        result.errors[2] = GircseError("the forward pass failed: OutOfMemory")
        return result

    monkeypatch.setattr(encoder.model, "embed", failing)
    with pytest.raises(GircseError, match="OutOfMemory"):
        encode(encoder, ["one", "", "two"], PromptType.document)


def test_a_control_character_counts_as_a_space(encoder: GircseEncoder, tiny_embedder: Embedder) -> None:
    vectors = encode(encoder, ["one\x12two", "three", "four"], PromptType.document)
    expected = tiny_embedder.embed_documents(["one two", "three", "four"])
    np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


def test_invalid_arguments(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="no model 'nothing'"):
        GircseEncoder("nothing")
    with pytest.raises(ValueError, match="has fingerprint"):
        GircseEncoder(str(tiny_folder), "another", device="cpu")
    with pytest.raises(ValueError, match="is empty"):
        GircseEncoder(str(tiny_folder), device="cpu", prompts={"STS": " "})
    with pytest.raises(TypeError, match="unexpected keyword"):
        GircseEncoder(str(tiny_folder), instruction="x")


needs_data = pytest.mark.skipif(not EVAL.exists(), reason=f"no evaluation sets in {EVAL}")


@pytest.mark.model
@needs_data
def test_the_real_model_on_stsb(smollm2: Embedder) -> None:
    data = read_pairs(EVAL / "sts" / "stsb_dev.tsv", "stsb", INSTRUCTIONS["similar_sentence"], limit=40)

    class STSB40(LocalSTS):
        metadata = metadata("STSBDev40", "STS", "cosine_spearman")
        rows = tuple(zip(data.scores, data.first, data.second, strict=True))

    encoder = GircseEncoder("smollm2-135m", device="cpu", dtype="float32")
    score = mteb.evaluate(encoder, STSB40(), cache=None, show_progress_bar=False).task_results[0].get_score()
    one, other = (
        smollm2.embed(side, role="symmetric", instruction=data.instruction).vectors
        for side in (data.first, data.second)
    )
    assert score == pytest.approx(pairs(data, one, other, seed=0)["spearman"].value, abs=1e-3)


@pytest.mark.model
@needs_data
def test_the_real_model_on_retrieval_with_a_named_instruction(
    smollm2: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording_backend = RecordingBackend(smollm2.backend, smollm2)
    monkeypatch.setattr(smollm2, "backend", recording_backend)
    data = read_retrieval(EVAL / "retrieval" / "cosqa_dev", "cosqa", INSTRUCTIONS["python_code"], limit=8)

    class CoSQA(LocalRetrieval):
        metadata = metadata("CoSQA8", "Retrieval", "ndcg_at_10")
        documents: ClassVar = dict(zip(data.document_ids, data.document_texts, strict=True))
        queries: ClassVar = dict(zip(data.query_ids, data.query_texts, strict=True))
        qrels = data.qrels

    encoder = GircseEncoder("smollm2-135m", device="cpu", dtype="float32", prompts={"CoSQA8": "python_code"})
    encoder.model = smollm2
    result = mteb.evaluate(encoder, CoSQA(), cache=None, show_progress_bar=False).task_results[0]
    expected = {render_query(smollm2, query, INSTRUCTIONS["python_code"]) for query in data.query_texts}
    assert expected == {prompt for prompt in recording_backend.prompts if prompt.startswith("Instruct:")}
    vectors = {
        "documents": smollm2.embed_documents(data.document_texts),
        "queries": smollm2.embed_queries(data.query_texts, instruction=data.instruction),
    }
    scores = retrieval(data, vectors, seed=0, mode="dense")
    assert result.get_score() == pytest.approx(scores["ndcg@10"].value, abs=1e-4)
    assert result.get_score() > 0.5, "the model should rank the right functions near the top"


@pytest.mark.model
@pytest.mark.parametrize("page", [Path(__file__).parents[1] / "README.md", ROOT / "docs/guides/integrations/mteb.md"])
def test_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    assert "gircse/smollm2-135m 576" in run_page(page, tmp_path)
