from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gircse_rag.errors import InputError
from gircse_rag.evaluation import load_sets
from gircse_rag.evaluation.instructions import SET_INSTRUCTIONS
from gircse_rag.evaluation.sets import (
    Choice,
    ChoiceContrastSet,
    ClusterSet,
    NestedContrastSet,
    PairSet,
    ProbeSet,
    RetrievalSet,
)
from tests.unit.evaluation import folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders.whole(tmp_path)


def test_all_sets_in_the_order_of_the_report(root: Path) -> None:
    assert [s.name for s in load_sets(root, instructions=folders.NAMED)] == [
        "retrieval/planes",
        "sts/graded",
        "sts/same",
        "classification/bank_coarse",
        "classification/bank_fine",
        "clustering/one",
        "clustering/two:fine",
        "clustering/two:coarse",
        "contrast/bank",
        "contrast/dev_aws",
    ]


def test_retrieval(root: Path) -> None:
    (data,) = load_sets(root, ["retrieval"])
    assert isinstance(data, RetrievalSet)
    assert data.query_ids == ("q1", "q2")  # q3 has no judgement
    assert data.document_ids == ("d1", "d2", "d3") and data.empty_documents == 1
    assert data.document_texts[:2] == ("Wings lift of a wing at low speed", "heat transfer on a blunt nose")
    assert data.qrels == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1, "d1": 0}}
    assert data.blocks["queries"].role == "query" and data.blocks["queries"].instruction == data.instruction
    assert data.blocks["documents"].role == "document" and data.blocks["documents"].instruction is None


def test_pairs(root: Path) -> None:
    graded, same = load_sets(root, ["sts"])
    assert isinstance(graded, PairSet) and isinstance(same, PairSet)
    assert graded.scores == (5.0, 2.5, 0.0) and graded.first[1] == "a cat sat" and graded.second[1] == "a dog sat"
    assert (graded.main, same.main) == ("spearman", "average_precision")
    assert {block.role for block in graded.blocks.values()} == {"symmetric"}


def test_labels(root: Path) -> None:
    probe, clusters = load_sets(root, ["classification/bank_fine", "clustering/two:coarse"])
    assert isinstance(probe, ProbeSet) and isinstance(clusters, ClusterSet)
    assert (len(probe.train_texts), len(probe.test_texts)) == (40, 24)
    assert probe.test_labels[:4] == folders.FINE_LABELS
    assert set(clusters.labels) == {"card", "flight"}


def test_nested_contrast_knows_which_labels_are_finer(root: Path) -> None:
    (data,) = load_sets(root, ["contrast/bank"], instructions=folders.NAMED)
    assert isinstance(data, NestedContrastSet)
    assert data.fine_instruction == folders.NAMED["classification/bank_fine"]
    assert data.coarse_instruction == folders.NAMED["classification/bank_coarse"]
    assert set(data.fine_labels) == set(folders.FINE_LABELS)
    assert set(data.coarse_labels) == {"card", "flight"}


def test_contrast_needs_nested_labels_equal_texts_and_two_instructions(root: Path) -> None:
    assert "contrast/bank" not in [s.name for s in load_sets(root)]
    rows = [{"text": r["text"], "label": str(i % 3)} for i, r in enumerate(folders.labelled(24))]
    folders.write_rows(root / "classification" / "bank_coarse" / "test.jsonl.gz", rows)
    assert "contrast/bank" not in [s.name for s in load_sets(root, instructions=folders.NAMED)]
    rows = [{"text": "else", "label": "card"}]
    folders.write_rows(root / "classification" / "bank_coarse" / "test.jsonl.gz", rows)
    assert "contrast/bank" not in [s.name for s in load_sets(root, instructions=folders.NAMED)]


def test_instructions_come_from_the_caller_the_set_or_the_task(root: Path) -> None:
    folders.retrieval(root / "retrieval" / "cranfield")
    mine = {"sts/graded": "Compare two sentences", "dev/manual_section": "Find it"}
    sets = load_sets(root, ["retrieval/cranfield", "retrieval/planes", "sts", "dev"], instructions=mine)
    by_name = {s.name: s.blocks for s in sets}
    assert by_name["retrieval/cranfield"]["queries"].instruction == SET_INSTRUCTIONS["retrieval/cranfield"]
    assert by_name["retrieval/planes"]["queries"].instruction == "Given a question, retrieve passages that answer it"
    assert by_name["sts/graded"]["first"].instruction == "Compare two sentences"
    assert by_name["sts/same"]["first"].instruction == "Retrieve semantically similar text"
    assert by_name["dev/manual_section"]["queries"].instruction == "Find it"
    with pytest.raises(InputError, match=r"sts/nothing.*retrieval/planes"):
        load_sets(root, instructions={"sts/nothing": "x"})


