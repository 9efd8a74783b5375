from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from gircse_rag import Embedder, GircseError
from gircse_rag.errors import InputError, MissingExtraError
from gircse_rag.evaluation import Report, evaluate, load_sets, metrics, plot
from gircse_rag.evaluation.evaluate import summarise
from gircse_rag.evaluation.lexical import fuse_runs, rank_by_words
from gircse_rag.evaluation.metrics import Estimate, mean_estimate
from gircse_rag.evaluation.scoring import Mode
from gircse_rag.evaluation.sets import RetrievalSet
from gircse_rag.evaluation.vectors import Vectors
from gircse_rag.install_hint import install_command
from gircse_rag.prompts import Role
from tests.unit.evaluation import folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders.whole(tmp_path)


def test_every_text_is_embedded_once_for_all_steps(root: Path) -> None:
    model = folders.WordVectors()
    report = evaluate(model, root, (5, 1, 5))
    assert {call[3] for call in model.calls} == {(1, 5)}
    assert Counter((role, instruction) for _, role, instruction, _ in model.calls).most_common(1)[0][1] == 1
    embedded = [(text, role, instruction) for texts, role, instruction, _ in model.calls for text in texts]
    assert len(embedded) == len(set(embedded)) == report.texts
    needed = {(t, b.role, b.instruction) for s in load_sets(root) for b in s.blocks.values() for t in b.texts}
    assert set(embedded) == needed


def test_scores_by_hand(root: Path) -> None:
    report = evaluate(folders.WordVectors(), root, (0,), sets=["retrieval", "sts/graded"], model="words")
    # q1 finds d1 (grade 2). It shares no word with d2, so neither d2's rank nor nDCG is known.
    assert report["retrieval/planes"].scores["mrr@10"][0].value == 100.0
    assert report["retrieval/planes"].scores["recall@10"][0].value == 100.0
    assert report["sts/graded"].scores["spearman"][0].value == pytest.approx(100.0)
    assert report.mean[0].value == pytest.approx(np.mean([r.scores[r.main][0].value for r in report.sets]))
    assert (report.model, report.steps, report.limit, report.fingerprint) == ("words", (0,), None, None)


def test_the_report_names_roles_instructions_and_counts(root: Path) -> None:
    mine = {"retrieval/planes": "Find planes"}
    report = evaluate(folders.WordVectors(), root, (1,), sets=["retrieval", "sts/same"], instructions=mine)
    assert report["retrieval/planes"].inputs == {
        "queries": {"texts": 2, "role": "query", "instruction": "Find planes"},
        "documents": {"texts": 3, "role": "document", "instruction": None},
    }
    assert report["retrieval/planes"].empty_documents == 1
    assert report["sts/same"].inputs["first"]["instruction"] == "Retrieve semantically similar text"
    with pytest.raises(InputError, match="sts/graded"):
        report["sts/graded"]


class BetterEachStep:
    """Embed only the label words, with less noise at each step; follow the instruction if `obedient`."""

    def __init__(self, obedient: bool) -> None:
        self.obedient = obedient

    def __call__(self, texts: list[str], role: str, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        words = folders.WordVectors(256)
        rng = np.random.default_rng(len(texts))
        out = []
        for step in steps:
            coarse = words([t.split()[0] for t in texts], role, None, (1,))[:, 0]
            fine = words([t.split()[1] if len(t.split()) > 1 else t for t in texts], role, None, (1,))[:, 0]
            if self.obedient:
                coarse = coarse * ("coarse" in (instruction or ""))
                fine = fine * ("coarse" not in (instruction or ""))
            out.append(coarse + fine + rng.standard_normal(coarse.shape) * 0.2 / step)
        return np.stack(out, axis=1).astype(np.float32)


def test_more_steps_can_gain_and_contrast_is_not_in_the_mean(root: Path) -> None:
    names = ["classification", "clustering/two", "contrast/bank"]
    instructions = {**folders.NAMED, "clustering/two:coarse": "coarse, please"}
    report = evaluate(BetterEachStep(obedient=True), root, (1, 8), sets=names, instructions=instructions)
    assert report.gain[1].value == 0.0
    assert report.gain[8].value == pytest.approx(report.mean[8].value - report.mean[1].value)
    assert report.gain[8].low > 0
    quality = [r.scores[r.main][8].value for r in report.sets if r.task != "contrast"]
    assert len(quality) == 4 and report.mean[8].value == pytest.approx(np.mean(quality))
    assert report["contrast/bank"].scores["followed"][8].value > 90.0
    ignoring = evaluate(folders.WordVectors(), root, (8,), sets=["contrast"], instructions=folders.NAMED)
    assert [r.scores["followed"][8].value for r in ignoring.sets] == [0.0, 0.0]
    assert not ignoring.mean and not ignoring.gain


def test_mean_and_paired_gain_by_hand() -> None:
    flat = np.zeros(3)
    sets = [
        [Estimate(0.2, flat + 0.2), Estimate(0.4, np.array([0.3, 0.4, 0.5]))],
        [Estimate(0.6, flat + 0.6), Estimate(0.6, flat + 0.6)],
    ]
    mean, gain = summarise(sets, (1, 5))
    assert (mean[1].value, mean[5].value) == pytest.approx((40.0, 50.0))
    assert (gain[1].value, gain[5].value) == pytest.approx((0.0, 10.0))
    assert (gain[5].low, gain[5].high) == pytest.approx((5.25, 14.75))


def test_equal_vectors_at_two_steps_have_zero_gain() -> None:
    values = np.random.default_rng(0).random(50)
    estimate = mean_estimate(values, 1)
    _, gain = summarise([[estimate, mean_estimate(values, 1)]], (1, 2))
    assert (gain[2].low, gain[2].value, gain[2].high) == (0.0, 0.0, 0.0)


def test_results_arrive_one_by_one(root: Path) -> None:
    seen: list[str] = []
    report = evaluate(folders.WordVectors(), root, (1,), sets=["sts"], on_set=lambda r: seen.append(r.name))
    assert seen == [r.name for r in report.sets] == ["sts/graded", "sts/same"]


def test_vectors_are_released_after_their_last_use(root: Path) -> None:
    sets = load_sets(root, ["classification/bank_fine", "sts", "contrast/bank"], instructions=folders.NAMED)
    model = folders.WordVectors()
    vectors = Vectors(sets, model, (1,))
    for index, evaluation_set in enumerate(sets):
        for block in evaluation_set.blocks.values():
            assert vectors.of(block).shape == (len(block.texts), 1, model.dimension)
        vectors.done_with(index)
        held = {key[1] for key in vectors._arrays}
        assert ("Retrieve semantically similar text" in held) == (index == 0)
    assert not vectors._arrays


def test_vectors_are_normalised_and_in_order(root: Path) -> None:
    (data,) = load_sets(root, ["sts/graded"])
    model = folders.WordVectors()
    made = Vectors([data], model, (1, 2)).of(data.blocks["second"])
    expected = model(list(data.blocks["second"].texts), "symmetric", None, (1, 2))
    assert made == pytest.approx(expected / np.linalg.norm(expected, axis=2, keepdims=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: made[:, :1], r"returned .* expected \(\d+, 2, d\)"),
        (lambda made: made[:, 0], "returned"),
        (lambda made: made[1:], "returned"),
        (
            lambda made: made * np.where(np.arange(len(made)) == 1, np.nan, 1)[:, None, None],
            r"1 of 4 texts .*'blue'",
        ),
        (lambda made: made * 0, "zero or not finite"),
    ],
)
def test_bad_vectors(root: Path, spoil: Callable[..., Any], message: str) -> None:
    model = folders.WordVectors()
    with pytest.raises(InputError, match=message):
        evaluate(lambda *arguments: spoil(model(*arguments)), root, (1, 5), sets=["sts/graded"])


@pytest.mark.parametrize("steps", [(), (-1,), (1.5,), ("1",), (True,)])
def test_bad_steps(root: Path, steps: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="steps"):
        evaluate(folders.WordVectors(), root, steps)


def test_report_survives_json(root: Path, tmp_path: Path) -> None:
    report = evaluate(
        folders.WordVectors(), root, (1, 5), sets=["sts", "retrieval", "contrast"], limit=3, model="words"
    )
    path = tmp_path / "deep" / "report.json"
    report.save(path)
    assert Report.load(path) == report
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.json"]
    data = json.loads(path.read_text())
    assert data["sets"][0]["scores"]["ndcg@10"]["5"].keys() == {"value", "low", "high"}
    assert data["limit"] == 3 and "scikit-learn" in data["versions"]


