"""Results of an evaluation as plain data, saved as JSON and shown as a table. All scores are times 100."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gircse_rag.errors import InputError, plural
from gircse_rag.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1


@dataclass(frozen=True)
class Score:
    """A score times 100 and its 95% bootstrap interval (over queries, pairs or texts)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True, repr=False)
class SetResult:
    """Scores of one set: `scores[metric][K]`. The table and the mean use the metric `main`.

    `inputs[block]` holds the number of texts, their role and their instruction.
    """

    name: str
    task: str
    main: str
    scores: Mapping[str, Mapping[int, Score]]
    inputs: Mapping[str, Mapping[str, Any]]
    seconds: float
    empty_documents: int = 0

    def __repr__(self) -> str:
        scores = ", ".join(f"K={k}: {score.value:.1f}" for k, score in self.scores[self.main].items())
        return f"SetResult({self.name}, {self.main}: {scores})"

    @property
    def in_mean(self) -> bool:
        """Whether the mean includes this set: no contrast sets (obedience), no development sets (selection)."""
        return self.task != "contrast" and not self.name.startswith("dev/")


@dataclass(frozen=True, repr=False)
class Report:
    """Result of `evaluate`.

    Attributes:
        model: name of the model; fingerprint: of its vector space, None for an embedding function.
        steps: values of K, ascending.
        limit: sample size per set, None if full sets were scored.
        sets: one result per set, in order.
        mean: K -> mean of the main scores over the sets with `in_mean`; empty if there is none.
        gain: K -> mean at K minus mean at the first K, on the same resampled queries.
        mode: how retrieval sets were ranked: "dense", "lexical" or "hybrid".
        texts: number of distinct (text, role, instruction); truncated: how many of them were cut (None: unknown).
    """

    model: str
    steps: tuple[int, ...]
    sets: tuple[SetResult, ...]
    mean: Mapping[int, Score]
    gain: Mapping[int, Score]
    fingerprint: str | None = None
    limit: int | None = None
    texts: int = 0
    truncated: int | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    mode: str = "dense"

    def __repr__(self) -> str:
        means = ", ".join(f"K={k}: {score.value:.1f}" for k, score in self.mean.items()) or "none"
        return f"Report({self.model!r}, {plural(len(self.sets), 'set')}, mean {means})"

    def __getitem__(self, name: str) -> SetResult:
        for result in self.sets:
            if result.name == name:
                return result
        raise InputError(f"the report has no set {name!r}; it has {', '.join(r.name for r in self.sets)}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types. In JSON, the keys K become strings."""
        return {"format": FORMAT, "scale": "scores are times 100; intervals are 95% bootstrap", **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Convert from `to_dict`, also after a round trip through JSON.

        Raises:
            InputError: `data` is no report, or a report of another format.
        """
        try:
            if data["format"] != FORMAT:
                raise InputError(f"report format {data['format']!r} is not {FORMAT}; run the evaluation again")
            values = {key: value for key, value in data.items() if key not in ("format", "scale")}
            results = tuple(
                SetResult(**{**s, "scores": {metric: _scores(by_k) for metric, by_k in s["scores"].items()}})
                for s in values.pop("sets")
            )
            steps = tuple(int(k) for k in values.pop("steps"))
            mean, gain = _scores(values.pop("mean")), _scores(values.pop("gain"))
            return cls(steps=steps, sets=results, mean=mean, gain=gain, **values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"this is not an evaluation report ({type(error).__name__}: {error})") from error

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            scratch.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report that `save` wrote.

        Raises:
            InputError: the file is missing, not JSON or not a report.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"the report {path} cannot be read: {error}") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); it is not a report that `gircse eval` wrote") from error
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def table(self) -> Table:
        """Build a rich table: one row per set with its main score and interval at each K, then mean and gain."""
        from rich.table import Table  # here, so that saving JSON does not need rich

        table = Table(title=self._title(), title_justify="left")
        table.add_column("set", no_wrap=True)
        table.add_column("metric", no_wrap=True)
        for step in self.steps:
            table.add_column(f"K={step}", justify="right", no_wrap=True)
        quality = [r for r in self.sets if r.in_mean]
        others = [r for r in self.sets if not r.in_mean]
        for result in quality:
            table.add_row(result.name, result.main, *(str(result.scores[result.main][k]) for k in self.steps))
        if self.mean:
            table.add_section()
            table.add_row(f"mean of {len(quality)}", "", *(str(self.mean[k]) for k in self.steps), style="bold")
            if len(self.steps) > 1:
                table.add_row(f"gain over K={self.steps[0]}", "", *(str(self.gain[k]) for k in self.steps))
        if others:
            table.add_section()
        for result in others:
            table.add_row(result.name, result.main, *(str(result.scores[result.main][k]) for k in self.steps))
        return table

    def _title(self) -> str:
        parts = [self.model, "scores x 100 [95% bootstrap]"]
        if self.mode != "dense":
            parts.append(f"retrieval ranked in mode {self.mode}")
        if self.limit is not None:
            parts.append(f"samples of {self.limit} per set: not the scores of the full sets")
        if self.truncated:
            parts.append(f"{self.truncated} of {plural(self.texts, 'text')} truncated")
        return "; ".join(parts)


def _scores(by_k: Mapping[Any, Any]) -> dict[int, Score]:
    return {int(k): score if isinstance(score, Score) else Score(**score) for k, score in by_k.items()}


def score_of(value: float, interval: Sequence[float]) -> Score:
    """Convert fractions to a `Score`."""
    return Score(100 * value, 100 * interval[0], 100 * interval[1])
