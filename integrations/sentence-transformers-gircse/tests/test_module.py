from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from gircse_rag import INSTRUCTIONS, Embedder
from gircse_rag.errors import GircseError
from integrations.fixtures import INSTRUCTION, ROOT, TEXTS, RecordingBackend, render_query, run_page
from sentence_transformers import SentenceTransformer

from sentence_transformers_gircse import GircseModule

PROMPT = f"Instruct: {INSTRUCTION}\nQuery:"


def test_queries_are_instructed_and_documents_are_bare(
    model: SentenceTransformer, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    model.encode_document("x")
    model.encode("x")
    model.encode_query("x")
    model.encode_query("x", prompt="")
    model.encode_query("x", prompt=PROMPT)
    model.encode("x", prompt=PROMPT)
    model.encode("x", prompt_name="python_code")
    expected = [None, None, INSTRUCTION, INSTRUCTION, INSTRUCTIONS["python_code"]]
    assert recording_backend.prompts == ["x", "x", *(render_query(tiny_embedder, "x", each) for each in expected)]


def test_vectors_are_the_embedders(model: SentenceTransformer, tiny_embedder: Embedder) -> None:
    documents = tiny_embedder.embed_documents(TEXTS)
    queries = tiny_embedder.embed_queries(TEXTS, instruction=INSTRUCTION)
    np.testing.assert_allclose(model.encode_document(TEXTS, batch_size=2), documents, atol=1e-6, rtol=0)
    np.testing.assert_allclose(model.encode_query(TEXTS, prompt=PROMPT), queries, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        model.similarity(model.encode_query(TEXTS, prompt=PROMPT), model.encode_document(TEXTS)),
        queries @ documents.T,
        atol=1e-6,
    )
    assert np.abs(queries - documents).max() > 1e-2
    assert len(model.encode([])) == 0


def test_copies_load_the_checkpoint_again(tiny_folder: Path, tiny_embedder: Embedder) -> None:
    module = GircseModule(str(tiny_folder), steps=3, dtype="float32", device="cpu", backend="reference")
    model = SentenceTransformer(modules=[module], device="cpu", prompts={"query": PROMPT})
    expected = model.encode_query(TEXTS)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied[0].embedder is not module.embedder
        assert copied[0].embedder.fingerprint == module.embedder.fingerprint
        assert type(copied[0].embedder.backend) is type(module.embedder.backend)
        np.testing.assert_allclose(copied.encode_query(TEXTS), expected, atol=1e-6, rtol=0)
    with pytest.raises(GircseError, match=r"cannot be pickled or copied.*from_pretrained in the other"):
        copy.deepcopy(module.embedder)


def test_a_pool_of_processes_encodes(model: SentenceTransformer) -> None:
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        vectors = model.encode_document(TEXTS, pool=pool, chunk_size=2)
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(vectors, model.encode_document(TEXTS), atol=1e-6, rtol=0)


def test_model_properties(model: SentenceTransformer, tiny_embedder: Embedder) -> None:
    assert model.get_embedding_dimension() == tiny_embedder.dimension
    assert model.max_seq_length == tiny_embedder.spec.max_length
    assert model.similarity_fn_name == "cosine"
    assert str(model.device) == "cpu"
    assert model.prompts["query"] == render_query(tiny_embedder, "")
    assert not model.prompts["document"]


def test_truncate_dim(model: SentenceTransformer) -> None:
    full = model.encode_query(TEXTS)
    np.testing.assert_allclose(model.encode_query(TEXTS, truncate_dim=8), full[:, :8], atol=1e-5)
    assert model.encode_query(TEXTS, truncate_dim=8, normalize_embeddings=True).shape == (3, 8)
    assert model.encode_query("x", convert_to_tensor=True).shape == full.shape[1:]


def test_steps(model: SentenceTransformer, tiny_embedder: Embedder) -> None:
    with pytest.warns(match="queries take 8"):
        ours = model.encode_query(TEXTS, steps=8)
    with pytest.warns(match="queries take 8"):
        theirs = tiny_embedder.embed_queries(TEXTS, steps=8)
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="steps is for queries"):
        model.encode_document(TEXTS, steps=8)
    with pytest.raises(ValueError, match="additional keyword arguments"):
        model.encode_query(TEXTS, stepps=8)


