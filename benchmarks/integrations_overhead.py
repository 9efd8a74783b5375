"""Measure the overhead of each integration over `Embedder`; write JSON.

    python benchmarks/integrations_overhead.py OUT.json [--model smollm2-135m] [--documents 1000] [--rounds 5]

The documents are first paragraphs of docstrings from Python's standard library: they exist on every machine, and they
are short, so an integration's own cost is visible. In each round, every integration (door) embeds all documents once,
in one process, in an order that rotates. For each door, the program reports medians over rounds of

    ratio   its time divided by that of `Embedder.embed_documents` in the same round, wall and CPU. Includes the effect
            of the framework's batches, and noise, which the door "Embedder again" shows
    own     its time outside `Embedder.embed` divided by its time inside: the integration's own cost, also exact on a
            busy machine

The engine's prefix cache is cleared before each measurement. The JSON is written after every round.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import haystack
import langchain_core
import llama_index.core
import mteb
import numpy as np
import sentence_transformers
import torch
from haystack import Document
from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder
from langchain_gircse import GircseEmbeddings
from llama_index.embeddings.gircse import GircseEmbedding
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType
from mteb_gircse import GircseEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers_gircse import GircseModule

from gircse_rag import Embedder

PACKAGES = """
    asyncio collections concurrent email http importlib json logging multiprocessing unittest urllib xml
"""
MODULES = """
    argparse ast bisect calendar codecs configparser contextlib copy csv datetime decimal difflib dis enum fileinput
    fractions ftplib functools gettext glob gzip heapq imaplib inspect io ipaddress locale lzma mailbox mimetypes
    numbers operator optparse os pathlib pdb pickle pickletools plistlib poplib pprint queue random re sched shelve
    shlex shutil smtplib socket socketserver sqlite3 ssl statistics string subprocess symtable tarfile tempfile textwrap
    threading timeit tokenize trace traceback turtle types typing uuid wave weakref zipfile zipimport
"""
Door = Callable[[list[str]], Any]
Times = dict[str, dict[str, list[float]]]


def documents(number: int) -> list[str]:
    """Collect `number` distinct texts of 20 to 160 characters, the same in every run."""
    found: dict[str, None] = {}
    for name in [*_modules(), *MODULES.split()]:
        try:
            module = importlib.import_module(name)
        except Exception:  # not on this platform
            continue
        for what in [module, *_members(module)]:
            text = " ".join((inspect.getdoc(what) or "").split("\n\n")[0].split())
            if 20 <= len(text) <= 160:
                found[text] = None
            if len(found) == number:
                return list(found)
    raise SystemExit(f"only {len(found)} documents in this Python's library; reduce --documents")


def _modules() -> Iterator[str]:
    for name in PACKAGES.split():
        yield name
        package = importlib.import_module(name)
        yield from (f"{name}.{each.name}" for each in pkgutil.iter_modules(package.__path__) if each.name[0] != "_")


def _members(module: Any) -> Iterator[Any]:
    for _, member in sorted(vars(module).items()):
        if getattr(member, "__module__", None) == module.__name__:
            yield member
            if inspect.isclass(member):
                yield from (each for _, each in sorted(vars(member).items()) if inspect.isfunction(each))


def doors(embedder: Embedder, name: str) -> dict[str, Door]:
    """Wrap one loaded model in each integration, with default settings."""
    langchain = GircseEmbeddings(embedder=embedder)
    llama = GircseEmbedding(embedder=embedder)
    transformer = SentenceTransformer(modules=[GircseModule(name)])
    transformer[0].embedder = embedder
    component = GircseDocumentEmbedder(model=name)
    component._embedder = embedder
    encoder = GircseEncoder(name)
    encoder.model = embedder
    task = TaskMetadata(
        name="Overhead",
        description="local",
        type="Retrieval",
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def by_mteb(texts: list[str]) -> Any:
        batches = [{"text": texts[start : start + 32]} for start in range(0, len(texts), 32)]
        return encoder.encode(
            batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=PromptType.document
        )

    return {
        "Embedder": embedder.embed_documents,
        "LangChain": langchain.embed_documents,
        "LlamaIndex": llama.get_text_embedding_batch,
        "Sentence Transformers": lambda texts: transformer.encode_document(
            texts, batch_size=256, show_progress_bar=False
        ),
        "Sentence Transformers, batches of 32": lambda texts: transformer.encode_document(
            texts, show_progress_bar=False
        ),
        "MTEB": by_mteb,
        "Haystack": lambda texts: component.run([Document(content=text) for text in texts]),
        "Embedder again": embedder.embed_documents,
    }


def measure(embedder: Embedder, named: dict[str, Door], texts: list[str], rounds: int) -> Iterator[Times]:
    """Yield the times of each door after each round: wall and CPU seconds, and wall seconds in `Embedder.embed`."""
    inside = 0.0
    embed = embedder.embed

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        began = time.perf_counter()
        try:
            return embed(*args, **kwargs)
        finally:
            inside += time.perf_counter() - began

    embedder.embed = timed  # type: ignore[method-assign]
    times: Times = {door: {"wall": [], "cpu": [], "inside": []} for door in named}
    for door in named.values():
        door(texts[:64])  # imports, allocations
    order = list(named)
    for number in range(rounds):
        for door in order[number % len(order) :] + order[: number % len(order)]:
            embedder.backend._blocks.forget_prefixes()  # type: ignore[attr-defined]
            inside, cpu, wall = 0.0, time.process_time(), time.perf_counter()
            named[door](texts)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            for key, value in (("wall", wall), ("cpu", cpu), ("inside", inside)):
                times[door][key].append(round(value, 4))
            print(f"round {number + 1}  {door:36} {wall:7.2f} s  CPU {cpu:7.2f} s  own {wall - inside:6.3f} s")
        yield times


def summary(times: Times) -> dict[str, dict[str, float]]:
    base = times["Embedder"]
    rows = {}
    for door, own in times.items():
        within = {
            key: statistics.median(a / b for a, b in zip(own[key], base[key], strict=True)) for key in ("wall", "cpu")
        }
        outside = [(wall - inside) / inside for wall, inside in zip(own["wall"], own["inside"], strict=True)]
        rows[door] = {
            "seconds": round(statistics.median(own["wall"]), 3),
            "ratio_wall": round(within["wall"], 4),
            "ratio_cpu": round(within["cpu"], 4),
            "own": round(statistics.median(outside), 5),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    texts = documents(arguments.documents)
    embedder = Embedder.from_pretrained(arguments.model)
    lengths = [len(ids) for ids in embedder.tokenizer(texts, add_special_tokens=False).input_ids]
    report: dict[str, Any] = {
        "model": arguments.model,
        "dtype": embedder.spec.dtype,
        "steps": embedder.spec.document_steps,
        "documents": len(texts),
        "tokens": {"mean": round(float(np.mean(lengths)), 1), "most": max(lengths)},
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__,
            "langchain-core": langchain_core.__version__,
            "llama-index-core": llama_index.core.__version__,
            "sentence-transformers": sentence_transformers.__version__,
            "mteb": mteb.__version__,
            "haystack-ai": haystack.version.__version__,
        },
    }
    for number, times in enumerate(measure(embedder, doors(embedder, arguments.model), texts, arguments.rounds)):
        report |= {"rounds": number + 1, "doors": summary(times), "times": times}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["doors"], indent=1))


if __name__ == "__main__":
    main()
