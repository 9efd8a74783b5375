"""Roles, templates, and instructions by name.

A query, and both sides of a symmetric task, is `Instruct: {instruction}\\nQuery:{text}`; a document is the bare text.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from gircse_rag.errors import InputError

Role = Literal["query", "document", "symmetric"]
ROLES: tuple[Role, ...] = get_args(Role)

QUERY_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"
DOCUMENT_TEMPLATE = "{text}"
DEFAULT_INSTRUCTION = "Given a question, retrieve passages that answer it"

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
"""Task instructions by name: `embed_queries(texts, instruction=INSTRUCTIONS["python_code"])`.

The bundled checkpoint was trained with nearly all of them. Any sentence is taken; what it does is another matter
(docs/start/instructions.md).
"""


def check_role(role: str, instruction: str | None) -> None:
    """Refuse a role that does not exist and an instruction where none is rendered.

    Raises:
        InputError: either is the case.
    """
    if role not in ROLES:
        raise InputError(f"role {role!r} does not exist; it is one of {', '.join(ROLES)}")
    if instruction is not None and not isinstance(instruction, str):
        raise InputError(f"instruction must be a string or None, not {type(instruction).__name__}")
    if role == "document" and instruction is not None:
        raise InputError(
            "a document takes no instruction: documents are embedded once and serve every query; put the instruction "
            "on the query, or use role='symmetric' if both sides of your task are alike"
        )
    if role != "document" and instruction is not None and not instruction.strip():
        raise InputError("instruction is empty; pass None for the default instruction")


def paraphrases(instruction: Any) -> tuple[str, ...]:
    """The wordings of a task's `"instruction"` in a tasks.json: a text, or a list of texts.

    Raises:
        ValueError: it is neither.
    """
    found = instruction if isinstance(instruction, list) else [instruction]
    if not found or not all(isinstance(wording, str) and wording.strip() for wording in found):
        raise ValueError(f"an instruction is a text or a list of texts, not {instruction!r}")
    return tuple(found)


def flag(value: Any) -> bool:
    """A task's `"symmetric"` or `"in_batch"` in a tasks.json; null is false.

    Raises:
        ValueError: it is none: a text, which would count as true, whatever it says.
    """
    if value not in (True, False, None):
        raise ValueError(f"symmetric and in_batch are true or false, not {value!r}")
    return bool(value)


def prefix(template: str, instruction: str | None) -> str:
    """What a template puts in front of the text, with the instruction filled in."""
    return template.removesuffix("{text}").replace("{instruction}", instruction or "")


def check_template(template: str) -> None:
    """A template must end in `{text}`: truncation cuts the end of the body, so nothing may stand behind it.

    Raises:
        InputError: it does not.
    """
    if not template.endswith("{text}") or template.count("{text}") != 1:
        raise InputError(
            f"template {template!r} must end in {{text}} and hold it once; what follows a text is the suffix"
        )
