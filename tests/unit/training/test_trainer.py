"""The training loop on a tiny random model: gradient caching, resuming, several processes, and failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.constants import FSDP_AUTO_WRAP_POLICY, FSDP_SHARDING_STRATEGY
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.errors import CheckpointError, GircseError, GircseWarning, InputError
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.training.baseline import Baseline, trained_pooling
from gircse_rag.training.batches import Batches
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.data import Row, Task, mix_rows
from gircse_rag.training.run import _lock_output, train
from gircse_rag.training.trainer import Trainer
from gircse_rag.training.unrolled import UnrolledRefinement
from tests import tiny

EXAMPLES = Path(__file__).parents[3] / "examples" / "training"
TASKS = {"find": Task(("Find it",), False), "same": Task(("Same topic",), True)}
ROWS = [
    Row(task, f"{task} {i} is the way", f"it's {i} of the world", None if i % 4 == 0 else f"note {i}")
    for task in TASKS
    for i in range(15)
]
SPEC = EmbeddingSpec(base_model="tiny", base_hash="0", tokenizer_hash="0", dimension=32)


def make_trainer(folder, **keys):
    values = {"data": "d", "tasks": "t", "rows": 24, "batch_size": 5, "rank": 2, "save_rows": 10, "warmup_rows": 5}
    config = TrainConfig.of({**values, "decay_rows": 10, "steps": [2, 3], "output": str(folder), **keys})
    torch.manual_seed(0)
    lora = LoraConfig(r=config.rank, target_modules=tiny.PROJECTIONS, task_type="CAUSAL_LM")
    module = UnrolledRefinement(get_peft_model(tiny.model(), lora))
    return Trainer(module, Batches(ROWS, TASKS, tiny.tokenizer(), SPEC, batch_size=5), config)


def read_log(folder):
    """Read the log in cursor order. Torn lines are skipped; a resumed run's record replaces the earlier one."""
    records = {}
    for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["cursor"]] = record
    return sorted(records.values(), key=lambda record: record["cursor"])


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


@pytest.mark.slow
def test_training_lowers_the_loss_and_logs_its_parts(tmp_path):
    trainer = make_trainer(tmp_path, rows=300, save_rows=300, learning_rate=0.003, temperature=0.1)
    trainer.run()
    log = read_log(tmp_path)
    assert log[-1]["cursor"] == 300 == sum(record["rows"] for record in log)
    assert all(len(record["stepwise"]) in (2, 3) and record["gradient_norm"] > 0 for record in log)
    losses = [record["loss"] for record in log]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_first_cut_text_is_named_and_all_are_counted(tmp_path):
    trainer = make_trainer(tmp_path, rows=24)
    trainer.batches.spec = replace(SPEC, max_length=20)
    with pytest.warns(
        GircseWarning, match=r"cut at 20 tokens \(max_length\); the first is the \w+ of a row of task "
    ) as all:
        trainer.run()
    assert len(all) == 1
    assert all[0].filename == __file__, "the warning points to the caller"
    log = read_log(tmp_path)
    assert [record["truncated"] for record in log] == [len(b.truncated) for b in trainer.batches.start(0, 24)]
    assert 0 < sum(record["truncated"] for record in log) <= sum(record["texts"] for record in log)


@pytest.mark.parametrize("chunk_tokens", [1, 60])
def test_gradient_caching_does_not_change_gradients(tmp_path, chunk_tokens):
    whole, parts = make_trainer(tmp_path), make_trainer(tmp_path, chunk_tokens=chunk_tokens)
    batch = next(whole.batches.start())
    for trainer in (whole, parts):
        trainer._backward(batch, 3)
    for one, other in zip(whole.parameters, parts.parameters, strict=True):
        assert (one.grad - other.grad).norm() <= 1e-4 * one.grad.norm()


