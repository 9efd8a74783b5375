"""`gircse embed` and `gircse explain`."""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, shorten
from gircse_rag.errors import InputError, plural
from gircse_rag.files import atomic_write
from gircse_rag.prompts import Role, resolve_instruction

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder
    from gircse_rag.result import EmbeddingResult


@options.with_model_options
def embed(
    texts: Annotated[list[str] | None, Argument(metavar="TEXT", help="Texts (default: one per line of stdin).")] = None,
    file: Annotated[Path | None, Option(exists=True, dir_okay=False, help="File with one text per line.")] = None,
    role: Annotated[Role, Option(help="query and symmetric take an instruction, document does not.")] = "query",
    instruction: Annotated[str | None, Option(help="The task: a sentence, or a name (`gircse instructions`).")] = None,
    steps: options.Steps = None,
    output: Annotated[Path | None, Option(dir_okay=False, help="File for the vectors, a float32 .npy array.")] = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Embed texts.

    The table shows the start of each vector; --json and --output give all of it.
    All texts are checked first: a bad one stops the command before embedding.
    """
    if texts and file:
        raise typer.BadParameter("give either texts or --file, not both")
    if not texts and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("no text given; pass texts, use --file, or pipe one text per line into stdin")
    with only_results_on_stdout():
        if not texts:
            texts = options.read_lines(file)
            options.check_lines(texts, str(file or "stdin"))
        embedder = options.load(model)
        result = embedder.embed(texts, role=role, instruction=instruction, steps=steps, show_progress=True)
        if output is not None:
            _save(output, result)
    if as_json:
        emit_json(
            {
                "spec": embedder.spec.to_dict(),
                "fingerprint": embedder.fingerprint,
                "role": role,
                "instruction": None if role == "document" else _sentence(instruction, embedder),
                "embeddings": [
                    {
                        "text": text,
                        "steps": int(result.steps[i]),
                        "prompt_tokens": int(result.prompt_tokens[i]),
                        "truncated": bool(result.truncated[i]),
                        "vector": result.vectors[i].tolist() if output is None else None,
                    }
                    for i, text in enumerate(texts)
                ],
            }
        )
    else:
        emit(_vector_table(texts, result))


def _sentence(instruction: str | None, embedder: Embedder) -> str:
    return embedder.spec.default_instruction if instruction is None else resolve_instruction(instruction)


def _save(path: Path, result: EmbeddingResult) -> None:
    import numpy as np

    try:
        with atomic_write(path) as scratch, scratch.open("wb") as file:
            np.save(file, result.vectors)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}; no partial file was left") from error
    note(
        "note", f"wrote {path}: {plural(len(result.vectors), 'vector')} of dimension {result.vectors.shape[1]}, float32"
    )


def _vector_table(texts: list[str], result: EmbeddingResult) -> Table:
    table = Table("text", "tokens", "steps", "vector", "cosine to first")
    for text, tokens, cut, steps, vector in zip(
        texts, result.prompt_tokens, result.truncated, result.steps, result.vectors, strict=True
    ):
        table.add_row(
            Text(shorten(text, 48)),
            f"{tokens}{' (cut)' if cut else ''}",
            str(steps),
            " ".join(f"{x:+.4f}" for x in vector[:4]) + " ...",
            f"{float(vector @ result.vectors[0]):.4f}",
        )
    return table


def _explain(instruction: str, result: EmbeddingResult) -> dict[str, Any]:
    """The refinement of one text under one instruction, as JSON values."""
    assert result.soft_tokens is not None and result.trajectory is not None
    trajectory, fed = result.trajectory[0], result.soft_tokens[0]
    cosines = [None, *(float(a @ b) for a, b in pairwise(trajectory))]  # cos(z_k, z_{k-1}) for k = 1, 2, ...
    soft_tokens = [
        *([] for _ in range(len(trajectory) - len(fed))),
        *fed,
    ]  # LaSER's first step pools the prompt, without a soft token
    return {
        "instruction": instruction,
        "prompt_tokens": int(result.prompt_tokens[0]),
        "steps": [
            {
                "step": k,
                "tokens": [{"token": token, "weight": weight} for token, weight in tokens],
                "cosine_to_previous": cosine,
            }
            for k, (tokens, cosine) in enumerate(zip(soft_tokens, cosines, strict=True), start=1)
        ],
    }


def _step_table(explanation: dict[str, Any]) -> Table:
    table = Table("step", "most probable tokens of the soft token, with their weights", "cosine to previous step")
    table.title, table.title_justify = Text(f"Instruct: {explanation['instruction']}"), "left"
    for step in explanation["steps"]:
        tokens = [Text.assemble(repr(t["token"]), " ", (f"{t['weight']:.3f}", "dim")) for t in step["tokens"]]
        cosine = step["cosine_to_previous"]
        shown = Text("  ").join(tokens) if tokens else Text("(the prompt itself)", "dim")
        table.add_row(str(step["step"]), shown, "" if cosine is None else f"{cosine:.4f}")
    return table


@options.with_model_options
def explain(
    text: Annotated[str, Argument(help="The text to embed as a query.")],
    instruction: Annotated[
        list[str] | None,
        Option(help="The task: a sentence, or a name (`gircse instructions`); repeat to compare several."),
    ] = None,
    soft_tokens: Annotated[int, Option(min=1, max=100, help="Tokens to show per step.")] = 8,
    steps: options.Steps = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Show the soft tokens of a text, and how instructions change its embedding.

    A soft token is an average over the vocabulary; its top tokens are shown.
    """
    with only_results_on_stdout():
        embedder = options.load(model)
        tasks = [_sentence(task, embedder) for task in instruction or (None,)]
        embed_task = partial(embedder.embed, [text], steps=steps, trajectory=True, soft_tokens=soft_tokens)
        results = [embed_task(instruction=task) for task in tasks]
    explanations = [_explain(task, result) for task, result in zip(tasks, results, strict=True)]
    cosines = [[float(a.vectors[0] @ b.vectors[0]) for b in results] for a in results]
    if as_json:
        emit_json(
            {
                "text": text,
                "spec": embedder.spec.to_dict(),
                "fingerprint": embedder.fingerprint,
                "explanations": explanations,
                "cosine_between_instructions": cosines,
            }
        )
        return
    emit(*(_step_table(explanation) for explanation in explanations))
    if len(tasks) > 1:
        table = Table("", *(str(i + 1) for i in range(len(tasks))), title="cosine between the instructions")
        table.title_justify = "left"
        for i, (task, row) in enumerate(zip(tasks, cosines, strict=True), start=1):
            table.add_row(Text(f"{i}  {shorten(task, 60)}"), *(f"{value:.4f}" for value in row))
        emit(table)
