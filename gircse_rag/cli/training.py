"""`gircse train`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, progress
from gircse_rag.errors import InputError, require


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what (docs/guides/training.md).")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Train an adapter on instructed triplets, or go on where a run of the same config was stopped.

    The adapter goes to OUTPUT/checkpoint, which serves as --model everywhere. OUTPUT/log.jsonl has a line a batch.
    """
    main = os.environ.get("RANK", "0") == "0"  # under `accelerate launch` every process comes through here
    with only_results_on_stdout():
        require("accelerate", "train")
        from gircse_rag.training.config import TrainConfig
        from gircse_rag.training.saving import find_state, rows_seen

        chosen = TrainConfig.load(config)
        state = find_state(Path(chosen.output))
        begun = rows_seen(state) if state is not None else 0
        if main and begun:
            done = "nothing is left to do but to write the checkpoint" if begun >= chosen.rows else "going on there"
            note("note", f"{state}: {begun} of {chosen.rows} rows were seen before; {done}")
        options.announce(chosen.model)
        from gircse_rag.training.run import train as run

        losses: list[float] = []
        rows, started = begun, time.perf_counter()
        with progress("training") as update:

            def step(record: dict[str, Any]) -> None:
                nonlocal rows
                rows = record["cursor"]
                losses.append(record["loss"])
                if update is not None:
                    update(min(rows, chosen.rows), chosen.rows)

            try:
                folder = run(chosen, on_step=step)
            except OSError as error:
                raise InputError(f"could not write to {chosen.output}: {error.strerror or error}") from error
        seconds = time.perf_counter() - started
    if not main:
        return
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth if losses else None for part in (losses[:tenth], losses[-tenth:]))
    if as_json:
        found = {"checkpoint": str(folder), "rows_seen": rows, "rows_before": begun, "batches": len(losses)}
        emit_json({**found, "first_loss": first, "last_loss": last, "seconds": round(seconds, 1)})
        return
    emit(f"{folder}: {rows} rows seen, {rows - begun} of them in the last {seconds:.0f} s")
    if losses:
        emit(f"loss {first:.3f} -> {last:.3f} (the first and the last {tenth} of {len(losses)} batches)")
