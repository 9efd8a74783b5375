"""Presets: how LaSER checkpoints, which have no gircse.json, are found, rendered and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from gircse_rag import Embedder
from gircse_rag.backends.vllm.export import export
from gircse_rag.checkpoint import load_hf
from gircse_rag.checkpoint.presets import HUB_PRESETS, PRESETS
from gircse_rag.errors import CheckpointError, GircseWarning, InputError
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode
from tests import laser, tiny

TEXTS = ["a text", '"Quoted" it is', "-> the way of the world\nin two lines"]
INSTRUCTION = "find texts"
HUB_ID = "Alibaba-NLP/LaSER-Qwen3-0.6B"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laser.folder(tmp_path_factory.mktemp("laser") / "weights", tied=False)


def load(name: Path | str, preset: str | None = None, **options: Any) -> Embedder:
    chosen = {"backend": "paged", "dtype": "float32", "device": "cpu", **options}
    return Embedder.from_pretrained(str(name), preset=preset, **chosen)


def render(folder: Path, text: str, *, chat: bool) -> list[int]:
    """Token ids as LaSER's code makes them (src/eval/laser_model.py, `tokenize`)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        text += "<think>\n\n</think>\n\n"
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


@pytest.mark.parametrize("backend", ["paged", "reference"])
@pytest.mark.parametrize("preset", PRESETS)
def test_vectors_equal_the_published_loop_on_its_own_rendering(folder: Path, preset: str, backend: str) -> None:
    embedder, (model, _) = load(folder, preset, backend=backend), load_hf(str(folder), preset=preset)
    assert embedder.spec.document_steps == 3 and embedder.spec.pools_prompt
    for role, prompt in (("query", f"Instruct: {INSTRUCTION}\nQuery: "), ("document", "")):
        ids = [render(folder, prompt + text, chat=preset == "laser") for text in TEXTS]
        expected = laser.encode(model.double(), ids, 3).numpy()
        found = embedder.embed(TEXTS, role, INSTRUCTION if role == "query" else None)  # type: ignore[arg-type]
        assert found.prompt_tokens.tolist() == [len(row) for row in ids]
        assert (1 - (found.vectors * expected).sum(axis=1)).max() <= 1e-6


def test_the_presets_are_different_spaces_and_neither_is_gircses(folder: Path) -> None:
    specs = [load(folder, preset).spec for preset in (None, "laser", "laser-quickstart")]
    assert len({spec.fingerprint for spec in specs}) == 3
    assert [spec.pooling for spec in specs] == ["mean", "mean_with_prompt", "mean_with_prompt"]
    assert specs[1].query_template == "<|im_start|>user\nInstruct: {instruction}\nQuery: {text}"
    assert specs[1].document_template == "<|im_start|>user\n{text}"
    assert specs[1].suffix == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert [spec.max_length for spec in specs] == [512, tiny.WINDOW - 3, 512]  # the model is smaller than 8192


def test_a_long_text_keeps_the_end_of_the_chat_template(folder: Path) -> None:
    embedder = load(folder, "laser")
    text = "the way of the world " * 400
    prompt = encode(embedder.backend_tokenizer, embedder.spec, text, role="document", instruction=None)
    end = render(folder, text, chat=True)[-11:]
    assert len(prompt.token_ids) == tiny.WINDOW - 3 and list(prompt.token_ids[-len(end) :]) == end
    with pytest.warns(GircseWarning, match="cut at the end"):
        result = embedder.embed([text], "document", soft_tokens=2, trajectory=True)
    assert result.truncated.tolist() == [True] and result.prompt_tokens.tolist() == [tiny.WINDOW - 3]
    assert result.soft_tokens is not None and len(result.soft_tokens[0]) == 2
    assert result.trajectory is not None and result.trajectory.shape == (1, 3, 32)


