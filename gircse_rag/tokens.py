"""Tokenise texts; truncation is always reported.

The rendered text is always tokenised whole: a text that starts with `"`, `(`, `->`, `:` or `'s` merges with the
template's colon, so ids of pieces must not be joined. Truncation happens afterwards, on ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gircse_rag.errors import InputError, refuse_rust_errors
from gircse_rag.prompts import Role, prefix, resolve_instruction
from gircse_rag.spec import EmbeddingSpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

    from gircse_rag.embedder import Embedder

# Python counts \t \n \v \f \r and \x1c-\x1f as white space. Other control characters indicate binary data.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f]")
_CONTROL_NAMES = {"\0": "NUL", "\a": "bell", "\b": "backspace", "\x1a": "Ctrl-Z", "\x1b": "escape", "\x7f": "delete"}

TOKEN_IDS_REFUSED = (
    "input is token ids, perhaps of another tokenizer; send texts (LangChain: OpenAIEmbeddings(..., "
    "check_embedding_ctx_length=False)). If the ids are of this model's tokenizer, add the field tokenizer "
    "with the tokenizer_hash of /v1/gircse, or start the server with `gircse serve --accept-token-ids`"
)
"""A server's answer to token ids of an unknown tokenizer: they would embed silently as other words."""


@dataclass(frozen=True)
class Prompt:
    """A rendered, tokenised text.

    Attributes:
        token_ids: at most `max_length` ids, including the suffix.
        truncated: whether the end of the body was cut.
    """

    token_ids: tuple[int, ...]
    truncated: bool


def check_text(text: object, index: int | None = None) -> str:
    """Refuse a text that cannot be embedded; return it otherwise.

    Raises:
        InputError: not a string, only white space, or contains a lone surrogate or a control character.
    """
    if not isinstance(text, str):
        raise InputError(f"{_label(index)} is not a string but {type(text).__name__}", index=index)
    if not text.strip():
        raise InputError(f"{_label(index)} is empty or white space; leave it out", index=index)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{_label(index)} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: "
            "it was decoded wrongly; read the source again with its real encoding",
            index=index,
        ) from error
    if control := _CONTROL.search(text):
        name = _CONTROL_NAMES.get(control[0])
        lines = text.count("\n", 0, control.start())
        raise InputError(
            f"{_label(index)} holds the control character U+{ord(control[0]):04X}{f' ({name})' if name else ''} at "
            f"character {control.start()}{f' (line {lines + 1})' if lines else ''}, "
            "as binary data or terminal codes do; remove it",
            index=index,
        )
    return text


def without_controls(text: str) -> str:
    """Replace the control characters that `check_text` refuses with spaces.

    For published evaluation sets: some contain control characters (STS12 does) and are scored whole. A user's own
    document is refused instead, because there such characters mean that the document was read wrongly.
    """
    return _CONTROL.sub(" ", text)


def read_instruction(instruction: str) -> str:
    """Check an instruction, and replace a name by its sentence (`resolve_instruction`).

    Raises:
        InputError: as `check_text` and `resolve_instruction`.
    """
    try:
        return resolve_instruction(check_text(instruction))
    except InputError as error:
        raise InputError(str(error).replace("the text", "the instruction")) from error


def tokenizer_of(embedder: Embedder) -> Tokenizer:
    """The embedder's tokenizer as the `tokenizers` library has it; an embedder of the user's own may lack that form."""
    fast: Tokenizer | None = getattr(embedder, "backend_tokenizer", None)
    return embedder.tokenizer.backend_tokenizer if fast is None else fast


def encode(
    tokenizer: Tokenizer | PreTrainedTokenizerBase,
    spec: EmbeddingSpec,
    text: str,
    *,
    role: Role,
    instruction: str | None,
    index: int | None = None,
) -> Prompt:
    """Render `text` for its role, tokenise it, and cut the body's end if it is too long.

    Template and suffix always survive. No special tokens are added.

    Args:
        tokenizer: a fast tokenizer of transformers, or the Tokenizer inside, which must neither truncate nor pad.

    Raises:
        InputError: the text is refused (`check_text`), the tokenizer fails on it, or template, instruction and suffix
            leave no room for it.
    """
    check_text(text, index)
    asked = spec.default_instruction if instruction is None else instruction
    head = prefix(spec.document_template, None) if role == "document" else prefix(spec.query_template, asked)
    rendered = head + text + spec.suffix
    with refuse_rust_errors(_label(index), index):
        encoding = _tokenise(tokenizer, rendered)
    ids: list[int] = encoding.ids
    if len(ids) <= spec.max_length:
        return Prompt(tuple(ids), truncated=False)

    spans: list[tuple[int, int]] = encoding.offsets
    body_end = len(rendered) - len(spec.suffix)
    tail = sum(1 for _, end in spans if end > body_end)
    first_of_body = next(i for i, (_, end) in enumerate(spans) if end > len(head))
    kept = spec.max_length - tail
    if kept <= first_of_body:
        raise InputError(
            f"{_label(index)} has no room: template, instruction and suffix take {first_of_body + tail} of the "
            f"{spec.max_length} tokens; shorten the instruction",
            index=index,
        )
    return Prompt(tuple(ids[:kept] + ids[len(ids) - tail :]), truncated=True)


def _tokenise(tokenizer: Tokenizer | PreTrainedTokenizerBase, text: str) -> Encoding:
    if callable(tokenizer):  # transformers'
        encoding: Encoding = tokenizer(text, add_special_tokens=False).encodings[0]
        return encoding
    return tokenizer.encode(text, add_special_tokens=False)


def _label(index: int | None) -> str:
    return "the text" if index is None else f"text {index}"
