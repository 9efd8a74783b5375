"""Order of batches, rendered texts, and known false negatives."""

import itertools
import json

import numpy as np
import pytest

from gircse_rag.errors import InputError
from gircse_rag.prompts import Role
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode
from gircse_rag.training.batches import Batches
from gircse_rag.training.data import Row, Task, read_tasks
from tests import tiny

TASKS = {"find": Task(("Find it",), False), "same": Task(("Same topic",), True)}
SPEC = EmbeddingSpec(base_model="tiny", base_hash="0", tokenizer_hash="0", dimension=32, max_length=40)


def rows(count=20, task="find"):
    return [Row(task, f"q{i}", f"p{i}", None if i % 3 == 0 else f"n{i}") for i in range(count)]


def batches(data, batch_size=4, seed=0):
    return Batches(data, TASKS, tiny.tokenizer(), SPEC, batch_size=batch_size, seed=seed)


def take(source, cursor, count):
    return list(itertools.islice(source.start(cursor), count))


def test_rows_without_any_negative_are_refused():
    with pytest.raises(InputError, match="no rows"):
        batches([])
    bare = [Row("find", f"q{i}", f"p{i}", None) for i in range(5)]
    full = [row._replace(negative="n") for row in bare]
    for data, size in ((bare[:1], 4), (bare, 1), (full[:2] + bare[2:3], 2)):
        with pytest.raises(InputError, match=r"'find' makes batches of one row.*has no negative"):
            batches(data, size)
    batches(bare[:4], 2)
    batches(full, 1)
    no_in_batch = {"find": TASKS["find"]._replace(in_batch=False)}
    with pytest.raises(InputError, match=r"'find' takes no negatives from the batch.*'q4' has no negative") as caught:
        Batches(full[:4] + bare[4:], no_in_batch, tiny.tokenizer(), SPEC, batch_size=4)
    assert caught.value.index == 4
    Batches(full, no_in_batch, tiny.tokenizer(), SPEC, batch_size=4)


def test_batches_too_small_for_the_processes_are_refused():
    bare = [row._replace(negative=None) for row in rows(4)]
    batches(bare).check_shares(8)
    with pytest.raises(InputError, match="'find' makes batches of 4 rows, too few for 9 processes"):
        batches(bare).check_shares(9)
    single = [Row("find", "q", "p", "n")]
    batches(single).check_shares(3)
    with pytest.raises(InputError, match="too few for 4"):
        batches(single).check_shares(4)


def test_the_digest_depends_on_rows_and_tasks():
    digest = batches(rows()).digest
    assert digest == batches(rows()).digest
    others = [rows(19), rows()[::-1], [*rows(19), Row("find", "q19", "p19", "else")]]
    assert digest not in [batches(other).digest for other in others]
    tasks = {**TASKS, "find": TASKS["find"]._replace(in_batch=False)}
    full = [row._replace(negative="n") for row in rows()]
    assert len({Batches(full, t, tiny.tokenizer(), SPEC, batch_size=4).digest for t in (tasks, TASKS)}) == 2


def test_a_task_may_have_several_instruction_wordings(tmp_path):
    (tmp_path / "tasks.json").write_text(
        json.dumps({"same": {"instruction": ["Same topic", "Alike"], "symmetric": True}})
    )
    tasks = read_tasks(tmp_path / "tasks.json")
    assert tasks == {"same": Task(("Same topic", "Alike"), True)}
    data = rows(21, "same")
    variants = [Batches(data, tasks, tiny.tokenizer(), SPEC, batch_size=4, seed=seed) for seed in (0, 0, 1)]
    drawn = [[read_instructions(batch) for batch in take(one, 0, 20)] for one in variants]
    assert all(len(wordings) == 1 for wordings in drawn[0]), "queries and passages of a batch share one wording"
    assert {wording for wordings in drawn[0] for wording in wordings} == {"Same topic", "Alike"}
    assert drawn[0] == drawn[1] != drawn[2]
    assert [batch.rows for batch in take(variants[0], 0, 20)] == [batch.rows for batch in take(batches(data), 0, 20)]
    assert read_instructions(take(variants[0], 6, 1)[0]) == drawn[0][1], "a resumed batch keeps its wording"
    for instruction in ([], [""], ["Alike", 1], " ", {"en": "Alike"}):
        (tmp_path / "bad.json").write_text(json.dumps({"same": {"instruction": instruction}}))
        with pytest.raises(InputError, match="is not a valid tasks file"):
            read_tasks(tmp_path / "bad.json")


def read_instructions(batch):
    texts = tiny.tokenizer().batch_decode(batch.texts)
    return {text.removeprefix("Instruct: ").partition("\nQuery:")[0] for text in texts}


