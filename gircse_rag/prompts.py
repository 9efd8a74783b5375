"""Roles, templates, and named instructions.

Queries and both sides of a symmetric task are `Instruct: {instruction}\\nQuery:{text}`; a document is the bare text.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args

from gircse_rag.errors import InputError

Role = Literal["query", "document", "symmetric"]
ROLES: tuple[Role, ...] = get_args(Role)

QUERY_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"
DOCUMENT_TEMPLATE = "{text}"
DEFAULT_INSTRUCTION = "Given a question, retrieve passages that answer it"

_NEARNESS = 0.8
"""Share of characters that a misspelt name has in common with the name (difflib): "definitions", "pyton_code"."""

INSTRUCTIONS: dict[str, str] = {
    "question_answering": DEFAULT_INSTRUCTION,
    "web_search": "Given a web search query, retrieve relevant passages that answer the query",
    "manual": "Given the title of a section in a software manual, retrieve the text of the section",
    "definition": "Given a computing term, retrieve its explanation",
    "python_code": "Given a description of what a function does, retrieve the Python code that implements it",
    "python_api": "Given a Python API signature, retrieve its documentation",
    "command_line": "Given what a user wants to do with a command-line tool, retrieve the command",
    "scientific_paper": "Given the title of a scientific paper, retrieve its abstract",
    "medical": "Given a medical question, retrieve passages that answer it",
    "word_synonym": "Given a word and its meaning, retrieve another word with the same meaning",
    "word_antonym": "Given a word and its meaning, retrieve a word with the opposite meaning",
    "same_topic": "Retrieve texts about the same disease or condition",
    "same_question_type": "Retrieve texts that cover the same kind of information (symptoms, causes, treatment and so "
    "on), whatever the disease",
    "same_intent": "Retrieve requests with the same exact intent",
    "same_domain": "Retrieve requests from the same general domain, such as banking, travel or small talk",
    "similar_sentence": "Retrieve semantically similar text",
}
"""Task instructions by name: `embed_queries(texts, instruction="python_code")`. `gircse instructions` lists them.

The bundled checkpoint was trained with nearly all of them. Other sentences are accepted but may work less well
(docs/start/instructions.md).
"""


def resolve_instruction(instruction: str) -> str:
    """The sentence of a named instruction (`INSTRUCTIONS`); any other text is returned unchanged.

    Raises:
        InputError: the text is one word that is nearly a name: "python-code", "definitions".
    """
    if instruction in INSTRUCTIONS:
        return INSTRUCTIONS[instruction]
    word = instruction.strip()
    if word.endswith(".") or len(word.split()) != 1:
        return instruction
    if near := get_close_matches(word.lower().replace("-", "_"), INSTRUCTIONS, 1, _NEARNESS):
        raise InputError(
            f"instruction {instruction!r} is no name; did you mean {near[0]!r}? `gircse instructions` lists the names. "
            f"To use the word as it is, end it with a full stop: {word + '.'!r}"
        )
    return instruction


def check_role(role: str, instruction: str | None) -> None:
    """Refuse an unknown role and an instruction that the role does not use.

    Raises:
        InputError: the role or the instruction is invalid.
    """
    if role not in ROLES:
        raise InputError(f"role {role!r} does not exist; it is one of {', '.join(ROLES)}")
    if instruction is not None and not isinstance(instruction, str):
        raise InputError(f"instruction must be a string or None, not {type(instruction).__name__}")
    if role == "document" and instruction is not None:
        raise InputError(
            "a document takes no instruction: documents are embedded once for all queries; put the instruction on the "
            "query, or use role='symmetric' if both sides of your task are alike"
        )
    if instruction is not None and not instruction.strip():
        raise InputError("instruction is empty; pass None for the default instruction")


def paraphrases(instruction: Any) -> tuple[str, ...]:
    """Wordings of an instruction in a tasks.json, which holds a string or a list of strings; names become sentences.

    Raises:
        ValueError: it is neither, or `resolve_instruction` refuses a string.
    """
    wordings = instruction if isinstance(instruction, list) else [instruction]
    if not wordings or not all(isinstance(wording, str) and wording.strip() for wording in wordings):
        raise ValueError(f"an instruction is a text or a list of texts, not {instruction!r}")
    return tuple(map(resolve_instruction, wordings))


def flag(value: Any) -> bool:
    """Value of `"symmetric"`, `"in_batch"` or `"teacher"` in a tasks.json; null is false.

    Raises:
        ValueError: it is not true, false or null. A string is refused because it would count as true.
    """
    if value not in (True, False, None):
        raise ValueError(f"symmetric, in_batch and teacher must be true or false, not {value!r}")
    return bool(value)


def prefix(template: str, instruction: str | None) -> str:
    """The part of a template before the text, with the instruction filled in."""
    return template.removesuffix("{text}").replace("{instruction}", instruction or "")


def check_template(template: str) -> None:
    """Refuse a template that does not end in `{text}`: truncation cuts the body's end, so nothing may follow it.

    Raises:
        InputError: the template is invalid.
    """
    if not template.endswith("{text}") or template.count("{text}") != 1:
        raise InputError(
            f"template {template!r} must end in {{text}} and contain it once; use the suffix for what follows a text"
        )
