"""Demo: embed parts of Python's standard library, store them in Qdrant, and ask instructed questions.

The documents are docstrings of well-known modules, classes and functions, and the code of some short functions, so
they need no download. The store is the folder .demo/; a second run reuses it and embeds nothing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from qdrant_client import QdrantClient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from gircse_rag import INSTRUCTIONS, Embedder
from gircse_rag.checkpoint.bundled import BUNDLED, base_folder
from gircse_rag.qdrant import Document, Hit, ingest, open_client, search

MODEL = "smollm2-135m"
FOLDER = Path(__file__).parent.parent / ".demo"
MODULES = """
    bisect calendar colorsys contextlib copy csv datetime difflib fnmatch functools glob gzip hashlib heapq html json
    logging math os.path pprint queue random re secrets shutil statistics string subprocess tempfile textwrap threading
    time urllib.parse uuid zipfile
"""
DOCSTRINGS_PER_MODULE, FUNCTIONS_PER_MODULE = 6, 2


class Question(NamedTuple):
    text: str
    instruction: str  # a name in INSTRUCTIONS
    answer: str  # id of the document that answers the question


QUESTIONS = (
    Question("How do I read a file that was compressed with gzip?", "question_answering", "gzip.open"),
    Question("How can I copy a file together with its permission bits?", "question_answering", "shutil.copy"),
    Question("random.choice(seq)", "python_api", "random.choice"),
    Question("textwrap.dedent(text)", "python_api", "textwrap.dedent"),
)
WORDS = (
    "enlarge shrink decrease change swell hot cold warm temperature brave coward buy sell transaction happy sad emotion"
)
STEERED_TEXT = "diminish: become smaller"
STEERING_INSTRUCTIONS = ("word_synonym", "word_antonym")
WIDTH = 110


class Store(NamedTuple):
    embedder: Embedder
    client: QdrantClient
    collection: str


console = Console(width=WIDTH, highlight=False)


def main() -> int:
    console.print("[bold]GIRCSE on Python's standard library[/]\n")
    if not base_folder().exists():
        console.print(f"First use: downloading SmolLM2-135M (93 MB) to {base_folder()} and converting it.")
    logging.disable_progress_bar()
    began = time.monotonic()
    embedder = Embedder.from_pretrained(MODEL)
    documents = list(corpus())
    console.print(f"model      {embedder.spec.describe()}, {embedder.spec.dtype}, loaded in {_elapsed(began)}")

    client = open_client(FOLDER)
    store = Store(embedder, client, f"standard_library_{embedder.fingerprint[:8]}")  # one collection per model
    fill(documents, store)
    for question in QUESTIONS:
        show(question, ask(question, len(documents), store))
    steer(store._replace(collection=f"words_{embedder.fingerprint[:8]}"))
    client.close()
    if BUNDLED[MODEL].adapter is None:
        console.print(
            "\n[yellow]The rankings above are poor, because no trained GIRCSE adapter is bundled with this version: "
            "the embeddings come from an untrained model.[/]"
        )
    return 0


def corpus() -> Iterator[Document]:
    """Yield about 240 documents: first paragraphs of docstrings, and code of short functions."""
    for name in MODULES.split():
        module = importlib.import_module(name)
        members = [(f"{name}.{key}", value) for key, value in _members(module)]
        for label, value in [(name, module), *members[:DOCSTRINGS_PER_MODULE]]:
            if summary := _first_paragraph(value):
                kind = "function" if inspect.isroutine(value) else "class" if inspect.isclass(value) else "module"
                yield Document(label, f"{label}: {summary}", {"kind": kind})
        codes = ((label, code) for label, value in members if (code := _short_code(value)))
        for label, code in islice(codes, FUNCTIONS_PER_MODULE):
            yield Document(f"{label} (code)", code, {"kind": "code"})


def _members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for key in getattr(module, "__all__", None) or sorted(vars(module)):
        value = getattr(module, key, None)
        public = not key.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value))
        if public and inspect.getmodule(value) in (module, None) and (value.__doc__ or "").strip():
            yield key, value


def _first_paragraph(value: object) -> str:
    paragraphs = (inspect.getdoc(value) or "").split("\n\n")
    # Docstrings of built-in types begin with a call signature: skip it.
    texts = (" ".join(p.split()) for p in paragraphs if " " in p.strip() and "->" not in p.splitlines()[0])
    return next(texts, "")[:300]


def _short_code(value: object) -> str | None:
    """Return a function's source without its docstring if it has 2 to 12 lines, else None."""
    if not inspect.isfunction(value):
        return None
    try:
        tree = ast.parse(inspect.getsource(value)).body[0]
    except (OSError, SyntaxError):  # no source file, or an indented definition
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    tree.body = tree.body[1:]
    code = ast.unparse(tree) if tree.body else ""
    return code if 2 <= code.count("\n") + 1 <= 12 else None


