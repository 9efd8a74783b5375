"""Reading triplets and their tasks."""

import gzip
import json

import pytest

from gircse_rag.errors import InputError
from gircse_rag.training.data import Row, Task, read_rows, read_tasks

TASKS = {"find": Task(("Find it",), False), "same": Task(("Same topic",), True)}


def write(path, lines):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_files_and_folders_are_read_in_order(tmp_path):
    plain = write(tmp_path / "b.jsonl", [{"task": "find", "query": "q1", "positive": "p1", "negative": None}])
    write(tmp_path / "a.jsonl.gz", [{"task": "same", "query": "q0", "positive": "p0", "negative": "n0"}])
    expected = [Row("same", "q0", "p0", "n0"), Row("find", "q1", "p1", None)]
    assert read_rows([tmp_path], TASKS) == expected
    assert read_rows([plain], TASKS) == expected[1:]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"task": "find", "query": "q"}], r"line 1: a row needs.*positive"),
        ([{"task": "find", "query": "q", "positive": ""}], r"line 1: a row needs.*positive"),
        ([{"task": "lost", "query": "q", "positive": "p"}], r"line 1: task 'lost' is unknown"),
        ([{"task": "find", "query": "q", "positive": "p\x00"}], r"line 1: positive: .*control character"),
        ([{"task": "find", "query": "q", "positive": "p"}] * 2, r"rows 0 and 1 .* are equal"),
        (["{broken"], r"cannot be read as JSON lines"),
        (["[1, 2]"], r"line 1: a row needs"),
        ([""], r"is empty"),
    ],
)
def test_bad_files_are_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_rows([write(tmp_path / "x.jsonl", lines)], TASKS)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_rows([tmp_path / "none.jsonl"], TASKS)
    with pytest.raises(InputError, match=r"holds no \.jsonl"):
        read_rows([tmp_path], TASKS)
    whole = write(tmp_path / "x.jsonl.gz", [{"task": "find", "query": "q", "positive": "p"}] * 50).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(InputError, match="cannot be read"):
        read_rows([tmp_path / "cut.jsonl.gz"], TASKS)


def test_tasks_need_an_instruction(tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps({"find": {"instruction": "Find it", "rows": 3}}))
    assert read_tasks(tmp_path / "tasks.json") == {"find": Task(("Find it",), False)}
    for value, expected in ((None, False), (0, False), (1, True), (True, True)):
        (tmp_path / "tasks.json").write_text(json.dumps({"find": {"instruction": "Find it", "symmetric": value}}))
        assert read_tasks(tmp_path / "tasks.json")["find"].symmetric is expected
    wrong = '{"find": {"instruction": "Find it", "symmetric": "false"}}'
    for text in ('{"find": {}}', "{", "[]", '{"find": 1}', wrong):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=rf"is not a valid tasks file.*{'task .find.' if 'find' in text else ''}"):
            read_tasks(tmp_path / "bad.json")