def test_development_sets_load_only_by_name(root: Path) -> None:
    service, manual = load_sets(root, ["dev/aws_same_service", "dev/manual_section"])
    assert isinstance(service, RetrievalSet) and isinstance(manual, RetrievalSet)
    assert service.query_texts == ("list keys", "add disk", "stop host")
    assert service.document_texts == ("delete key", "list users", "remove disk", "start host")
    assert service.qrels["q0"] == {"d0": 1}
    assert service.blocks["documents"].instruction == "same service"
    assert manual.blocks["documents"].instruction is None


def test_the_first_of_several_wordings_is_used(root: Path) -> None:
    catalogue = root.parent / "tasks.json"
    tasks = json.loads(catalogue.read_text())

    def write_instruction(instruction: object) -> None:
        tasks["manual_section"]["instruction"] = instruction
        catalogue.write_text(json.dumps(tasks))

    write_instruction(["find it", "look it up"])
    (manual,) = load_sets(root, ["dev/manual_section"])
    assert manual.blocks["queries"].instruction == "find it"
    write_instruction([])
    with pytest.raises(InputError, match="dev/manual_section"):
        load_sets(root, ["dev/manual_section"])
    for broken in ({"en": "find it"}, [7], 7):
        write_instruction(broken)
        with pytest.raises(InputError, match=r"tasks\.json"):
            load_sets(root)


def test_development_contrast_pairs_tasks_that_share_a_query(root: Path) -> None:
    (data,) = load_sets(root, ["contrast/dev_aws"])
    assert isinstance(data, ChoiceContrastSet)
    both = (True, True)
    assert data.choices == (
        Choice("list keys", ("same service", "same action"), ("delete key", "list users"), both),
        Choice("add disk", ("same service", "same action"), ("remove disk", "add tag"), both),
    )


def test_patterns_and_tasks(root: Path) -> None:
    assert [s.name for s in load_sets(root, ["clustering/two", "sts/s*"])] == [
        "sts/same",
        "clustering/two:fine",
        "clustering/two:coarse",
    ]


def test_an_unknown_set_lists_the_known_ones(root: Path) -> None:
    with pytest.raises(InputError, match=r"'sts/stsb'.*sts/graded, sts/same"):
        load_sets(root, ["sts/graded", "sts/stsb"])
    with pytest.raises(InputError, match=r"write \['sts'\]"):
        load_sets(root, "sts")
    with pytest.raises(InputError, match="no evaluation set was chosen"):
        load_sets(root, [])


def test_limit_is_deterministic_and_keeps_judged_documents(tmp_path: Path) -> None:
    folder = tmp_path / "retrieval" / "many"
    folders.write_rows(folder / "corpus.jsonl", ({"_id": str(i), "text": f"text {i}"} for i in range(200)))
    folders.write_rows(folder / "queries.jsonl", ({"_id": f"q{i}", "text": f"ask {i}"} for i in range(50)))
    qrels = ["query-id\tcorpus-id\tscore", *(f"q{i}\t{i}\t1" for i in range(50))]
    folders.write_lines(folder / "qrels.tsv", qrels)
    (once,), (again,) = load_sets(tmp_path, limit=4), load_sets(tmp_path, limit=4)
    assert once == again
    assert isinstance(once, RetrievalSet)
    assert len(once.query_ids) == 4 and len(once.document_ids) == 20
    assert {q.removeprefix("q") for q in once.query_ids} <= set(once.document_ids)
    assert load_sets(tmp_path, limit=1000) == load_sets(tmp_path)


def test_limit_takes_the_same_texts_for_probe_and_contrast(root: Path) -> None:
    fine, contrast = load_sets(root, ["classification/bank_fine", "contrast/bank"], limit=8, instructions=folders.NAMED)
    assert isinstance(fine, ProbeSet) and isinstance(contrast, NestedContrastSet)
    assert len(fine.test_texts) == 8 and contrast.texts == fine.test_texts
    with pytest.raises(InputError, match="limit"):
        load_sets(root, limit=0)