def _hub(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub that holds `source` as HUB_ID, read without a network."""
    root = cache / "models--Alibaba-NLP--LaSER-Qwen3-0.6B"
    snapshot = root / "snapshots" / ("a" * 40)
    shutil.copytree(source, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_hub_id_has_its_preset(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(HUB_PRESETS.values()) <= set(PRESETS) and HUB_ID in HUB_PRESETS
    snapshot = _hub(tmp_path / "hub", folder, monkeypatch)
    found = load(HUB_ID)
    assert found.spec.base_revision == "a" * 40
    assert found.fingerprint == load(folder, "laser").fingerprint
    assert load(HUB_ID, "laser-quickstart").fingerprint == load(folder, "laser-quickstart").fingerprint
    assert load(snapshot).spec.pooling == "mean"  # a folder is never recognised by its name
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / HUB_ID)
    assert load(HUB_ID).spec.pooling == "mean"  # a local folder hides the Hub id
    (snapshot / "gircse.json").write_text('{"document_steps": 4}')
    shutil.rmtree(tmp_path / HUB_ID)
    assert load(HUB_ID).spec.document_steps == 4  # the author's own file replaces the preset


@pytest.mark.parametrize("preset", PRESETS)
def test_an_export_describes_itself(folder: Path, tmp_path: Path, preset: str) -> None:
    before = load(folder, preset)
    exported = export(str(folder), tmp_path / "exported", preset=preset)
    after = load(exported)
    assert after.spec == before.spec and after.fingerprint == before.fingerprint
    again = load(exported, lazy=True)  # from the prepared file
    assert again.spec == before.spec
    np.testing.assert_allclose(again.embed_queries(TEXTS), before.embed_queries(TEXTS), atol=1e-6)
    assert json.loads((exported / "gircse.json").read_text())["pooling"] == "mean_with_prompt"
    stored = json.loads((exported / "config.json").read_text())["gircse"]["spec"]
    assert EmbeddingSpec.from_dict(stored) == before.spec
    with pytest.raises(InputError, match=r"describes .* already; leave preset 'laser' out"):
        load(exported, "laser")


def test_an_export_of_gircse_names_no_pooling(tmp_path: Path) -> None:
    """Versions that know only GIRCSE read "pooling" in gircse.json as a baseline."""
    exported = export(str(tiny.folder(tmp_path / "plain")), tmp_path / "exported")
    assert "pooling" not in json.loads((exported / "gircse.json").read_text())


def test_an_unknown_preset_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for backend in ("paged", "reference"):
        with pytest.raises(InputError, match="preset 'lazer' does not exist; it is one of laser, laser-quickstart"):
            load(tmp_path / "nowhere", "lazer", backend=backend)
        with pytest.raises(InputError, match="preset 'lazer' does not exist"):
            load("smollm2-135m", "lazer", backend=backend, lazy=True)
    with pytest.raises(InputError, match="the server at url has its model's spec"):
        load(tmp_path, "laser", backend="vllm", url="http://127.0.0.1:9", dtype="auto", device="auto")


def test_the_chat_preset_needs_a_chat_template(tmp_path: Path) -> None:
    plain = tiny.folder(tmp_path / "plain", "qwen3")
    with pytest.raises(CheckpointError, match=r"preset 'laser' needs the tokenizer's chat template.*laser-quickstart"):
        load(plain, "laser")
    assert load(plain, "laser-quickstart").spec.pools_prompt
    made = laser.tokenizer()
    made.chat_template = "{{ messages[0].content | upper }}"
    made.save_pretrained(plain)
    with pytest.raises(CheckpointError, match="the chat template changes its message"):
        load(plain, "laser")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_tokenizers_own_special_tokens_are_added(tmp_path: Path, preset: str) -> None:
    """Qwen3's tokenizer has none, but LaSER's code adds those of any tokenizer."""
    source, made = laser.folder(tmp_path / "weights"), laser.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|end|>",
        special_tokens=[(token, made.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|end|>")],
    )
    made.save_pretrained(source)
    (model, _), embedder = load_hf(str(source)), load(source, preset)
    ids = [render(source, f"Instruct: {INSTRUCTION}\nQuery: {text}", chat=preset == "laser") for text in TEXTS]
    end = made.convert_tokens_to_ids("<|end|>")
    assert {row[-1] for row in ids} == {end}
    found = embedder.embed(TEXTS, "query", INSTRUCTION)
    assert found.prompt_tokens.tolist() == [len(row) for row in ids]
    assert (1 - (found.vectors * laser.encode(model.double(), ids, 3).numpy()).sum(axis=1)).max() <= 1e-6


@pytest.mark.parametrize("pooling", ["median", "mean_with_prompts"])
def test_an_unknown_pooling_says_what_to_do(folder: Path, tmp_path: Path, pooling: str) -> None:
    shutil.copytree(folder, tmp_path / "newer")
    (tmp_path / "newer" / "gircse.json").write_text(json.dumps({"pooling": pooling}))
    with pytest.raises(CheckpointError, match=f"pooling '{pooling}' is unknown to this version.*upgrade gircse-rag"):
        load(tmp_path / "newer")
