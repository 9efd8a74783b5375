"""Cutting documents into chunks that the model reads whole.

The cuts are `semantic-text-splitter`'s: the largest units of meaning (sections, paragraphs, sentences, words) that fit.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from gircse_rag.errors import InputError
from gircse_rag.prompts import prefix
from gircse_rag.spec import EmbeddingSpec

# The splitter takes a minute for a megabyte without white space (base64, a minified script), and two seconds if such
# runs are broken up first.
_LONG_RUN = re.compile(r"\S{4096}(?=\S)")
_LINE_END = re.compile(r"\r\n|\r|\n")
# A first word can merge with what stands before it into other tokens, a few more or a few less.
_MERGE_MARGIN = 4


@dataclass(frozen=True)
class Chunk:
    """A piece of a document, white space at both ends removed.

    Attributes:
        number: position in the document, from 0.
        text: at most the chunker's capacity in tokens.
        start, end: characters of the document; `document.text[start:end] == text`.
        headings: the Markdown headings above its first character, outermost first; () for plain text.
    """

    number: int
    text: str
    start: int
    end: int
    headings: tuple[str, ...] = ()


class Chunker:
    """Cuts texts so that a chunk, rendered as a document, has at most `spec.max_length` tokens.

    Attributes:
        capacity: tokens of a chunk at most: what the document template and the suffix leave.
        recipe: changes when the same text may be cut differently; part of what makes a stored document current.

    Raises:
        InputError: template and suffix leave no room.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Tokenizer, spec: EmbeddingSpec) -> None:
        fast = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
        # A copy: the embedder's own tokenizer may be set to truncate, which would make every text look short.
        fast = Tokenizer.from_str(fast.to_str())
        fast.no_truncation()
        fast.no_padding()
        frame = [part for part in (prefix(spec.document_template, None), spec.suffix) if part]
        taken = sum(len(fast.encode(part, add_special_tokens=False).ids) + _MERGE_MARGIN for part in frame)
        self.capacity = spec.max_length - taken
        if self.capacity < 1:
            raise InputError(
                f"the document template and the suffix take {taken} of the {spec.max_length} tokens: no room for text"
            )
        self.recipe = f"1/{self.capacity}"
        self._plain = TextSplitter.from_huggingface_tokenizer(fast, self.capacity)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(fast, self.capacity)
        self._parser = MarkdownIt("commonmark").disable("inline")

    def chunks(self, text: str, *, markdown: bool = False) -> list[Chunk]:
        """Cut a text (valid Unicode, at least one character that is not white space) into its chunks, in order."""
        splitter = self._markdown if markdown else self._plain
        outline = self._outline(text) if markdown else []
        cuts = [0, *(run.end() for run in _LONG_RUN.finditer(text)), len(text)]
        found: list[Chunk] = []
        for begin, end in pairwise(cuts):
            for offset, piece in splitter.chunk_indices(text[begin:end]):
                if piece.strip():
                    start = begin + offset
                    found.append(Chunk(len(found), piece, start, start + len(piece), _headings(outline, start)))
        return found

    def _outline(self, text: str) -> list[tuple[int, tuple[str, ...]]]:
        """(character where a heading begins, the path of headings from there on), in order."""
        line_starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        path: list[tuple[int, str]] = []
        outline = []
        tokens = self._parser.parse(text)
        for token, content in pairwise(tokens):
            if token.type == "heading_open" and token.map is not None:
                level = int(token.tag[1:])
                path = [(above, title) for above, title in path if above < level]
                path.append((level, content.content))
                outline.append((line_starts[token.map[0]], tuple(title for _, title in path)))
        return outline


def _headings(outline: list[tuple[int, tuple[str, ...]]], start: int) -> tuple[str, ...]:
    above = bisect.bisect_right(outline, start, key=lambda entry: entry[0])
    return outline[above - 1][1] if above else ()
