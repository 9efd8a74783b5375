"""The Kubernetes manifest starts a server that exists: vLLM's own parser takes its arguments."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_vllm_understands_the_manifests_arguments() -> None:
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
