"""Embedder.from_pretrained(backend="vllm") in this process, and the folder that `gircse export` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors

from gircse_rag import Embedder
from gircse_rag.backends.vllm.export import export
from gircse_rag.backends.vllm.in_process import VllmBackend
from gircse_rag.backends.vllm.plugin.llm_inputs import params, prompts
from gircse_rag.errors import GircseError, InputError
from gircse_rag.prompts import Role
from tests import tiny
from tests.vllm.engines import assert_same, engine, plain_folder

pytestmark = pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")
TEXTS = ['"Quoted" it is', "-> x", "the way of the world " * 9, "(note)"]


def test_the_same_vectors_and_fingerprint_as_the_reference(tmp_path: Path) -> None:
    base = plain_folder(tmp_path / "base")
    adapter = tiny.adapter(tmp_path / "adapter", base, head_dim=32)
    local = Embedder.from_pretrained(str(adapter), backend="reference", dtype="float32")
    with Embedder.from_pretrained(str(adapter), backend="vllm", dtype="float32") as in_vllm:
        assert in_vllm.fingerprint == local.fingerprint and in_vllm.dimension == local.dimension
        assert_same(list(in_vllm.embed_documents(TEXTS)), list(local.embed_documents(TEXTS)))
        found, expected = (e.embed(TEXTS, instruction="find texts", steps=[1, 5, 20, 2]) for e in (in_vllm, local))
        assert_same(list(found.vectors), list(expected.vectors))
        assert found.steps.tolist() == [1, 5, 20, 2]
        with pytest.raises(InputError, match="returns the last embedding only"):
            in_vllm.embed(TEXTS, steps="auto")
        assert list(in_vllm.embed([*TEXTS, ""], on_error="return").errors) == [4]
    in_vllm.close()
    with pytest.raises(GircseError, match="this embedder is closed"):
        in_vllm.embed_documents(TEXTS)


def test_plain_texts_to_llm_embed_are_documents_without_special_tokens(tmp_path: Path) -> None:
    """This holds even if the checkpoint's tokenizer adds one, as Mistral's and Llama's do."""
    plain = plain_folder(tmp_path / "plain")
    tokenizer = tiny.tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", end)]
    )
    tokenizer.save_pretrained(plain)
    local = Embedder.from_pretrained(str(plain), backend="reference", dtype="float32")
    assert local.tokenizer("a").input_ids[0] == end
    with engine(export(str(plain), tmp_path / "exported")) as llm:
        outputs = llm.embed(TEXTS, use_tqdm=False)
    assert_same([np.array(output.outputs.embedding) for output in outputs], list(local.embed_documents(TEXTS)))
    counts = [len(output.prompt_token_ids) for output in outputs]
    assert counts == local.embed(TEXTS, role="document").prompt_tokens.tolist()  # handles are not counted


def test_role_instruction_and_steps_through_llm_embed(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain")
    local = Embedder.from_pretrained(str(plain), backend="reference", dtype="float32")
    with engine(export(str(plain), tmp_path / "exported"), max_model_len=600) as llm:
        sides: list[tuple[Role, str | None]] = [("query", "find texts"), ("symmetric", None), ("document", None)]
        for role, instruction in sides:
            inputs = prompts(llm, TEXTS, role=role, instruction=instruction)
            outputs = llm.embed(inputs, pooling_params=params([1, 5, 20, 2]), use_tqdm=False)
            expected = local.embed(TEXTS, role=role, instruction=instruction, steps=[1, 5, 20, 2])
            assert_same([np.array(output.outputs.embedding) for output in outputs], list(expected.vectors))
        with pytest.raises(InputError, match="text 1 is longer than 512 tokens"):
            prompts(llm, ["short", "world " * 600], role="document")
    with pytest.raises(InputError, match="steps must be an integer"):
        params(0)


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "plain")
    script = tmp_path / "script.py"
    script.write_text(
        "from gircse_rag import Embedder\n"
        f"embedder = Embedder.from_pretrained({str(folder)!r}, backend='vllm', dtype='float32')\n"
        "print(embedder.embed_documents(['a text']).shape)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(1, 32)" in done.stdout


def test_a_prompt_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    folder = export(str(plain_folder(tmp_path / "plain")), tmp_path / "exported")
    local = Embedder.from_pretrained(str(folder), backend="reference", dtype="float32")
    backend = VllmBackend(folder, local.spec, dtype="float32", max_model_len=64, enforce_eager=True)
    with Embedder(backend, local.tokenizer, local.spec) as in_vllm:
        found = in_vllm.embed([*TEXTS, "world " * 80], role="document", on_error="return")
        assert list(found.errors) == [4] and "do not fit vLLM's max_model_len of 64" in str(found.errors[4])
        assert_same(list(found.vectors[:4]), list(local.embed_documents(TEXTS)))
