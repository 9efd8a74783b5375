"""The build context of deploy/Dockerfile and deploy/vllm.Dockerfile and the secret of deploy/vllm-gpu.yaml."""

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


def build_wheel(source: Path, target: Path) -> set[str]:
    """Build the wheel of `source` in `target`; returns the names of its files."""
    target.mkdir()
    program = f"import hatchling.build; print(hatchling.build.build_wheel({str(target)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


@pytest.mark.slow
def test_the_build_context_makes_the_same_wheel_as_the_checkout(tmp_path: Path) -> None:
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
    assert build_wheel(context, tmp_path / "ours") == build_wheel(ROOT, tmp_path / "whole")


def test_the_manifests_secret_is_documented() -> None:
    manifest = (ROOT / "deploy" / "vllm-gpu.yaml").read_text()
    _, deployment = yaml.safe_load_all(manifest)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (secret,) = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry]
    command = f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}="
    assert command in manifest
    assert command in (ROOT / "docs/operate/vllm.md").read_text()
