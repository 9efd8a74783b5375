"""What a training run is made of: the keys of a training YAML, with their defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gircse_rag.deprecation import rename_keys
from gircse_rag.errors import InputError, require
from gircse_rag.spec import MAX_STEPS
from gircse_rag.training.unrolled import Pooling

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RENAMED = {"level_gradients": "clip_text_gradients"}
"""Old key -> new key, accepted with a DeprecationWarning."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        output: folder of the run: adapter, state to resume from, log.
        data: JSONL files, or folders of them.
        tasks: the tasks.json that names each task's instruction.
        model: what to train on: a bundled name, a folder or a Hub id, without an adapter.
        adapter: a PEFT folder, or a bundled name, to start from; its rank and targets are taken over; None for a
            fresh one.
        pooling: "refine" is GIRCSE; "last" and "mean" are the encoder-style baselines.
        steps: K, or [low, high]: each batch draws its K from this range.
        rows: rows to see in all, over as many epochs as that takes.
        mixture: {task: factor} to thin or repeat a task's rows; tasks not named count once.
        batch_size: rows a batch, over all processes: each row's passages are every other row's negatives.
        chunk_tokens: prompt tokens at a time (gradient caching): a larger batch goes through the model in parts, twice,
            so that memory is bound by this and not by batch_size; None for all at once.
        learning_rate: its plateau; linear warm-up over `warmup_rows` (at most a fifth of `rows`), linear decay to 0
            over the last `decay_rows` (at most half of `rows`).
        max_gradient: gradients are clipped to this norm.
        clip_text_gradients: see `UnrolledRefinement`; the paper does not clip per text.
        temperature, reg_weight, symmetric, near_equal, dimensions: see `icr_loss`.
        rank, alpha, targets: of a fresh LoRA adapter.
        max_length: prompt tokens at most, in training and in the spec that is saved.
        save_rows: a resumable state is saved each time so many rows have been seen.
        dtype: of the matrix products; adapter and optimiser are float32.
        device: "auto", "cpu" or "cuda".
        seed: of the adapter's first weights, the order of rows, and the draws of K.
    """

    output: str
    data: tuple[str, ...]
    tasks: str
    model: str = "smollm2-135m-base"
    adapter: str | None = None
    pooling: Pooling = "refine"
    steps: int | tuple[int, int] = 5
    rows: int
    mixture: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 64
    chunk_tokens: int | None = None
    learning_rate: float = 1e-3
    warmup_rows: int = 2_000
    decay_rows: int = 10_000
    weight_decay: float = 0.0
    max_gradient: float = 1.0
    clip_text_gradients: bool = False
    temperature: float = 0.02
    reg_weight: float = 1.0
    symmetric: bool = False
    near_equal: float | None = None
    dimensions: tuple[int, ...] | None = None
    rank: int = 16
    alpha: int = 64
    targets: tuple[str, ...] = field(default=TARGETS)
    max_length: int = 512
    save_rows: int = 5_000
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "batch_size", "save_rows", "rank", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "temperature", "max_gradient", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        for name in ("warmup_rows", "decay_rows", "weight_decay", "reg_weight", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        low, high = self.step_range
        if not 1 <= low <= high <= MAX_STEPS:
            raise InputError(f"steps is {self.steps}; it must be K from 1 to {MAX_STEPS}, or [low, high]")
        outside = [target for target in self.targets if target.rpartition(".")[2] not in TARGETS]
        if outside or not self.targets:
            raise InputError(f"targets is {list(self.targets)}; they may be {', '.join(TARGETS)}")
        if self.pooling not in ("refine", "last", "mean"):
            raise InputError(f"pooling is {self.pooling!r}; it must be refine, last or mean")
        if self.dtype not in ("auto", "float32", "bfloat16"):  # float16 would need its loss scaled
            raise InputError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise InputError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1, or null")

    @property
    def step_range(self) -> tuple[int, int]:
        """The lowest and highest K."""
        return (self.steps, self.steps) if isinstance(self.steps, int) else self.steps

    def rate(self, cursor: int, started: int = 0) -> float:
        """Learning rate for the batch that starts at row `cursor`, with an optimiser that began at row `started`."""
        # Capped, so that a short run reaches its rate with the defaults of a long one.
        warmup_rows, decay_rows = min(self.warmup_rows, self.rows / 5), min(self.decay_rows, self.rows / 2)
        warm = min(1.0, (cursor - started + self.batch_size) / warmup_rows) if warmup_rows else 1.0
        decay = min(1.0, (self.rows - cursor) / decay_rows) if decay_rows else 1.0
        return self.learning_rate * warm * max(0.0, decay)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From a mapping, as YAML gives it.

        Raises:
            InputError: a key does not exist or is missing, or a value is of another type or out of range.
        """
        values = rename_keys(values, RENAMED)
        known = {item.name for item in fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise InputError(
                f"unknown key {', '.join(unknown)} in the training config; known: {', '.join(sorted(known))}"
            )
        required = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
        if missing := sorted(required - set(values)):
            raise InputError(f"the training config lacks {', '.join(missing)}; it needs {', '.join(sorted(required))}")
        hints = get_type_hints(cls)
        cleaned = {key: _as(hints[key], value) for key, value in values.items()}
        for key, value in cleaned.items():
            if value is _UNFIT:
                wanted = str(getattr(hints[key], "__name__", hints[key])).replace("typing.", "")
                raise InputError(f"{key} is {values[key]!r} in the training config; it must be {wanted}")
        return cls(**cleaned)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """From a YAML file; relative paths in it are relative to the working directory.

        Raises:
            InputError: no such file, no YAML mapping, or not a training config (`of`).
        """
        yaml = require("yaml", "train")
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} holds no keys; a training config needs at least output, data, tasks and rows")
        return cls.of(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written beside the adapter."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def data_key(self) -> dict[str, Any]:
        """What fixes the order of rows and the adapter's shape: a state saved with other values is not this run's."""
        rows = ("data", "tasks", "mixture", "batch_size", "seed", "max_length")
        adapter = ("model", "adapter", "pooling", "rank", "alpha", "targets")
        return {key: value for key, value in self.to_dict().items() if key in rows + adapter}


_UNFIT = object()


def _as(hint: Any, value: Any) -> Any:
    """`value`, as YAML gives it, as `hint` wants it: a list as a tuple, 3e-4 (text, to YAML) as a number; or _UNFIT."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        found = (_as(choice, value) for choice in inner)
        return next((one for one in found if one is not _UNFIT), _UNFIT)
    if kind is Literal:
        return value if isinstance(value, str) else _UNFIT  # which words there are, __post_init__ says
    if kind is tuple:
        if inner[0] is str and isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            return _UNFIT
        parts = tuple(_as(inner[0], part) for part in value)
        return _UNFIT if _UNFIT in parts else parts
    if kind is Mapping:
        if not isinstance(value, Mapping):
            return _UNFIT
        made = {key: _as(inner[1], part) for key, part in value.items()}
        return _UNFIT if _UNFIT in made.values() else made
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            return _UNFIT
    if isinstance(value, bool) and hint is not bool:
        return _UNFIT
    return value if isinstance(value, hint) else _UNFIT