def test_an_epoch_sees_each_row_once_in_batches_of_one_task():
    data = rows(21) + rows(10, "same")
    seen = take(batches(data), 0, 9)
    assert sorted(row for batch in seen for row in batch.rows) == sorted(data)
    assert all(len({row.task for row in batch.rows}) == 1 and len(batch.rows) <= 4 for batch in seen)
    assert min(len(batch.rows) for batch in seen) >= 3, "batches of a task have nearly equal sizes"
    assert [batch.cursor for batch in seen] == list(itertools.accumulate(len(batch.rows) for batch in seen))


def test_the_order_depends_only_on_seed_and_epoch():
    data = rows(21) + rows(10, "same")
    first, again, other = (take(batches(data, seed=seed), 0, 18) for seed in (5, 5, 6))
    order = [[batch.rows for batch in taken] for taken in (first, again, other)]
    assert order[0] == order[1] != order[2]
    assert order[0][:9] != order[0][9:], "the second epoch is shuffled anew"


def test_any_cursor_resumes_the_same_order():
    source = batches(rows(21) + rows(10, "same"))
    order = [row for batch in take(source, 0, 18) for row in batch.rows]
    for cursor in range(40):
        resumed = [row for batch in take(source, cursor, 4) for row in batch.rows]
        assert resumed == order[cursor : cursor + len(resumed)]
        assert take(source, cursor, 1)[0].cursor > cursor


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_a_run_sees_exactly_the_rows_that_it_asks_for(batch_size):
    data = [row._replace(negative="n") for row in rows(180)] + [row._replace(negative="m") for row in rows(7, "same")]
    whole = [row for batch in take(batches(data, batch_size), 0, 400) for row in batch.rows]
    for stop in (1, 31, 187, 192, 300):
        seen = list(batches(data, batch_size).start(0, stop))
        assert [row for batch in seen for row in batch.rows] == whole[:stop]
        assert seen[-1].cursor == stop and all(len(batch.rows) <= batch_size for batch in seen)
        longer = [row for batch in batches(data, batch_size).start(stop, stop + 40) for row in batch.rows]
        assert longer == whole[stop : stop + 40], "a finished run can be continued with more rows"
        assert list(batches(data, batch_size).start(stop, stop)) == []


def test_the_last_batch_keeps_a_text_for_each_process():
    source = batches([row._replace(negative=None) for row in rows(20)], 10)
    source.check_shares(8)
    for stop in range(1, 30):
        seen = list(source.start(0, stop))
        assert 0 <= seen[-1].cursor - stop < 4 and all(len(batch.texts) >= 8 for batch in seen)


def test_cut_texts_are_counted_and_named():
    data = [Row("find", "q" * 300, "p", None), Row("find", "r", "s" * 300, "t"), Row("find", "u", "v", "w" * 300)]
    batch = batches(data).encode(data)
    assert batch.truncated == (0, 4, 7)
    names = [batch.describe_text(position).split(",")[0] for position in batch.truncated]
    assert names == [f"the {kind} of a row of task 'find'" for kind in ("query", "positive", "negative")]
    starts = [batch.describe_text(position).split("'")[3] for position in batch.truncated]
    assert starts == ["q" * 80, "s" * 80, "w" * 80]
    assert batches(rows()).encode(rows()).truncated == ()


def test_texts_are_rendered_as_the_embedder_renders_them():
    tokenizer = tiny.tokenizer()
    roles: dict[str, Role] = {"find": "document", "same": "symmetric"}
    for task, role in roles.items():
        batch = batches(
            [Row(task, '"quoted" is the way', "-> answer", "(other)"), Row(task, "b", "x" * 300, None)]
        ).encode([Row(task, '"quoted" is the way', "-> answer", "(other)"), Row(task, "b", "x" * 300, None)])
        instruction = TASKS[task].instructions[0]
        side = None if role == "document" else instruction
        expected = [
            *(
                encode(tokenizer, SPEC, text, role="query", instruction=instruction)
                for text in ('"quoted" is the way', "b")
            ),
            *(
                encode(tokenizer, SPEC, text, role=role, instruction=side)
                for text in ("-> answer", "x" * 300, "(other)")
            ),
        ]
        assert batch.texts == [list(prompt.token_ids) for prompt in expected]
        assert expected[3].truncated and batch.targets.tolist() == [0, 1]


def test_known_positives_are_not_negatives():
    data = [Row("find", "q", "p1", "n"), Row("find", "q", "p2", None), Row("find", "r", "p3", "p1")]
    mask = batches(data).encode(data).false_negatives  # passages: p1 p2 p3 n p1
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 0, 0]])


def test_a_symmetric_relation_is_transitive():
    data = [
        Row("same", "a", "b", "x"),
        Row("same", "c", "b", "y"),
        Row("same", "d", "c", None),
        Row("same", "e", "f", "a"),
    ]
    mask = batches(data).encode(data).false_negatives  # passages: b b c f x y a
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0, 0, 1]] * 3 + [[0, 0, 0, 1, 0, 0, 0]])
