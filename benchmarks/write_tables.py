"""Write the tables of docs/understand/benchmarks.md from the measurements in benchmarks/results.

    python benchmarks/write_tables.py            # rewrites what is between the page's markers
    python benchmarks/write_tables.py --check    # exits 1 if the page differs from the measurements

`<!-- latency -->` ... `<!-- /latency -->` holds the bfloat16 table of `latency`; `<!-- float32 latency -->` the other.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tables import NAMES, RESULTS, Results, load, mib, parts, plain, share, table, times

PAGE = Path(__file__).resolve().parents[1] / "docs/understand/benchmarks.md"
FOLDERS = {
    "": RESULTS,
    "float16 ": RESULTS / "float16",
    "float32 ": RESULTS / "float32",
}  # prefix of the markers -> folder of the JSON files


def throughput(results: Results) -> str:
    rows = []
    for name in ("throughput", "throughput_2_threads"):
        for part, measured in sorted(parts(results, name).items(), key=lambda item: item[0].partition("=")[0]):
            rate, texts = measured["texts_per_second"], sum(row["texts"] for row in measured["rounds"])
            row = [part, str(results[name]["settings"]["threads"]), f"{texts:,}", f"{measured['mean_tokens']:.0f}"]
            row += [f"{rate['ours']:.1f}", f"{rate['loop']:.1f}"]
            rows.append([*row, times(measured["speedup"]["ours"]), share(measured["share_of_peak"])])
    head = ["texts", "threads", "number", "tokens per text", "engine, texts/s", "loop, texts/s", "ratio", "of peak"]
    return table(head, rows)


def latency(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "latency").items():
        took, ratio, cosine = measured["milliseconds"], measured["time_ratio"], measured["cosine"]
        row = [part, *(f"{took[name]:.0f}" for name in ("loop", "sequential", "sweeps"))]
        row += [plain(ratio["sequential"]), plain(ratio["sweeps"]), f"{measured['forwards']['sweeps']:.1f}"]
        row += [f"{cosine[pair]['min']:.6f}" for pair in ("sweeps to sequential", "sequential alone to in a batch")]
        rows.append(row)
    head = ["model", "loop, ms", "sequential, ms", "sweeps, ms", "sequential / loop", "sweeps / loop", "forwards"]
    return table([*head, "cosine, sweeps to sequential", "cosine, alone to in a batch"], rows)


def cost(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "cost").items():
        seconds = measured["seconds_per_text"]
        row = [part, str(measured["texts"]), str(measured["tokens"])]
        row += [f"{1e3 * seconds[name]:.1f}" for name in ("ours", "loop")]
        rows.append([*row, times(measured["speedup"]["ours"])])
    return table(["point", "texts", "tokens", "engine, ms per text", "loop, ms per text", "ratio"], rows)


def prefix_cache(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "prefix_cache").items():
        rate, computed = measured["texts_per_second"], measured["rows_per_query"]
        row = [part, *(f"{rate[name]:.1f}" for name in ("off", "on", "limit"))]
        row += [times(measured["gain"]), share(measured["of_the_limit"])]
        rows.append([*row, *(f"{computed[name]:.1f}" for name in ("off", "on", "limit"))])
    head = ["rows per block", "off, queries/s", "on", "limit", "on / off", "of the limit"]
    return table([*head, "off, rows per query", "on", "limit"], rows)


def memory(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "memory").items():
        first, second = measured["half_peaks_mib"]
        row = [part, mib(measured["peak_above_model_mib"]), mib(first), mib(second)]
        rows.append([*row, f"{measured['seconds']:.0f}"])
    return table(["documents", "peak above the model", "first half", "second half", "seconds"], rows)


def quality(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "quality").items():
        row = [part, f"{measured['overlap@10']:.4f}", f"{measured['ndcg@10']:.2f}"]
        row += [f"{measured['cosine_mean']:.6f}", f"{measured['cosine_min']:.6f}", f"{measured['max_abs']:.1e}"]
        rows.append(row)
    return table(["set, vectors", "overlap@10", "nDCG@10", "cosine, mean", "cosine, min", "max abs"], rows)


def congruence(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "congruence").items():
        row = [part, str(measured["texts"]), f"{1 - measured['min_cosine_to_5']:.1e}"]
        row += [f"{measured['max_abs_to_5']:.1e}", f"{measured['max_distance_beyond_5']:.1e}"]
        row += [f"{measured['spread_beyond_5']:.1e}", str(measured["preemptions"])]
        rows.append([*row, "yes" if measured["passed"] else "no"])
    head = ["schedule", "texts", "z_1..z_5: 1 - cosine, max", "max abs", "z_6..z_20: 1 - cosine, max"]
    return table([*head, "loop's own spread", "preemptions", "equal"], rows)


def laptop(results: Results) -> str:
    """One row per task, one column per contestant; "-" where it was not run or does not exist."""
    names = ("ours", "loop", "pooling", "encoder", "llama.cpp")
    rows = []
    for part, measured in parts(results, "laptop").items():
        if "seconds" in measured:
            tasks = {
                f"{part}, s": (measured["seconds"], ".1f"),
                "resident memory after it, MiB": (measured["resident_mib"], ",.0f"),
            }
        else:
            unit = "ms a document" if part.startswith("documents") else "ms"
            tasks = {f"{part}, {unit}": (measured["milliseconds_per_text"], ".0f")}
        for task, (values, form) in tasks.items():
            rows.append([task, *(f"{values[name]:{form}}" if name in values else "-" for name in names)])
    head = ["what", "ours", "authors' loop", "last-token pooling", "all-MiniLM-L6-v2", "llama.cpp Q4_1"]
    return table(head, rows)


def serving(results: Results) -> str:
    measured = parts(results, "serving")
    queries, rate, held = measured["queries"], measured["throughput"], measured["memory"]
    rows = [
        ["documents/s, `Embedder` in one call", f"{rate['embedder']:.1f}"],
        ["documents/s, 64 clients over HTTP", f"{rate['server']:.1f}"],
        ["one query alone, median, ms", f"{queries['p50_alone']:.0f}"],
        ["the same beside 63 clients that embed documents, median, ms", f"{queries['p50_loaded']:.0f}"],
        ["the same, 99th percentile, ms", f"{queries['p99_loaded']:.0f}"],
        ["99th percentile beside documents / median alone", times(queries["slowdown"])],
        ["resident memory after a warm-up, at the end, MiB", f"{held['before']:,.0f}, {held['after']:,.0f}"],
    ]
    return table(["what", "measured"], rows)


def adapt(results: Results) -> str:
    rows = []
    for part, measured in parts(results, "adapt").items():
        dense, hybrid = measured["dense"], measured["hybrid"]
        gain, low, high = dense["gain"]
        row = [part, str(measured["train"]), str(measured["rows"]), str(measured["asked"])]
        row += [f"{dense['before'][0]:.1f}", f"{dense['after'][0]:.1f}", f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"]
        row += [f"{hybrid['before'][0]:.1f}", f"{hybrid['after'][0]:.1f}"]
        row += [" to ".join(f"{value:.3f}" for value in measured["probes"])]
        rows.append([*row, f"{measured['cpu_seconds']:.0f}", f"{measured['peak_gb']:.1f}"])
    head = ["set", "train", "rows", "held out", "nDCG@10 before", "after", "gain, 95%", "hybrid before", "after"]
    return table([*head, "probes", "CPU s", "GB"], rows)


def runs(results: Results) -> str:
    """Date, machine, load and command of each measurement."""
    rows = []
    for name in NAMES:
        report = results.get(name)
        if report is None:
            continue
        machine, versions = report["machine"], report["versions"]
        load = " to ".join(f"{machine[moment][0]:.1f}" for moment in ("load_before", "load_after"))
        kept = ", under an idle lock" if report["idle_lock"] else ""
        peak = ""
        if "peak_gflops" in machine:
            dtype = "bfloat16" if report["settings"]["dtype"] == "bfloat16" else "float32"
            peak = f", {machine['peak_gflops']:.0f} GFLOP/s {dtype}"
        peak += f", copies {machine['copy_gb_per_second']:.0f} GB/s" if "copy_gb_per_second" in machine else ""
        kind = f", {machine['instructions']}" if "instructions" in machine else ""
        where = f"{machine['processor']}{kind}, {machine['cpus']} cpus{peak}"
        row = [f"{name}.json", report["date"], where, f"{load}{kept}"]
        row.append(f"torch {versions['torch']}, transformers {versions['transformers']}")
        rows.append([*row, f"`{report['command']}`"])
    return table(["file", "date", "machine", "load", "versions", "command"], rows)


SECTIONS = (throughput, latency, cost, prefix_cache, memory, quality, congruence, laptop, serving, adapt, runs)


def fill(page: str, results: Results, prefix: str = "") -> str:
    """Write each section's table between its markers, `<!-- {prefix}NAME -->` and `<!-- /{prefix}NAME -->`, if any."""
    for section in SECTIONS:
        begin, end = f"<!-- {prefix}{section.__name__} -->\n", f"<!-- /{prefix}{section.__name__} -->"
        if begin not in page:
            continue
        before, rest = page.split(begin)
        page = before + begin + section(results) + "\n" + end + rest.split(end)[1]
    return page


def main() -> None:
    before = page = PAGE.read_text(encoding="utf-8")
    for prefix, folder in FOLDERS.items():
        page = fill(page, load(folder), prefix)
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif page != before:
        sys.exit(f"{PAGE.name} differs from the measurements: run python benchmarks/write_tables.py")


if __name__ == "__main__":
    main()
