"""The files in deploy/ agree with the server: routes, options, metrics, secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import typer
import yaml

from gircse_rag.cli.app import app
from gircse_rag.serving.settings import Settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="needs a checkout")


def parse_serve(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line as `gircse` does; a wrong option raises."""
    command: Any = typer.main.get_command(app)
    assert arguments[0] == "serve"
    serve = command.commands["serve"]
    context: click.Context = serve.make_context("serve", arguments[1:])
    assert not context.args, f"unknown options: {context.args}"
    return context.params


def test_compose_starts_the_server_that_exists() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    options = parse_serve(services["gircse"]["command"])
    assert options["url"] == "http://qdrant:6333" and options["host"] == "0.0.0.0"
    assert services["gircse"]["ports"] == [f"127.0.0.1:{options['port']}:{options['port']}"]
    assert {"GIRCSE_API_KEY", "QDRANT_API_KEY"} <= services["gircse"]["environment"].keys()
    assert int(services["gircse"]["stop_grace_period"].removesuffix("s")) > 30
    assert (DEPLOY / services["gircse"]["build"]["dockerfile"].removeprefix("deploy/")).exists()


def test_kubernetes_probes_routes_that_exist(http: httpx.Client) -> None:
    manifest = (DEPLOY / "kubernetes.yaml").read_text()
    _, deployment = yaml.safe_load_all(manifest)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = parse_serve(container["args"])
    assert options["port"] == container["ports"][0]["containerPort"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert http.get(container[probe]["httpGet"]["path"]).status_code == 200
    (secret,) = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry]
    assert f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}=" in manifest
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def test_the_image_runs_a_command_and_probes_a_route_that_exist(http: httpx.Client) -> None:
    lines = (DEPLOY / "Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (\[.*\])$", lines, re.M)
    assert parse_serve(json.loads(command))["port"] == 8000
    (probed,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", lines)
    assert http.get(probed).status_code == 200
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert "constraints.txt" in kept
    (extras,) = re.findall(r"/src\[(.*)\]", lines)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras.split(","))


def test_the_balancer_asks_a_route_that_exists_and_waits_longer_than_the_servers(http: httpx.Client) -> None:
    config = (DEPLOY / "haproxy.cfg").read_text()
    (probed,) = re.findall(r"httpchk GET (/\w+)", config)
    assert http.get(probed).status_code == 200
    waits = dict(re.findall(r"timeout (\w+) (\d+)s", config))
    assert min(int(waits["client"]), int(waits["server"])) > Settings(model="a model").timeout
    commands = re.findall(r"^#   gircse (serve .*)$", config, re.M)
    ports = {f"127.0.0.1:{parse_serve(command.split())['port']}" for command in commands}
    assert ports == set(re.findall(r"^    server \w+ (\S+)$", config, re.M)) and len(ports) == 2


def test_the_dashboard_shows_metrics_that_exist(http: httpx.Client) -> None:
    http.post("/v1/embeddings", json={"input": "a text"})
    http.get("/ready")  # an answered request is counted after its answer
    exported = set(re.findall(r"^(gircse_\w+)", http.get("/metrics").text, re.M))
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    shown = {
        metric
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for metric in re.findall(r"gircse_\w+", target["expr"])
    }
    assert len(shown) >= 12 and shown <= exported
