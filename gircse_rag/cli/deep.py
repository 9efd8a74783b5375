"""The part of `gircse doctor --deep` that computes: runs the self-check, and makes the report that a user can file."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import gircse_rag
from gircse_rag.cli import options
from gircse_rag.cli.output import note
from gircse_rag.errors import InputError
from gircse_rag.files import atomic_write
from gircse_rag.redaction import redact


def deep_report(model: str, device: str, doctor: dict[str, str], libraries: dict[str, str | None]) -> dict[str, Any]:
    """Run the self-check and return its report, without texts, hosts and folder names.

    Args:
        doctor: states of the other checks by name; what they found names folders and hosts.
        libraries: versions by name, None if absent.

    Raises:
        CheckpointError: the model cannot be loaded.
        InputError: the device is not usable.
    """
    from gircse_rag.hardware import device_of

    torch_device = device_of(device)
    options.announce(model)
    from gircse_rag.selfcheck import self_check

    checks = []
    for finding in self_check(model, torch_device):
        found = _anonymous(finding.found, model)
        note(finding.state, f"{finding.name}: {found}")
        checks.append({**vars(finding), "found": found, "seconds": round(finding.seconds, 2)})
    own = {"gircse-rag": gircse_rag.__version__, "python": platform.python_version(), "system": platform.platform()}
    return {
        "ok": "broken" not in doctor.values() and all(check["state"] != "failed" for check in checks),
        "versions": own | libraries,
        "doctor": doctor,
        "device": _describe(torch_device),
        "model": "a local folder" if Path(model).expanduser().exists() else model,
        "checks": checks,
    }


def save(path: Path, report: dict[str, Any]) -> None:
    """Write a report.

    Raises:
        InputError: it could not be written.
    """
    try:
        with atomic_write(path) as scratch:
            scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}; no partial file was left") from error
    note("note", f"wrote {path}")


def _describe(device: Any) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"type": device.type, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found


def _anonymous(text: str, model: str) -> str:
    """`text` without credentials, the model's folder and the user's home."""
    for path, name in ((str(Path(model).expanduser()), "MODEL"), (str(Path.home()), "~")):
        if os.sep in path and path != os.sep:
            text = text.replace(path, name)
    return redact(text)
