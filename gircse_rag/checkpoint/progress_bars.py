"""Hide the progress bars of transformers while it reads and writes local files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide "Loading weights" and "Writing model shards". Bars of downloads come from huggingface_hub and stay."""
    previous = logging.set_tqdm_hook(lambda factory, args, options: factory(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)
