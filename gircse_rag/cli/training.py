"""`gircse train`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, progress
from gircse_rag.errors import InputError, plural, require


def train(
    config: Annotated[Path, Argument(metavar="CONFIG.yaml", help="Training configuration (docs/guides/training.md).")],
    as_json: options.AsJson = False,
) -> None:
    """Train an adapter on instructed triplets.

    Resumes a stopped run of the same configuration.
    Writes the adapter to OUTPUT/checkpoint, which every --model option accepts,
    and one line per batch to OUTPUT/log.jsonl.
    """
    main = os.environ.get("RANK", "0") == "0"  # `accelerate launch` runs this in every process
    with only_results_on_stdout():
        require("accelerate", "train")
        from gircse_rag.training.config import TrainConfig
        from gircse_rag.training.saving import find_state, rows_seen

        chosen = TrainConfig.load(config)
        state = find_state(Path(chosen.output))
        begun = rows_seen(state) if state is not None else 0
        if main and begun:
            next_step = "only the checkpoint is left to write" if begun >= chosen.rows else "resuming"
            note("note", f"{state}: {begun} of {plural(chosen.rows, 'row')} were already seen; {next_step}")
        options.announce(chosen.model)
        from gircse_rag.training.run import train as run

        losses: list[float] = []
        sizes: set[int] = set()
        texts = cut = 0
        rows, started = begun, time.perf_counter()
        with progress("training") as update:

            def step(record: dict[str, Any]) -> None:
                nonlocal rows, texts, cut
                rows, texts, cut = record["cursor"], texts + record["texts"], cut + record["truncated"]
                sizes.add(record["rows"])
                losses.append(record["loss"])
                update(rows, chosen.rows)

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
        result = {"checkpoint": str(folder), "rows_seen": rows, "rows_before": begun, "batches": len(losses)}
        result |= {"texts": texts, "texts_cut": cut}
        emit_json({**result, "first_loss": first, "last_loss": last, "seconds": round(seconds, 1)})
        return
    emit(f"{folder}: {plural(rows, 'row')} seen, {rows - begun} of them now, in {seconds:.0f} s")
    if losses:
        span = str(max(sizes)) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        emit(f"loss {first:.3f} -> {last:.3f} (means of the first and last {tenth} of {len(losses)} batches)")
        cut_texts = f"{cut} of {plural(texts, 'text')} cut at max_length ({plural(chosen.max_length, 'token')})"
        emit(f"rows per batch: {span}; {cut_texts}")
