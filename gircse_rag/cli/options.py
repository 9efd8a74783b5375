"""Options that several commands share, and what they ask for: an embedder, texts, a number of steps."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gircse_rag.cli.output import note
from gircse_rag.errors import InputError
from gircse_rag.spec import check_steps

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

DEFAULT_MODEL = "smollm2-135m"


def _parse_steps(value: str) -> int | str:
    if value == "auto":
        return value
    try:
        check_steps(steps := int(value))
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is neither a number of steps nor 'auto'") from error
    return steps


Model = Annotated[str, typer.Option("--model", help="A bundled name (`gircse models`), a folder, or a Hub id.")]
Backend = Annotated[
    Literal["paged", "reference"] | None,
    typer.Option("--backend", help="Where refinement runs; left out, the library chooses."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="auto is bfloat16 where the hardware multiplies it natively, else float32."),
]
Steps = Annotated[
    Any,  # int | Literal["auto"] | None; typer converts by the parser, not by the annotation
    typer.Option(
        "--steps",
        parser=_parse_steps,
        metavar="K|auto",
        help="Refinement steps; left out, the checkpoint's own; auto stops when the embedding settles.",
    ),
]
Collection = Annotated[str, typer.Option("--collection", metavar="NAME", help="The collection in the store.")]
StorePath = Annotated[
    Path | None, typer.Option("--path", metavar="DIR", help="Folder of an embedded store; left out, ./qdrant.")
]
StoreUrl = Annotated[
    str | None, typer.Option("--url", help="Of a Qdrant server; left out, QDRANT_URL. Its key: QDRANT_API_KEY.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load, and where it computes: --model, --backend, --device and --dtype."""

    name: str = DEFAULT_MODEL
    backend: Literal["paged", "reference"] | None = None
    device: str = "auto"
    dtype: str = "auto"

    def load(self, *, lazy: bool = False) -> Embedder:
        """Load the embedder. Prints a note first if the weights have to be fetched.

        Raises:
            CheckpointError, InputError: as `Embedder.from_pretrained`.
        """
        from gircse_rag.checkpoint.bundled import BUNDLED

        if self.name in BUNDLED and BUNDLED[self.name].adapter is None:
            note("note", f"{self.name} has no trained adapter: its embeddings rank poorly")
        announce(self.name)
        from gircse_rag.embedder import Embedder

        choice: dict[str, Any] = {} if self.backend is None else {"backend": self.backend}
        return Embedder.from_pretrained(self.name, device=self.device, dtype=self.dtype, lazy=lazy, **choice)


DEFAULT = ModelOptions()


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command that takes `model: ModelOptions`: on the command line it has the four options instead."""
    separate = {
        "model": (Model, DEFAULT.name),
        "backend": (Backend, DEFAULT.backend),
        "device": (Device, DEFAULT.device),
        "dtype": (Dtype, DEFAULT.dtype),
    }

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        chosen = ModelOptions(*(arguments.pop(name) for name in separate))
        command(**arguments, model=chosen)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "model":
            kind = parameter.kind
            parameters += [
                inspect.Parameter(name, kind, annotation=annotation, default=default)
                for name, (annotation, default) in separate.items()
            ]
        else:
            parameters.append(parameter)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def announce(model: str) -> None:
    """Before a model is loaded: say so if its weights have to be fetched, and keep transformers quiet."""
    from gircse_rag.checkpoint.bundled import base_folder

    if needs_fetching(model):
        note(
            "note",
            f"first use: fetching SmolLM2-135M (93 MB), once, into {base_folder()}; converting it takes a minute",
        )
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def needs_fetching(model: str) -> bool:
    """Whether `model` is the bundled base model, or an adapter for it, and that model is not in the cache yet."""
    from gircse_rag.checkpoint.bundled import BUNDLED, base_folder
    from gircse_rag.checkpoint.locate import local_base_name

    return local_base_name(model) in BUNDLED and not base_folder().exists()


def read_lines(path: Path | None) -> list[str]:
    """The lines of a UTF-8 file, or of stdin for None, one text each.

    Raises:
        InputError: not UTF-8, no line at all, or not readable; says where.
    """
    source = "stdin" if path is None else str(path)
    try:
        data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(f"could not read {source}: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}, line {line}; convert "
            "it first, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    if not text.strip():
        raise InputError(f"{source} is empty; give one text a line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def check_lines(lines: Iterable[str], source: str) -> None:
    """Refuse a line that cannot be embedded, by its line number.

    Raises:
        InputError: the first such line (index: its position, from 0).
    """
    from gircse_rag.tokens import check_text

    for index, line in enumerate(lines):
        try:
            check_text(line)
        except InputError as error:
            said = str(error).removeprefix("the text ")
            raise InputError(f"line {index + 1} of {source} {said}", index=index) from error
