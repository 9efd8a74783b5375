"""`gircse export` and `gircse serve`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout
from gircse_rag.errors import InputError, require

SERVER = "vllm.entrypoints.openai.api_server"
ExportDtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the weights.")]


def export(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist, or be empty.")],
    model: options.Model = options.DEFAULT_MODEL,
    dtype: ExportDtype = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Write base model and adapter as one folder, which vLLM loads, and every --model here takes."""
    with only_results_on_stdout():
        options.announce(model)
        import torch

        from gircse_rag.backends.vllm.export import export as write
        from gircse_rag.checkpoint import load_checkpoint

        write(model, folder, dtype=getattr(torch, dtype))
        spec = load_checkpoint(str(folder), dtype=getattr(torch, dtype), device="cpu").spec  # reads what was written
    if as_json:
        emit_json({"folder": str(folder), "spec": spec.to_dict(), "fingerprint": spec.fingerprint})
        return
    emit(f"{folder}: {spec.describe()}")


def serve(
    context: typer.Context,
    model: options.Model = options.DEFAULT_MODEL,
    backend: Annotated[Literal["vllm"], typer.Option("--backend", help="What serves.")] = "vllm",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8000,
) -> None:
    """Serve a model over HTTP: OpenAI's /v1/embeddings, with steps, role and instruction. Needs vLLM (docs/operate/vllm.md).

    Options that are not listed here go to vLLM: --tensor-parallel-size 2, --max-model-len 1024, --api-key KEY, ...
    Without --dtype the model runs in bfloat16 where the hardware multiplies it, else in float32.
    """
    with only_results_on_stdout():
        require("vllm", "vllm")
        folder = _exported(model)
    command = [sys.executable, "-m", SERVER, "--model", str(folder), "--served-model-name", model]
    command += ["--runner", "pooling"]
    command += ["--host", host, "--port", str(port), *context.args]
    if not any(option.split("=")[0] == "--dtype" for option in context.args):
        command += ["--dtype", _dtype()]
    environment = {**os.environ, "VLLM_PLUGINS": _plugins()}
    # this process becomes the server: signals reach it, no child is left
    os.execve(sys.executable, command, environment)


def _exported(model: str) -> Path:
    """The folder itself if it was exported, else one in the cache, written on first use."""
    from gircse_rag.backends.vllm.export import export as write
    from gircse_rag.backends.vllm.export import is_exported
    from gircse_rag.checkpoint import checkpoint_state
    from gircse_rag.checkpoint.bundled import cache_folder

    if is_exported(Path(model).expanduser()):
        return Path(model).expanduser()
    options.announce(model)
    folder = cache_folder() / "exported" / f"{Path(model).name}-{checkpoint_state(model)}"
    if not is_exported(folder):
        note("note", f"first use: writing {model}, merged, to {folder}")
        try:
            write(model, folder)
        except InputError:
            if not is_exported(folder):  # else another process wrote it meanwhile
                raise
    return folder


def _dtype() -> str:
    """As Embedder chooses it. vLLM would take float16 for a folder in float32, which overflows in some models."""
    from gircse_rag.hardware import device_of, dtype_of

    return str(dtype_of("auto", device_of("auto"))).removeprefix("torch.")


def _plugins() -> str:
    """VLLM_PLUGINS with ours in it. Unset it means all but those that add HTTP endpoints, so name these."""
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is None:
        groups = ("general", "io_processor", "platform", "stat_logger")
        names = {point.name for group in groups for point in entry_points(group=f"vllm.{group}_plugins")}
    else:
        names = set(chosen.split(","))
    return ",".join(sorted({*names, "gircse"} - {""}))
