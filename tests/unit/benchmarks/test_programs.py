"""Every benchmark program runs on a tiny model, and its results fill the tables and figures."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks import (
    adapt,
    common,
    congruence,
    cost,
    deterministic,
    latency,
    memory,
    plots,
    prefix_cache,
    quality,
    shapes,
    tables,
    throughput,
    write_tables,
)
from tests import tiny

WORDS = ["a", "page", "of", "cache", "holds", "four", "rows", "and", "rest", "is", "found", "by", "hash", "when", "no"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version of shared/data: the text sources and two retrieval sets."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)

    def words(number: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(number))

    (folder / "train").mkdir()
    for source in common.DOCUMENT_SOURCES:
        with gzip.open(folder / "train" / f"{source}.jsonl.gz", "wt", encoding="utf-8") as file:
            for _ in range(40):
                file.write(json.dumps({"query": words(5), "positive": words(rng.randint(5, 20))}) + "\n")
    for path, documents, questions in (("eval/retrieval/small", 14, 4), ("dev_retrieval/notes", 50, 48)):
        one = folder / path
        one.mkdir(parents=True)
        corpus = [{"_id": f"d{i}", "title": "", "text": words(9)} for i in range(documents)]
        queries = [{"_id": f"q{i}", "text": f"{words(4)} {i}"} for i in range(questions)]
        (one / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
        (one / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
        judged = "".join(f"q{i}\td{i}\t1\n" for i in range(questions))
        (one / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.mark.slow
def test_all_programs_fill_the_page(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.machine.peak_gflops", lambda dtype, device="cpu": 1.0)
    monkeypatch.setattr("benchmarks.machine.copy_gb_per_second", lambda: 1.0)
    monkeypatch.setattr(prefix_cache, "WARM", 4)
    monkeypatch.setattr(throughput, "WARM", 4)
    lock = ["--idle-lock", str(tmp_path / "idle"), "--rest", "0"]
    sets = ["--sets", "retrieval/small", "--cache", str(tmp_path / "vectors.npz")]
    programs = {
        throughput: ["--texts", "8", "--steps", "5", "--rounds", "2", *lock],
        latency: ["--texts", "2", "--steps", "5", "--rounds", "2", "--base", "", *lock],
        cost: ["--lengths", "8", "16", "--batches", "1", "2", "--steps", "1", "2", "--tokens", "32", "--rounds", "1"],
        prefix_cache: ["--texts", "8", "--block-sizes", "8", "--rounds", "2", *lock],
        memory: ["--sizes", "40", "--long", "0"],
        adapt: ["--work", str(tmp_path / "models"), "--minutes", "1"],
        quality: sets,
        congruence: [
            "--texts",
            "12",
            "--mixes",
            "defaults",
            "7 texts a call",
            *sets[2:3],
            str(tmp_path / "expected.npz"),
        ],
    }
    for program, options in programs.items():
        name = program.__name__.rpartition(".")[2]
        out = ["--out", str(tmp_path / f"{name}.json")]
        program.main(["--model", str(tiny_folder), "--data", str(data), *out, *options])

    for name in ("laptop", "serving"):  # one needs a second model, the other has a test of its own
        shutil.copy(tables.RESULTS / f"{name}.json", tmp_path)
    results = tables.load(tmp_path)
    assert set(results) == set(tables.NAMES) - {"throughput_2_threads"}
    page = write_tables.fill(write_tables.PAGE.read_text(encoding="utf-8"), results)
    assert write_tables.fill(page, results) == page
    assert "| blocks of 8 |" in page and "| retrieval/small, bfloat16 paged |" in page

    rows = results["prefix_cache"]["results"]["blocks of 8"]["rows_per_query"]
    assert rows["limit"] < rows["on"] < rows["off"]
    assert results["latency"]["results"][f"{tiny_folder}, K=5"]["forwards"]["sequential"] == 6
    assert results["quality"]["results"]["retrieval/small, float32 reference"]["overlap@10"] == 1
    assert results["quality"]["results"]["retrieval/small, float32 paged"]["cosine_min"] > 0.99999
    assert all(mix["passed"] for mix in results["congruence"]["results"].values())
    samples = results["memory"]["results"]["ours, 40"]["samples"]
    assert samples[-1][1] <= 40 and samples[-1][2] > 0

    gained = results["adapt"]["results"]["notes"]
    assert gained["documents"] == 50 and gained["asked"] == 12 and gained["peak_gb"] > 0
    assert "| notes |" in page

    plots.main(["--results", str(tmp_path), "--figures", str(tmp_path)])
    for plot in plots.PLOTS:
        assert 0 < (tmp_path / f"{plot.__name__}.svg").stat().st_size <= 60_000


@pytest.mark.slow
def test_deterministic_prints_its_price_and_the_spread_of_the_default(
    data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deterministic.json"
    options = [
        "--texts",
        "12",
        "--rounds",
        "2",
        "--dtype",
        "float32",
        "--rest",
        "0",
        "--idle-lock",
        str(tmp_path / "l"),
    ]
    deterministic.main(["--model", str(tiny_folder), "--data", str(data), "--out", str(out), *options])
    for part in json.loads(out.read_text())["results"].values():
        assert part["price"] > 0
        assert part["spread"]["deterministic"] == {"component": 0, "one_minus_cosine": 0}
        assert 0 <= part["spread"]["default"]["component"] < 1e-5


@pytest.mark.slow
def test_throughput_of_a_random_qwen3_beside_lasers_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.machine.peak_gflops", lambda dtype, device="cpu": 1.0)
    monkeypatch.setattr("benchmarks.machine.copy_gb_per_second", lambda: 1.0)
    monkeypatch.setattr(throughput, "WARM", 4)
    monkeypatch.setitem(shapes.SHAPES, "qwen3-0.6b", tiny.model("qwen3").config)
    out = tmp_path / "shape.json"
    options = ["--shape", "qwen3-0.6b", "--texts", "8", "--steps", "3", "--rounds", "2", "--dtype", "float32"]
    throughput.main([*options, "--rest", "0", "--out", str(out)])
    found = json.loads(out.read_text())["results"]
    assert set(found) == {"documents, K=3", "queries, K=3"}
    assert all(part["speedup"]["ours"] > 0 and part["share_of_peak"] > 0 for part in found.values())
    with pytest.raises(SystemExit):
        throughput.main([*options, "--rest", "0"])