def test_a_subclass_can_replace_the_objective(tmp_path):
    class Reversed(Trainer):
        def objective(self, batch, states):
            loss = super().objective(batch, states)
            return replace(loss, total=-loss.total)

    plain = make_trainer(tmp_path)
    other = Reversed(plain.module, plain.batches, plain.config)
    batch = next(plain.batches.start())
    gradients = []
    for trainer in (plain, other):
        trainer._backward(batch, 3)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.parameters]))  # type: ignore[union-attr]
        trainer.optimizer.zero_grad(set_to_none=True)
    torch.testing.assert_close(gradients[0], -gradients[1])


def test_a_subclass_can_set_the_temperature_per_task(tmp_path):
    class Warm(Trainer):
        def temperature(self, task):
            return 0.3 if task == "same" else super().temperature(task)

    cold, warm = make_trainer(tmp_path, temperature=0.1), make_trainer(tmp_path, temperature=0.3)
    mixed = Warm(cold.module, cold.batches, cold.config)
    seen = {}
    for batch in islice(cold.batches.start(), 6):  # the iterator is endless
        states = torch.randn(len(batch.texts), 2, 8, requires_grad=True)
        seen[batch.rows[0].task] = [one.objective(batch, states).total.item() for one in (mixed, cold, warm)]
    assert seen["find"][0] == seen["find"][1] != seen["find"][2]
    assert seen["same"][0] == seen["same"][2] != seen["same"][1]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    straight = make_trainer(tmp_path / "a")
    straight.run()
    stopped = make_trainer(tmp_path / "b")
    for batch in stopped.batches.start():
        stopped.step(batch)
        if stopped.cursor >= 10:
            stopped.save()
            break
    resumed = make_trainer(tmp_path / "b")
    resumed.resume(tmp_path / "b")
    resumed.run()
    assert resumed.cursor == straight.cursor
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=1e-7)