def fill(documents: list[Document], store: Store) -> None:
    """Ingest the documents and print what was embedded."""
    began = time.monotonic()
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(documents))
        report = ingest(
            documents,
            collection=store.collection,
            embedder=store.embedder,
            client=store.client,
            batch_size=16,
            progress=lambda state: bar.update(task, completed=state.documents),
        )
    seconds = time.monotonic() - began
    console.print(
        f"store      {FOLDER.name}/: {report.added} documents added, {report.updated} updated, "
        f"{report.unchanged} unchanged"
    )
    if report.embedded:
        rate = f"{report.embedded / seconds:.1f} chunks/s"
        console.print(f"embedding  {report.embedded} chunks, {report.prompt_tokens} tokens in {seconds:.0f} s ({rate})")
    else:
        console.print(f"embedding  nothing: all documents are in the store already ({_elapsed(began)})")


class Answer(NamedTuple):
    hits: list[Hit]  # the whole collection, ranked
    seconds: float

    def rank(self, document: str) -> str:
        """Describe the rank of a document among the hits."""
        ranks = [rank for rank, hit in enumerate(self.hits, start=1) if hit.document == document]
        return f"rank {ranks[0]} of {len(self.hits)}" if ranks else "not in this version of Python"


def ask(question: Question, limit: int, store: Store) -> Answer:
    """Search with a question under its instruction."""
    began = time.monotonic()
    hits = search(
        question.text,
        collection=store.collection,
        embedder=store.embedder,
        client=store.client,
        instruction=INSTRUCTIONS[question.instruction],
        limit=limit,
        mode="dense",  # shows what instructions do; the default also ranks by the question's words
    )
    return Answer(hits, time.monotonic() - began)


def show(question: Question, answer: Answer) -> None:
    """Print a question with its three best hits and the rank of the expected answer."""
    console.print(f"\n[bold]{question.text}[/]")
    console.print(f"Instruct: {INSTRUCTIONS[question.instruction]}", style="cyan")
    table = Table("", "score", "document", "kind", "text", width=WIDTH)
    for number, hit in enumerate(answer.hits[:3], start=1):
        style = "bold green" if hit.document == question.answer else ""
        start = textwrap.shorten(hit.text.removeprefix(f"{hit.document}: "), 56, placeholder=" ...")
        name = Text(hit.document or "", style)
        table.add_row(str(number), f"{hit.score:.3f}", name, hit.metadata["kind"], Text(start))
    console.print(table)
    rank = answer.rank(question.answer)
    console.print(f"expected answer {question.answer}: {rank}; {answer.seconds:.2f} s", style="dim")


def steer(store: Store) -> None:
    """Search with one text under two instructions and print both rankings side by side."""
    console.print(f"\n[bold]The same text under two instructions: {STEERED_TEXT}[/]")
    words = [Document(word, word) for word in WORDS.split()]
    ingest(words, collection=store.collection, embedder=store.embedder, client=store.client)
    answers = [ask(Question(STEERED_TEXT, name, ""), 4, store).hits for name in STEERING_INSTRUCTIONS]
    table = Table("", *(INSTRUCTIONS[name] for name in STEERING_INSTRUCTIONS), width=WIDTH)
    for rank, hits in enumerate(zip(*answers, strict=True), start=1):
        table.add_row(str(rank), *(Text(f"{hit.score:.3f}  {hit.text}") for hit in hits))
    console.print(table)


def _elapsed(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
