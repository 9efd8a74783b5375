"""The numbers that issue 3 asks for, each with what was measured and whether it was reached."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import MISSING, Cell, Results, find, mib, parts, plain, share, table, times

MODEL = "smollm2-135m"
FLAT = 1.05
SCHEDULES = 8  # of congruence.py


def verdict(value: float | None, goal: float, *, at_least: bool) -> str:
    """Judged by the number before rounding."""
    if value is None:
        return MISSING
    return "reached" if (value >= goal if at_least else value <= goal) else "not reached"


def goals(results: Results) -> str:
    """Issue 3's numbers."""
    one = f"{MODEL}, K="
    wanted: list[tuple[str, Any, float, bool, Cell]] = [
        (
            f"documents, K={k}, times the loop's speed",
            ("throughput", f"documents, K={k}", "speedup", "ours"),
            3,
            True,
            times,
        )
        for k in (5, 20)
    ]
    wanted += [
        ("queries, K=5, times the loop's speed", ("throughput", "queries, K=5", "speedup", "ours"), 4, True, times),
        (
            "one query, K=5, sequential, of the loop's time",
            ("latency", f"{one}5", "time_ratio", "sequential"),
            0.6,
            False,
            plain,
        ),
        (
            "one query, K=5, sweeps, of the loop's time",
            ("latency", f"{one}5", "time_ratio", "sweeps"),
            0.4,
            False,
            plain,
        ),
        (
            "one query, K=20, sweeps, of the loop's time",
            ("latency", f"{one}20", "time_ratio", "sweeps"),
            0.25,
            False,
            plain,
        ),
        (
            "documents, K=5, of the machine's peak in that dtype",
            ("throughput", "documents, K=5", "share_of_peak"),
            0.55,
            True,
            share,
        ),
    ]
    rows = []
    for what, place, goal, at_least, cell in wanted:
        value = find(results, *place)
        said = f"{'>=' if at_least else '<='} {cell(goal)}"
        rows.append([what, said, MISSING if value is None else cell(value), verdict(value, goal, at_least=at_least)])
    for k in (5, 20):
        value = find(results, "latency", f"{one}{k}", "cosine", "sweeps to sequential", "min")
        said = MISSING if value is None else f"{value:.6f}"
        rows.append(
            [
                f"one query, K={k}, sweeps, least cosine to sequential",
                ">= 0.9999",
                said,
                verdict(value, 0.9999, at_least=True),
            ]
        )
    rows += memory_goals(results) + quality_goals(results) + congruence_goals(results)
    return table(["what", "goal", "measured", ""], rows)


def memory_goals(results: Results) -> list[list[str]]:
    peaks = {
        part: find(results, "memory", part, "peak_above_model_mib")
        for part in ("ours, 2000", "loop, 2000", "ours, 20000")
    }
    ours, theirs, longest = peaks.values()
    goal = f"<= the loop's {mib(theirs)}" if theirs is not None else "<= the loop's"
    known = ours if theirs is not None else None
    growth = None if ours is None or longest is None else longest / ours
    return [
        [
            "peak memory above the model, 2,000 documents",
            goal,
            MISSING if ours is None else mib(ours),
            verdict(known, theirs or 0, at_least=False),
        ],
        [
            "flat: peak at 20,000 over peak at 2,000",
            f"<= {FLAT}",
            MISSING if growth is None else plain(growth),
            verdict(growth, FLAT, at_least=False),
        ],
    ]


def quality_goals(results: Results) -> list[list[str]]:
    """The engine in bfloat16 against the reference in bfloat16, both held against the reference in float32."""
    rows = []
    for part in parts(results, "quality"):
        name, _, kind = part.rpartition(", ")
        if kind != "bfloat16 paged":
            continue
        for metric, least, digits in (("overlap@10", -0.01, 4), ("ndcg@10", -0.3, 2)):
            ours, theirs = (
                find(results, "quality", f"{name}, bfloat16 {which}", metric) for which in ("paged", "reference")
            )
            change = None if theirs is None else ours - theirs
            said = MISSING if change is None else f"{change:+.{digits}f}"
            what = f"bf16 {metric} on {name}, engine less reference"
            rows.append([what, f">= {least}", said, verdict(change, least, at_least=True)])
    return rows


def congruence_goals(results: Results) -> list[list[str]]:
    """float32 vectors under every schedule."""
    found = parts(results, "congruence")
    passed = sum(one["passed"] for one in found.values())
    said = f"{passed} of {SCHEDULES} schedules" if found else MISSING
    return [
        ["float32: the reference's vectors, 500 texts", "all", said, verdict(passed or None, SCHEDULES, at_least=True)]
    ]