def test_the_old_state_survives_a_kill_between_the_two_renames(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run()
    (tmp_path / "state").rename(tmp_path / "state.old")
    again = make_trainer(tmp_path)
    again.resume(tmp_path)
    assert again.cursor == trainer.cursor


def test_the_old_state_stays_until_a_new_one_is_in_place(tmp_path, monkeypatch):
    """A kill between the two renames, then a save that fails at its rename."""
    trainer = make_trainer(tmp_path)
    trainer.run()
    (tmp_path / "state").rename(tmp_path / "state.old")
    rename = Path.rename

    def failing(self, target):
        if target == tmp_path / "state":
            raise OSError("input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(CheckpointError, match="the previous version is intact"):
            trainer.save()
    again = make_trainer(tmp_path)
    again.resume(tmp_path)
    assert again.cursor == trainer.cursor


def test_a_state_of_another_config_or_data_is_refused(tmp_path):
    make_trainer(tmp_path).run()
    for key, value in {"seed": 1, "alpha": 8, "max_length": 40}.items():
        with pytest.raises(CheckpointError, match=f"another {key}"):
            make_trainer(tmp_path, **{key: value}).resume(tmp_path)
    other = make_trainer(tmp_path)
    other.batches = Batches(ROWS[1:], TASKS, tiny.tokenizer(), SPEC, batch_size=5)
    with pytest.raises(CheckpointError, match="another content of data or tasks"):
        other.resume(tmp_path)
    with pytest.raises(CheckpointError, match="holds no training state"):
        other.resume(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["training.json", "training.pt", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"garbage"])
def test_a_damaged_state_is_reported(tmp_path, name, content):
    make_trainer(tmp_path).save()
    (tmp_path / "state" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state"):
        make_trainer(tmp_path).resume(tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path):
    values = inputs(tmp_path)
    with _lock_output(tmp_path / "out"), pytest.raises(CheckpointError, match="another process trains into"):
        train(TrainConfig.of(values))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not write to"):
        train(TrainConfig.of({**values, "output": str(tmp_path / "file")}))


def test_spec_fields_of_the_base_are_kept_with_the_adapter(tmp_path):
    from gircse_rag import Embedder

    values = {**inputs(tmp_path), "rows": 6}
    chosen = {"suffix": "</s>", "document_template": "It is {text}", "default_instruction": "Find"}
    (tmp_path / "base" / "gircse.json").write_text(json.dumps(chosen))
    folder = train(TrainConfig.of(values))
    spec = Embedder.from_pretrained(str(folder), backend="reference", device="cpu").spec
    assert {name: getattr(spec, name) for name in chosen} == chosen
    (tmp_path / "base" / "gircse.json").unlink()
    further = train(TrainConfig.of({**values, "output": str(tmp_path / "more"), "adapter": str(folder)}))
    spec = Embedder.from_pretrained(str(further), backend="reference", device="cpu").spec
    assert {name: getattr(spec, name) for name in chosen} == chosen
    (tmp_path / "base" / "gircse.json").write_text('{"temperature": 0.5}')
    with pytest.raises(InputError, match=r"temperature 0\.5; training supports only 1"):
        train(TrainConfig.of({**values, "output": str(tmp_path / "hot")}))


def test_a_rotation_is_handed_on_unless_dimensions_are_trained(tmp_path):
    values = {**inputs(tmp_path), "rows": 6}
    rotation = Rotation.fit(np.random.default_rng(0).standard_normal((50, 32), dtype=np.float32))
    rotation.write(tmp_path / "base")
    folder = train(TrainConfig.of(values))
    further = train(TrainConfig.of({**values, "output": str(tmp_path / "more"), "adapter": str(folder)}))
    nested = train(TrainConfig.of({**values, "output": str(tmp_path / "nested"), "dimensions": [8, 32]}))
    for trained in (folder, further):
        found = Rotation.read(trained)
        assert found is not None and found.hash == rotation.hash
    assert Rotation.read(nested) is None


@pytest.mark.parametrize("change", [{"max_length": 100_000}, {"steps": 250, "max_length": 800}])
def test_lengths_beyond_the_window_are_refused_before_training(tmp_path, change):
    with pytest.raises(InputError, match="exceed the window"):
        train(TrainConfig.of({**inputs(tmp_path), **change}))


def test_more_dimensions_than_the_model_has_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match=r"dimensions ends in 64, but .* has 32 dimensions"):
        train(TrainConfig.of({**inputs(tmp_path), "dimensions": [16, 64]}))
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_baseline_needs_no_room_for_steps(tmp_path):
    train(TrainConfig.of({**inputs(tmp_path), "pooling": "last", "max_length": tiny.WINDOW, "rows": 6}))


def test_an_incomplete_or_damaged_adapter_is_not_trained_further(tmp_path):
    values = {**inputs(tmp_path), "rows": 6}
    folder = train(TrainConfig.of(values))
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if ".layers.0." in name}, file)
    for content in (None, b"", b"torn"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot load the adapter"):
            train(TrainConfig.of({**values, "output": str(tmp_path / "more"), "adapter": str(folder)}))


def test_a_non_finite_loss_stops_before_the_step(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.step(next(trainer.batches.start()))
    good = weights(trainer)
    intact = trainer.parameters[0].detach().clone()
    with torch.no_grad():
        trainer.parameters[0][0, 0] = float("nan")
    before = weights(trainer)
    with pytest.raises(GircseError, match=r"not finite in the batch of rows 5\.\.10 \(task .*no state has been saved"):
        trainer.step(next(trainer.batches.start(5)))
    torch.testing.assert_close(weights(trainer), before, equal_nan=True)
    with torch.no_grad():
        trainer.parameters[0].copy_(intact)
    trainer.save()
    with torch.no_grad():
        trainer.parameters[0][0, 0] = float("nan")
    with pytest.raises(GircseError, match=r"the last good state is .*state"):
        trainer.run()
    again = make_trainer(tmp_path)
    again.resume(tmp_path)
    torch.testing.assert_close(weights(again), good)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB: room for one state of the tiny model but not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_reported_and_keeps_the_saved_state(small_disk):
    """Fill the disk to many levels, so that the adapter, the optimiser or the record does not fit."""
    trainer = make_trainer(small_disk)
    trainer.save()
    saved = {path.name: path.read_bytes() for path in (small_disk / "state").iterdir()}
    free = shutil.disk_usage(small_disk).free
    messages = set()
    for room in range(0, 200_000, 8_192):
        (small_disk / "filler").write_bytes(b"x" * max(0, free - room))
        trainer.cursor = 99
        try:
            trainer.save()
        except CheckpointError as error:
            messages.add(str(error))
            assert {path.name: path.read_bytes() for path in (small_disk / "state").iterdir()} == saved
            assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "state"]
        (small_disk / "filler").unlink()
    assert len(messages) == 1 and "no space left on the disk; the previous version is intact" in messages.pop()
    again = make_trainer(small_disk)
    again.resume(small_disk)
    assert again.cursor in (0, 99)


def test_a_full_disk_at_the_end_keeps_the_previous_checkpoint(small_disk, tmp_path):
    values = {**inputs(tmp_path), "output": str(small_disk), "rows": 6}
    folder = train(TrainConfig.of(values))
    saved = {path.name: path.read_bytes() for path in folder.iterdir()}
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4_000))
    with pytest.raises(CheckpointError, match="no space left"):
        train(TrainConfig.of({**values, "rows": 12}))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == saved


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / ".state-killed" / "state").mkdir(parents=True)
    make_trainer(tmp_path).save()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_torn_log_line_is_skipped(tmp_path):
    make_trainer(tmp_path).run()
    before = read_log(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"cursor": 99, "lo')
    assert read_log(tmp_path) == before
    make_trainer(tmp_path)._write_log({"cursor": 100})
    assert read_log(tmp_path) == [*before, {"cursor": 100}]


def test_the_learning_rate_warms_up_stays_and_decays():
    config = TrainConfig.of(
        {"output": "o", "data": "d", "tasks": "t", "rows": 100, "batch_size": 10, "warmup_rows": 20, "decay_rows": 40}
    )
    rates = [config.rate(cursor) / config.learning_rate for cursor in (0, 10, 20, 60, 80, 90)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.25])
    short = replace(config, warmup_rows=2_000, decay_rows=10_000)  # the defaults
    assert [short.rate(cursor) / config.learning_rate for cursor in (0, 10, 50, 75)] == pytest.approx([0.5, 1, 1, 0.5])
    assert config.rate(50, started=50) == pytest.approx(0.5 * config.learning_rate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, "unknown key learning_rat"),
        ({"rows": 0}, "rows is 0"),
        ({"steps": [3, 2]}, "steps is"),
        ({"pooling": "max"}, "pooling is"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast' in the training config; it must be float"),
        ({"batch_size": 6.5}, "batch_size is 6.5 in the training config; it must be int"),
        ({"symmetric": 1}, "symmetric is 1 in the training config; it must be bool"),
        ({"steps": [1, 2, 3]}, "steps is"),
        ({"data": [1]}, "data is"),
        ({"mixture": {"find": "twice"}}, "mixture is"),
        ({"output": None}, "output is None in the training config; it must be str"),
        ({"warmup_rows": -1}, "warmup_rows is -1; it must be at least 0"),
        ({"decay_rows": -1}, "decay_rows is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"alpha": 0}, "alpha is 0; it must be above 0"),
        ({"dimensions": []}, r"dimensions is \[\]; it must ascend"),
        ({"dimensions": [0, 64]}, r"dimensions is \[0, 64\]; it must ascend"),
        ({"dimensions": [128, 64]}, r"dimensions is \[128, 64\]; it must ascend"),
        ({"dimensions": [64, 64]}, r"dimensions is \[64, 64\]; it must ascend"),
        ({"teacher_weight": -1}, "teacher_weight is -1.0; it must be at least 0"),
        ({"temperature": float("inf")}, "temperature is inf; it must be above 0 and finite"),
        ({"steps": 257}, "steps is 257"),
        ({"targets": ["q_prj"]}, r"targets is \['q_prj'\]; allowed are q_proj"),
        ({"targets": []}, r"targets is \[\]"),
        ({True: "on", 2: "b"}, "unknown key 2, True"),
    ],
)
def test_a_bad_config_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.of({"output": "o", "data": "d", "tasks": "t", "rows": 1, **change})


