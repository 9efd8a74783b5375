"""Whole runs with a tiny model: what they write, what interrupts them, and what they refuse."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from gircse_rag import Adapted, Embedder, adapt
from gircse_rag.adaptation import Progress, self_pairs
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.run import WORK
from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.engine.model_runner import ModelRunner
from gircse_rag.errors import CheckpointError, InputError, MissingExtraError
from tests import tiny
from tests.stand_in import StandIn
from tests.unit.adaptation import data

pytestmark = pytest.mark.slow  # trains a model

INSTRUCTION = "Given a task, find the note that explains it"


def run(folder: Path, model: Path, **changes: Any) -> Adapted:
    """Adapt the tiny model to 64 notes, without a time limit, so that two runs are equal."""
    options: dict[str, Any] = {
        "documents": folder / "notes",
        "pairs": folder / "pairs.csv",
        "out": folder / "out",
        "model": str(model),
        "instructions": [INSTRUCTION],
        "minutes": None,
        "steps": (1, 3),
        "device": "cpu",
        "dtype": "float32",
    }
    return adapt(**options | changes)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    data.write_notes(tmp_path / "notes")
    data.write_pairs(tmp_path / "pairs.csv")
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[tuple[Path, Adapted]]:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    data.write_notes(folder / "notes")
    data.write_pairs(folder / "pairs.csv")
    model = shutil.copytree(tiny_folder, folder / "model")
    Rotation.fit(np.random.default_rng(0).standard_normal((50, 32), dtype=np.float32)).write(model)
    yield folder, run(folder, model)


def test_a_run_reports_and_writes_a_model(whole: tuple[Path, Adapted]) -> None:
    folder, adapted = whole
    counts = adapted.counts
    assert (counts["documents"], counts["pool"], counts["held_out"], counts["validation"]) == (64, 64, 16, 10)
    assert {(line.kind, line.steps) for line in adapted.changes} == {
        (kind, k) for kind in ("dense", "hybrid") for k in (1, 3, 5)
    }
    assert len(adapted.moved) == 16 and not adapted.skipped
    assert adapted.changed and 0 < adapted.share <= 1
    assert adapted.change().after.value >= adapted.change().before.value
    out = folder / "out"
    assert not (out / WORK).exists()
    assert (out / "adapt.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "adapt.md").read_text(encoding="utf-8")
    assert "16 held-out questions" in text and "## Questions that became better" in text and "gircse migrate" in text
    record = json.loads((out / "adapt.json").read_text(encoding="utf-8"))
    record.pop("digest")
    assert Adapted.of(record) == adapted
    with Embedder.from_pretrained(str(out), device="cpu", dtype="float32") as embedder:
        assert embedder.spec.default_instruction == INSTRUCTION and embedder.spec.max_length == 512
        assert embedder.embed_queries(["how do I clean the pump?"]).shape == (1, 32)
        assert embedder.rotation is not None, "the old model's rotation was not handed on"


def test_the_wordings_include_the_bare_question(whole: tuple[Path, Adapted]) -> None:
    wordings = whole[1].wordings
    assert wordings[0].instruction == INSTRUCTION
    assert wordings[-1].instruction is None and wordings[-1].lead.value == 0
    assert len(wordings) == 3  # the user's, the model's default, none


def test_the_same_call_returns_the_report_and_another_is_refused(
    whole: tuple[Path, Adapted], tiny_folder: Path
) -> None:
    folder, adapted = whole
    assert run(folder, tiny_folder) == adapted
    with pytest.raises(CheckpointError, match="adapted to other data or options"):
        run(folder, tiny_folder, steps=(1,))


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["before", "train", "after"])
def test_an_interrupted_run_goes_on_to_the_same_result(
    inputs: Path, tiny_folder: Path, whole: tuple[Path, Adapted], phase: str
) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == phase and progress.done > progress.total / 2:
            raise Stop

    with pytest.raises(Stop):
        run(inputs, tiny_folder, on_progress=stop)
    assert not (inputs / "out" / "adapter_config.json").exists()
    again = run(inputs, tiny_folder)
    expected = whole[1]
    assert (again.share, again.changes, again.moved) == (expected.share, expected.changes, expected.moved)
    assert again.probes == pytest.approx(expected.probes, abs=1e-6)


def test_the_embedder_is_gone_while_its_model_trains(inputs: Path, tiny_folder: Path) -> None:
    runners = []

    def count(progress: Progress) -> None:
        if progress.phase in ("before", "train"):
            runners.append((progress.phase, sum(type(found) is ModelRunner for found in gc.get_objects())))
        if progress.phase == "train":
            raise Stop

    with pytest.raises(Stop):
        run(inputs, tiny_folder, on_progress=count)
    before, train = (max(n for at, n in runners if at == phase) for phase in ("before", "train"))
    assert before == train + 1  # other tests may keep runners of their own


def test_other_data_does_not_go_on_from_an_interrupted_run(inputs: Path, tiny_folder: Path) -> None:
    def stop(progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(inputs, tiny_folder, on_progress=stop)
    (inputs / "notes" / "new.txt").write_text("A new note.")
    with pytest.raises(CheckpointError, match="unfinished run with other documents"):
        run(inputs, tiny_folder)


@pytest.mark.slow
def test_an_adapter_is_trained_further(inputs: Path, tiny_folder: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done > progress.total * 0.5:
            raise Stop

    adapter = tiny.adapter(tmp_path / "adapter", tiny_folder)
    with pytest.raises(Stop):
        run(inputs, adapter, instructions=(), on_progress=stop)
    state = inputs / "out" / WORK / "training" / "state"
    config = json.loads((state / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 16 and config["base_model_name_or_path"] == str(tiny_folder.resolve())
    trained, start = (load_file(folder / "adapter_model.safetensors") for folder in (state, adapter))
    assert trained.keys() == start.keys()
    distance = max(float((trained[name] - start[name]).abs().max()) for name in start)
    assert 0 < distance < 0.1


@pytest.mark.slow
def test_bad_pairs_are_named_and_left_out(inputs: Path, tiny_folder: Path) -> None:
    pairs: list[Any] = [*data.rows(), {"question": "what else?", "document": "clean-pumps.txt"}, {"question": "who?"}]
    adapted = run(inputs, tiny_folder, pairs=pairs)
    assert len(adapted.skipped) == 2 and adapted.counts["questions"] == 64
    assert "no document has the id 'clean-pumps.txt'; similar ids: clean-pump.txt" in adapted.skipped[0]
    assert "has no answer" in adapted.skipped[1]


@pytest.mark.slow
def test_pairs_are_made_from_the_documents(inputs: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_pairs, "AGREED_RANK", 32)  # an untrained model agrees with half of the pairs by chance
    data.write_handbook(inputs / "handbook")
    made = {"documents": inputs / "handbook", "pairs": None, "self_pairs": True, "instructions": ()}
    adapted = run(inputs, tiny_folder, **made)
    kinds = {kind.kind: kind for kind in adapted.made}
    assert kinds["heading"].made == kinds["crop"].made == 64
    agreed = sum(kind.agreed for kind in adapted.made)
    assert 40 <= agreed == sum(adapted.counts[side] for side in ("train", "validation", "held_out"))
    assert "made from the documents" in adapted.advice[0]
    text = (inputs / "out" / "adapt.md").read_text(encoding="utf-8")
    assert f"| heading | 64 | {kinds['heading'].agreed} | {kinds['heading'].question} -> " in text
    assert run(inputs, tiny_folder, **made) == adapted


def test_documents_that_give_too_few_pairs_are_refused(inputs: Path, tiny_folder: Path) -> None:
    (inputs / "one.txt").write_text("A short note.")
    with pytest.raises(InputError, match=r"0 different questions .* made from 1 chunk: add documents, or give pairs"):
        run(inputs, tiny_folder, documents=inputs / "one.txt", pairs=None, self_pairs=True)
    read = Inputs.read(inputs / "notes", inputs / "pairs.csv", StandIn(max_length=64), ())
    with pytest.raises(InputError, match=r"agrees with 39 of 64 pairs .* at least 40"):
        read.keep([True] * 39 + [False] * 25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": data.rows()[:5]}, "there are 5 different questions .* at least 40"),
        ({"pairs": [{**row, "question": "how?"} for row in data.rows()]}, "there are 1 different questions"),
        (
            {"pairs": [{**row, "document": "gone"} for row in data.rows()]},
            "64 pairs were left out, first pair 1: no doc",
        ),
        ({"pairs": [{**row, "document": "clean-pump.txt"} for row in data.rows()]}, "the same answer"),
        ({"documents": "nowhere"}, "nowhere does not exist"),
        ({"pairs": None}, r"no pairs; give questions .*--self-pairs"),
        ({"self_pairs": True}, "give no others"),
        ({"minutes": 0}, "minutes is 0"),
        ({"instructions": [" "]}, "the instruction is empty"),
        ({"steps": (0.5,)}, "steps must be whole numbers"),
    ],
)
def test_bad_input_is_refused_before_training(
    inputs: Path, tiny_folder: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(inputs, tiny_folder, **change)
    assert not (inputs / "out").exists()


def test_a_folder_that_holds_something_else_is_not_touched(inputs: Path, tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is not empty and holds no run"):
        run(inputs, tiny_folder, out=inputs / "notes")
    assert len(list((inputs / "notes").iterdir())) == 64


def test_a_missing_extra_is_named(inputs: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"\[adapt\]"):
        run(inputs, tiny_folder)
