"""Python's own standard library, embedded, stored in Qdrant and asked instructed questions.

Documents are docstrings of well-known modules, classes and functions, and the code of some short functions: every
machine that has Python has them. The store is the folder .demo/; a second run finds it and embeds nothing.
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
DOCUMENTATION_A_MODULE, CODE_A_MODULE = 6, 2


class Question(NamedTuple):
    text: str
    instruction: str  # a name in INSTRUCTIONS
    answer: str  # the document that we would call right


QUESTIONS = (
    Question("How do I read a file that was compressed with gzip?", "question_answering", "gzip.open"),
    Question("How can I copy a file together with its permission bits?", "question_answering", "shutil.copy"),
    Question("random.choice(seq)", "python_api", "random.choice"),
    Question("textwrap.dedent(text)", "python_api", "textwrap.dedent"),
)
WORDS = (
    "enlarge shrink decrease change swell hot cold warm temperature brave coward buy sell transaction happy sad emotion"
)
STEERED = "diminish: become smaller"
STEERING = ("word_synonym", "word_antonym")
WIDTH = 110


class Store(NamedTuple):
    embedder: Embedder
    client: QdrantClient
    collection: str


console = Console(width=WIDTH, highlight=False)


def main() -> int:
    console.print("[bold]GIRCSE on Python's own standard library[/]\n")
    if not base_folder().exists():
        console.print(f"First use: fetching SmolLM2-135M (93 MB) into {base_folder()} and converting it, once.")
    logging.disable_progress_bar()
    began = time.monotonic()
    embedder = Embedder.from_pretrained(MODEL)
    documents = list(corpus())
    console.print(f"model      {embedder.spec.describe()}, {embedder.spec.dtype}, loaded in {_since(began)}")

    client = open_client(FOLDER)
    store = Store(embedder, client, f"standard_library_{embedder.fingerprint[:8]}")  # another model, another collection
    fill(documents, store)
    for question in QUESTIONS:
        show(question, ask(question, len(documents), store))
    steer(store._replace(collection=f"words_{embedder.fingerprint[:8]}"))
    client.close()
    if BUNDLED[MODEL].adapter is None:
        console.print(
            "\n[yellow]The rankings above are poor: no trained GIRCSE adapter ships with this version yet, so these "
            "are the embeddings of an untrained model. What works is the way from text to ranked answer.[/]"
        )
    return 0


def corpus() -> Iterator[Document]:
    """Some 240 documents: the first paragraph of a docstring, or the code of a short function without its docstring."""
    for name in MODULES.split():
        module = importlib.import_module(name)
        members = [(f"{name}.{key}", value) for key, value in _members(module)]
        for label, value in [(name, module), *members[:DOCUMENTATION_A_MODULE]]:
            if said := _first_paragraph(value):
                kind = "function" if inspect.isroutine(value) else "class" if inspect.isclass(value) else "module"
                yield Document(label, f"{label}: {said}", {"kind": kind})
        codes = ((label, code) for label, value in members if (code := _short_code(value)))
        for label, code in islice(codes, CODE_A_MODULE):
            yield Document(f"{label} (code)", code, {"kind": "code"})


def _members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for key in getattr(module, "__all__", None) or sorted(vars(module)):
        value = getattr(module, key, None)
        public = not key.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value))
        if public and inspect.getmodule(value) in (module, None) and (value.__doc__ or "").strip():
            yield key, value


def _first_paragraph(value: object) -> str:
    paragraphs = (inspect.getdoc(value) or "").split("\n\n")
    # Built-in types begin with their call signature; what they do comes after it.
    said = (" ".join(p.split()) for p in paragraphs if " " in p.strip() and "->" not in p.splitlines()[0])
    return next(said, "")[:300]


def _short_code(value: object) -> str | None:
    """The source of a plain Python function of 2 to 12 lines without its docstring, else None."""
    if not inspect.isfunction(value):
        return None
    try:
        tree = ast.parse(inspect.getsource(value)).body[0]
    except (OSError, SyntaxError):  # a Python without its sources; a function defined inside something else
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    tree.body = tree.body[1:]
    code = ast.unparse(tree) if tree.body else ""
    return code if 2 <= code.count("\n") + 1 <= 12 else None


def fill(documents: list[Document], store: Store) -> None:
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
            progress=lambda now: bar.update(task, completed=now.documents),
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
        console.print(f"embedding  nothing: everything was in the store already ({_since(began)})")


class Answer(NamedTuple):
    hits: list[Hit]  # the whole collection, ranked
    seconds: float

    def rank(self, document: str) -> str:
        found = [rank for rank, hit in enumerate(self.hits, start=1) if hit.document == document]
        return f"number {found[0]} of {len(self.hits)}" if found else "not in this Python"


def ask(question: Question, limit: int, store: Store) -> Answer:
    began = time.monotonic()
    hits = search(
        question.text,
        collection=store.collection,
        embedder=store.embedder,
        client=store.client,
        instruction=INSTRUCTIONS[question.instruction],
        limit=limit,
    )
    return Answer(hits, time.monotonic() - began)


def show(question: Question, answer: Answer) -> None:
    console.print(f"\n[bold]{question.text}[/]")
    console.print(f"Instruct: {INSTRUCTIONS[question.instruction]}", style="cyan")
    table = Table("", "score", "document", "kind", "text", width=WIDTH)
    for rank, hit in enumerate(answer.hits[:3], start=1):
        right = "bold green" if hit.document == question.answer else ""
        begins = textwrap.shorten(hit.text.removeprefix(f"{hit.document}: "), 56, placeholder=" ...")
        name = Text(hit.document or "", right)
        table.add_row(str(rank), f"{hit.score:.3f}", name, hit.metadata["kind"], Text(begins))
    console.print(table)
    place = answer.rank(question.answer)
    console.print(f"the answer we had in mind, {question.answer}: {place}; {answer.seconds:.2f} s", style="dim")


def steer(store: Store) -> None:
    console.print(f"\n[bold]The same text under two instructions: {STEERED}[/]")
    words = [Document(word, word) for word in WORDS.split()]
    ingest(words, collection=store.collection, embedder=store.embedder, client=store.client)
    answers = [ask(Question(STEERED, name, ""), 4, store).hits for name in STEERING]
    table = Table("", *(INSTRUCTIONS[name] for name in STEERING), width=WIDTH)
    for rank, hits in enumerate(zip(*answers, strict=True), start=1):
        table.add_row(str(rank), *(Text(f"{hit.score:.3f}  {hit.text}") for hit in hits))
    console.print(table)


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
