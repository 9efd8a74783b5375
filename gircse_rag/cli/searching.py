"""`gircse search`."""

from __future__ import annotations

import contextlib
import json
import re
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note, only_results_on_stdout, shorten
from gircse_rag.cli.questions import answer_lines
from gircse_rag.errors import InputError
from gircse_rag.prompts import resolve_instruction

if TYPE_CHECKING:
    from gircse_rag.qdrant import Hit


_KEY_AND_VALUE = re.compile(r'((?>"[^"]*"|!(?!=)|[^=<>!])+)(!=|>=|<=|=|>|<)(.*)', re.DOTALL)
"""KEY=VALUE, or another operator. Operators inside double quotes belong to the key, as dots do (see `field_path`)."""
_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_FILTER = "Metadata value (kind=faq, lang!=de, year>=2020, lang=null); repeat a key for alternatives."


@options.with_model_options
def search(
    collection: options.Collection,
    question: Annotated[
        str | None, Argument(help="The question, in plain words (default: ask for one after the other).")
    ] = None,
    instruction: Annotated[
        str | None, Option(help="What makes a good answer: a sentence, or a name (`gircse instructions`).")
    ] = None,
    mode: Annotated[
        Literal["hybrid", "dense", "lexical"] | None,
        Option(help="Rank by embeddings (dense), words (lexical) or both (default: hybrid where possible)."),
    ] = None,
    limit: Annotated[int, Option(min=1, help="Maximum number of answers.")] = 5,
    offset: Annotated[int, Option(min=0, help="Number of best answers to skip, for paging.")] = 0,
    filters: Annotated[list[str] | None, Option("--filter", metavar="KEY=VALUE", help=_FILTER)] = None,
    min_score: Annotated[
        float | None, Option(help="Minimum cosine similarity; with --mode lexical, minimum BM25 score.")
    ] = None,
    group: Annotated[
        int | None, Option(min=1, metavar="N", help="Maximum answers per document; --limit then counts documents.")
    ] = None,
    mmr: Annotated[float | None, Option(min=0, max=1, help="Diversity: rank answers lower that repeat others.")] = None,
    coarse_to_fine: Annotated[
        bool, Option("--coarse-to-fine", help="Answer after one refinement step, then again after all (--steps).")
    ] = False,
    steps: options.Steps = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Search a collection with instructed questions.

    The table shows the start of each answer; --json gives all of it. Without QUESTION the model stays loaded and
    answers one question per line, from the terminal or from stdin, until the end of the input. A line
    `:instruction TEXT` changes the instruction.
    """
    incompatible = {"--offset": offset or None, "--min-score": min_score, "--group": group, "--mmr": mmr}
    if coarse_to_fine and (given := [name for name, value in incompatible.items() if value is not None]):
        raise InputError(f"--coarse-to-fine cannot be combined with {given[0]}; leave one of them out")
    if coarse_to_fine and steps == "auto":
        raise InputError("--coarse-to-fine needs a fixed number of --steps, not auto")
    with contextlib.ExitStack() as stack:
        with only_results_on_stdout():
            from gircse_rag.qdrant import explain_empty, open_client, search, search_coarse_to_fine

            query_filter = _parse_filters(filters or [])
            client = stack.enter_context(closing(open_client(path, url, create=False)))
            embedder = options.load(model, lazy=mode == "lexical")

        def answer(question: str, instruction: str | None) -> None:
            arguments: dict[str, Any] = {
                "collection": collection,
                "embedder": embedder,
                "client": client,
                "instruction": instruction,
                "limit": limit,
                "query_filter": query_filter,
                "mode": mode,
            }
            with only_results_on_stdout():
                if coarse_to_fine:
                    answers = search_coarse_to_fine(question, **arguments, steps=steps)
                else:
                    more = {"offset": offset, "steps": steps, "min_score": min_score, "group_size": group, "mmr": mmr}
                    answers = iter([search(question, **arguments, **more)])
                hits, reason = next(answers), None
                if not hits:
                    chosen = {**arguments, "min_score": min_score, "offset": offset, "steps": steps}
                    reason = explain_empty(question, **chosen)
            first_answer: dict[str, Any] = {}
            if coarse_to_fine:
                first_answer = {"at_once": [asdict(hit) for hit in hits]}
                if not as_json:
                    emit("at once, after one refinement step:", _table(hits), "refined:")
                with only_results_on_stdout():
                    hits = next(answers)
            if reason is not None:
                note("note", f"no hits: {reason}")
            if as_json:
                used = embedder.spec.default_instruction if instruction is None else resolve_instruction(instruction)
                head = {"question": question, "instruction": used, "collection": collection}
                emit_json({**head, **first_answer, "hits": [asdict(hit) for hit in hits]})
            else:
                emit(_table(hits))

        if question is not None:
            answer(question, instruction)
        else:
            answer_lines(answer, instruction, embedder.spec.default_instruction)


def _table(hits: list[Hit]) -> Table:
    """The hits; in hybrid mode, their places in the dense and in the lexical ranking too."""
    hybrid = any(hit.dense_rank for hit in hits) and any(hit.lexical_rank for hit in hits)
    table = Table("score", *(["ranks"] if hybrid else []), "document", "text", show_lines=True)
    for hit in hits:
        ranks = [f"{hit.dense_rank or '-'} dense\n{hit.lexical_rank or '-'} lexical"] if hybrid else []
        table.add_row(f"{hit.score:.4f}", *ranks, Text(hit.document or ""), Text(shorten(hit.text, 200)))
    return table


def _parse_filters(items: list[str]) -> dict[str, Any] | None:
    """Parse KEY=VALUE items, also with !=, >, >=, < and <=. Values of one key are alternatives, its bounds all hold."""
    parsed: dict[str, Any] = {}
    for item in items:
        if (match := _KEY_AND_VALUE.fullmatch(item)) is None:
            raise InputError(f"--filter {item!r} is not KEY=VALUE, such as --filter kind=animal")
        key, operator, text = match.groups()
        conditions = parsed.setdefault(key, {})
        if operator in _BOUNDS:
            conditions[_BOUNDS[operator]] = _parse_bound(text)
        else:
            conditions.setdefault("ne" if operator == "!=" else "=", []).append(_parse_value(text))
    return {key: _combine(key, conditions) for key, conditions in parsed.items()} or None


def _combine(key: str, conditions: dict[str, Any]) -> Any:
    values = conditions.pop("=", None)
    if values is None:
        return conditions
    if conditions:
        raise InputError(f"--filter {key}=... cannot be combined with another operator for this key; leave one out")
    return values[0] if len(values) == 1 else values


def _parse_value(text: str) -> str | None:
    """The text itself, without the quotes of a JSON string; null stands for no value.

    Numbers and booleans stay text: a search compares them whatever their types are (see `as_filter`).
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str | None) else text


def _parse_bound(text: str) -> str | int | float:
    """A number, or the text of a date."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text
