"""Texts of the checks, and the two ways to embed them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.checkpoint import Checkpoint
from gircse_rag.embedder import Embedder

Vectors = dict[str, NDArray[np.float32]]  # by role

SAMPLE = 8  # documents, and as many queries, whose vectors are compared
SENTENCES = (
    "A prefix cache keeps the keys and values of an instruction that many questions share.",
    "The harbour freezes in January, and the ferries wait for the thaw.",
    "zipfile.ZipFile reads archives and writes them.",
    "Insulin moves glucose from the blood into the cells of muscle and fat.",
    "The committee met twice, found no fault with the accounts, and adjourned until the autumn.",
    "An octave is the interval between one pitch and another with twice its frequency.",
    "Rust's borrow checker rejects programs in which two references could write to one value.",
    "Die Straße führt am Fluss entlang bis zur alten Mühle.",
)


def engine(checkpoint: Checkpoint, **options: Any) -> Embedder:
    return Embedder(PagedBackend(checkpoint.model, checkpoint.spec, **options), checkpoint.tokenizer, checkpoint.spec)


def reference(checkpoint: Checkpoint) -> Embedder:
    spec = checkpoint.spec
    backend = ReferenceBackend(checkpoint.model, temperature=spec.temperature, pools_prompt=spec.pools_prompt)
    return Embedder(backend, checkpoint.tokenizer, spec)


def sample_texts(number: int, role: str) -> list[str]:
    """Documents of one to five sentences, the first one longer than a page of the cache; queries of some words."""
    rng = random.Random(0)
    if role == "query":
        return [" ".join(rng.sample(rng.choice(SENTENCES).split(), 4)) for _ in range(number)]
    sizes = [24, *(rng.randint(1, 5) for _ in range(number - 1))]
    return [" ".join(rng.choices(SENTENCES, k=size)) for size in sizes]


def sample_vectors(embedder: Embedder, size: int = SAMPLE) -> Vectors:
    """Vectors of eight documents and eight queries, `size` texts per call."""
    vectors = {}
    for role in ("document", "query"):
        texts = sample_texts(SAMPLE, role)
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        vectors[role] = np.concatenate([embedder.embed(part, role=role).vectors for part in parts])
    return vectors


def distance(found: Vectors, expected: Vectors) -> float:
    """Largest 1 - cos over all texts."""
    cosines = [(found[role].astype(np.float64) * expected[role]).sum(axis=1).min() for role in expected]
    return max(0.0, float(1 - np.min(cosines)))
