"""What a run gained: scores before and after, the questions that changed, a plot, and the next commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gircse_rag.adaptation.probes import PROBES
from gircse_rag.adaptation.scoring import METRICS, Interval, Ranking
from gircse_rag.adaptation.self_pairs import MadePairs
from gircse_rag.errors import require
from gircse_rag.files import atomic_write

REPORT, TABLE, PLOT = "adapt.json", "adapt.md", "adapt.png"
_SHOWN = 10
"""Questions shown that became better, and worse."""


@dataclass(frozen=True)
class Change:
    """A metric before and after, and the paired difference."""

    kind: str
    steps: int
    metric: str
    before: Interval
    after: Interval
    gain: Interval


@dataclass(frozen=True)
class Moved:
    """A held-out question and the rank of its answer, from 1."""

    question: str
    before: int
    after: int


@dataclass(frozen=True)
class Wording:
    """nDCG@10 under an instruction (None: the bare question), and its lead over the bare question."""

    instruction: str | None
    ndcg: Interval
    lead: Interval


@dataclass(frozen=True)
class Adapted:
    """The result of `adapt`.

    Attributes:
        folder: the new model, for `Embedder.from_pretrained`; or the report alone if `changed` is false.
        model: name of the model it started from.
        changed: whether validation preferred adapted weights. If not, no model is written.
        share: share of the adapted weights in the new model; the rest are original ones.
        changes: held-out scores, dense and hybrid (with BM25), for each K and metric.
        moved: every held-out question, for dense search at the model's K.
        wordings: the adapted model under each instruction.
        probes: rank correlation of the sentence probes before and after.
        counts: documents, chunks, ranked chunks, training, validation and held-out questions, training rows.
        split_by: what no two sides share, "document" or "passage".
        made: kinds of pairs that were made from the documents; empty if pairs were given.
        skipped: documents and pairs that were left out, with the reason.
        advice: what to note and what to do next, as sentences.
        commands: the next commands.
        seconds: wall time of the last start.
    """

    folder: Path
    model: str
    changed: bool
    share: float
    changes: list[Change]
    moved: list[Moved]
    wordings: list[Wording]
    probes: tuple[float, float]
    counts: Mapping[str, int]
    split_by: str
    made: list[MadePairs]
    skipped: list[str]
    advice: list[str]
    commands: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Adapted:
        """Rebuild what `to_dict` made.

        Raises:
            KeyError, TypeError: the record is something else.
        """
        changes = [
            Change(c["kind"], c["steps"], c["metric"], *(Interval(**c[name]) for name in ("before", "after", "gain")))
            for c in record["changes"]
        ]
        wordings = [Wording(w["instruction"], Interval(**w["ndcg"]), Interval(**w["lead"])) for w in record["wordings"]]
        return cls(
            **{
                **record,
                "folder": Path(record["folder"]),
                "changes": changes,
                "moved": [Moved(**moved) for moved in record["moved"]],
                "wordings": wordings,
                "made": [MadePairs(**made) for made in record["made"]],
                "probes": tuple(record["probes"]),
            }
        )

    def change(self, metric: str = "ndcg@10", kind: str = "dense", steps: int | None = None) -> Change:
        """One line of `changes`; `steps=None` is the first K.

        Raises:
            StopIteration: there is no such line.
        """
        lines = (c for c in self.changes if (c.metric, c.kind) == (metric, kind))
        return next(c for c in lines if steps in (None, c.steps))

    def to_markdown(self) -> str:
        """The report as Markdown."""
        n = self.counts
        lines = [
            f"# {self.folder.name}: {self.model}, adapted",
            "",
            f"{n['held_out']} held-out questions, ranked over {n['pool']} of {n['chunks']} chunks of {n['documents']} "
            f"documents. Trained on {n['train']} questions ({n['rows']} rows); {n['validation']} chose the weights. "
            f"No two of these three sets share a {self.split_by}. Scores are x 100, with 95% bootstrap intervals.",
            "",
            "| search | K | metric | before | after | gain |",
            "|---|---:|---|---|---|---|",
        ]
        for c in self.changes:
            cells = (show_interval(c.before), show_interval(c.after), show_interval(c.gain, sign="+"))
            lines.append(f"| {c.kind} | {c.steps} | {c.metric} | {' | '.join(cells)} |")
        lines += ["", "Hybrid fuses the ranks of dense search and BM25.", ""]
        lines += [f"* {sentence}" for sentence in self.advice]
        if len(self.wordings) > 1:
            lines += [
                "",
                "## Instructions",
                "",
                "| instruction | nDCG@10 | lead over the bare question |",
                "|---|---|---|",
            ]
            for w in self.wordings:
                scores = f"{show_interval(w.ndcg)} | {show_interval(w.lead, sign='+')}"
                lines.append(f"| {w.instruction or 'none: the bare question'} | {scores} |")
        if self.made:
            lines += [
                "",
                "## Questions made from the documents",
                "",
                "| kind | made | the model agreed | example |",
                "|---|---:|---:|---|",
            ]
            for m in self.made:
                example = f"{m.question} -> {m.answer}".replace("|", "\\|")
                lines.append(f"| {m.kind} | {m.made} | {m.agreed} | {example} |")
        for title, moved in (("better", self.better()), ("worse", self.worse())):
            lines += ["", f"## Questions that became {title}: {len(moved)}", ""]
            lines += [f"* rank {m.before} to {m.after}: {' '.join(m.question.split())}" for m in moved[:_SHOWN]]
        lines += ["", "## Next", "", "```sh", *self.commands, "```", ""]
        if self.skipped:
            lines += [f"## Left out: {len(self.skipped)}", "", *(f"* {reason}" for reason in self.skipped[:20]), ""]
        return "\n".join(lines)

    def better(self) -> list[Moved]:
        """Held-out questions whose answer ranks higher than before, largest change first."""
        return sorted((m for m in self.moved if m.after < m.before), key=lambda m: m.after / m.before)

    def worse(self) -> list[Moved]:
        """Held-out questions whose answer ranks lower than before, largest change first."""
        return sorted((m for m in self.moved if m.after > m.before), key=lambda m: m.before / m.after)

    def save(self, digest: str) -> None:
        """Write adapt.png, adapt.md and, last and atomically, adapt.json into `folder`."""
        _plot(self.changes, self.folder / PLOT)
        (self.folder / TABLE).write_text(self.to_markdown(), encoding="utf-8")
        with atomic_write(self.folder / REPORT) as scratch:
            record = {"digest": digest, **self.to_dict()}
            scratch.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def compare(kind: str, steps: int, before: Ranking, after: Ranking) -> list[Change]:
    """The lines of one kind of search at one K."""
    return [
        Change(kind, steps, metric, before.interval(metric), after.interval(metric), after.gain(before, metric))
        for metric in METRICS
    ]


def advise(
    changes: Sequence[Change],
    wordings: Sequence[Wording],
    steps: int,
    share: float,
    probes: tuple[float, float],
    strange: float,
    made: bool = False,
) -> list[str]:
    """What to note about a run, as sentences.

    Args:
        changes, wordings, share, probes: as in `Adapted`.
        steps: the model's own K.
        strange: share of the questions that have no word in common with any chunk.
        made: whether the questions were made from the documents.
    """
    said = []
    if made:
        said.append("The held-out questions were made from the documents too; real questions may gain less, or lose.")
    if strange > 0.5:
        said.append(
            f"{100 * strange:.0f}% of the questions share no word with any document. If they are in another language, "
            "choose a base model that knows both."
        )
    if share == 0:
        said.append(
            "Validation preferred the original weights: no model was written. Add questions, or give more minutes."
        )
        return said
    line = next(c for c in changes if (c.kind, c.steps, c.metric) == ("dense", steps, "ndcg@10"))
    said.append(f"Dense nDCG@10 at K = {steps}: {show_interval(line.gain, sign='+')}.")
    if line.gain.high < 0:
        said.append("The held-out questions rank worse than before: keep the original model.")
    elif line.gain.low <= 0:
        said.append("The interval of this gain contains 0: it may be chance. More held-out questions would tell.")
    best = max((c for c in changes if c.metric == "ndcg@10"), key=lambda c: c.after.value)
    said.append(f"The best search after adapting is {best.kind} at K = {best.steps}.")
    said.append(f"Rank correlation of {PROBES} general sentence pairs: {probes[0]:.3f} before, {probes[1]:.3f} after.")
    for wording in wordings:
        if wording.instruction is not None and wording.lead.value < 0:
            sure = "ranks" if wording.lead.high < 0 else "may rank"
            said.append(
                f"The bare question {sure} better than the instruction {wording.instruction!r}. To search without an "
                'instruction, set "query_template": "{text}" in gircse.json before you ingest.'
            )
    return said


def next_commands(folder: Path, model: str, changed: bool) -> list[str]:
    """Commands that use the new model; without one, the command that tries again with more time."""
    if not changed:
        return [f"gircse adapt DOCUMENTS --pairs PAIRS --model {model} --minutes 30 --out {folder}-2"]
    return [
        f"gircse ingest DOCUMENTS --collection NAME --model {folder}",
        f"gircse migrate OLD NEW --model {folder}    # or embed an existing collection again",
        f"gircse search 'a question' --collection NAME --model {folder}",
    ]


def show_interval(interval: Interval, sign: str = "") -> str:
    """Value and interval, x 100."""
    value, low, high = (f"{100 * x:{sign}.1f}" for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def _plot(changes: Sequence[Change], path: Path) -> None:
    figure = require("matplotlib.figure", "eval").Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    lines = [c for c in changes if c.metric == "ndcg@10"]
    for offset, side, colour in ((-0.18, "before", "0.6"), (0.18, "after", "tab:blue")):
        scores = [getattr(c, side) for c in lines]
        values = [100 * s.value for s in scores]
        errors = [
            [max(0.0, 100 * (s.value - s.low)) for s in scores],
            [max(0.0, 100 * (s.high - s.value)) for s in scores],
        ]
        places = [index + offset for index in range(len(lines))]
        axis.bar(places, values, 0.36, yerr=errors, capsize=3, label=side, color=colour)
    axis.set_xticks(range(len(lines)), [f"{c.kind}\nK = {c.steps}" for c in lines])
    axis.set_ylabel("nDCG@10 x 100")
    axis.set_ylim(0, 105)
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=150)
