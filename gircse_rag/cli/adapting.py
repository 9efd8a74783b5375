"""`gircse adapt`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.evaluation import parse_step_list
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress

if TYPE_CHECKING:
    from gircse_rag.adaptation import Adapted, Progress

_PHASES = {
    "before": "embedding chunks and questions with the current model",
    "train": "training",
    "after": "embedding the same with the new model",
}


def adapt(
    documents: Annotated[list[Path], Argument(metavar="PATH...", exists=True, help="Files and folders to adapt to.")],
    out: Annotated[Path, Option(metavar="DIR", help="Folder for the new model and its report.")],
    pairs: Annotated[
        Path | None, Option(dir_okay=False, help="Questions with their document ids or passages: CSV, JSONL or JSON.")
    ] = None,
    self_pairs: Annotated[
        bool, Option("--self-pairs", help="Without pairs: make questions from the documents. They gain less.")
    ] = False,
    instruction: Annotated[
        list[str] | None,
        Option(help="Instruction that you will search with, or a known one's name; repeatable."),
    ] = None,
    minutes: Annotated[float, Option(min=0.5, help="Time budget; it chooses how much is trained.")] = 10.0,
    steps: Annotated[Any, Option(parser=parse_step_list, metavar="K,K,...", help="Values of K to report.")] = "1,5,20",
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Adapt a model to your documents and questions.

    Holds out a part of the questions and reports what the model gained on them.
    After an interruption, run the same command again to continue.
    """
    with only_results_on_stdout():
        options.announce(model)
        from gircse_rag.adaptation import adapt as run

        with ExitStack() as bars:
            try:
                adapted = run(
                    documents,
                    pairs,
                    self_pairs=self_pairs,
                    out=out,
                    model=model,
                    instructions=instruction or (),
                    minutes=minutes,
                    steps=steps,
                    device=device,
                    dtype=dtype,
                    on_progress=_show(bars),
                )
            except KeyboardInterrupt:
                note("interrupted", "what is done so far is kept; run the same command again to continue")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
    note_some("skipped", adapted.skipped, len(adapted.skipped))
    if as_json:
        emit_json(adapted.to_dict())
    else:
        emit(_table(adapted), *adapted.advice, "", "Next:", *(f"  {command}" for command in adapted.commands))
    note("note", f"the report is in {adapted.folder}: adapt.md, adapt.json and adapt.png")
    if not adapted.changed:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _show(bars: ExitStack) -> Callable[[Progress], None]:
    """Name each phase and show its progress; `bars` holds the bar of the current one."""
    phase, update = "", None

    def show(state: Progress) -> None:
        nonlocal phase, update
        if update is None or state.phase != phase:
            bars.close()
            phase = state.phase
            note("note", _PHASES[phase])
            update = bars.enter_context(progress(phase))
        update(state.done, state.total)

    return show


def _table(adapted: Adapted) -> Table:
    from gircse_rag.adaptation.report import show_interval

    table = Table("search", "K", "metric", "before", "after", "gain", title="held-out questions, x 100")
    table.title_justify = "left"
    for line in adapted.changes:
        cells = show_interval(line.before), show_interval(line.after), show_interval(line.gain, "+")
        table.add_row(line.kind, str(line.steps), line.metric, *cells)
    return table