def test_missing_files_and_folders_are_reported(root: Path, tmp_path: Path) -> None:
    (root / "retrieval" / "planes" / "queries.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"queries\.jsonl \(or queries\.jsonl\.gz\) is missing"):
        load_sets(root, ["retrieval"])
    with pytest.raises(InputError, match="is not a directory"):
        load_sets(tmp_path / "nowhere")
    (tmp_path / "hollow" / "eval").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no evaluation set"):
        load_sets(tmp_path / "hollow" / "eval")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("corpus.jsonl.gz", ['{"_id": "d1", "text": "a"}', "{oops"], r"corpus\.jsonl\.gz, line 2: not JSON"),
        ("corpus.jsonl.gz", ['{"_id": "d1", "text": 3}'], r"line 1: 'text' must be a string"),
        (
            "corpus.jsonl.gz",
            ['{"_id": "d1", "text": "a"}', '{"_id": "d1", "text": "b"}'],
            "line 2: .*'d1' occurs twice",
        ),
        ("corpus.jsonl.gz", ['{"_id": "d1", "text": "a", "title": 1}'], r"line 1: 'title'"),
        ("queries.jsonl.gz", ['["q1", "text"]'], r"line 1: expected a JSON object"),
        (
            "queries.jsonl.gz",
            ['{"_id": "q1", "text": "a"}', '{"_id": "q1", "text": "b"}'],
            "line 2: .*'q1' occurs twice",
        ),
        (
            "qrels.tsv",
            ["query-id\tcorpus-id\tscore", "q1\td9\t1"],
            r"qrels\.tsv, line 2: the document 'd9' is not",
        ),
        ("qrels.tsv", ["query-id\tcorpus-id\tscore", "q9\td1\t1"], r"line 2: the query 'q9' is not in queries"),
        ("qrels.tsv", ["query-id\tcorpus-id\tscore", "q1\td1"], r"line 2: 3 tab-separated columns expected, found 2"),
        ("qrels.tsv", ["query-id\tcorpus-id\tscore", "", "q1\td1\tyes"], r"line 3: the score 'yes' is not a number"),
        ("qrels.tsv", ["query-id\tcorpus-id\tscore", "q1\td1\t0"], r"no query has a relevant document"),
        ("qrels.tsv", ["q1\td1\t1"], r"line 1: the header must be"),
        (
            "qrels.tsv",
            ["query-id\tcorpus-id\tscore", "q1\td1\t0.5"],
            r"line 2: the score is 0\.5; it must be a whole",
        ),
        ("qrels.tsv", [], r"the file is empty"),
    ],
)
def test_malformed_retrieval_files(root: Path, name: str, lines: list[str], message: str) -> None:
    folders.write_lines(root / "retrieval" / "planes" / name, lines)
    with pytest.raises(InputError, match=message):
        load_sets(root, ["retrieval"])


@pytest.mark.parametrize(
    ("path", "lines", "message"),
    [
        ("sts/same.tsv", ["score\tsentence1\tsentence2", "1\ta\t "], r"same\.tsv, line 2: a sentence is empty"),
        ("sts/same.tsv", ["score\tsentence1\tsentence2", "nan\ta\tb"], r"line 2: the score 'nan'"),
        ("sts/same.tsv", ["score\tsentence1\tsentence2", "1\ta\tb"], r"at least two pairs, found 1"),
        ("classification/bank_fine/test.jsonl.gz", ['{"text": " ", "label": "x"}'], r"line 1: 'text' is empty"),
        ("classification/bank_fine/test.jsonl.gz", ['{"text": "a"}'], r"line 1: 'label' must be a string"),
        ("classification/bank_fine/test.jsonl.gz", [], r"test\.jsonl holds no row"),
        ("classification/bank_fine/train.jsonl.gz", ['{"text": "a", "label": "x"}'], r"at least two labels"),
        ("clustering/one.jsonl", ['{"text": "a", "label": "x"}', '{"text": "b"}'], r"line 2: 'label' must be a string"),
        ("clustering/one.jsonl", ['{"text": "a", "label": "x"}'], r"needs at least two labels"),
        ("clustering/one.jsonl", ['{"text": "a"}'], r"at least one label field"),
        ("../tasks.json", ['{"a": 3}'], r"tasks\.json: expected"),
        ("../dev/docs.jsonl.gz", ['{"task": "other", "query": "q", "positive": "p"}'], r"'manual_section'.*lists some"),
    ],
)
def test_other_malformed_files(root: Path, path: str, lines: list[str], message: str) -> None:
    folders.write_lines(root / path, lines)
    with pytest.raises(InputError, match=message):
        load_sets(root, ["retrieval", "sts", "classification", "clustering", "dev"])