def test_an_unusable_device_is_refused(tmp_path):
    config = TrainConfig.of({"output": str(tmp_path), "data": "d", "tasks": "t", "rows": 1, "device": "cpux"})
    with pytest.raises(InputError, match="device 'cpux' is not usable here"):
        train(config)


def test_a_config_file_is_read_and_a_missing_key_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("output: o\ndata: [a, b]\ntasks: t\nrows: 7\nsteps: [2, 4]\n")
    config = TrainConfig.load(path)
    assert config.data == ("a", "b") and config.step_range == (2, 4)
    path.write_text("output: o\ndata: a\ntasks: t\nrows: 7\nlearning_rate: 3e-4\nadapter: null\nmixture: {a: 2}\n")
    config = TrainConfig.load(path)  # YAML 1.1 reads 3e-4, without a dot, as text
    assert (config.data, config.learning_rate, config.adapter, config.mixture) == (("a",), 3e-4, None, {"a": 2.0})
    assert TrainConfig.of(config.to_dict()) == config
    path.write_text("output: o\n")
    with pytest.raises(InputError, match="lacks data, rows, tasks"):
        TrainConfig.load(path)
    for text in (b"- 1\n", b"a: [\n", b"output: \xe9\n"):
        path.write_bytes(text)
        with pytest.raises(InputError):
            TrainConfig.load(path)


