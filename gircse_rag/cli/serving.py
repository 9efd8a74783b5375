"""`gircse export` and `gircse serve`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import ExitStack, closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout
from gircse_rag.errors import GircseWarning, InputError, require
from gircse_rag.spec import MAX_STEPS

SERVER = "vllm.entrypoints.openai.api_server"
ExportDtype = Annotated[Literal["float32", "bfloat16", "float16"], Option(help="Data type of the weights.")]


def export(
    folder: Annotated[Path, Argument(help="Target folder; must be empty or not exist yet.")],
    model: options.Model = options.DEFAULT_MODEL,
    revision: options.Revision = None,
    dtype: ExportDtype = "float32",
    preset: Annotated[
        str | None, Option(help="How a folder without gircse.json renders and pools: laser, laser-quickstart.")
    ] = None,
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

        write(model, folder, dtype=getattr(torch, dtype), revision=revision, preset=preset)
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
    backend: Annotated[
        Literal["paged", "vllm"], Option(help="Server to run: this library's engine, or vLLM's server.")
    ] = "paged",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    dimensions: options.Dimensions = None,
    deterministic: options.Deterministic = False,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, Option(envvar="GIRCSE_API_KEY", help="Key that clients must send (better: $GIRCSE_API_KEY).")
    ] = None,
    collection: Annotated[
        str | None,
        Option(metavar="NAME", help="Also serve a store; this is the collection that is searched by default."),
    ] = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    accept_token_ids: Annotated[
        bool, Option("--accept-token-ids", help="Embed lists of token ids without asking for their tokenizer.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None, Option(metavar="ORIGIN", help="Let web pages of this origin in; repeatable.")
    ] = None,
    max_inputs: Annotated[int, Option(min=1, metavar="N", help="Maximum texts per request.")] = 2048,
    max_steps: Annotated[int, Option(min=1, max=MAX_STEPS, metavar="K", help="Maximum steps per text.")] = 64,
    max_queue: Annotated[int, Option(min=0, metavar="N", help="Maximum requests that wait; then 429.")] = 256,
    timeout: Annotated[float, Option(min=0.1, metavar="SECONDS", help="Maximum time per request.")] = 300.0,
) -> None:
    """Serve a model over HTTP: OpenAI's, Cohere's and TEI's embedding APIs.

    With --collection also search and ingest, so that several programs
    share one store (docs/operate/serve.md), and a page to look at, at /.

    With --backend vllm all other options are passed on to vLLM, such as
    --tensor-parallel-size 2 (docs/operate/vllm.md).
    """
    if backend == "vllm":
        _serve_with_vllm(context)
        return
    if context.args:
        raise typer.BadParameter(f"no such option: {context.args[0]}; options of vLLM need --backend vllm")
    if collection is None and (path or url):
        raise typer.BadParameter("--path and --url need --collection NAME")
    with only_results_on_stdout(), ExitStack() as stack:
        for module in ("fastapi", "uvicorn", "prometheus_client", "orjson"):
            require(module, "server")
        from gircse_rag.serving.app import create_app
        from gircse_rag.serving.server import run
        from gircse_rag.serving.service import Service
        from gircse_rag.serving.settings import Settings

        client = None
        if collection is not None:
            from gircse_rag.qdrant import open_client

            client = stack.enter_context(closing(open_client(path, url)))
        running: dict[str, Any] = {"device": device, "dtype": dtype, "deterministic": deterministic}
        chosen = options.ModelOptions(model, revision, dimensions=dimensions, **running)
        embedder = stack.enter_context(options.load(chosen))
        settings = Settings(
            model=model,
            api_key=api_key,
            accept_token_ids=accept_token_ids,
            cors_origins=tuple(cors_origin or ()),
            max_inputs=max_inputs,
            max_steps=max_steps,
            max_queue=max_queue,
            timeout=timeout,
        )
        warnings.simplefilter("ignore", GircseWarning)  # answers say what a client must know
        log_to_stderr()
        if api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
            note("warning", f"everybody who reaches {host} may use this server; set GIRCSE_API_KEY")
        service = Service(embedder, settings, client=client, collection=collection)
        run(
            create_app(service),
            service,
            host,
            port,
            on_listening=lambda address: note("serving", f"{model} at {address}"),
        )


def log_to_stderr() -> None:
    """Log a server's warnings, and one line per request, to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    access = logging.getLogger("gircse_rag.access")
    access.setLevel(logging.INFO)
    access.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)


def _serve_with_vllm(context: typer.Context) -> None:
    """Become vLLM's server. Options that are only for the paged engine are refused."""
    given = context.params
    shared = {"model", "revision", "backend", "dtype", "host", "port", "api_key", "accept_token_ids"}
    for name in sorted(given.keys() - shared):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} is not for --backend vllm")
    model, dtype, api_key = given["model"], given["dtype"], given["api_key"]
    with only_results_on_stdout():
        require("vllm", "vllm")
        folder = _ensure_exported(model, given["revision"])
    command = [sys.executable, "-m", SERVER, "--model", str(folder), "--served-model-name", model]
    command += ["--runner", "pooling", "--host", given["host"], "--port", str(given["port"]), *context.args]
    command += ["--dtype", _default_dtype() if dtype == "auto" else dtype]
    environment = {**os.environ, "VLLM_PLUGINS": _plugin_names()}
    if given["accept_token_ids"]:
        environment["GIRCSE_ACCEPT_TOKEN_IDS"] = "1"
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key  # not an argument, which every user of the machine can read
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
