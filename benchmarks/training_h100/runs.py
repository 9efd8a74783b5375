"""A plan of trainings, one after another, each scored on what its entry names.

An entry is {"name", "config": {keys of TrainConfig}} and, where wanted: "eval": [sets] at "eval_steps": [K] (with
"limit"), "init": an adapter's folder, "mix": {task: factor}, "cursor": where the rows begin, "until": seconds after the
program's start by which to end (and decay), "milestones": [rows] and "save" for adapters to keep, "log", "every",
"check", "share" and "soft_gradient" (see Graphs). {"known": scores, "config"} is an earlier session's run to choose
among; "choose": [names] takes the config of the best of these by development sets, or with "copy" that run itself.
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
from benchmarks.training_h100.module import keep_adapter, load_adapter
from benchmarks.training_h100.rows import Fixed, load, mixed
from benchmarks.training_h100.scoring import development, scored, summary
from gircse_rag.training.config import TrainConfig

READ = 20  # batches whose numbers are read from the GPU at once: reading waits for it
Entry = dict[str, Any]


def runs(
    base: Path, data: Path, out: Path, plan: list[Entry], shapes: list[Entry], deep: list[Entry], *, groups: int
) -> None:
    rows, tasks, tokenizer = load(data, base)
    gc.collect()
    gc.freeze()  # each capture collects garbage, and would walk half a million arrays
    results: list[Entry] = []
    graphs, captured = None, None
    for entry in plan:
        if "known" in entry:
            results.append(
                {"name": entry["name"], "failed": None, "scores": entry["known"], "own_config": entry["config"]}
            )
            continue
        if "choose" in entry:
            entry = _after_the_best(entry, results)
            if entry.get("copy"):
                _copy(entry["after"], entry["name"])
                continue
        config = TrainConfig.of({"output": "/tmp/runs", "data": "train", "tasks": "tasks.json", **entry["config"]})
        fixed = _fixed(config, entry)
        if graphs is None or fixed != captured:
            graphs = None
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
            share, soft_gradient = entry.get("share", 0.0), fixed[-1]
            graphs = Graphs(base, config, shapes, deep, share=share, soft_gradient=soft_gradient, groups=groups)
            captured = fixed
        graphs.restart(config.seed)
        if entry.get("init"):
            load_adapter(graphs.module, Path(entry["init"]))
        mix = mixed(rows, entry.get("mix", {}))
        batches = Fixed(mix, tasks, tokenizer, SPEC, batch_size=config.batch_size, seed=config.seed)
        result, log = _run(entry, config, graphs, batches)
        if entry.get("log"):
            rounded = [[round(v, 5) if isinstance(v, float) else v for v in row] for row in log]
            (out / f"{entry['name']}_log.json").write_text(json.dumps(rounded))
        if entry.get("save"):
            keep_adapter(graphs.module, entry["name"])
        if entry.get("eval") and not result["failed"]:
            given = (data, entry["eval"], entry["eval_steps"], entry["name"], entry.get("limit"))
            table, report = scored(graphs.module, tokenizer, config.pooling, *given)
            report.save(out / f"{entry['name']}_report.json")
            result |= {"scores": table, "summary": summary(table)}
            say(entry["name"], result["summary"], "stsb_dev", table.get("sts/stsb_dev"))
        results.append(result)
        (out / "results.json").write_text(json.dumps(results))
    for r in results:
        dev = r.get("scores", {}).get("sts/stsb_dev")
        say(r["name"], r.get("rows_seen"), f"{r.get('seconds_used', 0):.1f} s", r.get("summary"), dev)


def _after_the_best(entry: Entry, results: list[Entry]) -> Entry:
    known = {r["name"]: r for r in results if "scores" in r and not r["failed"]}
    best = max((known[name] for name in entry["choose"] if name in known), key=development)
    say(entry["name"], "takes after", best["name"], {name: development(r) for name, r in known.items()})
    config = {**best["own_config"], **entry.get("config", {})}
    return {**entry, "after": best["name"], "soft_gradient": best.get("soft_gradient", "full"), "config": config}


def _copy(source: str, name: str) -> None:
    """`score` must not see half of it."""
    scratch = ADAPTERS.with_name("copying")
    shutil.copytree(ADAPTERS / source, scratch)
    scratch.rename(ADAPTERS / name)


def _fixed(config: TrainConfig, entry: Entry) -> tuple[Any, ...]:
    """What a graph cannot change."""
    names = ("batch_size", "steps", "pooling", "temperature", "reg_weight", "rank", "alpha")
    return *(getattr(config, name) for name in names), entry.get("soft_gradient", "full")


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