def test_a_bad_file_fails_only_its_own_sets(root: Path) -> None:
    folders.write_lines(root / "clustering" / "one.jsonl", [])
    folders.write_lines(root / "classification" / "bank_fine" / "test.jsonl.gz", ["{"])
    folders.write_lines(root.parent / "tasks.json", ["{"])
    (root / "sts" / "._graded.tsv").write_bytes(b"\x00\x05\x16\x07")  # a macOS metadata file
    (root / "retrieval" / ".ipynb_checkpoints").mkdir()
    assert [s.name for s in load_sets(root, ["sts", "retrieval"])] == ["retrieval/planes", "sts/graded", "sts/same"]
    for pattern, message in {
        "clustering/one": "one.jsonl",
        "contrast/bank": "test.jsonl",
        "contrast/dev": "tasks.json",
        "dev": "tasks.json",
        "dev/manual_section": "tasks.json",
        "contrast/dev_*": "tasks.json",
        "clustering/one:label": "one.jsonl",
    }.items():
        with pytest.raises(InputError, match=message):
            load_sets(root, [pattern])


def test_a_bad_probe_does_not_break_the_contrast_of_two_others(root: Path) -> None:
    for part in ("train", "test"):
        folders.write_lines(root / "classification" / "bank_zzz" / f"{part}.jsonl", ["{"])
    (contrast,) = load_sets(root, ["contrast/bank"], instructions=folders.NAMED)
    assert isinstance(contrast, NestedContrastSet)


def test_a_sample_without_a_positive_pair_is_refused(root: Path) -> None:
    lines = ["score\tsentence1\tsentence2", "1\ta\tb", *(f"0\tc{i}\td" for i in range(60))]
    folders.write_lines(root / "sts" / "same.tsv", lines)
    (whole,) = load_sets(root, ["sts/same"])
    assert whole.main == "average_precision"
    with pytest.raises(InputError, match=r"there is none in the sample of 5; increase the limit"):
        load_sets(root, ["sts/same"], limit=5)
    folders.write_lines(root / "sts" / "same.tsv", [*lines, *(f"{i / 10}\te{i}\tf" for i in range(11))])
    (sampled,) = load_sets(root, ["sts/same"], limit=2)
    assert sampled.main == "spearman", "the whole set decides the measure, not its sample"


def test_development_tasks_may_omit_what_training_may_omit(root: Path) -> None:
    catalogue = root.parent / "tasks.json"
    tasks = json.loads(catalogue.read_text())
    del tasks["manual_section"]["symmetric"]
    catalogue.write_text(json.dumps(tasks))
    assert load_sets(root, ["dev/manual_section"])[0].blocks["documents"].role == "document"
    row = {"task": "manual_section", "query": "q", "positive": "p", "negative": 5}
    folders.write_rows(root.parent / "dev" / "docs.jsonl.gz", [row])
    with pytest.raises(InputError, match=r"docs\.jsonl.*line 1: 'negative' must be a string or null"):
        load_sets(root, ["dev/manual_section"])
    for missing in ("source", "dev_rows"):
        lacking = {key: value for key, value in tasks["manual_section"].items() if key != missing}
        catalogue.write_text(json.dumps({**tasks, "manual_section": lacking}))
        with pytest.raises(InputError, match=rf"tasks\.json: expected .*'{missing}'"):
            load_sets(root, ["dev"])
    rows = {"instruction": "Find it", "rows": 3}
    catalogue.write_text(json.dumps({"manual_section": rows}))  # valid for training
    assert "dev/manual_section" not in [s.name for s in load_sets(root)]


def test_a_contrast_takes_the_instructions_of_its_parts(root: Path) -> None:
    with pytest.raises(InputError, match="contrast/bank has no instruction of its own"):
        load_sets(root, instructions={**folders.NAMED, "contrast/bank": "x"})


def test_a_damaged_archive_is_reported(root: Path) -> None:
    path = root / "sts" / "graded.tsv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"graded\.tsv\.gz: unreadable after line"):
        load_sets(root, ["sts"])
    path.write_bytes(b"not an archive")
    with pytest.raises(InputError, match="unreadable after line 0"):
        load_sets(root, ["sts"])
    path.write_bytes(gzip.compress(b"score\tsentence1\tsentence2\n1\t\xff\xfe\tb\n"))
    with pytest.raises(InputError, match="unreadable after line"):
        load_sets(root, ["sts"])
