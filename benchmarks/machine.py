"""Measure the machine itself, and keep it idle during measurements."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gircse_rag.engine.products import Form, Product, make_product, packed_form


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Measure wall-clock and CPU seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


@contextmanager
def idle(arguments: argparse.Namespace) -> Iterator[None]:
    """Hold the machine exclusively, if all its users take the same two locks; then sleep, so that others can start.

    The gate is taken first, so that nobody starts while we wait for the current holders of the lock.
    """
    if arguments.idle_lock is None:
        yield
        return
    gate = arguments.idle_gate or arguments.idle_lock.with_name(f"{arguments.idle_lock.name}.gate")
    with gate.open("a") as outer, arguments.idle_lock.open("a") as inner:
        fcntl.flock(outer, fcntl.LOCK_EX)
        fcntl.flock(inner, fcntl.LOCK_EX)
        yield
    time.sleep(arguments.rest)


def peak_gflops(dtype: str, device: str = "cpu") -> float:
    """Speed of a large matrix product in a dtype: median of nine runs, the best of two shapes and two libraries.

    On a CPU the libraries are torch's BLAS and oneDNN, because MKL uses no AVX-512 on AMD's processors. float16 means
    float32 there, because only the weights are float16.
    """
    on_gpu = torch.device(device).type == "cuda"
    kind = getattr(torch, dtype if on_gpu or dtype == "bfloat16" else "float32")

    def product(rows: int, width: int) -> float:
        a, b = (torch.randn(size, width, device=device).to(kind) for size in (rows, width))
        forms = {Form.PLAIN, packed_form(b)}
        return max(2 * rows * width * width / _product_seconds(a, make_product(b, None, form)) / 1e9 for form in forms)

    return max(product(8192, 8192), product(16384, 8192)) if on_gpu else max(product(1024, 2048), product(2048, 2048))


def _product_seconds(rows: Tensor, multiply: Product) -> float:
    def work() -> None:
        multiply(rows)
        if rows.is_cuda:
            torch.cuda.synchronize()

    work()
    return statistics.median(timed(work)["wall"] for _ in range(9))


def copy_gb_per_second() -> float:
    """Memory bandwidth: a large copy, median of nine runs; counts bytes read and bytes written."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / statistics.median(timed(lambda: target.copy_(source))["wall"] for _ in range(9)) / 1e9


def processor() -> str:
    """Name of the processor according to lscpu."""
    try:
        output = subprocess.run(["lscpu", "--json"], capture_output=True, text=True, check=True).stdout
        fields = {field["field"]: field["data"] for field in json.loads(output)["lscpu"]}
        return str(fields["Model name:"])
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return platform.processor() or platform.machine()


def facts(arguments: argparse.Namespace, *, measure: bool) -> dict[str, Any]:
    """Describe the machine: processor, load, and (if `measure`) its speed with the run's number of threads."""
    found: dict[str, Any] = {"processor": processor(), "cpus": os.cpu_count(), "load_before": os.getloadavg()}
    found["instructions"] = torch.backends.cpu.get_cpu_capability()  # AVX2 where the environment forbids more
    if measure:
        torch.set_num_threads(arguments.threads)
        with idle(arguments):
            found |= {"peak_gflops": peak_gflops(arguments.dtype), "copy_gb_per_second": copy_gb_per_second()}
    return found
