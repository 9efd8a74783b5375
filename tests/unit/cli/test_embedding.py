from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gircse_rag import Embedder
from tests.unit.cli.conftest import Gircse

TEXTS = ["a cat", "ein Käfer", "日本語"]


def test_embed_json_is_what_the_library_computes(
    gircse: Gircse, tiny_model: list[str], tiny_embedder: Embedder
) -> None:
    ran = gircse("embed", *TEXTS, "--instruction", "find", "--steps", "3", "--json", *tiny_model)
    assert ran.code == 0
    assert ran.json["fingerprint"] == tiny_embedder.fingerprint
    assert (ran.json["role"], ran.json["instruction"]) == ("query", "find")
    rows = ran.json["embeddings"]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["steps"] for row in rows] == [3, 3, 3]
    assert not any(row["truncated"] for row in rows)
    with pytest.warns(UserWarning, match="3 refinement steps"):
        expected = tiny_embedder.embed_queries(TEXTS, instruction="find", steps=3)
    # the command takes the default backend; the two backends differ by rounding
    np.testing.assert_allclose(np.array([row["vector"] for row in rows], np.float32), expected, atol=1e-6)
    assert ran.err.startswith("warning: queries take 3 refinement steps") and ran.err.count("\n") == 1


def test_texts_come_from_arguments_a_file_or_stdin(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode() + b"\r\n")
    ways = [
        gircse("embed", *TEXTS, "--role", "document", "--json", *tiny_model),
        gircse("embed", "--file", "texts.txt", "--role", "document", "--json", *tiny_model),
        gircse("embed", "--role", "document", "--json", *tiny_model, stdin="\n".join(TEXTS).encode()),
    ]
    assert [ran.code for ran in ways] == [0, 0, 0]
    assert ways[0].out == ways[1].out == ways[2].out
    assert ways[0].json["instruction"] is None


def test_the_table_shows_every_text(gircse: Gircse, tiny_model: list[str]) -> None:
    ran = gircse("embed", "[red]brackets", "other", "--steps", "auto", *tiny_model)
    assert ran.code == 0
    assert ran.err.startswith("warning: queries take auto refinement steps") and ran.err.count("\n") == 1
    assert "[red]brackets" in ran.out and "1.0000" in ran.out


def test_a_terminal_sees_progress_with_a_rate(
    gircse: Gircse, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = gircse("embed", *TEXTS, "--json", *tiny_model)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    shown = gircse("embed", *TEXTS, "--json", *tiny_model)
    assert (shown.out, quiet.err) == (quiet.out, "")
    assert "embedding" in shown.err and "3/3" in shown.err and "/s" in shown.err


def test_output_is_an_array_written_whole(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    ran = gircse("embed", *TEXTS, "--output", "vectors.npy", "--json", *tiny_model)
    assert ran.code == 0
    vectors = np.load(tmp_path / "vectors.npy")
    assert (vectors.shape, vectors.dtype) == ((3, 32), np.float32)
    assert [row["vector"] for row in ran.json["embeddings"]] == [None] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]

    failed = gircse("embed", "text", "--output", "no/such/folder/vectors.npy", *tiny_model)
    assert (failed.code, failed.out) == (5, "")
    assert "could not write no/such/folder/vectors.npy" in failed.err


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"good\nb\xe4d\n", "byte 0xe4 at offset 6, line 2"),
        (b"good\n\nmore\n", "line 2 of stdin is empty"),
        (b"good\nb\x00d\n", "line 2 of stdin holds the control character U+0000"),
        (b"", "stdin is empty"),
    ],
)
def test_bad_lines_are_named(gircse: Gircse, tiny_model: list[str], stdin: bytes, said: str) -> None:
    ran = gircse("embed", "--json", *tiny_model, stdin=stdin)
    assert (ran.code, ran.out) == (5, "")
    assert said in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_bad_input_exits_5(gircse: Gircse, tiny_model: list[str], arguments: list[str], said: str) -> None:
    options = tiny_model if "--device" not in arguments else tiny_model[:2]
    ran = gircse(*arguments, *options)
    assert (ran.code, ran.out) == (5, "")
    assert said in ran.err and ran.err.count("\n") == 1


def test_a_cut_text_is_told(gircse: Gircse, tiny_model: list[str]) -> None:
    ran = gircse("embed", "word " * 2000, "--json", *tiny_model)
    assert ran.code == 0
    assert ran.json["embeddings"][0]["truncated"] is True
    assert ran.err.startswith("warning: 1 of 1 texts are longer than 512 tokens")


def test_explain_compares_instructions(gircse: Gircse, tiny_model: list[str], tiny_embedder: Embedder) -> None:
    asked = ["find money", "find rivers"]
    options = [option for instruction in asked for option in ("--instruction", instruction)]
    ran = gircse("explain", "bank", *options, "--soft-tokens", "4", "--json", *tiny_model)
    assert (ran.code, ran.err) == (0, "")
    assert [explanation["instruction"] for explanation in ran.json["explanations"]] == asked
    for explanation in ran.json["explanations"]:
        assert [step["step"] for step in explanation["steps"]] == [1, 2, 3, 4, 5]
        assert explanation["steps"][0]["cosine_to_previous"] is None
        for step in explanation["steps"]:
            weights = [token["weight"] for token in step["tokens"]]
            assert len(weights) == 4 and weights == sorted(weights, reverse=True) and 0 < sum(weights) <= 1
    a, b = (tiny_embedder.embed_queries(["bank"], instruction=instruction)[0] for instruction in asked)
    between = ran.json["cosine_between_instructions"]
    np.testing.assert_allclose(between, [[1, a @ b], [a @ b, 1]], atol=1e-6)
    path = tiny_embedder.embed(["bank"], instruction=asked[0], trajectory=True).trajectory
    assert path is not None
    moved = [step["cosine_to_previous"] for step in ran.json["explanations"][0]["steps"][1:]]
    np.testing.assert_allclose(moved, (path[0, 1:] * path[0, :-1]).sum(axis=1), atol=1e-6)

    table = gircse("explain", "bank", *options, *tiny_model)
    assert (table.code, table.err) == (0, "")
    assert all(f"Instruct: {instruction}" in table.out for instruction in asked)
    assert "cosine between the instructions" in table.out


def test_explain_without_instruction_takes_the_default(
    gircse: Gircse, tiny_model: list[str], tiny_embedder: Embedder
) -> None:
    ran = gircse("explain", "bank", *tiny_model)
    assert ran.code == 0
    assert f"Instruct: {tiny_embedder.spec.default_instruction}" in ran.out
    assert "between" not in ran.out
