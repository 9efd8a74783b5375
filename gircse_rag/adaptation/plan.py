"""Settings of a run, chosen from the size of the data and the time; kept on disk, so that a killed run goes on.

The time is divided so: embedding the pool before and after takes a third, training and its checks take the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.files import atomic_write

POOL_SHARE = 0.15
"""Share of the time that embedding the pool takes, before and again after."""
LARGEST_POOL = 3_000
SMALLEST_POOL = 200
LONGEST = 256
"""Tokens per text in training. Longer chunks are cut there to save time; the report ranks whole chunks."""
RATE, SHORT_RATE, FRESH_RATE = 2e-4, 6e-4, 1e-3
"""Learning rates: of a trained adapter, the same for at most `FEW_STEPS` steps, and of a fresh one."""
FEW_STEPS = 60
TEMPERATURE, FRESH_TEMPERATURE = 0.04, 0.02
"""Temperatures of the loss: symmetric for a trained adapter, as in the paper for a fresh one. Symmetric, at 0.04 and
`SHORT_RATE`, nDCG@10 gained 4.8 points on JavaScript questions and 1.0 on a bank's FAQ (84 questions each); as in the
paper and at 3e-4, 2.9 and 1.3 (among 350 chunks)."""
_TRAIN_TOKENS = 4.0
"""A training step takes this many times as long per token as embedding: two passes forward, one backward."""
_FIXED_SECONDS = 30.0
"""Loading the model three times, BM25, and writing the report."""
CHECKS = 3
"""Checks during training, besides one before it and two after it."""


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    Attributes:
        digest: of documents, pairs, model and arguments: only a run of the same ones may go on.
        pool: chunks that are embedded before and after.
        seconds_per_chunk: to embed one, measured on a sample.
        rows: training rows in total, including rehearsal and repetitions.
        batch_size, learning_rate, temperature, symmetric, max_length: see `TrainConfig`.
        check_rows: rows between two checks.
        check_passages: chunks that a check ranks.
        train_seconds: limit for training and checks; None for none.
    """

    digest: str
    pool: int
    seconds_per_chunk: float
    rows: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    temperature: float = FRESH_TEMPERATURE
    symmetric: bool = False
    max_length: int = 0
    check_rows: int = 0
    check_passages: int = 0
    train_seconds: float | None = None

    def save(self, path: Path) -> None:
        """Write the plan.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as scratch:
                scratch.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"could not write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path, digest: str) -> Plan | None:
        """Read a plan; None if there is none.

        Raises:
            CheckpointError: it belongs to other data or arguments, or is damaged.
        """
        try:
            plan = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete {path.parent} to start over") from error
        if plan.digest != digest:
            raise CheckpointError(
                f"{path.parent} belongs to an unfinished run with other documents, pairs or options; delete it, or "
                "choose another output folder"
            )
        return plan


def pool_size(chunks: int, seconds_per_chunk: float, minutes: float | None) -> int:
    """How many chunks to embed before and after."""
    limit = LARGEST_POOL if minutes is None else int(POOL_SHARE * 60 * minutes / seconds_per_chunk)
    return min(chunks, max(SMALLEST_POOL, min(LARGEST_POOL, limit)))


def choose_settings(
    plan: Plan,
    *,
    questions: int,
    max_length: int,
    fresh: bool,
    chunk_tokens: Sequence[int],
    question_tokens: Sequence[int],
    minutes: float | None,
    spent: float,
) -> Plan:
    """Choose rows, batch size and rate.

    Args:
        plan: with the size of the pool and the time per chunk.
        questions: number of training questions.
        max_length: of the model.
        fresh: whether the adapter is new, because the model has none.
        chunk_tokens, question_tokens: lengths of the pool's chunks, and of questions.
        minutes: time budget; None for no limit.
        spent: seconds since the start.
    """
    max_length = min(max_length, LONGEST)
    per_token = plan.seconds_per_chunk / mean(chunk_tokens)
    cut_tokens = mean(min(tokens, max_length) for tokens in chunk_tokens)
    epochs = 8 if questions < 100 else 6 if questions < 400 else 3
    batch_size = 8 if questions < 64 else 16 if questions < 128 else 32
    rows, seconds, passages = questions * epochs, None, 400
    if minutes is not None:
        after = len(chunk_tokens) * plan.seconds_per_chunk
        seconds = max(0.25 * 60 * minutes, 60 * minutes - spent - after - _FIXED_SECONDS)
        per_row = _TRAIN_TOKENS * per_token * (mean(question_tokens) + 2 * cut_tokens)
        rows = min(rows, int(0.7 * seconds / per_row))
        passages = int(0.3 * seconds / (CHECKS + 3) / (per_token * cut_tokens))
    rows = max(2 * batch_size, rows)
    return replace(
        plan,
        rows=rows,
        batch_size=batch_size,
        learning_rate=FRESH_RATE if fresh else RATE if rows > FEW_STEPS * batch_size else SHORT_RATE,
        temperature=FRESH_TEMPERATURE if fresh else TEMPERATURE,
        symmetric=not fresh,
        max_length=max_length,
        check_rows=max(batch_size, rows // CHECKS),
        check_passages=max(50, min(400, passages)),
        train_seconds=seconds,
    )
