"""The paged engine and the reference give the same vectors on the real model, whatever the schedule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.checkpoint import Checkpoint, load_checkpoint
from gircse_rag.engine.kv_cache import bytes_per_block
from gircse_rag.prompts import DEFAULT_INSTRUCTION
from tests.unit.backends.test_paged import refinements

pytestmark = pytest.mark.model

SENTENCES = [
    "The committee postponed its vote on the maintenance of parks until spring: members wanted the costs in detail.",
    "Insulin lowers blood sugar by moving glucose into muscle and fat; without it the body starves amid plenty.",
    "A B-tree keeps its keys sorted, and splits a full node in two, so that every leaf stays at the same depth.",
    "Call `git rebase --onto main topic~3 topic` to move the last three commits of topic onto main.",
    "The whale surfaced twice beside the boat before it dived, and nobody aboard thought of taking a photograph.",
    "Returns the eigenvalues of a Hermitian matrix in ascending order; raises LinAlgError if they do not converge.",
    "Beethoven's last quartet ends with a question set to music: must it be? It must be.",
    "Tectonic plates drift a few centimetres a year, about as fast as fingernails grow.",
]

MIXES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "small chunks, few at once": {"token_budget": 37, "max_running": 5, "block_size": 16},
    "preemption": {"rows": 285, "block_size": 1},
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint("smollm2-135m", dtype=torch.float32, device="cpu")


def make_requests(checkpoint: Checkpoint, number: int, *, longest: int = 7) -> list[Request]:
    """Documents of 1-`longest` sentences and queries with one instruction; K from 1 to 5."""
    rng = random.Random(number)
    requests = []
    for i in range(number):
        body = " ".join(rng.choices(SENTENCES, k=rng.choice([1, 2, longest]))) if i % 2 else rng.choice(SENTENCES)[:40]
        template = checkpoint.spec.document_template if i % 2 else checkpoint.spec.query_template
        text = template.format(text=body, instruction=DEFAULT_INSTRUCTION)
        ids = checkpoint.tokenizer(text, add_special_tokens=False).input_ids
        requests.append(Request(tuple(ids), rng.choice([1, 3, 5])))
    return requests


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> dict[int, Refinement]:
    return refinements(dict(ReferenceBackend(checkpoint.model).refine(make_requests(checkpoint, 14))))


@pytest.mark.parametrize("mix", MIXES)
def test_float32_equals_the_reference(checkpoint: Checkpoint, expected: dict[int, Refinement], mix: str) -> None:
    options = dict(MIXES[mix])
    if rows := options.pop("rows", None):
        options["cache_bytes"] = rows * bytes_per_block(checkpoint.model.config, 1, torch.float32)
    backend = PagedBackend(checkpoint.model, checkpoint.spec, **options)
    requests = make_requests(checkpoint, 14)
    order = list(range(14))
    for seed in range(2):  # the second pass has another order and prefix hits
        random.Random(seed).shuffle(order)
        for position, found in backend.refine([requests[index] for index in order]):
            assert isinstance(found, Refinement), found
            reference = expected[order[position]].trajectory
            assert (found.trajectory * reference).sum(-1).min() >= 0.99999
            assert np.abs(found.trajectory - reference).max() <= 1e-3
    scheduler = backend._engine.scheduler
    scheduler.check_integrity()
    assert scheduler.blocks.num_hits > 0
    assert (scheduler.num_preemptions > 0) == (mix == "preemption")


def test_bfloat16_error_is_comparable_to_the_references(
    checkpoint: Checkpoint, expected: dict[int, Refinement]
) -> None:
    half = load_checkpoint("smollm2-135m", dtype=torch.bfloat16, device="cpu")
    requests = make_requests(checkpoint, 14)
    backend = PagedBackend(half.model, half.spec)
    distances = {
        "reference": distance(dict(ReferenceBackend(half.model).refine(requests)), expected),
        "together": distance(dict(backend.refine(requests)), expected),
        "one by one, in sweeps": distance(
            {index: outcome for index, request in enumerate(requests) for _, outcome in backend.refine([request])},
            expected,
        ),
    }
    assert max(distances.values()) <= 2 * distances["reference"], distances


def distance(found: dict[int, Any], expected: dict[int, Refinement]) -> float:
    """Mean of 1 - cos between the last vectors."""
    return float(np.mean([1 - found[index].vector @ expected[index].vector for index in expected]))
