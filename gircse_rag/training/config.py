"""The configuration of a training run: the keys of a training YAML, with their defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import BeforeValidator, TypeAdapter

from gircse_rag.deprecation import rename_keys
from gircse_rag.errors import InputError, require
from gircse_rag.spec import MAX_STEPS
from gircse_rag.training.lexical import Words
from gircse_rag.training.unrolled import Pooling

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RENAMED = {"level_gradients": "clip_text_gradients"}
"""Old key -> new key, accepted with a DeprecationWarning."""
_PARSE = BeforeValidator(lambda value: float(value) if isinstance(value, str) else value)
Number = Annotated[float, _PARSE]
"""A float. YAML 1.1 reads 3e-4, without a dot, as text."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Configuration of a training run.

    Attributes:
        output: folder for the adapter, the state to resume from and the log.
        data: JSONL files, or folders of them.
        tasks: a tasks.json with each task's instruction.
        model: base model: a bundled name, a folder or a Hub id, without an adapter.
        preset: "laser" or "laser-quickstart": how a `model` without gircse.json renders and pools
            (docs/understand/models.md). A Hub id of LaSER has its own; None otherwise means GIRCSE.
        adapter: PEFT folder or bundled name to start from, with its rank and targets; None for a fresh adapter.
        pooling: "refine" is GIRCSE; "last" and "mean" are the encoder-style baselines.
        steps: K, or [low, high]: each batch draws its K from this range.
        rows: total number of rows to train on, over as many epochs as necessary; the last batch is cut there.
        mixture: {task: factor} to thin out or repeat a task's rows; the default factor is 1.
        batch_size: maximum rows per batch, over all processes: each row's passages are every other row's negatives.
            A task's rows are cut into batches of nearly equal size: 180 rows at 32 are 6 batches of 30.
        chunk_tokens: prompt tokens per chunk (gradient caching): a larger batch goes through the model in chunks,
            twice, so memory depends on `chunk_tokens` and not on `batch_size`; None for the whole batch at once.
        learning_rate: peak rate; linear warm-up over `warmup_rows` (at most a fifth of `rows`), linear decay to 0
            over the last `decay_rows` (at most half of `rows`).
        max_gradient: gradients are clipped to this norm.
        clip_text_gradients: see `UnrolledRefinement`; the paper does not clip per text.
        temperature, reg_weight, symmetric, near_equal, dimensions: see `icr_loss`.
        lexical_weight: weight of `lexical_loss`, or [first, last]: it changes linearly over `rows`. 0 for none.
        lexical_words, lexical_prefixes, lexical_temperature: targets (`ContentWords`), supervised numbers of soft
            tokens, and temperature of the head (`lexical_loss`).
        teacher: folder of a Sentence Transformers model to distil beside the labels; None for none.
        teacher_weight, teacher_temperature: see `teacher_loss`.
        rank, alpha, targets: of a fresh LoRA adapter.
        max_length: maximum prompt tokens, in training and in the saved spec.
        save_rows: number of rows between two saved states.
        dtype: of the matrix products; adapter and optimiser are float32.
        device: "auto", "cpu" or "cuda".
        seed: of the adapter's initial weights, the order of rows, and the draws of K.
    """

    output: str
    data: tuple[str, ...]
    tasks: str
    model: str = "smollm2-135m-base"
    preset: str | None = None
    adapter: str | None = None
    pooling: Pooling = "refine"
    steps: int | tuple[int, int] = 5
    rows: int
    mixture: Mapping[str, Number] = field(default_factory=dict)
    batch_size: int = 64
    chunk_tokens: int | None = None
    learning_rate: Number = 1e-3
    warmup_rows: int = 2_000
    decay_rows: int = 10_000
    weight_decay: Number = 0.0
    max_gradient: Number = 1.0
    clip_text_gradients: bool = False
    temperature: Number = 0.02
    reg_weight: Number = 1.0
    symmetric: bool = False
    near_equal: Annotated[float | None, _PARSE] = None
    dimensions: tuple[int, ...] | None = None
    lexical_weight: Number | tuple[Number, Number] = 0.0
    lexical_words: Words = "both"
    lexical_prefixes: bool = False
    lexical_temperature: Number = 1.0
    teacher: str | None = None
    teacher_weight: Number = 2.0
    teacher_temperature: Number = 0.025
    rank: int = 16
    alpha: int = 64
    targets: tuple[str, ...] = TARGETS
    max_length: int = 512
    save_rows: int = 5_000
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "batch_size", "save_rows", "rank", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        temperatures = ("temperature", "lexical_temperature", "teacher_temperature")
        for name in ("learning_rate", "max_gradient", "alpha", *temperatures):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        for name in ("warmup_rows", "decay_rows", "weight_decay", "reg_weight", "teacher_weight", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        low, high = self.step_range
        if not 1 <= low <= high <= MAX_STEPS:
            raise InputError(f"steps is {self.steps}; it must be K from 1 to {MAX_STEPS}, or [low, high]")
        outside = [target for target in self.targets if target.rpartition(".")[2] not in TARGETS]
        if outside or not self.targets:
            raise InputError(f"targets is {list(self.targets)}; allowed are {', '.join(TARGETS)}")
        if self.pooling not in ("refine", "last", "mean"):
            raise InputError(f"pooling is {self.pooling!r}; it must be refine, last or mean")
        if not all(0 <= weight < math.inf for weight in self.lexical_range):
            raise InputError(f"lexical_weight is {self.lexical_weight}; it must be at least 0 and finite")
        if self.lexical_words not in ("both", "other"):
            raise InputError(f"lexical_words is {self.lexical_words!r}; it must be both or other")
        if self.supervised and self.pooling != "refine":
            raise InputError(f"lexical_weight supervises soft tokens, and pooling {self.pooling!r} has none; remove it")
        sizes = self.dimensions
        if sizes is not None and not (sizes and sizes[0] >= 1 and list(sizes) == sorted(set(sizes))):
            raise InputError(f"dimensions is {list(sizes)}; it must ascend, such as [64, 128, 256, 384, 576]")
        if self.dtype not in ("auto", "float32", "bfloat16"):  # float16 would need loss scaling
            raise InputError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise InputError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1, or null")

    @property
    def step_range(self) -> tuple[int, int]:
        """The lowest and highest K."""
        return (self.steps, self.steps) if isinstance(self.steps, int) else self.steps

    @property
    def lexical_range(self) -> tuple[float, float]:
        """Weights of the lexical loss at the first and at the last row."""
        weight = self.lexical_weight
        return weight if isinstance(weight, tuple) else (weight, weight)

    @property
    def supervised(self) -> bool:
        """Whether soft tokens are supervised at any time."""
        return max(self.lexical_range) > 0

    def weigh_lexical(self, cursor: int) -> float:
        """Weight of the lexical loss for the batch that starts at row `cursor`."""
        first, last = self.lexical_range
        return first + (last - first) * min(1.0, cursor / self.rows)

    def rate(self, cursor: int, started: int = 0) -> float:
        """Learning rate for the batch that starts at row `cursor`, if the optimiser started at row `started`."""
        # Capped, so that a short run with the default settings reaches its peak rate.
        warmup_rows, decay_rows = min(self.warmup_rows, self.rows / 5), min(self.decay_rows, self.rows / 2)
        warm = min(1.0, (cursor - started + self.batch_size) / warmup_rows) if warmup_rows else 1.0
        decay = min(1.0, (self.rows - cursor) / decay_rows) if decay_rows else 1.0
        return self.learning_rate * warm * max(0.0, decay)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build a config from a mapping, as parsed from YAML.

        Raises:
            InputError: an unknown or missing key, or a value of the wrong type or out of range.
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
        hints, cleaned = get_type_hints(cls, include_extras=True), {}
        hints["pooling"] = hints["lexical_words"] = str  # __post_init__ checks which words are allowed
        for key, value in values.items():
            given = [value] if hints[key] == tuple[str, ...] and isinstance(value, str) else value
            try:  # strictly as JSON, which has no tuples
                cleaned[key] = TypeAdapter(hints[key]).validate_json(json.dumps(given), strict=True)
            except (TypeError, ValueError) as error:
                plain = get_type_hints(cls)[key]
                expected = str(getattr(plain, "__name__", plain)).replace("typing.", "")
                raise InputError(f"{key} is {value!r} in the training config; it must be {expected}") from error
        return cls(**cleaned)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a YAML file. Relative paths in it are relative to the working directory.

        Raises:
            InputError: no such file, no YAML mapping, or not a valid config (`of`).
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
        """Convert to plain JSON types, as written beside the adapter."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def data_key(self) -> dict[str, Any]:
        """Keys that determine row order and adapter shape. A run resumes only from a state with equal values."""
        rows = ("data", "tasks", "mixture", "batch_size", "seed", "max_length")
        adapter = ("model", "preset", "adapter", "pooling", "rank", "alpha", "targets")
        return {key: value for key, value in self.to_dict().items() if key in rows + adapter}
