"""`gircse models`, `gircse instructions` and `gircse doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text
from typer import Option

import gircse_rag
from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, only_results_on_stdout
from gircse_rag.errors import GircseError, plural
from gircse_rag.install_hint import install_command
from gircse_rag.prompts import DEFAULT_INSTRUCTION, INSTRUCTIONS
from gircse_rag.redaction import redact

LIBRARIES = ("torch", "transformers", "peft", "qdrant-client", "semantic-text-splitter", "numpy")
# One distribution per extra whose presence means that the extra is installed.
EXTRAS = {
    "eval": "pytrec-eval-terrier",
    "train": "accelerate",
    "teacher": "sentence-transformers",
    "adapt": "bm25s",
    "html": "lxml",
    "docx": "mammoth",
    "pdf": "pypdf",
    "parquet": "pyarrow",
    "code": "tree-sitter-php",
    "sentences": "sentencex",
    "edge": "qdrant-edge-py",
    "ray": "ray",
    "server": "fastapi",
    "mcp": "mcp",
    "vllm": "vllm",
}


def models(as_json: options.AsJson = False) -> None:
    """List the bundled models.

    --model also takes a folder or a Hub id.
    """
    from gircse_rag.checkpoint.bundled import BUNDLED, base_folder

    fetched = base_folder().exists()
    if as_json:
        listed = [
            {
                "name": model.name,
                "description": model.description,
                "adapter": None if model.adapter is None else str(model.adapter),
                "fetched": fetched,
            }
            for model in BUNDLED.values()
        ]
        emit_json({"cache": str(base_folder()), "models": listed})
        return
    table = Table("name", "description", "adapter", "weights")
    weights = f"in {base_folder()}" if fetched else "downloaded on first use (93 MB)"
    for model in BUNDLED.values():
        table.add_row(model.name, model.description, "none" if model.adapter is None else "bundled", weights)
    emit(table)


def instructions(as_json: options.AsJson = False) -> None:
    """List the named instructions.

    --instruction takes a name or a sentence of your own.
    """
    if as_json:
        emit_json(INSTRUCTIONS)
        return
    table = Table("name", "instruction")
    for name, sentence in INSTRUCTIONS.items():
        table.add_row(name, f"{sentence} (default)" if sentence == DEFAULT_INSTRUCTION else sentence)
    emit(table)


@dataclass(frozen=True)
class Check:
    """The result of one check of `gircse doctor`."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str


