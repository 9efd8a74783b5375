"""`gircse doctor --deep` with the shipped model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import gircse

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif("GIRCSE_SOAK_KILLS" not in os.environ, reason="two minutes: part of `make soak`"),
]


def test_doctor_computes_with_the_shipped_model(tmp_path: Path) -> None:
    """On the CPU, in every dtype that it has; the CUDA parts are skipped with a reason."""
    doctor = gircse("doctor", "--deep", "--device", "cpu", "--json", cwd=tmp_path)
    assert doctor.returncode == 0, doctor.stderr
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    exact = checks["congruence, float32"]
    assert exact["state"] == "passed" and max(exact["figures"].values()) <= 1e-6
    assert all(check["state"] == "passed" or check["found"] for check in checks.values())
    assert checks["speed"]["figures"]["engine documents/s"] > 0
