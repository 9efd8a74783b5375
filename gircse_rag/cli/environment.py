"""`gircse models` and `gircse doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.table import Table
from rich.text import Text

import gircse_rag
from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, only_results_on_stdout
from gircse_rag.errors import GircseError

LIBRARIES = ("torch", "transformers", "peft", "qdrant-client", "semantic-text-splitter", "numpy")
# One telling distribution for each optional group.
EXTRAS = {
    "eval": "pytrec-eval-terrier",
    "train": "accelerate",
    "html": "markdownify",
    "pdf": "pypdf",
    "parquet": "pyarrow",
    "code": "tree-sitter-php",
    "sentences": "sentencex",
    "edge": "qdrant-edge-py",
    "ray": "ray",
    "vllm": "vllm",
}


def models(as_json: options.AsJson = False) -> None:
    """List the models known by name. A folder or a Hub id serves as a model as well."""
    from gircse_rag.checkpoint.bundled import BUNDLED, base_folder

    fetched = base_folder().exists()
    if as_json:
        emit_json(
            {
                "cache": str(base_folder()),
                "models": [
                    {
                        "name": model.name,
                        "description": model.description,
                        "adapter": None if model.adapter is None else str(model.adapter),
                        "fetched": fetched,
                    }
                    for model in BUNDLED.values()
                ],
            }
        )
        return
    table = Table("name", "what it is", "adapter", "weights")
    for model in BUNDLED.values():
        table.add_row(
            model.name,
            model.description,
            "none" if model.adapter is None else "bundled",
            f"in {base_folder()}" if fetched else "fetched on first use, 93 MB",
        )
    emit(table)


@dataclass(frozen=True)
class Check:
    """What `gircse doctor` found out about one thing."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str


def doctor(model: options.Model = options.DEFAULT_MODEL, as_json: options.AsJson = False) -> None:
    """Check what gircse needs on this machine; exit code 1 if something needed is broken. Fetches nothing."""
    with only_results_on_stdout():
        checks = [
            Check(
                "gircse-rag",
                "ok",
                f"{gircse_rag.__version__}, Python {platform.python_version()}, {platform.platform()}",
            ),
            *_libraries(),
            *_guarded("torch", _torch),
            *_guarded("cache", _cache),
            *_guarded("model", lambda: _model(model)),
            *_guarded("qdrant", _qdrant),
            *(_extra(name) for name in EXTRAS),
        ]
    sound = all(check.state != "broken" for check in checks)
    if as_json:
        emit_json({"ok": sound, "checks": [asdict(check) for check in checks]})
    else:
        table = Table("", "check", "found")
        for check in checks:
            mark = {"ok": Text("ok", "green"), "note": Text("note", "yellow"), "broken": Text("BROKEN", "bold red")}
            table.add_row(mark[check.state], check.name, Text(check.found))
        emit(table)
    if not sound:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """A check that fails in a way nobody foresaw must not hide the others."""
    try:
        return check()
    except Exception as error:
        return [
            Check(name, "broken", f"{error}" if isinstance(error, GircseError) else f"{type(error).__name__}: {error}")
        ]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _libraries() -> list[Check]:
    found = {name: _version(name) for name in LIBRARIES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return [Check("libraries", "broken", f"not installed: {', '.join(missing)}; run: pip install gircse-rag")]
    return [Check("libraries", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))]


def _extra(name: str) -> Check:
    if version := _version(EXTRAS[name]):
        return Check(f"extra {name}", "ok", f"installed ({EXTRAS[name]} {version})")
    return Check(f"extra {name}", "note", f'not installed; if you want it: pip install "gircse-rag[{name}]"')


def _torch() -> list[Check]:
    import torch

    from gircse_rag.hardware import multiplies_bfloat16

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    advice = f"; more than the {cores} cores here, set OMP_NUM_THREADS={cores}" if threads > cores else ""
    native = multiplies_bfloat16(torch.device("cpu"))
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return [
        Check("threads", "note" if advice else "ok", f"torch computes with {threads} of {cores} cores{advice}"),
        Check(
            "bfloat16", "ok", f"the CPU multiplies it natively: {'yes' if native else 'no, --dtype auto takes float32'}"
        ),
        Check("accelerators", "ok", ", ".join(devices) or "none"),
    ]


def _cache() -> list[Check]:
    from gircse_rag.checkpoint.bundled import SPACE_NEEDED, base_folder, cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    fetched = base_folder().exists()
    if not fetched and not (existing.is_dir() and os.access(existing, os.W_OK)):
        return [Check("cache", "broken", f"{folder} cannot be written; set GIRCSE_CACHE to a folder that can")]
    if not fetched and free < SPACE_NEEDED:
        advice = f"{SPACE_NEEDED >> 20} MB are needed to fetch the model; free some, or set GIRCSE_CACHE"
        return [Check("cache", "broken", f"{folder}: {free >> 20} MB free, {advice}")]
    return [Check("cache", "ok", f"{folder}, {free >> 20} MB free")]


def _model(name: str) -> list[Check]:
    from gircse_rag.checkpoint.bundled import BUNDLED
    from gircse_rag.checkpoint.locate import local_base_name

    if options.needs_fetching(name):
        return [Check("model", "note", f"{name}: not fetched yet (93 MB); its first use fetches it")]
    base = local_base_name(name)
    if base not in BUNDLED and base.count("/") == 1 and not Path(base).expanduser().exists():
        return [Check("model", "note", f"{name}: not checked, because {base} is a Hub id and that might fetch it")]
    embedder = options.ModelOptions(name, device="cpu").load()
    return [Check("model", "ok", f"{embedder.spec.describe()}, d={embedder.dimension}, weights as they should be")]


def _qdrant() -> list[Check]:
    url = os.environ.get("QDRANT_URL")
    if not url:
        return [Check("qdrant", "ok", "embedded in the process; QDRANT_URL is not set")]
    from gircse_rag.qdrant import open_client
    from gircse_rag.qdrant.stores import store_errors

    with closing(open_client(url=url)) as client, store_errors(client):
        return [Check("qdrant", "ok", f"{url}, {len(client.get_collections().collections)} collections")]
