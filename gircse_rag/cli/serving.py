"""`gircse export` and `gircse serve`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout
from gircse_rag.errors import InputError, require

SERVER = "vllm.entrypoints.openai.api_server"
ExportDtype = Annotated[Literal["float32", "bfloat16", "float16"], Option(help="Data type of the weights.")]


def export(
    folder: Annotated[Path, Argument(help="Target folder; must be empty or not exist yet.")],
    model: options.Model = options.DEFAULT_MODEL,
    revision: options.Revision = None,
    dtype: ExportDtype = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Merge a model and its adapter into one folder.

    vLLM loads the folder, and so does every --model option.
    """
    with only_results_on_stdout():
        options.announce(model)
        import torch

        from gircse_rag.backends.vllm.export import export as write
        from gircse_rag.checkpoint import load_checkpoint

        write(model, folder, dtype=getattr(torch, dtype), revision=revision)
        # Loading the folder checks it.
        spec = load_checkpoint(str(folder), dtype=getattr(torch, dtype), device="cpu").spec
    if as_json:
        emit_json({"folder": str(folder), "spec": spec.to_dict(), "fingerprint": spec.fingerprint})
        return
    emit(f"{folder}: {spec.describe()}")


def serve(
    context: typer.Context,
    model: options.Model = options.DEFAULT_MODEL,
    revision: options.Revision = None,
    backend: Annotated[Literal["vllm"], Option(help="Server to run.")] = "vllm",
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on.")] = 8000,
    accept_token_ids: Annotated[
        bool, Option("--accept-token-ids", help="Embed lists of token ids without asking for their tokenizer.")
    ] = False,
) -> None:
    """Serve a model over HTTP, with OpenAI's embeddings API.

    Requests to /v1/embeddings also take steps, role and instruction.
    Needs vLLM (docs/operate/vllm.md).

    All other options are passed on to vLLM, such as --tensor-parallel-size 2,
    --max-model-len 1024 or --api-key KEY. The default --dtype is bfloat16
    where the hardware supports it natively, else float32.
    """
    with only_results_on_stdout():
        require("vllm", "vllm")
        folder = _ensure_exported(model, revision)
    command = [sys.executable, "-m", SERVER, "--model", str(folder), "--served-model-name", model]
    command += ["--runner", "pooling", "--host", host, "--port", str(port), *context.args]
    if not any(option.split("=")[0] == "--dtype" for option in context.args):
        command += ["--dtype", _default_dtype()]
    environment = {**os.environ, "VLLM_PLUGINS": _plugin_names()}
    if accept_token_ids:
        environment["GIRCSE_ACCEPT_TOKEN_IDS"] = "1"
    # replace this process, so that signals reach the server and no child process is left
    os.execve(sys.executable, command, environment)


def _ensure_exported(model: str, revision: str | None) -> Path:
    """Return `model` if it is an exported folder, else its export in the cache, written on first use."""
    from gircse_rag.backends.vllm.export import export as write
    from gircse_rag.backends.vllm.export import is_exported
    from gircse_rag.checkpoint import checkpoint_state
    from gircse_rag.checkpoint.bundled import cache_folder

    if is_exported(Path(model).expanduser()):
        return Path(model).expanduser()
    options.announce(model)
    folder = cache_folder() / "exported" / f"{Path(model).name}-{checkpoint_state(model, revision)}"
    if not is_exported(folder):
        note("note", f"first use: exporting {model} to {folder}")
        try:
            write(model, folder, revision=revision)
        except InputError:
            if not is_exported(folder):  # else another process wrote it at the same time
                raise
    return folder


def _default_dtype() -> str:
    """Choose the dtype as Embedder does. vLLM's own choice for float32 weights, float16, can overflow."""
    from gircse_rag.hardware import device_of, dtype_of

    return str(dtype_of("auto", device_of("auto"))).removeprefix("torch.")


def _plugin_names() -> str:
    """Return VLLM_PLUGINS with `gircse` added.

    If the variable is unset, vLLM loads all plugins but those with HTTP endpoints; so those are listed by name.
    """
    if (chosen := os.environ.get("VLLM_PLUGINS")) is not None:
        names = set(chosen.split(","))
    else:
        groups = ("general", "io_processor", "platform", "stat_logger")
        names = {point.name for group in groups for point in entry_points(group=f"vllm.{group}_plugins")}
    return ",".join(sorted({*names, "gircse"} - {""}))
