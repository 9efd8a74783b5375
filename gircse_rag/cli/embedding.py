"""`gircse embed` and `gircse explain`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, progress, shortened
from gircse_rag.cli.progress import ProgressBackend
from gircse_rag.errors import InputError
from gircse_rag.files import atomic_write
from gircse_rag.prompts import Role

if TYPE_CHECKING:
    from gircse_rag.embedder import EmbeddingResult


@options.with_model_options
def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Left out: one text a line from stdin.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", exists=True, dir_okay=False, help="Read one text a line from here instead.")
    ] = None,
    role: Annotated[
        Role, typer.Option("--role", help="query and symmetric take the instruction, document none.")
    ] = "query",
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="What to look for; left out, the checkpoint's own.")
    ] = None,
    steps: options.Steps = None,
    output: Annotated[
        Path | None, typer.Option("--output", dir_okay=False, help="Write the vectors here, a float32 .npy array.")
    ] = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Turn texts into vectors. The table shows their beginnings; --json and --output have all of them.

    A text that cannot be embedded ends the command before anything is computed.
    """
    if texts and file:
        raise typer.BadParameter("give texts or --file, not both")
    if not texts and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("no text: give some, or --file, or pipe one text a line into stdin")
    with only_results_on_stdout():
        if not texts:
            texts = options.read_lines(file)
            options.check_lines(texts, str(file or "stdin"))
        embedder = model.load()
        with progress("embedding") as update:
            if update:
                embedder.backend = ProgressBackend(embedder.backend, update, len(set(texts)))
            result = embedder.embed(texts, role=role, instruction=instruction, steps=steps)
        if output is not None:
            _save(output, result)
    if as_json:
        emit_json(
            {
                "spec": embedder.spec.to_dict(),
                "fingerprint": embedder.fingerprint,
                "role": role,
                "instruction": None if role == "document" else instruction or embedder.spec.default_instruction,
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
        emit(_overview(texts, result))


def _save(path: Path, result: EmbeddingResult) -> None:
    import numpy as np

    try:
        with atomic_write(path) as scratch, scratch.open("wb") as file:
            np.save(file, result.vectors)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}; nothing was left there") from error
    note("note", f"{path}: {result.vectors.shape[0]} vectors of {result.vectors.shape[1]}, float32")


def _overview(texts: list[str], result: EmbeddingResult) -> Table:
    table = Table("text", "tokens", "steps", "vector", "cosine to the first")
    for text, tokens, cut, steps, vector in zip(
        texts, result.prompt_tokens, result.truncated, result.steps, result.vectors, strict=True
    ):
        table.add_row(
            Text(shortened(text, 48)),
            f"{tokens}{' (cut)' if cut else ''}",
            str(steps),
            " ".join(f"{x:+.4f}" for x in vector[:4]) + " ...",
            f"{float(vector @ result.vectors[0]):.4f}",
        )
    return table


@dataclass(frozen=True)
class _Explanation:
    instruction: str
    result: EmbeddingResult  # of the one text

    def to_dict(self) -> dict[str, Any]:
        return {
            "instruction": self.instruction,
            "prompt_tokens": int(self.result.prompt_tokens[0]),
            "steps": [
                {
                    "step": k,
                    "tokens": [{"token": token, "weight": weight} for token, weight in tokens],
                    "cosine_to_previous": moved,
                }
                for k, (tokens, moved) in enumerate(zip(self.tokens, self.cosines, strict=True), start=1)
            ],
        }

    @property
    def tokens(self) -> list[list[tuple[str, float]]]:
        assert self.result.soft_tokens is not None
        return self.result.soft_tokens[0]

    @property
    def cosines(self) -> list[float | None]:
        """cos(z_k, z_{k-1}) for k = 1.., None for the first."""
        assert self.result.trajectory is not None
        path = self.result.trajectory[0]
        return [None, *(float(a @ b) for a, b in pairwise(path))]

    def table(self) -> Table:
        table = Table("step", "the soft token's heaviest vocabulary tokens, and their weights", "cosine to step before")
        table.title, table.title_justify = Text(f"Instruct: {self.instruction}"), "left"
        for k, (tokens, moved) in enumerate(zip(self.tokens, self.cosines, strict=True), start=1):
            shown = Text("  ").join(
                Text.assemble(repr(token), " ", (f"{weight:.3f}", "dim")) for token, weight in tokens
            )
            table.add_row(str(k), shown, "" if moved is None else f"{moved:.4f}")
        return table


@options.with_model_options
def explain(
    text: Annotated[str, typer.Argument(help="The text to embed as a query.")],
    instruction: Annotated[
        list[str] | None,
        typer.Option("--instruction", help="Repeat it to compare several; left out, the checkpoint's own."),
    ] = None,
    soft_tokens: Annotated[int, typer.Option("--soft-tokens", min=1, max=100, help="Tokens to show a step.")] = 8,
    steps: options.Steps = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Show the soft tokens of a text, and how far instructions move its embedding.

    A soft token is an average over the vocabulary, shown by its heaviest tokens.
    """
    with only_results_on_stdout():
        embedder = model.load()
        explanations = [
            _Explanation(
                asked,
                embedder.embed([text], instruction=asked, steps=steps, trajectory=True, soft_tokens=soft_tokens),
            )
            for asked in instruction or [embedder.spec.default_instruction]
        ]
    vectors = [explanation.result.vectors[0] for explanation in explanations]
    between = [[float(a @ b) for b in vectors] for a in vectors]
    if as_json:
        emit_json(
            {
                "text": text,
                "spec": embedder.spec.to_dict(),
                "fingerprint": embedder.fingerprint,
                "explanations": [explanation.to_dict() for explanation in explanations],
                "cosine_between_instructions": between,
            }
        )
        return
    emit(*(explanation.table() for explanation in explanations))
    if len(vectors) > 1:
        table = Table("", *(str(i) for i in range(1, len(vectors) + 1)), title="cosine between the instructions")
        table.title_justify = "left"
        for i, row in enumerate(between):
            table.add_row(
                Text(f"{i + 1}  {shortened(explanations[i].instruction, 60)}"), *(f"{value:.4f}" for value in row)
            )
        emit(table)
