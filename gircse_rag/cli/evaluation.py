"""`gircse eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, progress
from gircse_rag.cli.progress import ProgressBackend
from gircse_rag.errors import InputError, require
from gircse_rag.spec import check_steps

if TYPE_CHECKING:
    from gircse_rag.evaluation.sets import EvalSet
    from gircse_rag.training.baseline import Baseline

FIGURES = (".png", ".svg", ".pdf")
_SETS = "Sets to score: names (sts/stsb_test), tasks (sts) or patterns ('retrieval/c*') (default: all)."


def _split_list(value: str) -> list[str]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts:
        raise typer.BadParameter("empty list; separate names with commas")
    return parts


def parse_step_list(value: str) -> tuple[int, ...]:
    """Parse numbers of steps separated by commas."""
    try:
        steps = tuple(int(part) for part in _split_list(value))
        for step in steps:
            check_steps(step)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is not a list of steps such as 1,5,20") from error
    return steps


def _check_suffix(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in FIGURES:
        raise typer.BadParameter(f"{path.name!r} must end in {', '.join(FIGURES)}")
    return path


@options.with_model_options
def eval_(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder of evaluation sets (docs/guides/evaluation.md).")],
    model: options.ModelOptions = options.DEFAULT,
    steps: Annotated[Any, Option(parser=parse_step_list, metavar="K,K,...", help="Numbers of steps to score.")] = "1,5",
    sets: Annotated[Any, Option(parser=_split_list, metavar="NAME,...", help=_SETS)] = None,
    limit: Annotated[int | None, Option(min=1, help="Size of a fixed sample of each set (default: all).")] = None,
    mode: Annotated[
        Literal["dense", "hybrid", "lexical"],
        Option(help="Rank retrieval sets by embeddings, words (BM25) or both, as gircse search does."),
    ] = "dense",
    output: Annotated[Path | None, Option(dir_okay=False, help="File for the report, as JSON.")] = None,
    figure: Annotated[
        Path | None,
        Option("--plot", callback=_check_suffix, dir_okay=False, help="File for a plot (.png, .svg or .pdf)."),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        Option(exists=True, dir_okay=False, help="Earlier report to draw into the same plot (repeatable)."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a model on retrieval, similarity, classification, clustering and instruction contrast."""
    if compare and figure is None:
        raise typer.BadParameter("--compare draws into a plot: add --plot FILE")
    with only_results_on_stdout():
        for module in ("sklearn", "scipy", "pytrec_eval", *(["matplotlib"] if figure else [])):
            require(module, "eval")
        from gircse_rag.evaluation import Report, evaluate, load_sets, plot
        from gircse_rag.training.baseline import trained_pooling

        earlier = [Report.load(path) for path in compare or []]
        chosen = load_sets(folder, sets, limit=limit)  # before the model, so that a bad set fails fast
        if trained_pooling(model.name) in ("last", "mean"):
            report = evaluate(
                _baseline(model.name, model.dtype), chosen, (0,), limit=limit, model=model.name, mode=mode
            )
        else:
            embedder = options.load(model)
            with progress("embedding") as update:
                embedder.backend = ProgressBackend(embedder.backend, update, _count_texts(chosen))
                report = evaluate(embedder, chosen, steps, limit=limit, model=model.name, mode=mode)
    if as_json:
        emit_json(report.to_dict())
    else:
        emit(report.table())
    with only_results_on_stdout():
        _write(report.save, output)
        _write(lambda path: plot([*earlier, report], path), figure)


def _baseline(model: str, dtype: str) -> Baseline:
    import torch

    from gircse_rag.hardware import dtype_of
    from gircse_rag.training.baseline import Baseline

    unused = "--steps, --backend and --device do not apply"
    note("note", f"{model} was trained without refinement (pooling: last or mean): {unused}")
    return Baseline(model, dtype=dtype_of(dtype, torch.device("cpu")))


def _count_texts(chosen: Sequence[EvalSet]) -> int:
    """Count the distinct (text, role, instruction) of the sets; each is embedded once."""
    blocks = [block for eval_set in chosen for block in eval_set.blocks.values()]
    return len({(text, block.role, block.instruction) for block in blocks for text in block.texts})


def _write(save: Any, path: Path | None) -> None:
    if path is None:
        return
    try:
        save(path)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from error
    note("note", f"wrote {path}")
