"""`gircse eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, progress
from gircse_rag.cli.progress import ProgressBackend
from gircse_rag.errors import InputError, require
from gircse_rag.spec import check_steps

if TYPE_CHECKING:
    from gircse_rag.evaluation.sets import EvalSet
    from gircse_rag.training.baseline import Baseline

FIGURES = (".png", ".svg", ".pdf")


def _listed(value: str) -> list[str]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts:
        raise typer.BadParameter("names nothing; separate several by commas")
    return parts


def _step_list(value: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in _listed(value))
        for step in steps:
            check_steps(step)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is no list of steps such as 1,5,20") from error
    return steps


def _figure(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in FIGURES:
        raise typer.BadParameter(f"{path.name!r} must end in {', '.join(FIGURES)}")
    return path


@options.with_model_options
def eval_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The evaluation sets (docs/guides/evaluation.md).")],
    model: options.ModelOptions = options.DEFAULT,
    steps: Annotated[
        Any, typer.Option("--steps", parser=_step_list, metavar="K,K,...", help="Refinement steps to score at.")
    ] = "1,5",
    sets: Annotated[
        Any,
        typer.Option(
            "--sets",
            parser=_listed,
            metavar="NAME,...",
            help="Names (sts/stsb_test), whole tasks (sts) or patterns ('retrieval/c*'); left out, all there are.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Score a fixed sample of each set, for a quick look only.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", dir_okay=False, help="Write the report here.")] = None,
    figure: Annotated[
        Path | None, typer.Option("--plot", callback=_figure, dir_okay=False, help="Draw scores against K here.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a model on retrieval, similarity, classification, clustering and instruction contrast."""
    with only_results_on_stdout():
        for module in ("sklearn", "scipy", "pytrec_eval", *(["matplotlib"] if figure else [])):
            require(module, "eval")
        from gircse_rag.evaluation import evaluate, load_sets, plot
        from gircse_rag.training.baseline import trained_pooling

        chosen = load_sets(folder, sets, limit=limit)  # a bad set is refused before the model is loaded
        if trained_pooling(model.name) in ("last", "mean"):
            report = evaluate(_baseline(model.name, model.dtype), chosen, (0,), limit=limit, model=model.name)
        else:
            embedder = model.load()
            with progress("embedding") as update:
                if update:
                    embedder.backend = ProgressBackend(embedder.backend, update, _count_texts(chosen))
                report = evaluate(embedder, chosen, steps, limit=limit, model=model.name)
    if as_json:
        emit_json(report.to_dict())
    else:
        emit(report.table())
    with only_results_on_stdout():
        _write(report.save, output)
        _write(lambda path: plot([report], path), figure)


def _baseline(model: str, dtype: str) -> Baseline:
    import torch

    from gircse_rag.hardware import dtype_of
    from gircse_rag.training.baseline import Baseline

    unused = "--steps, --backend and --device do not apply"
    note("note", f"{model} was trained without refinement (pooling: last or mean): {unused}")
    return Baseline(model, dtype=dtype_of(dtype, torch.device("cpu")))


def _count_texts(chosen: Sequence[EvalSet]) -> int:
    """How many different (text, role, instruction) the sets hold: each is embedded once."""
    blocks = [block for one in chosen for block in one.blocks.values()]
    return len({(text, block.role, block.instruction) for block in blocks for text in block.texts})


def _write(save: Any, path: Path | None) -> None:
    if path is None:
        return
    try:
        save(path)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from error
    note("note", f"written: {path}")
