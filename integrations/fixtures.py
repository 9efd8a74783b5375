"""Fixtures of the integrations' tests: the repository's tiny models, and a backend that records prompts."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from gircse_rag import Embedder
from gircse_rag.backend import Backend, Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.errors import GircseError
from tests.conftest import smollm2, tiny_embedder, tiny_folder  # noqa: F401
from tests.end_to_end.test_documentation import blocks

ROOT = Path(__file__).parents[1]

INSTRUCTION = "Given a topic, retrieve texts about it"
TEXTS = ["gzip compresses files", "a heap is a tree", '"quoted" (note)']


class RecordingBackend:
    """A real backend that records every prompt. It announces each call in `arrived` and computes once `gate` is set."""

    def __init__(self, backend: Backend, embedder: Embedder) -> None:
        self._backend = backend
        self._tokenizer = embedder.tokenizer
        self.dimension = backend.dimension
        self.prompts: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        requests = list(requests)
        self.prompts += [self._tokenizer.decode(request.token_ids) for request in requests]
        self.arrived.release()
        assert self.gate.wait(60)
        return self._backend.refine(requests)

    def check_integrity(self) -> None:
        """Check that no call left KV-cache blocks allocated in the paged engine."""
        if isinstance(self._backend, PagedBackend):
            self._backend._blocks.check_integrity([])

    def close(self) -> None:
        self._backend.close()


@pytest.fixture
def recording_backend(tiny_embedder: Embedder) -> Iterator[RecordingBackend]:  # noqa: F811
    """Record the requests to `tiny_embedder`."""
    tiny_embedder.backend = RecordingBackend(tiny_embedder.backend, tiny_embedder)
    yield tiny_embedder.backend
    tiny_embedder.backend.gate.set()


def render_query(embedder: Embedder, text: str, instruction: str | None = None) -> str:
    """Render a query with its instruction, or with the spec's default."""
    spec = embedder.spec
    return spec.query_template.format(instruction=instruction or spec.default_instruction, text=text)


def run_page(page: Path, folder: Path) -> str:
    """Run the Python blocks of a page unchanged, as one program in `folder`. Returns its standard output."""
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(page, "python"))],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def imported_packages(module: str) -> set[str]:
    """Import `module` in a fresh interpreter. Returns the top-level packages that are then loaded."""
    program = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )
