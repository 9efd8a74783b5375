"""Options shared by several commands, and the code that loads models and reads texts for them."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

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


Model = Annotated[str, Option("--model", help="Bundled model (`gircse models`), folder or Hub id.")]
Revision = Annotated[
    str | None, Option(metavar="NAME", help="Branch, tag or commit of a Hub id (default: its main branch).")
]
Backend = Annotated[Literal["paged", "reference"] | None, Option(help="Execution backend (default: automatic).")]
Device = Annotated[str, Option(metavar="NAME", help="Device: auto, cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Option(help="Data type; auto is bfloat16 where the hardware has it, else float16 on x86, else float32."),
]
Dimensions = Annotated[
    int | None, Option(min=1, metavar="D", help="Leading components of each vector to keep (default: all).")
]
Deterministic = Annotated[
    bool,
    Option("--deterministic", help="Same bits for a text alone and in any batch; slower, paged backend on a CPU only."),
]
_STEPS = "Number of refinement steps, or auto to stop once the embedding converges (default: the model's)."
# int | Literal["auto"] | None; typer converts with the parser, not the annotation
Steps = Annotated[Any, Option(parser=_parse_steps, metavar="K|auto", help=_STEPS)]
Collection = Annotated[str, Option(metavar="NAME", help="Qdrant collection.")]
StorePath = Annotated[Path | None, Option(metavar="DIR", help="Folder of an embedded store (default: ./qdrant).")]
StoreUrl = Annotated[str | None, Option(help="Qdrant server (default: $QDRANT_URL; its API key: $QDRANT_API_KEY).")]


def parse_indexes(items: list[str]) -> dict[str, str]:
    """Parse KEY=KIND items. The last = separates them, because a key may contain one."""
    for item in items:
        if not all(item.rpartition("=")[::2]):
            raise InputError(f"--index {item!r} is not KEY=KIND, such as --index kind=keyword")
    return {key: kind for key, _, kind in (item.rpartition("=") for item in items)}


Language = Annotated[
    str | None, Option(metavar="NAME", help="Language of the texts, for its stemmer and stop words (default: english).")
]
AsJson = Annotated[bool, Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model to load and how to run it, as command-line options."""

    name: Model = DEFAULT_MODEL
    revision: Revision = None
    backend: Backend = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    dimensions: Dimensions = None
    deterministic: Deterministic = False


DEFAULT = ModelOptions()


def load(model: ModelOptions, *, lazy: bool = False) -> Embedder:
    """Load the embedder. Prints a note first if the weights must be downloaded.

    Raises:
        CheckpointError, InputError: as `Embedder.from_pretrained`.
    """
    from gircse_rag.checkpoint.bundled import BUNDLED

    if model.name in BUNDLED and BUNDLED[model.name].adapter is None:
        note("note", f"{model.name} has no trained adapter, so its rankings are poor")
    announce(model.name)
    from gircse_rag.embedder import Embedder

    choice: dict[str, Any] = {} if model.backend is None else {"backend": model.backend}
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype, "revision": model.revision}
    options["dimensions"] = model.dimensions
    options["deterministic"] = model.deterministic
    return Embedder.from_pretrained(model.name, lazy=lazy, **options, **choice)


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: replace a command's parameter `model: ModelOptions` by its command-line options."""
    fields = inspect.signature(ModelOptions, eval_str=True).parameters

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        model = ModelOptions(*(arguments.pop(name) for name in fields))
        command(**arguments, model=model)

    expanded = [
        option
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        for option in (fields.values() if parameter.name == "model" else [parameter])
    ]
    run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in expanded}
    return run


def announce(model: str) -> None:
    """Call before loading a model: prints a note if its weights must be downloaded, and silences transformers."""
    from gircse_rag.checkpoint.bundled import base_folder

    if needs_fetching(model):
        note("note", f"first use: downloading SmolLM2-135M (93 MB) to {base_folder()}; converting it takes a minute")
    # transformers reads both when it is imported, which most commands never do
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def needs_fetching(model: str) -> bool:
    """Whether `model` needs the bundled base model, and that is not in the cache yet."""
    from gircse_rag.checkpoint.bundled import BUNDLED, base_folder
    from gircse_rag.checkpoint.locate import local_base_name

    return local_base_name(model) in BUNDLED and not base_folder().exists()


def read_lines(path: Path | None) -> list[str]:
    """Read a UTF-8 file, or stdin for None, as one text per line.

    Raises:
        InputError: the input is unreadable, empty, or not UTF-8 (names the first bad byte and its line).
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
        raise InputError(f"{source} is empty; give one text per line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def check_lines(lines: Iterable[str], source: str) -> None:
    """Check that every line can be embedded.

    Raises:
        InputError: a line cannot be embedded; names the first by its line number (index: its position from 0).
    """
    from gircse_rag.tokens import check_text

    for index, line in enumerate(lines):
        try:
            check_text(line)
        except InputError as error:
            reason = str(error).removeprefix("the text ")
            raise InputError(f"line {index + 1} of {source} {reason}", index=index) from error
