from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gircse_rag import Embedder
from tests import laser
from tests.unit.cli.conftest import Gircse

TEXTS = ["a cat", "ein Käfer", "日本語"]


def test_embed_json_equals_the_librarys_vectors(gircse: Gircse, tiny_model: list[str], tiny_embedder: Embedder) -> None:
    result = gircse("embed", *TEXTS, "--instruction", "find", "--steps", "3", "--json", *tiny_model)
    assert result.code == 0
    assert result.json["fingerprint"] == tiny_embedder.fingerprint
    assert (result.json["role"], result.json["instruction"]) == ("query", "find")
    rows = result.json["embeddings"]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["steps"] for row in rows] == [3, 3, 3]
    assert not any(row["truncated"] for row in rows)
    with pytest.warns(UserWarning, match="3 refinement steps"):
        expected = tiny_embedder.embed_queries(TEXTS, instruction="find", steps=3)
    # the command uses the default backend; the two backends differ by rounding
    np.testing.assert_allclose(np.array([row["vector"] for row in rows], np.float32), expected, atol=1e-6)
    assert result.err.startswith("warning: queries take 3 refinement steps") and result.err.count("\n") == 1


def test_deterministic_reaches_the_engine(gircse: Gircse, tiny_model: list[str]) -> None:
    """The reference refuses it, so the option is not dropped; and a text has the same bits alone and in a batch."""
    refused = gircse("embed", "a text", *tiny_model, "--deterministic", "--backend", "reference")
    assert refused.code == 5 and "deterministic=True is for backend='paged'" in refused.err
    batch, alone = (gircse("embed", *texts, *tiny_model, "--deterministic", "--json") for texts in (TEXTS, TEXTS[:1]))
    assert batch.json["embeddings"][0]["vector"] == alone.json["embeddings"][0]["vector"]


def test_texts_come_from_arguments_a_file_or_stdin(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode() + b"\r\n")
    results = [
        gircse("embed", *TEXTS, "--role", "document", "--json", *tiny_model),
        gircse("embed", "--file", "texts.txt", "--role", "document", "--json", *tiny_model),
        gircse("embed", "--role", "document", "--json", *tiny_model, stdin="\n".join(TEXTS).encode()),
    ]
    assert [result.code for result in results] == [0, 0, 0]
    assert results[0].out == results[1].out == results[2].out
    assert results[0].json["instruction"] is None


def test_dimensions_shorten_the_vectors(gircse: Gircse, tiny_model: list[str]) -> None:
    whole, short = (
        gircse("embed", "text", "--json", *tiny_model, *options).json["embeddings"][0]["vector"]
        for options in ([], ["--dimensions", "8"])
    )
    np.testing.assert_allclose(short, np.array(whole[:8]) / np.linalg.norm(whole[:8]), atol=1e-6)
    refused = gircse("embed", "text", *tiny_model, "--dimensions", "33")
    assert refused.code == 5 and "dimensions must be an integer from 1 to 32" in refused.err


def test_the_table_shows_every_text(gircse: Gircse, tiny_model: list[str]) -> None:
    result = gircse("embed", "[red]brackets", "other", "--steps", "auto", *tiny_model)
    assert result.code == 0
    assert result.err.startswith("warning: queries take auto refinement steps") and result.err.count("\n") == 1
    assert "[red]brackets" in result.out and "1.0000" in result.out


def test_a_terminal_sees_progress_with_a_rate(
    gircse: Gircse, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = gircse("embed", *TEXTS, "--json", *tiny_model)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    progress = gircse("embed", *TEXTS, "--json", *tiny_model)
    assert (progress.out, quiet.err) == (quiet.out, "")
    assert "embedding" in progress.err and "3/3" in progress.err and "/s" in progress.err


def test_output_is_an_array_and_leaves_no_partial_file(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    result = gircse("embed", *TEXTS, "--output", "vectors.npy", "--json", *tiny_model)
    assert result.code == 0
    vectors = np.load(tmp_path / "vectors.npy")
    assert (vectors.shape, vectors.dtype) == ((3, 32), np.float32)
    assert [row["vector"] for row in result.json["embeddings"]] == [None] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]

    failed = gircse("embed", "text", "--output", "no/such/folder/vectors.npy", *tiny_model)
    assert (failed.code, failed.out) == (5, "")
    assert "could not write no/such/folder/vectors.npy" in failed.err


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"good\nb\xe4d\n", "byte 0xe4 at offset 6, line 2"),
        (b"good\n\nmore\n", "line 2 of stdin is empty"),
        (b"good\nb\x00d\n", "line 2 of stdin holds the control character U+0000"),
        (b"", "stdin is empty"),
    ],
)
def test_bad_lines_are_reported(gircse: Gircse, tiny_model: list[str], stdin: bytes, message: str) -> None:
    result = gircse("embed", "--json", *tiny_model, stdin=stdin)
    assert (result.code, result.out) == (5, "")
    assert message in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", ""], "text 0 is empty"),
        (["embed", "fine", "not \udcff fine"], "text 1 holds the lone surrogate"),
        (["embed", "text", "--role", "document", "--instruction", "find"], "a document takes no instruction"),
        (["embed", "text", "--instruction", " "], "instruction is empty"),
        (["embed", "text", "--instruction", "long " * 600], "shorten the instruction"),
        (["embed", "text", "--device", "abacus"], "device 'abacus'"),
        (["explain", ""], "is empty"),
    ],
)
def test_bad_input_exits_5(gircse: Gircse, tiny_model: list[str], arguments: list[str], message: str) -> None:
    options = tiny_model if "--device" not in arguments else tiny_model[:2]
    result = gircse(*arguments, *options)
    assert (result.code, result.out) == (5, "")
    assert message in result.err and result.err.count("\n") == 1


def test_a_truncated_text_is_reported(gircse: Gircse, tiny_model: list[str]) -> None:
    result = gircse("embed", "word " * 2000, "--json", *tiny_model)
    assert result.code == 0
    assert result.json["embeddings"][0]["truncated"] is True
    assert result.err.startswith("warning: 1 of 1 text is longer than 512 tokens")


def test_explain_compares_instructions(gircse: Gircse, tiny_model: list[str], tiny_embedder: Embedder) -> None:
    instructions = ["find money", "find rivers"]
    options = [option for instruction in instructions for option in ("--instruction", instruction)]
    result = gircse("explain", "bank", *options, "--soft-tokens", "4", "--json", *tiny_model)
    assert (result.code, result.err) == (0, "")
    assert [explanation["instruction"] for explanation in result.json["explanations"]] == instructions
    for explanation in result.json["explanations"]:
        assert [step["step"] for step in explanation["steps"]] == [1, 2, 3, 4, 5]
        assert explanation["steps"][0]["cosine_to_previous"] is None
        for step in explanation["steps"]:
            weights = [token["weight"] for token in step["tokens"]]
            assert len(weights) == 4 and weights == sorted(weights, reverse=True) and 0 < sum(weights) <= 1
    a, b = (tiny_embedder.embed_queries(["bank"], instruction=instruction)[0] for instruction in instructions)
    between = result.json["cosine_between_instructions"]
    np.testing.assert_allclose(between, [[1, a @ b], [a @ b, 1]], atol=1e-6)
    path = tiny_embedder.embed(["bank"], instruction=instructions[0], trajectory=True).trajectory
    assert path is not None
    cosines = [step["cosine_to_previous"] for step in result.json["explanations"][0]["steps"][1:]]
    np.testing.assert_allclose(cosines, (path[0, 1:] * path[0, :-1]).sum(axis=1), atol=1e-6)

    table = gircse("explain", "bank", *options, *tiny_model)
    assert (table.code, table.err) == (0, "")
    assert all(f"Instruct: {instruction}" in table.out for instruction in instructions)
    assert "cosine between the instructions" in table.out


def test_explain_without_instruction_uses_the_default(
    gircse: Gircse, tiny_model: list[str], tiny_embedder: Embedder
) -> None:
    result = gircse("explain", "bank", *tiny_model)
    assert result.code == 0
    assert f"Instruct: {tiny_embedder.spec.default_instruction}" in result.out
    assert "between" not in result.out


def test_explain_shows_lasers_first_step_without_a_soft_token(gircse: Gircse, tmp_path: Path) -> None:
    source, options = laser.folder(tmp_path / "weights"), ["--device", "cpu", "--dtype", "float32"]
    exported = gircse("export", str(tmp_path / "exported"), "--model", str(source), "--preset", "laser", "--json")
    assert (exported.code, exported.json["spec"]["pooling"]) == (0, "mean_with_prompt"), exported.err
    result = gircse("explain", "a cat", "--json", "--model", str(tmp_path / "exported"), *options)
    steps = result.json["explanations"][0]["steps"]
    assert [(step["step"], len(step["tokens"])) for step in steps] == [(1, 0), (2, 8), (3, 8)]
    assert [step["cosine_to_previous"] is None for step in steps] == [True, False, False]
    shown = gircse("explain", "a cat", "--model", str(tmp_path / "exported"), *options)
    assert "(the prompt itself)" in shown.out
    refused = gircse("export", str(tmp_path / "no"), "--model", str(source), "--preset", "lazer")
    assert refused.code == 5 and "preset 'lazer' does not exist" in refused.err
