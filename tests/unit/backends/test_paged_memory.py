"""What the paged backend holds: each weight once, a cache that the longest text fits, of the memory that is free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gircse_rag.backends import paged as module
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.spec import MAX_STEPS
from tests import tiny
from tests.unit.backends.test_paged import SPEC, assert_same, requests


def stored(*modules: torch.nn.Module) -> int:
    """Bytes of the storages behind all their parameters and plain tensors, each counted once."""
    found = {}
    for part in (part for whole in modules for part in whole.modules()):
        tensors = [*part.parameters(recurse=False), *(v for v in vars(part).values() if isinstance(v, torch.Tensor))]
        found |= {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_merged_weights_are_not_held_twice(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And are merged before the cache is sized, by what is then free."""
    model = tiny.model(family)
    asked = requests(2, 4)
    expected = dict(ReferenceBackend(model).refine(asked))
    before, sized = stored(model), module._default_cache_bytes
    merged: list[bool] = []

    def sizing(*arguments: Any) -> int:
        first, second = (getattr(model.model.layers[-1].mlp, name).weight for name in ("gate_proj", "up_proj"))
        merged.append(first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr())
        return sized(*arguments)

    monkeypatch.setattr(module, "can_pack", lambda weight: False)
    monkeypatch.setattr(module, "_default_cache_bytes", sizing)
    paged = PagedBackend(model, SPEC)
    assert merged == [True]
    assert stored(model, paged._engine.runner._body) <= 1.02 * before  # the rest: merged biases
    assert_same(dict(paged.refine(asked)), expected)
    assert_same(dict(ReferenceBackend(model).refine(asked)), expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_the_default_cache_holds_the_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_CACHE_BYTES", 1000)
    blocks = PagedBackend(tiny.model(), SPEC)._blocks
    assert blocks.fits(SPEC.max_length + MAX_STEPS)


def test_memory_that_holds_files_counts_as_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  24684092 kB\nMemFree:  5522812 kB\nMemAvailable:  9135100 kB\n")
    monkeypatch.setattr(module, "MEMORY", told)
    assert module._available_bytes() == 9135100 * 1024
    monkeypatch.setattr(module, "MEMORY", tmp_path / "nothing")
    assert module._available_bytes() >= 0
