"""Memory of the paged backend: each weight is stored once, and the cache fits the longest text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from gircse_rag.backends import paged as module
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.engine.products import Form
from gircse_rag.spec import MAX_STEPS
from tests import tiny
from tests.unit.backends.test_paged import SPEC, assert_same, requests


def storage_bytes(*owners: Any) -> int:
    """Bytes of all tensor storages that the owners reach through attributes, closures and containers, counted once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(owners)
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, functools.partial):
            waiting += [*item.args, *item.keywords.values()]
        elif hasattr(item, "__closure__"):
            waiting += [cell.cell_contents for cell in item.__closure__ or ()]
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            waiting += vars(item).values()
    return sum(found.values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_merged_weights_are_not_stored_twice(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Merging comes before the cache is sized from the free memory."""
    model = tiny.model(family)
    batch = requests(2, 4)
    expected = dict(ReferenceBackend(model).refine(batch))
    before, original = storage_bytes(model), module._default_cache_bytes
    merged: list[bool] = []

    def record_merge(*arguments: Any) -> int:
        first, second = (getattr(model.model.layers[-1].mlp, name).weight for name in ("gate_proj", "up_proj"))
        merged.append(first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr())
        return original(*arguments)

    monkeypatch.setattr(module, "packed_form", lambda weight: Form.PLAIN)
    monkeypatch.setattr(module, "_default_cache_bytes", record_merge)
    paged = PagedBackend(model, SPEC)
    assert merged == [True]
    assert storage_bytes(model, paged._engine.runner.decoder) <= 1.02 * before  # 2% for merged biases
    assert_same(dict(paged.refine(batch)), expected)
    assert_same(dict(ReferenceBackend(model).refine(batch)), expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_the_default_cache_holds_the_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_CACHE_BYTES", 1000)
    blocks = PagedBackend(tiny.model(), SPEC)._blocks
    assert blocks.fits(SPEC.max_length + MAX_STEPS)


def test_page_cache_memory_counts_as_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  24684092 kB\nMemFree:  5522812 kB\nMemAvailable:  9135100 kB\n")
    monkeypatch.setattr(module, "MEMINFO", meminfo)
    assert module._available_bytes() == 9135100 * 1024
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "nothing")
    assert module._available_bytes() >= 0