def test_bad_reports(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(InputError, match="cannot be read"):
        Report.load(path)
    for text, message in (("{", "not JSON"), ("[]", "not an evaluation report"), ('{"format": 9}', "format 9")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Report.load(path)
    path.write_text('{"format": 1, "sets": [], "steps": [1], "mean": {}, "gain": {}, "surprise": 1}')
    with pytest.raises(InputError, match="surprise"):
        Report.load(path)


def test_the_table_shows_sets_mean_and_sample_size(root: Path) -> None:
    from rich.console import Console

    report = evaluate(folders.WordVectors(), root, (1, 5), limit=8, model="words")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table())
    shown = capture.get()
    for result in report.sets:
        assert result.name in shown and result.main in shown
    assert "mean of 8" in shown and "gain over K=1" in shown and "samples of 8 per set" in shown
    assert str(report.mean[5]) in shown


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots(root: Path, tmp_path: Path, ending: str) -> None:
    one = evaluate(folders.WordVectors(), root, (1, 5), model="words")
    level = evaluate(folders.WordVectors(8), root, (0,), model="fewer words")
    path = tmp_path / "figures" / f"scores.{ending}"
    plot([one], path)
    alone = path.read_bytes()
    plot([one, level], path)
    assert alone.startswith((b"\x89PNG", b"<?xml")) and path.read_bytes() != alone
    if ending == "svg":
        assert "fewer words" in path.read_text()


@pytest.mark.slow
def test_the_ticks_of_k_are_integers(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    for steps in ((1, 2), (1, 5), (5,), (1, 20)):
        plot([evaluate(folders.WordVectors(), root, steps, model="words")], tmp_path / "x.png")
    shown = [label.get_text() for one in drawn for axis in one.axes for label in axis.get_xticklabels()]
    assert shown and all(label.replace("\N{MINUS SIGN}", "").isdigit() for label in shown)


def test_plots_need_a_common_set(root: Path, tmp_path: Path) -> None:
    sts = evaluate(folders.WordVectors(), root, (1,), sets=["sts"])
    retrieval = evaluate(folders.WordVectors(), root, (1,), sets=["retrieval"])
    with pytest.raises(InputError, match="no evaluation set in common"):
        plot([sts, retrieval], tmp_path / "x.png")
    with pytest.raises(InputError, match="no report"):
        plot([], tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")  # each K is requested separately
def test_an_embedder_is_scored_along_its_trajectory(root: Path, tiny_embedder: Embedder) -> None:
    report = evaluate(tiny_embedder, root, (1, 3), sets=["sts/graded", "retrieval"])
    assert report.fingerprint == tiny_embedder.fingerprint
    assert report.truncated == 0
    for k in (1, 3):

        def embed(
            texts: list[str], role: Role, instruction: str | None, steps: tuple[int, ...], k: int = k
        ) -> np.ndarray:
            return tiny_embedder.embed(texts, role, instruction, steps=k).vectors[:, None]

        alone = evaluate(embed, root, (k,), sets=["sts/graded", "retrieval"])
        for result in alone.sets:
            assert result.scores[result.main][k] == report[result.name].scores[result.main][k]
    with pytest.raises(GircseError, match="use steps >= 1"):
        evaluate(tiny_embedder, root, (0, 3), sets=["sts/graded"])


def test_truncated_texts_are_counted_without_a_warning(tmp_path: Path, tiny_embedder: Embedder) -> None:
    long = "word " * (2 * tiny_embedder.spec.max_length)
    rows = ["score\tsentence1\tsentence2", f"1\t{long}\ta", "2\tb\tc", f"3\t{long}\tlong enough"]
    folders.write_lines(tmp_path / "sts" / "long.tsv", rows)
    assert evaluate(tiny_embedder, tmp_path, (1,)).truncated == 1


def test_control_characters_become_spaces(tmp_path: Path, tiny_embedder: Embedder) -> None:
    def sts(name: str, between: str) -> float:
        rows = ["score\tsentence1\tsentence2", f"1\tTreasury{between}s plan\ta", "2\tb\tc", "3\td\tlong enough"]
        folders.write_lines(tmp_path / name / "sts" / "old.tsv", rows)
        return evaluate(tiny_embedder, tmp_path / name, (1,))["sts/old"].scores["spearman"][1].value

    assert sts("published", "\x12") == sts("cleaned", " ")
    words = folders.WordVectors()
    evaluate(words, tmp_path / "published", (0,))  # other models, such as a pooling baseline, get the cleaned text too
    assert "Treasury s plan" in [text for texts, *_ in words.calls for text in texts]


def test_import_needs_only_numpy() -> None:
    code = (
        "import sys, gircse_rag.evaluation\n"
        "heavy = ('torch', 'sklearn', 'scipy', 'pytrec_eval', 'matplotlib', 'rich', 'qdrant_client', 'typer')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named_before_anything_is_embedded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folders.WordVectors()
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("eval"))):
        evaluate(model, root, (1,))
    assert not model.calls


def test_modes_rank_retrieval_by_words_vectors_or_both(root: Path) -> None:
    (data,) = load_sets(root, ["retrieval"])
    assert isinstance(data, RetrievalSet)
    scores = {}
    for mode in get_args(Mode):
        model = folders.WordVectors()
        report = evaluate(model, [data], (1,), mode=mode)
        assert bool(model.calls) is (mode != "lexical") and Report.from_dict(report.to_dict()) == report
        assert report.mode == mode and (mode == "dense") is ("mode" not in report._title())
        scores[mode] = report.sets[0].scores["ndcg@10"][1].value
    words = rank_by_words(data)
    expected = metrics.retrieval_metrics(data.qrels, words)["ndcg@10"].mean()
    assert scores["lexical"] == pytest.approx(100 * expected)
    vectors = Vectors([data], folders.WordVectors(), (1,))
    queries, documents = (vectors.of(data.blocks[name])[:, 0] for name in ("queries", "documents"))
    dense = metrics.rank(queries, documents, data.query_ids, data.document_ids)
    fused = metrics.retrieval_metrics(data.qrels, fuse_runs(dense, words, len(data.document_ids)))["ndcg@10"].mean()
    assert scores["hybrid"] == pytest.approx(100 * fused)