def test_a_mixture_repeats_or_samples_rows():
    found = mix_rows(ROWS, {"find": 2.2, "same": 0.4})
    assert [sum(row.task == task for row in found) for task in TASKS] == [33, 6]
    with pytest.raises(InputError, match="mixture"):
        mix_rows(ROWS, {"lost": 1.0})
    for factor in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="mixture: find"):
            mix_rows(ROWS, {"find": factor})


def inputs(folder: Path) -> dict:
    """Write a base model, data and tasks; returns a config that uses them."""
    tiny.model().save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row._asdict()) + "\n" for row in ROWS))
    tasks = {name: {"instruction": task.instructions, "symmetric": task.symmetric} for name, task in TASKS.items()}
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return {
        "model": str(folder / "base"), "data": [str(folder / "rows.jsonl")], "tasks": str(folder / "tasks.json"),
        "output": str(folder / "out"), "rows": 60, "batch_size": 6, "rank": 2, "steps": 2, "save_rows": 6,
        "dtype": "float32",
    }  # fmt: skip


def read_adapter(folder):
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    return torch.cat([tensors[name].float().flatten() for name in sorted(tensors)])


@pytest.mark.slow
def test_the_embedder_loads_a_trained_checkpoint(tmp_path):
    from gircse_rag import Embedder

    folder = train(TrainConfig.of(inputs(tmp_path)))
    embedder = Embedder.from_pretrained(str(folder), backend="reference", device="cpu", dtype="float32")
    assert embedder.spec.adapter_hash is not None and embedder.spec.document_steps == 2
    untrained = Embedder.from_pretrained(str(tmp_path / "base"), backend="reference", device="cpu", dtype="float32")
    ours, theirs = (e.embed_documents(["it's 3 of the world"]) for e in (embedder, untrained))
    assert abs(ours - theirs).max() > 1e-3
    assert {"README.md", "gircse.json", "training.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    further = TrainConfig.of({**inputs(tmp_path), "output": str(tmp_path / "more"), "adapter": str(folder), "rows": 6})
    assert (read_adapter(train(further)) - read_adapter(folder)).abs().max() > 0


SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
from gircse_rag.training.baseline import Baseline, trained_pooling
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.run import train
train(TrainConfig.of(json.loads(sys.argv[1])))
"""


def command(values, *launcher):
    return [sys.executable, *launcher, str(Path(values["output"]).parent / "script.py"), json.dumps(values)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_baseline_is_scored_and_never_loads_as_gircse(tmp_path, pooling):
    from gircse_rag import Embedder

    folder = train(TrainConfig.of({**inputs(tmp_path), "rows": 6, "pooling": pooling}))
    state = folder.parent / "state"
    for place in (folder, state):
        assert trained_pooling(place) == pooling
        with pytest.raises(CheckpointError, match=f"trained with pooling '{pooling}'.*gircse eval"):
            Embedder.from_pretrained(str(place), device="cpu")
    baseline = Baseline(state)
    texts = ["it's 3 of the world", "one", "another text that is longer than the others are"]
    found = baseline(texts, "query", "Find it", (0,))
    assert found.shape == (3, 1, 32) and baseline.truncated == 0
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), state)
    for row, text in zip(found, texts, strict=True):
        ids = tiny.tokenizer()(f"Instruct: Find it\nQuery:{text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model.get_base_model().model(input_ids=ids).last_hidden_state[0]
        expected = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(torch.from_numpy(row[0]), expected / expected.norm(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="has no refinement steps"):
        baseline(texts, "query", "Find it", (1, 5))
    with pytest.raises(CheckpointError, match="was not trained with pooling"):
        Baseline(tmp_path / "base")


@pytest.mark.slow
def test_a_run_resumes_after_kill_9(tmp_path):
    values = {**inputs(tmp_path), "rows": 90}
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(command(values))
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "checkpoint").exists(), "killed too late to test anything"
    train(TrainConfig.of(values))
    straight = {**values, "output": str(tmp_path / "straight")}
    train(TrainConfig.of(straight))
    torch.testing.assert_close(
        read_adapter(tmp_path / "out" / "state"), read_adapter(tmp_path / "straight" / "state"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_two_processes_match_one_process(tmp_path):
    values = {**inputs(tmp_path), "rows": 24, "chunk_tokens": 70, "lexical_weight": 0.1}
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    )
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command(values, *launcher), env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    train(TrainConfig.of({**values, "output": str(tmp_path / "one")}))
    two, one = read_log(tmp_path / "out"), read_log(tmp_path / "one")
    assert [record["cursor"] for record in two] == [record["cursor"] for record in one]
    for theirs, ours in zip(two, one, strict=True):
        assert theirs["stepwise"] == pytest.approx(ours["stepwise"], rel=1e-4)
        assert theirs["lexical"] == pytest.approx(ours["lexical"], rel=1e-4)
        assert theirs["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-3)
    torch.testing.assert_close(
        read_adapter(tmp_path / "out" / "state"), read_adapter(tmp_path / "one" / "state"), rtol=1e-3, atol=1e-5
    )


@pytest.mark.skipif(not EXAMPLES.exists(), reason="examples/ is not part of this copy")
@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed", "DEEPSPEED")])
def test_accelerate_reads_the_launcher_configurations(name, kind):
    """Only the parsing is tested: FSDP and DeepSpeed do not run here. accelerate rejects unknown keys."""
    config = load_config_from_file(str(EXAMPLES / f"{name}.yaml"))
    assert config.distributed_type == kind
    if name == "fsdp":
        keys = config.fsdp_config
        assert keys["fsdp_sharding_strategy"] in FSDP_SHARDING_STRATEGY and keys["fsdp_use_orig_params"] is True
        assert keys["fsdp_auto_wrap_policy"] in FSDP_AUTO_WRAP_POLICY
        known = launch_command_parser().parse_args(["script.py"])
        assert all(hasattr(known, key) for key in keys)
    if name == "deepspeed":
        path = EXAMPLES.parents[1] / config.deepspeed_config["deepspeed_config_file"]
        assert json.loads(path.read_text())["zero_optimization"]["stage"] == 1
