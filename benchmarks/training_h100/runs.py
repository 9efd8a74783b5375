"""A plan of trainings, one after another, each scored on what its entry names.

An entry is {"name", "config": {keys of TrainConfig}} and, where wanted: "eval": [sets] at "eval_steps": [K] (with
"limit"), or "develop": [K] (what adapters are chosen by, `scoring.chosen_by`), "init": an adapter, "mix": {task:
factor}, "cursor": where the rows begin, "until": seconds after the program's start by which to end (and decay),
"milestones": [rows] and "save" for adapters to keep, "log", "every", "check", "share" and "detached" (see Graphs).
{"name", "average": {adapter: share}, "develop"} keeps the weighted mean of adapters, cut to the rank of the run before
it. {"name", "choose": [names]} copies the best of these by `scoring.development`. An adapter is a name of the plan or
a folder.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training_h100.common import ADAPTERS, DEVICE, SPEC, STARTED, say
from benchmarks.training_h100.graphs import Graphs, check
from benchmarks.training_h100.module import averaged, keep_adapter, load_adapter, set_adapter
from benchmarks.training_h100.rows import Fixed, load, mixed
from benchmarks.training_h100.scoring import chosen_by, development, embedder, scored, summary
from gircse_rag.training.config import TrainConfig

READ = 20  # batches whose numbers are read from the GPU at once: reading waits for it
Entry = dict[str, Any]


def runs(
    base: Path,
    data: Path,
    out: Path,
    plan: list[Entry],
    shapes: list[Entry],
    deep: list[Entry],
    wordings: Path | None,
    *,
    groups: int,
) -> None:
    session = _Session(base, data, out, shapes, deep, wordings, groups)
    for entry in plan:
        if "choose" in entry:
            result = session.choose(entry)
        elif "average" in entry:
            result = session.average(entry)
        else:
            result = session.train(entry)
        session.results.append(result)
        (out / "results.json").write_text(json.dumps(session.results))
    for r in session.results:
        value = development(r) if "develop" in r else r.get("summary")
        say(r["name"], r.get("rows_seen"), f"{r.get('seconds_used', 0):.1f} s", value)


class _Session:
    """Rows and captured graphs, which the entries of a plan share."""

    def __init__(
        self,
        base: Path,
        data: Path,
        out: Path,
        shapes: list[Entry],
        deep: list[Entry],
        wordings: Path | None,
        groups: int,
    ) -> None:
        self.base, self.data, self.out, self.groups = base, data, out, groups
        self.shapes, self.deep = shapes, deep
        self.rows, self.tasks, self.tokenizer = load(data, base, wordings)
        gc.collect()
        gc.freeze()  # each capture collects garbage, and would walk half a million rows
        self.results: list[Entry] = []
        self._graphs: Graphs | None = None
        self._captured: tuple[Any, ...] | None = None

    def train(self, entry: Entry) -> Entry:
        config = TrainConfig.of({"output": "/tmp/runs", "data": "train", "tasks": "tasks.json", **entry["config"]})
        graphs = self._graphs_for(config, entry)
        graphs.restart(config.seed)
        if entry.get("init"):
            load_adapter(graphs.module, _folder(entry["init"]))
        mix = mixed(self.rows, entry.get("mix", {}))
        batches = Fixed(mix, self.tasks, self.tokenizer, SPEC, batch_size=config.batch_size, seed=config.seed)
        result, log = _run(entry, config, graphs, batches)
        if entry.get("log"):
            rounded = [[round(v, 5) if isinstance(v, float) else v for v in row] for row in log]
            (self.out / f"{entry['name']}_log.json").write_text(json.dumps(rounded))
        if entry.get("save"):
            keep_adapter(graphs.module, entry["name"])
        if entry.get("eval") and not result["failed"]:
            given = (self.data, entry["eval"], entry["eval_steps"], entry["name"], entry.get("limit"))
            table, report = scored(graphs.module, self.tokenizer, config.pooling, *given)
            report.save(self.out / f"{entry['name']}_report.json")
            result |= {"scores": table, "summary": summary(table)}
            say(entry["name"], result["summary"], "stsb_dev", table.get("sts/stsb_dev"))
        return self._developed(entry, result) if entry.get("develop") and not result["failed"] else result

    def average(self, entry: Entry) -> Entry:
        assert self._graphs, "an average takes the module of a run before it"
        parts = [(_folder(name), share) for name, share in entry["average"].items()]
        set_adapter(self._graphs.module, averaged(parts, self._captured_rank))
        keep_adapter(self._graphs.module, entry["name"])
        return self._developed(entry, entry)

    def choose(self, entry: Entry) -> Entry:
        """Copies the best as a whole: `score` must not see half of it."""
        known = {r["name"]: development(r) for r in self.results if "develop" in r and not r.get("failed")}
        best = max((name for name in entry["choose"] if name in known), key=known.__getitem__)
        say(entry["name"], "is", best, known)
        scratch = ADAPTERS.with_name("copying")
        shutil.copytree(ADAPTERS / best, scratch)
        scratch.rename(ADAPTERS / entry["name"])
        return {**entry, "is": best}

    def _developed(self, entry: Entry, result: Entry) -> Entry:
        assert self._graphs
        embed = embedder(self._graphs.module, self.tokenizer, "refine")
        result = {**result, "scores": chosen_by(embed, self.data, entry["develop"])}
        say(entry["name"], development(result), result["scores"])
        return result

    def _graphs_for(self, config: TrainConfig, entry: Entry) -> Graphs:
        fixed = _fixed(config, entry)
        if self._graphs is None or fixed != self._captured:
            self._graphs = None
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
            share, detached = entry.get("share", 0.0), entry.get("detached", False)
            self._graphs = Graphs(
                self.base, config, self.shapes, self.deep, share=share, detached=detached, groups=self.groups
            )
            self._captured, self._captured_rank = fixed, config.rank
        return self._graphs


def _folder(name: str) -> Path:
    return ADAPTERS / name if (ADAPTERS / name).exists() else Path(name)


def _fixed(config: TrainConfig, entry: Entry) -> tuple[Any, ...]:
    """What a graph cannot change."""
    names = ("batch_size", "steps", "pooling", "temperature", "reg_weight", "rank", "alpha")
    fixed = (*(getattr(config, name) for name in names), config.level_gradients)
    return *fixed, entry.get("detached", False), entry.get("share", 0.0)


@dataclass
class _Clock:
    """When a run has to end.

    Attributes:
        total: rows at which it will. What the time left allows is known only on the way, and until decay begins.
        limit: seconds from the run's begin, or None.
    """

    config: TrainConfig
    first: int
    total: int
    limit: float | None

    def adjust(self, cursor: int, elapsed: float) -> None:
        if not self.limit or cursor >= self.total - self.config.decay_rows or elapsed <= 0.15 * self.limit:
            return
        possible = self.first + int((cursor - self.first) / elapsed * self.limit)
        self.total = min(self.config.rows, max(possible, cursor + self.config.decay_rows))


def _run(entry: Entry, config: TrainConfig, graphs: Graphs, batches: Fixed) -> tuple[Entry, list[list[Any]]]:
    """One training: the result's numbers, and a line a batch: cursor, task, rate, the step's numbers, gradient norm."""
    name, first = entry["name"], entry.get("cursor", 0)
    optimizer = torch.optim.AdamW(
        graphs.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=DEVICE == "cuda"
    )
    if entry.get("check"):
        check(graphs, next(iter(batches.start(0))), config)
    say(name, "starts")
    begun, failed, cursor = time.perf_counter(), None, first
    limit = entry["until"] - (begun - STARTED) if "until" in entry else None
    clock = _Clock(config, first, config.rows, limit)
    marks = sorted(entry.get("milestones", []))
    log: list[list[Any]] = []
    unread: list[tuple[int, str, float, torch.Tensor]] = []
    for batch in batches.start(first):
        if cursor >= clock.total:
            break
        rate = replace(config, rows=clock.total).rate(cursor, first)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = graphs(batch)
        norm = torch.nn.utils.clip_grad_norm_(graphs.parameters, config.max_gradient)
        optimizer.step()
        cursor = batch.cursor
        unread.append((cursor, batch.rows[0].task, rate, torch.cat((numbers, norm[None]))))
        while marks and cursor >= marks[0]:
            keep_adapter(graphs.module, f"{name}_{marks.pop(0)}")
        if len(unread) < READ:
            continue
        log += [[*line[:3], *line[3].tolist()] for line in unread]
        unread = []
        if not np.isfinite(np.concatenate([row[3:] for row in log[-READ:]])).all():
            failed = f"not finite near row {cursor}"
            say(name, failed)
            break
        elapsed = time.perf_counter() - begun
        clock.adjust(cursor, elapsed)
        if len(log) % entry.get("every", 100) == 0:
            loss, reg, first_loss, last_loss, spread, gradient = np.mean(
                [[*row[3:6], *row[-3:]] for row in log[-100:]], axis=0
            )
            say(
                f"{name} {cursor} loss {loss:.3f} reg {reg:.4f} L1 {first_loss:.3f} L_K {last_loss:.3f} "
                f"spread {spread:.2f} |g| {gradient:.2f} rows/s {(cursor - first) / elapsed:.0f} cut {graphs.cut}"
            )
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    say(f"{name} rows {cursor} s {seconds:.1f} rows/s {(cursor - first) / seconds:.0f}")
    result = {
        **entry,
        "seconds_used": seconds,
        "rows_seen": cursor,
        "failed": failed,
        "own_config": entry["config"],
        "config": {**config.to_dict(), "rows": clock.total},
    }
    return result, log
