"""The pip command that installs an extra of this copy of gircse-rag: `install_command`."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

_ROOT = Path(__file__).resolve().parents[1]
"""The clone, if the package runs from one."""


def install_command(extra: str) -> str:
    """The pip command that installs the optional dependency group `extra`.

    In a clone, and in an environment into which pip installed a clone, it names the clone and its constraints, because
    the package index may have no release. Otherwise it names the package.
    """
    editable = (_ROOT / "pyproject.toml").is_file()
    source = _ROOT if editable else _installed_from()
    if source is None or not (source / "pyproject.toml").is_file():
        return f'pip install "gircse-rag[{extra}]"'
    constraints = source / "constraints.txt"
    pins = f"-c {shlex.quote(str(constraints))} " if constraints.is_file() else ""
    return f"pip install {pins}{'-e ' if editable else ''}{shlex.quote(f'{source}[{extra}]')}"


def _installed_from() -> Path | None:
    """The folder from which pip installed this package, which pip records in direct_url.json."""
    try:
        url = urlparse(json.loads(distribution("gircse-rag").read_text("direct_url.json") or "{}").get("url", ""))
    except (PackageNotFoundError, ValueError, AttributeError):
        return None
    return Path(unquote(url.path)) if url.scheme == "file" else None