def doctor(
    model: options.Model = options.DEFAULT_MODEL,
    deep: Annotated[
        bool, Option("--deep", help="Also compute: attention, engine beside the reference, speed. Takes minutes.")
    ] = False,
    device: options.Device = "auto",
    output: Annotated[
        Path | None, Option(dir_okay=False, help="With --deep: file for a report to attach to an issue, JSON.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that this machine has what gircse needs.

    Downloads nothing, except the model with --deep.
    Exits with code 1 if something is broken or a check of --deep fails.
    """
    if not deep and (output is not None or device != "auto"):
        raise typer.BadParameter("--device and --output need --deep")
    with only_results_on_stdout():
        system = f"{gircse_rag.__version__}, Python {platform.python_version()}, {platform.platform()}"
        checks = [Check("gircse-rag", "ok", system)]
        parts = {
            "libraries": _libraries,
            "torch": _torch,
            "cache": _cache,
            "model": lambda: _model(model),
            "qdrant": _qdrant,
        }
        for name, check in parts.items():
            try:
                checks += check()
            except Exception as error:  # the other checks still run
                kind = "" if isinstance(error, GircseError) else f"{type(error).__name__}: "
                checks.append(Check(name, "broken", redact(f"{kind}{error}")))
        checks += map(_extra, EXTRAS)
        ok = all(done.state != "broken" for done in checks)
        report = None
        if deep:
            from gircse_rag.cli.deep import deep_report, save

            versions = {name: _version(name) for name in LIBRARIES}
            versions |= {f"extra {name}": _version(EXTRAS[name]) for name in EXTRAS}
            report = deep_report(model, device, {done.name: done.state for done in checks}, versions)
            ok = report["ok"]
            if output is not None:
                save(output, report)
    if as_json:
        emit_json(report or {"ok": ok, "checks": [asdict(done) for done in checks]})
    else:
        emit(_table([(done.state, done.name, done.found) for done in checks]))
        if report is not None:
            emit(_table([(done["state"], done["name"], done["found"]) for done in report["checks"]]))
    if not ok:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _table(rows: list[tuple[str, str, str]]) -> Table:
    """A table of results: (state, check, found)."""
    colours = {"ok": "green", "passed": "green", "note": "yellow", "skipped": "yellow"}
    table = Table("", "check", "found")
    for state, name, found in rows:
        bad = state not in colours
        table.add_row(Text(state.upper() if bad else state, colours.get(state, "bold red")), name, Text(found))
    return table


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _libraries() -> list[Check]:
    found = {name: _version(name) for name in LIBRARIES}
    if missing := [name for name, version in found.items() if version is None]:
        raise GircseError(f"not installed: {', '.join(missing)}; install gircse-rag again")
    return [Check("libraries", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))]


def _extra(name: str) -> Check:
    if version := _version(EXTRAS[name]):
        return Check(f"extra {name}", "ok", f"installed ({EXTRAS[name]} {version})")
    return Check(f"extra {name}", "note", f"not installed; to add it: {install_command(name)}")


def _torch() -> list[Check]:
    import torch

    from gircse_rag.hardware import multiplies_bfloat16

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    advice = f"; set OMP_NUM_THREADS={cores} to use no more than the {cores} cores" if threads > cores else ""
    native = multiplies_bfloat16(torch.device("cpu"))
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return [
        Check(
            "threads",
            "note" if advice else "ok",
            f"torch uses {plural(threads, 'thread')} on {plural(cores, 'core')}{advice}",
        ),
        Check("bfloat16", "ok", f"native on this CPU: {'yes' if native else 'no, so --dtype auto means float32'}"),
        Check("accelerators", "ok", ", ".join(devices) or "none"),
    ]


def _cache() -> list[Check]:
    from gircse_rag.checkpoint.bundled import SPACE_NEEDED, base_folder, cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    fetched = base_folder().exists()
    if not fetched and not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise GircseError(f"{folder} is not writable; set GIRCSE_CACHE to a writable folder")
    if not fetched and free < SPACE_NEEDED:
        advice = f"but downloading the model needs {SPACE_NEEDED >> 20} MB; free some space, or set GIRCSE_CACHE"
        raise GircseError(f"{folder}: {free >> 20} MB free, {advice}")
    return [Check("cache", "ok", f"{folder}, {free >> 20} MB free")]


def _model(name: str) -> list[Check]:
    import torch

    from gircse_rag.checkpoint.bundled import BUNDLED
    from gircse_rag.checkpoint.locate import local_base_name
    from gircse_rag.checkpoint.prepared import check_prepared

    if options.needs_fetching(name):
        return [Check("model", "note", f"{name}: not downloaded yet; the first use downloads 93 MB")]
    base = local_base_name(name)
    if base not in BUNDLED and base.count("/") == 1 and not Path(base).expanduser().exists():
        return [Check("model", "note", f"{name}: not checked, because {base} is a Hub id and could be downloaded")]
    embedder = options.load(options.ModelOptions(name, device="cpu"))
    found = f"{embedder.spec.describe()}, d={embedder.dimension}, weights verified"
    if check_prepared(name, dtype=getattr(torch, embedder.spec.dtype)):
        return [Check("model", "ok", found)]
    return [
        Check("model", "note", f"{found}; the prepared copy was damaged and is deleted, the next start makes it again")
    ]


def _qdrant() -> list[Check]:
    url = os.environ.get("QDRANT_URL")
    if not url:
        return [Check("qdrant", "ok", "embedded store, because QDRANT_URL is not set")]
    from gircse_rag.qdrant import open_client
    from gircse_rag.qdrant.stores import store_errors, store_name

    with closing(open_client(url=url)) as client, store_errors(client):
        collections = plural(len(client.get_collections().collections), "collection")
        return [Check("qdrant", "ok", f"{store_name(client)}, {collections}")]