@pytest.mark.parametrize("options", [{}, {"truncate_dim": 8, "prompts": {"query": PROMPT}}])
def test_saved_and_reloaded(options: dict[str, object], tiny_folder: Path, tmp_path: Path) -> None:
    module = GircseModule(str(tiny_folder), steps=3, dtype="float32", device="cpu")
    model = SentenceTransformer(modules=[module], device="cpu", **options)
    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(
        str(tmp_path / "saved"), trust_remote_code=True, device="cpu", model_kwargs={"dtype": "float32"}
    )
    assert again[0].embedder.fingerprint == module.embedder.fingerprint
    assert again.prompts == model.prompts
    np.testing.assert_allclose(again.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    again.save_pretrained(str(tmp_path / "saved"))  # over itself
    again.save_pretrained(str(tmp_path / "moved"))
    third = SentenceTransformer(str(tmp_path / "moved"), trust_remote_code=True, device="cpu")
    assert third[0].embedder.fingerprint == module.embedder.fingerprint
    assert not [path for path in (tmp_path / "moved").rglob("*") if path.suffix in {".py", ".bin", ".pkl"}]


def test_a_name_is_saved_as_a_name(tiny_folder: Path, tmp_path: Path) -> None:
    module = GircseModule(str(tiny_folder), device="cpu")
    module.name = "owner/name"  # as if loaded from the Hub
    module.save(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gircse_module.json"]


def test_a_bundled_name_is_saved_as_a_name_beside_a_folder_of_that_name(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = GircseModule(str(tiny_folder), device="cpu")
    module.name = "smollm2-135m"  # as if loaded by its bundled name
    (tmp_path / "smollm2-135m").mkdir()
    monkeypatch.chdir(tmp_path)
    Path("saved").mkdir()
    module.save("saved")
    assert [path.name for path in Path("saved").iterdir()] == ["gircse_module.json"]


def test_a_folder_below_home_is_copied_over_what_was_saved_before(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    module = GircseModule(f"~/{tiny_folder.name}", device="cpu")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "adapter_config.json").write_text("{}")  # left by an earlier save of an adapter
    module.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "gircse_module.json"}
    assert not (tmp_path / "checkpoint" / "adapter_config.json").exists()
    assert GircseModule.load(str(tmp_path)).embedder.spec.base_hash == module.embedder.spec.base_hash


@pytest.mark.parametrize("bad", ["", " \n", "a\x00b", "\ud800"])
def test_invalid_texts(bad: str, model: SentenceTransformer, recording_backend: RecordingBackend) -> None:
    for encode in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(ValueError, match=r"the text (is empty|holds)"):
            encode(["good", bad])
    assert recording_backend.prompts == []


def test_invalid_prompts(model: SentenceTransformer, tiny_folder: Path) -> None:
    for prompt in ("query: ", f"Instruct: {INSTRUCTION}", "Instruct: \nQuery:", INSTRUCTION):
        with pytest.raises(ValueError, match="it must be 'Instruct: <instruction>"):
            model.encode_query(TEXTS, prompt=prompt)
    with pytest.raises(ValueError, match="documents take no prompt"):
        model.encode_document(TEXTS, prompt=PROMPT)
    with pytest.raises(ValueError, match="it must be 'Instruct: <instruction>"):
        SentenceTransformer(modules=[GircseModule(str(tiny_folder), device="cpu")], prompts={"query": "query: "})


def test_invalid_modules(model: SentenceTransformer, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing-here"):
        GircseModule(str(tmp_path / "nothing-here"))
    with pytest.raises(ValueError, match="steps must be"):
        GircseModule(str(tiny_folder), steps=0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        GircseModule(str(tiny_folder), instruction="x")
    for move in (lambda: model.half(), lambda: model.to("meta")):
        with pytest.raises(ValueError, match="cannot be moved"):
            move()


@pytest.mark.model
@pytest.mark.parametrize(
    "page", [Path(__file__).parents[1] / "README.md", ROOT / "docs/guides/integrations/sentence-transformers.md"]
)
def test_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    assert "torch.Size([1, 2])" in run_page(page, tmp_path)
