"""requirements-cpu.txt, which `make lock` writes: complete, hashed, and of the versions in constraints.txt."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
EXTRAS = ("", "readers", "html", "pdf", "parquet", "code", "sentences", "edge", "eval", "train")
UNCONSTRAINED = {"pip", "setuptools"}


def _pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[\w,]+\])?==([\w.+!-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_every_requirement_has_a_hash() -> None:
    text = (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8")
    requirements = [part for part in re.split(r"\n(?=\w)", text) if not part.startswith("#")]
    assert len(requirements) == len(_pins(ROOT / "requirements-cpu.txt")) > 90
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_the_versions_are_those_of_the_constraints() -> None:
    pins, constraints = _pins(ROOT / "requirements-cpu.txt"), _pins(ROOT / "constraints.txt")
    assert pins.keys() - constraints.keys() <= UNCONSTRAINED
    differing = {
        name: (version, constraints[name])
        for name, version in pins.items()
        if name in constraints and Version(version).public != constraints[name]
    }
    assert not differing, "run `make lock`"


def test_every_direct_requirement_is_pinned() -> None:
    pins = _pins(ROOT / "requirements-cpu.txt")
    for requirement in map(Requirement, requires("gircse-rag") or []):
        marker = requirement.marker
        needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS)
        if needed and requirement.name != "gircse-rag":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), "run `make lock`"
