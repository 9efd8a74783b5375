"""Options that several commands share, and what they ask for: an embedder, texts, a number of steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
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


def load(model: str, backend: Backend, device: str, dtype: str, *, lazy: bool = False) -> Embedder:
    """The embedder that the options describe; says so first when weights have to be fetched.

    Raises:
        CheckpointError, InputError: as `Embedder.from_pretrained`.
    """
    from gircse_rag.bundled import BUNDLED

    if model in BUNDLED and BUNDLED[model].adapter is None:
        note("note", f"{model} has no trained adapter: its embeddings rank poorly")
    announce(model)
    from gircse_rag.embedder import Embedder

    choice: dict[str, Any] = {} if backend is None else {"backend": backend}
    return Embedder.from_pretrained(model, device=device, dtype=dtype, lazy=lazy, **choice)


def announce(model: str) -> None:
    """Before a model is loaded: say so if its weights have to be fetched, and keep transformers quiet."""
    from gircse_rag.bundled import base_folder

    if needs_fetching(model):
        note(
            "note",
            f"first use: fetching SmolLM2-135M (93 MB), once, into {base_folder()}; converting it takes a minute",
        )
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def base_of(model: str) -> str:
    """The base model that an adapter folder names; any other model itself."""
    try:
        config = json.loads((Path(model).expanduser() / "adapter_config.json").read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return model  # no adapter folder, or a damaged one: loading it will say so


def needs_fetching(model: str) -> bool:
    """Whether `model` is, or adapts, the bundled base model, and that is not in the cache yet."""
    from gircse_rag.bundled import BUNDLED, base_folder

    return base_of(model) in BUNDLED and not base_folder().exists()


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
