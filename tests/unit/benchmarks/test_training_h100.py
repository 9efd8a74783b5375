"""The GPU training program from end to end on a tiny model: it scores adapters as their users would."""

import json
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks.training_h100 import module as modules
from benchmarks.training_h100 import runs, scoring, shapes
from gircse_rag.errors import InputError
from gircse_rag.evaluation import Report
from gircse_rag.training.config import TrainConfig
from tests import tiny

CONFIG = {"batch_size": 4, "steps": [2, 3], "rows": 24, "learning_rate": 0.01, "rank": 4, "alpha": 12}
WORDS = ["way", "world", "find", "query", "text", "note", "it", "is", "of", "the"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("h100"), random.Random(0)
    tiny.model().save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")

    def words() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 8)))

    data = folder / "data"
    for name in ("train", "dev", "eval/sts"):
        (data / name).mkdir(parents=True)
    names = {**dict.fromkeys(scoring.UNSEEN, False), "same": True}
    tasks = {
        name: {"instruction": f"Find {name}", "symmetric": symmetric, "source": "words", "dev_rows": 6}
        for name, symmetric in names.items()
    }
    (data / "tasks.json").write_text(json.dumps(tasks))
    for part in ("train", "dev"):
        queries = [words() + f" {part} {index}" for index in range(8)]
        rows = [
            {"task": task, "query": query, "positive": f"{task} {query[-1]} {words()}", "negative": words()}
            for task in names
            for query in queries
        ]
        (data / part / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = "".join(f"{rng.random():.3f}\t{words()}\t{words()}\n" for _ in range(30))
    (data / "eval/sts/stsb_dev.tsv").write_text("score\tsentence1\tsentence2\n" + pairs)
    (folder / "wordings.json").write_text(json.dumps({"same": ["Alike", "Same"]}))
    return folder


def test_a_plan_keeps_adapters_and_scores_them_as_users_would(place, monkeypatch):
    adapters = place / "adapters"
    for part in (modules, runs, scoring):
        monkeypatch.setattr(part, "ADAPTERS", adapters)
    made = []
    for name in ("shapes", "deep"):
        wordings = place / "wordings.json"
        shapes.classes(place / "base", place / "data", place / f"{name}.json", 4, 2, wordings, groups=2)
        made.append(json.loads((place / f"{name}.json").read_text()))
    out = place / "out"
    out.mkdir()
    plan = [
        {"name": "one", "config": CONFIG, "share": 0.5, "save": True, "log": True, "develop": [1, 3]},
        {"name": "two", "config": {**CONFIG, "seed": 1}, "share": 0.5, "init": "one", "save": True, "develop": [1, 3]},
        {"name": "both", "average": {"one": 0.5, "two": 0.5}, "develop": [1, 3]},
        {"name": "final", "choose": ["one", "two", "both"]},
    ]
    runs.runs(place / "base", place / "data", out, plan, *made, place / "wordings.json", groups=2)
    results = {entry["name"]: entry for entry in json.loads((out / "results.json").read_text())}
    values = {name: scoring.development(results[name]) for name in ("one", "two", "both")}
    assert results["final"]["is"] == max(values, key=values.__getitem__) and len(set(values.values())) == 3
    assert results["one"]["rows_seen"] == 24
    assert {"contrast/dev_words", "unseen/contrast/dev_words"} < results["one"]["scores"].keys()

    scored = [{"name": name, "sets": ["sts/stsb_dev"], "steps": [1, 3]} for name in ("one", "both")]
    scoring.score(place / "base", place / "data", out, scored, groups=2)
    for name in ("one", "both"):
        report = Report.load(out / f"{name}_sts.json")
        beside = {str(k): score.value for k, score in report["sts/stsb_dev"].scores["spearman"].items()}
        assert beside == pytest.approx(results[name]["scores"]["sts/stsb_dev"], abs=0.01), name
        loaded, given = _loaded(place / "base", adapters / name), (place / "data", ["sts/stsb_dev"], [1, 3], name)
        again, _ = scoring.scored(loaded, tiny.tokenizer(), "refine", *given)
        assert again["sts/stsb_dev"] == pytest.approx(beside, abs=0.01), name


def _loaded(base: Path, folder: Path) -> modules.UnrolledRefinement:
    """As peft loads it, alpha and all."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    return modules.UnrolledRefinement(model)


def test_an_adapter_means_the_same_whatever_alpha_the_module_has(place, monkeypatch):
    monkeypatch.setattr(modules, "ADAPTERS", place / "kept")
    first, second = (_module(place, rank=4, alpha=alpha) for alpha in (12, 64))
    with torch.no_grad():
        for name, parameter in first.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    modules.keep_adapter(first, "a")
    modules.load_adapter(second, place / "kept/a")
    texts = [[5, 6, 7], [8, 9, 10, 11]]
    expected = first(texts, 3)
    assert (expected - _module(place, rank=4, alpha=12)(texts, 3)).norm() > 0.05 * expected.norm()
    torch.testing.assert_close(second(texts, 3), expected, rtol=0.02, atol=0.01)  # it is kept in bfloat16
    torch.testing.assert_close(_loaded(place / "base", place / "kept/a")(texts, 3), expected, rtol=0.02, atol=0.01)

    half = modules.averaged([(place / "kept/a", 0.25), (place / "kept/a", 0.75)], rank=4)
    modules.set_adapter(second, half)
    torch.testing.assert_close(second(texts, 3), expected, rtol=0.02, atol=0.01)
    with pytest.raises(InputError, match="rank"):
        modules.load_adapter(_module(place, rank=2, alpha=4), place / "kept/a")


def _module(place: Path, **config: int) -> modules.UnrolledRefinement:
    values = {"output": "o", "data": "d", "tasks": "t", "rows": 1, **config}
    return modules.build(place / "base", TrainConfig.of(values))
