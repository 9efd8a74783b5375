"""The tables of the pages here, from the measurements in benchmarks/results; run it again when those change.

python benchmarks/readme.py            # rewrites what is between the markers in README.md and FLOAT32.md
python benchmarks/readme.py --check    # exits 1 if a page is not what the measurements say
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import goals
from benchmarks.tables import MISSING, NAMES, RESULTS, Results, load, mib, parts, plain, share, table, times

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs" / "understand"
PAGES = {
    DOCS / "benchmarks.md": RESULTS,
    DOCS / "benchmarks-float32.md": RESULTS / "float32",
}  # page -> folder of its JSON files


def throughput(results: Results) -> str:
    rows = []
    for name in ("throughput", "throughput_2_threads"):
        for part, found in sorted(parts(results, name).items(), key=lambda item: item[0].partition("=")[0]):
            rate, texts = found["texts_per_second"], sum(row["texts"] for row in found["rounds"])
            row = [part, str(results[name]["settings"]["threads"]), f"{texts:,}", f"{found['mean_tokens']:.0f}"]
            row += [f"{rate['ours']:.1f}", f"{rate['loop']:.1f}"]
            rows.append([*row, times(found["speedup"]["ours"]), share(found["share_of_peak"])])
    head = ["what", "threads", "texts", "tokens a text", "ours, texts/s", "loop, texts/s", "ratio", "of the peak"]
    return table(head, rows)


def latency(results: Results) -> str:
    rows = []
    for part, found in parts(results, "latency").items():
        took, ratio, cosine = found["milliseconds"], found["time_ratio"], found["cosine"]
        row = [part, *(f"{took[name]:.0f}" for name in ("loop", "sequential", "sweeps"))]
        row += [plain(ratio["sequential"]), plain(ratio["sweeps"]), f"{found['forwards']['sweeps']:.1f}"]
        row += [f"{cosine[pair]['min']:.6f}" for pair in ("sweeps to sequential", "sequential alone to in a batch")]
        rows.append(row)
    head = ["model", "loop, ms", "sequential, ms", "sweeps, ms", "sequential / loop", "sweeps / loop", "forwards"]
    return table([*head, "sweeps to sequential, cos min", "floor: alone to in a batch, cos min"], rows)


def cost(results: Results) -> str:
    rows = []
    for part, found in parts(results, "cost").items():
        seconds = found["seconds_per_text"]
        row = [part, str(found["texts"]), str(found["tokens"])]
        rows.append(
            [*row, *(f"{1e3 * seconds[name]:.1f}" for name in ("ours", "loop")), times(found["speedup"]["ours"])]
        )
    return table(["point", "texts", "tokens", "ours, ms a text", "loop, ms a text", "ratio"], rows)


def prefix_cache(results: Results) -> str:
    rows = []
    for part, found in parts(results, "prefix_cache").items():
        rate, computed = found["texts_per_second"], found["rows_per_query"]
        row = [part, *(f"{rate[name]:.1f}" for name in ("off", "on", "limit"))]
        row += [times(found["gain"]), share(found["of_the_limit"])]
        rows.append([*row, *(f"{computed[name]:.1f}" for name in ("off", "on", "limit"))])
    head = ["", "off, queries/s", "on", "limit", "on / off", "of the limit"]
    return table([*head, "off, rows a query", "on", "limit"], rows)


def memory(results: Results) -> str:
    rows = []
    for part, found in parts(results, "memory").items():
        first, second = found["half_peaks_mib"]
        rows.append([part, mib(found["peak_above_model_mib"]), mib(first), mib(second), f"{found['seconds']:.0f}"])
    return table(["documents", "peak above the model", "in the first half", "in the second half", "seconds"], rows)


def quality(results: Results) -> str:
    rows = []
    for part, found in parts(results, "quality").items():
        row = [part, f"{found['overlap@10']:.4f}", f"{found['ndcg@10']:.2f}"]
        row += [f"{found['cosine_mean']:.6f}", f"{found['cosine_min']:.6f}", f"{found['max_abs']:.1e}"]
        rows.append(row)
    head = ["set, vectors", "overlap@10", "nDCG@10", "cosine, mean", "cosine, min", "max abs"]
    return table(head, rows)


def congruence(results: Results) -> str:
    rows = []
    for part, found in parts(results, "congruence").items():
        row = [part, str(found["texts"]), f"{1 - found['min_cosine_to_5']:.1e}", f"{found['max_abs_to_5']:.1e}"]
        row += [f"{found['max_distance_beyond_5']:.1e}", f"{found['spread_beyond_5']:.1e}"]
        rows.append([*row, str(found["preemptions"]), "yes" if found["passed"] else "no"])
    head = [
        "schedule",
        "texts",
        "z_1..z_5: 1 - cosine, max",
        "max abs",
        "z_6..z_20: 1 - cosine, max",
        "reference's own",
    ]
    return table([*head, "preemptions", "within the goals"], rows)


def runs(results: Results) -> str:
    """When, where and how each file was made."""
    rows = []
    for name in NAMES:
        report = results.get(name)
        if report is None:
            rows.append([f"{name}.json", MISSING, *[""] * 4])
            continue
        machine, versions = report["machine"], report["versions"]
        load = " to ".join(f"{machine[moment][0]:.1f}" for moment in ("load_before", "load_after"))
        kept = ", under an idle lock" if report["idle_lock"] else ""
        peak = ""
        if "peak_gflops" in machine:
            peak = f", {machine['peak_gflops']:.0f} GFLOP/s {report['settings']['dtype']}"
        peak += f", copies {machine['copy_gb_per_second']:.0f} GB/s" if "copy_gb_per_second" in machine else ""
        where = f"{machine['processor']}, {machine['cpus']} cpus{peak}"
        row = [f"{name}.json", report["date"], where, f"{load}{kept}"]
        rows.append(
            [*row, f"torch {versions['torch']}, transformers {versions['transformers']}", f"`{report['command']}`"]
        )
    return table(["file", "date", "machine", "load", "versions", "command"], rows)


SECTIONS = (goals, throughput, latency, cost, prefix_cache, memory, quality, congruence, runs)


def filled(page: str, results: Results) -> str:
    """`page` with each `<!-- NAME -->` ... `<!-- /NAME -->` that it has filled by the function of that name."""
    for section in SECTIONS:
        begin, end = f"<!-- {section.__name__} -->\n", f"<!-- /{section.__name__} -->"
        if begin not in page:
            continue
        before, rest = page.split(begin)
        page = before + begin + section(results) + "\n" + end + rest.split(end)[1]
    return page


def main() -> None:
    for page, folder in PAGES.items():
        now = page.read_text(encoding="utf-8")
        made = filled(now, load(folder))
        if "--check" not in sys.argv:
            page.write_text(made, encoding="utf-8")
        elif made != now:
            sys.exit(f"{page.name} is not what the measurements say")


if __name__ == "__main__":
    main()
