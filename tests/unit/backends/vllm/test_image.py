"""What deploy/Dockerfile copies into the image, and what deploy/vllm-gpu.yaml asks of the cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.skipif(not (ROOT / "deploy").is_dir(), reason="needs a checkout")


def wheel(source: Path, target: Path) -> set[str]:
    """The names in the wheel that is built there."""
    target.mkdir()
    program = f"import hatchling.build; print(hatchling.build.build_wheel({str(target)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_image_gets_what_the_wheel_is_made_of_and_nothing_else(tmp_path: Path) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    context = tmp_path / "context"
    context.mkdir()
    for kept in (line.removeprefix("!") for line in lines if line.startswith("!")):
        path = ROOT / kept
        if path.is_dir():
            shutil.copytree(path, context / kept, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, context / kept)
    assert wheel(context, tmp_path / "ours") == wheel(ROOT, tmp_path / "whole")


def test_every_secret_of_the_manifest_is_one_that_we_say_how_to_make() -> None:
    manifest = (ROOT / "deploy" / "vllm-gpu.yaml").read_text()
    _, deployment = yaml.safe_load_all(manifest)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (secret,) = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry]
    command = f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}="
    assert command in manifest
    assert command in (ROOT / "docs/operate/vllm.md").read_text()
