"""The options of `gircse search`, each compared with a search without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gircse_rag.cli.searching import _parse_filters
from tests.unit.cli.conftest import Gircse

STORE = ["--collection", "docs", "--path", "store"]
WORDS = ["tortoise", "albatross", "bison", "zebra", "leopard", "mammoth"]


@pytest.fixture
def ask(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> Any:
    """Runs `gircse search` over six documents of four chunks each and returns its JSON."""
    rows = [
        {
            "id": word,
            "text": "\n\n".join(f"{word} number {part} lives in place {part * 7}" for part in range(4)),
            "metadata": {"kind": "bird" if word == "albatross" else "other", "legs": 2 if word == "albatross" else 4},
        }
        for word in WORDS
    ]
    (tmp_path / "zoo.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    made = gircse("ingest", "zoo.jsonl", *STORE, "--chunk-tokens", "40", "--json", *tiny_model)
    assert made.code == 0 and made.json["added"] == 6 and made.json["embedded"] == 24

    def run(*options: str, quiet: bool = True) -> Any:
        result = gircse("search", "a large animal", *STORE, "--json", *options, *tiny_model)
        quiet = quiet and bool(result.json["hits"])  # an empty answer has a note
        assert result.code == 0 and (not quiet or result.err == ""), result.err
        return result.json

    return run


def _ids(answer: Any) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


def test_filters_are_combined_with_and_or_with_or_for_the_same_key(ask: Any) -> None:
    def found(*filters: str) -> set[str]:
        options = [option for given in filters for option in ("--filter", given)]
        return {hit["metadata"]["source"].removeprefix("zoo.jsonl#") for hit in ask("--limit", "50", *options)["hits"]}

    assert found() == set(WORDS)
    assert found("kind=bird") == {"albatross"}
    assert found("legs=4") == set(WORDS) - {"albatross"}
    assert found("kind=bird", "legs=4") == set()
    assert found("kind!=bird") == found("legs>2") == found("legs>=3", "legs<5") == set(WORDS) - {"albatross"}
    assert found("kind=null") == found("legs=four") == set()
    assert found("wings=null") == found("legs!=null") == set(WORDS)
    assert found("source=zoo.jsonl#bison", "source=zoo.jsonl#zebra") == {"bison", "zebra"}
    assert {hit["metadata"]["_chunk"]["number"] for hit in ask("--filter", "_chunk.number=1")["hits"]} == {1}


def test_limit_offset_and_min_score_cut_the_same_list(ask: Any) -> None:
    everything = ask("--mode", "dense", "--limit", "100")["hits"]
    assert len(everything) == 24
    assert ask("--mode", "dense", "--limit", "3")["hits"] == everything[:3]
    assert ask("--mode", "dense", "--limit", "3", "--offset", "3")["hits"] == everything[3:6]
    min_score = (everything[4]["score"] + everything[5]["score"]) / 2
    assert ask("--mode", "dense", "--limit", "100", "--min-score", str(min_score))["hits"] == everything[:5]


def test_groups_hold_the_best_hits_of_each_document(ask: Any) -> None:
    best: dict[str, list[str]] = {}
    for hit in ask("--limit", "100")["hits"]:
        best.setdefault(hit["document"], []).append(hit["id"])
    assert len(best) == 6 and set(map(len, best.values())) == {4}
    expected = [point for document in list(best)[:3] for point in best[document][:2]]
    assert _ids(ask("--limit", "3", "--group", "2")) == expected


def test_mmr_replaces_repetitions(ask: Any) -> None:
    plain = ask("--limit", "4")
    assert ask("--limit", "4", "--mmr", "0")["hits"] == plain["hits"]
    diverse = ask("--limit", "4", "--mmr", "1")
    assert _ids(diverse)[0] == _ids(plain)[0] and _ids(diverse) != _ids(plain)
    assert min(hit["score"] for hit in diverse["hits"]) < min(hit["score"] for hit in plain["hits"])


def test_other_steps_give_other_scores(ask: Any) -> None:
    plain, more = ask(), ask("--steps", "9", quiet=False)
    assert [hit["score"] for hit in more["hits"]] != [hit["score"] for hit in plain["hits"]]


def test_coarse_to_fine_answers_twice(ask: Any, gircse: Gircse, tiny_model: list[str]) -> None:
    answer = ask("--coarse-to-fine", "--limit", "3")
    coarse = ask("--limit", "3", "--steps", "1", quiet=False)["hits"]
    assert [hit["id"] for hit in answer["at_once"]] == [hit["id"] for hit in coarse]
    fine = ask("--limit", "3")["hits"]  # the 50 candidates include all 24 chunks
    assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in fine]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit["score"] for hit in fine], abs=1e-6)
    assert answer["at_once"] != answer["hits"]
    assert [hit["score"] for hit in ask("--coarse-to-fine", "--steps", "7")["hits"]] == pytest.approx(
        [hit["score"] for hit in ask("--steps", "7", quiet=False)["hits"]], abs=1e-6
    )
    table = gircse("search", "animal", *STORE, "--coarse-to-fine", "--filter", "kind=bird", *tiny_model)
    assert (table.code, table.err) == (0, "")
    assert "at once" in table.out and "refined" in table.out and table.out.count("score") == 2
    assert "bison" not in table.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--filter", "kind"], "--filter 'kind' is not KEY=VALUE"),
        (["--filter", "=bird"], "is not KEY=VALUE"),
        (["--filter", '"a=b"'], "is not KEY=VALUE"),
        (["--filter", "legs>1e999"], "'legs': inf is not a JSON number"),
        (["--filter", "legs>=12345678901234567890"], "'legs': 12345678901234567890 does not fit into 64 bits"),
        (["--filter", "legs>=tall"], "neither of numbers nor of dates"),
        (["--filter", "legs=4", "--filter", "legs>2"], "cannot be combined with another operator for this key"),
        (["--min-score", "1.5"], "min_score must be a number from -1 to 1"),
        (["--group", "1", "--offset", "1"], "group_size cannot be combined with offset or mmr"),
        (["--group", "1", "--mmr", "0.5"], "group_size cannot be combined with offset or mmr"),
        (["--coarse-to-fine", "--mmr", "0"], "cannot be combined with --mmr"),
        (["--coarse-to-fine", "--min-score", "0"], "cannot be combined with --min-score"),
        (["--coarse-to-fine", "--offset", "1"], "cannot be combined with --offset"),
        (["--coarse-to-fine", "--group", "1"], "cannot be combined with --group"),
        (["--coarse-to-fine", "--steps", "auto"], "needs a fixed number of --steps"),
    ],
)
def test_invalid_options_exit_5(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert gircse("ingest", "a.txt", *STORE, *tiny_model).code == 0
    result = gircse("search", "question", *STORE, *options, *tiny_model)
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith("error: ") and message in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("options", [["--group", "0"], ["--mmr", "1.5"], ["--offset", "-1"], ["--steps", "0"]])
def test_numbers_out_of_range_are_usage_errors(gircse: Gircse, options: list[str]) -> None:
    result = gircse("search", "question", *STORE, *options)
    assert (result.code, result.out) == (2, "")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], None),
        (["a=1", "b=x=y"], {"a": "1", "b": "x=y"}),
        (["a=1", "a=true", "a=1.50", "a=one", 'a="2"'], {"a": ["1", "true", "1.50", "one", "2"]}),
        (["a!=1", "a!=2", "b>=1.5", "b<2020-01-01"], {"a": {"ne": ["1", "2"]}, "b": {"gte": 1.5, "lt": "2020-01-01"}}),
        (["a>1", "a<=5", "a!=3"], {"a": {"gt": 1, "lte": 5, "ne": ["3"]}}),
        (["a!=null", "wow!=x", "wow!y=x"], {"a": {"ne": [None]}, "wow": {"ne": ["x"]}, "wow!y": "x"}),
        (['"a>b"=c', '"a!=b"!=c'], {'"a>b"': "c", '"a!=b"': {"ne": ["c"]}}),
        (["a=NaN", "b=Infinity", "c=-Infinity"], {"a": "NaN", "b": "Infinity", "c": "-Infinity"}),
        (["a=null", "b=[1]", "c={}", "d="], {"a": None, "b": "[1]", "c": "{}", "d": ""}),
        (["a=" + "[" * 10**5], {"a": "[" * 10**5}),
        (['"a=b"=c'], {'"a=b"': "c"}),
        (['x."a=b"[0].c=d="e=f"'], {'x."a=b"[0].c': 'd="e=f"'}),
        (['in 3"=4'], {'in 3"': "4"}),
    ],
)
def test_filters_are_parsed(items: list[str], expected: object) -> None:
    assert repr(_parse_filters(items)) == repr(expected)


def test_a_filter_matches_a_quoted_key_and_any_kind_of_value(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path
) -> None:
    values = [True, False, 1.5, 1, "one", "NaN"]
    rows = [{"id": str(n), "text": f"text {n}", "metadata": {"a=b": value}} for n, value in enumerate(values)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert gircse("ingest", "rows.jsonl", *STORE, *tiny_model).code == 0

    def found(*values: str) -> list[str]:
        options = [option for value in values for option in ("--filter", f'"a=b"={value}')]
        result = gircse("search", "text", *STORE, "--json", "--limit", "9", *options, *tiny_model)
        assert result.code == 0, result.err
        return sorted(hit["document"].partition("#")[2] for hit in result.json["hits"])

    assert found("NaN") == ["5"]
    assert found("true", "false") == ["0", "1"]
    assert found("1.5", "one", "1") == ["2", "3", "4"]


def test_modes_rank_by_words_embeddings_or_both(ask: Any) -> None:
    lexical = ask("--mode", "lexical", "--limit", "50", quiet=False)["hits"]
    assert lexical == []  # "a large animal" is in no text
    dense, hybrid = (ask("--mode", mode, "--limit", "50")["hits"] for mode in ("dense", "hybrid"))
    assert ask("--limit", "50")["hits"] == hybrid
    assert _ids({"hits": dense}) == _ids({"hits": hybrid}) and len(dense) == 24
    assert {hit["lexical_rank"] for hit in hybrid} == {None} and [hit["dense_rank"] for hit in dense] == [*range(1, 25)]


def test_words_decide_where_the_question_has_them(
    gircse: Gircse, ask: Any, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ([], ["--mode", "lexical"]):
        result = gircse("search", "mammoths in place 21", *STORE, "--limit", "50", *mode, "--json", *tiny_model)
        (best,) = (hit for hit in result.json["hits"] if hit["lexical_rank"] == 1)
        assert "mammoth number 3" in best["text"]
    table = gircse("search", "mammoths in place 21", *STORE, "--limit", "50", *tiny_model).out
    assert "1 lexical" in table and "dense" in table
