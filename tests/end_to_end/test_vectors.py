"""The bundled model's vectors do not change: bit-equal on the machine that recorded them, close elsewhere.

python -m tests.end_to_end.test_vectors     records them again after an intended change
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gircse_rag import Embedder
from tests.unit.engine.test_decoder import needs_float16_products

VECTORS = Path(__file__).with_name("vectors.npz")
RECORD = VECTORS.with_suffix(".json")
"""The texts, how many of them are also queries, their instruction, and the machine that recorded VECTORS."""
FLAGS = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"}


def machine() -> dict[str, object]:
    """Properties that determine the arithmetic: machines with equal properties compute equal bits."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        **{name: fields.get(name) for name in ("vendor_id", "cpu family", "model", "stepping")},
        "flags": sorted(FLAGS & set(fields.get("flags", "").split())),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def embed(dtype: str) -> dict[str, NDArray[np.float32]]:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    with Embedder.from_pretrained("smollm2-135m", dtype=dtype, device="cpu") as embedder:
        return {
            f"documents_{dtype}": embedder.embed_documents(record["texts"]),
            f"queries_{dtype}": embedder.embed_queries(
                record["texts"][: record["queries"]], instruction=record["instruction"]
            ),
        }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: the order of a sum, and so its last bits, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=needs_float16_products)])
def test_the_vectors_of_the_bundled_model_stay_bit_equal(dtype: str, one_thread: None) -> None:
    recorded_here = json.loads(RECORD.read_text(encoding="utf-8"))["machine"] == machine()
    with np.load(VECTORS) as stored:
        for name, vectors in embed(dtype).items():
            expected = stored[name]
            if recorded_here:
                assert np.array_equal(vectors, expected), f"{name} changed"
            elif dtype == "bfloat16":
                assert (vectors * expected).sum(axis=1).min() > 0.999, name
            else:  # float16 weights are multiplied in float32
                np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.model
@needs_float16_products
def test_float16_weights_change_vectors_by_rounding_only(one_thread: None) -> None:
    float32, float16 = embed("float32"), embed("float16")
    for name, exact in float32.items():
        found = float16[name.replace("float32", "float16")].astype(np.float64)
        assert (1 - (found * exact).sum(axis=1)).max() < 1e-6, name


def main() -> None:
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text(encoding="utf-8")) | {"machine": machine()}
    arrays: dict[str, Any] = embed("float32") | embed("bfloat16") | embed("float16")
    np.savez_compressed(VECTORS, **arrays)
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
