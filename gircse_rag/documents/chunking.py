"""Cutting documents into chunks that the model reads whole.

The cuts are `semantic-text-splitter`'s: the largest units of meaning that fit (sections, paragraphs, sentences, words;
of source code: definitions, blocks, statements). `by` says where there has to be a cut before that.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

from markdown_it import MarkdownIt
from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from gircse_rag.documents.document import Document
from gircse_rag.documents.languages import LANGUAGES, grammar
from gircse_rag.documents.nesting import nesting
from gircse_rag.errors import InputError, require
from gircse_rag.prompts import prefix
from gircse_rag.spec import EmbeddingSpec

By: TypeAlias = Literal["tokens", "sentences", "headings"]
_Splitter: TypeAlias = TextSplitter | MarkdownSplitter | CodeSplitter

# The splitter takes a minute for a megabyte without white space (base64, a minified script), and two seconds if such
# runs are broken up first.
_LONG_RUN = re.compile(r"\S{4096}(?=\S)")
# Its time for source code grows with the cube of the depth: 50 s a megabyte at 64 levels, ten times as long at 100.
# None of 67,000 files of other projects, generated ones among them, was deeper than 40.
_MOST_NESTING = 64
_LINE_END = re.compile(r"\r\n|\r|\n")
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
# What the splitter takes off a piece's ends, as far as it is ASCII; str.strip() takes off more.
_SPACE = " \t\n\v\f\r"
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
        page: of its first character, from 1; None where the document has no pages.
    """

    number: int
    text: str
    start: int
    end: int
    headings: tuple[str, ...] = ()
    page: int | None = None


class Chunker:
    """Cuts texts so that a chunk, rendered as a document, has at most `spec.max_length` tokens.

    `by` is "tokens": as much as fits, cut at the largest unit of meaning; "sentences": whole sentences, as many as fit
    (extra `sentences`); or "headings": of Markdown, no chunk of two sections. By sentences keeps sections apart too.
    Only what does not fit by itself is cut further. Source code is cut at its definitions, whatever `by` says; where it
    is nested more than 64 levels deep (`nesting`), as plain text by tokens.

    Args:
        max_tokens: of a chunk at most; left out, what the model reads.

    Attributes:
        capacity: tokens of a chunk at most: what the document template and the suffix leave, or `max_tokens`.
        recipe: changes when the same text may be cut differently; part of what makes a stored document current.

    Raises:
        InputError: template and suffix leave no room, or not as much as `max_tokens`; or `by` is none of these.
        MissingExtraError: by sentences, and the extra is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | Tokenizer,
        spec: EmbeddingSpec,
        *,
        by: By = "tokens",
        max_tokens: int | None = None,
    ) -> None:
        if by not in get_args(By):
            raise InputError(f"chunks cannot be cut by {by!r}; choose one of {', '.join(get_args(By))}")
        fast = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
        # A copy: the embedder's own tokenizer may be set to truncate, which would make every text look short.
        fast = Tokenizer.from_str(fast.to_str())
        fast.no_truncation()
        fast.no_padding()
        frame = [part for part in (prefix(spec.document_template, None), spec.suffix) if part]
        taken = sum(len(fast.encode(part, add_special_tokens=False).ids) + _MERGE_MARGIN for part in frame)
        room = spec.max_length - taken
        if room < 1:
            raise InputError(
                f"the document template and the suffix take {taken} of the {spec.max_length} tokens: no room for text"
            )
        if max_tokens is not None and not 1 <= max_tokens <= room:
            raise InputError(f"max_tokens is {max_tokens}; the model leaves room for 1 to {room}")
        self.capacity = room if max_tokens is None else max_tokens
        self.recipe = f"1/{self.capacity}" if by == "tokens" else f"1/{self.capacity}/{by}"
        self._by = by
        self._tokenizer = fast
        # Then a token stands for one byte or more of the text, so it has no more tokens than bytes.
        level = fast.pre_tokenizer
        self._by_bytes = fast.normalizer is None and isinstance(level, ByteLevel) and not level.add_prefix_space
        self._sentencex = require("sentencex", "sentences") if by == "sentences" else None
        self._plain = TextSplitter.from_huggingface_tokenizer(fast, self.capacity)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(fast, self.capacity)
        self._code: dict[str, CodeSplitter] = {}
        self._parser = MarkdownIt("commonmark").disable("inline")

    def recipe_of(self, document: Document) -> str:
        """The recipe, and what else of the document, besides its text and `markdown`, decides over its chunks."""
        kind = document.language or ("paged" if document.paged else None)
        if document.language is not None and nesting(document.text) > _MOST_NESTING:
            kind = f"{kind}/flat"
        return f"{self.recipe}/{kind}" if kind else self.recipe

    def cut(self, document: Document) -> list[Chunk]:
        """The chunks of a document (valid Unicode, at least one character that is not white space), in order.

        Raises:
            InputError: a language that is not cut as such.
            MissingExtraError: the language's grammar is not installed.
        """
        text = document.text
        outline = self._outline(text) if document.markdown else []
        if document.language is not None:
            code = self._code_splitter(document.language)
            pieces = self._split(text, 0, len(text), self._plain if nesting(text) > _MOST_NESTING else code)
        elif self._by == "tokens":
            pieces = self._split(text, 0, len(text), self._markdown if document.markdown else self._plain)
        else:
            pieces = self._split_sections(text, [start for start, _ in outline])
        page_ends = [match.end() for match in re.finditer("\f", text)] if document.paged else None
        return [
            Chunk(
                number,
                text[start:end],
                start,
                end,
                _headings(outline, start),
                None if page_ends is None else bisect.bisect_right(page_ends, start) + 1,
            )
            for number, (start, end) in enumerate(pieces)
        ]

    def _split(self, text: str, start: int, end: int, splitter: _Splitter) -> Iterator[tuple[int, int]]:
        """(start, end) of the splitter's pieces of text[start:end], as characters of `text`."""
        part = text[start:end]
        cuts = [0, *(run.end() for run in _LONG_RUN.finditer(part)), len(part)]
        for begin, stop in pairwise(cuts):
            for offset, piece in self._pieces(part[begin:stop], splitter):
                if piece.strip():
                    at = start + begin + offset
                    yield at, at + len(piece)

    def _pieces(self, text: str, splitter: _Splitter) -> list[tuple[int, str]]:
        """The splitter's (character, piece); without asking it where the text fits whole, whatever its tokens are."""
        if splitter is self._plain and self._by_bytes and len(text) <= self.capacity and text.isascii():
            piece = text.strip(_SPACE)
            return [(text.index(piece), piece)]
        return splitter.chunk_indices(text)

    def _split_sections(self, text: str, headings: Sequence[int]) -> Iterator[tuple[int, int]]:
        for start, end in pairwise([0, *headings, len(text)]):
            if self._sentencex is not None:
                yield from self._pack_sentences(text, start, end)
            else:
                yield from self._split(text, start, end, self._markdown if headings else self._plain)

    def _pack_sentences(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """As many whole sentences as fit, again and again; one that does not fit is cut as by tokens."""
        sentences = self._sentences(text, start, end)
        encodings = self._tokenizer.encode_batch([text[a:b] for a, b in sentences], add_special_tokens=False)
        sizes = [len(encoding.ids) for encoding in encodings]
        first = 0
        while first < len(sentences):
            last, total = first + 1, sizes[first]
            while last < len(sentences) and total + sizes[last] <= self.capacity:
                total += sizes[last]
                last += 1
            # Sentences may have more tokens together, with the white space between them, than each by itself.
            while last > first + 1 and self._size(text[sentences[first][0] : sentences[last - 1][1]]) > self.capacity:
                last -= 1
            span = sentences[first][0], sentences[last - 1][1]
            if last == first + 1 and sizes[first] > self.capacity:
                yield from self._split(text, *span, self._plain)
            else:
                yield span
            first = last

    def _sentences(self, text: str, start: int, end: int) -> list[tuple[int, int]]:
        """(start, end) of each sentence in text[start:end], without the white space around it."""
        assert self._sentencex is not None
        cuts = {start, end}
        # A paragraph at a time. Of the answer only where sentences begin is used: so nothing of the text is lost.
        paragraphs = [start, *(gap.end() for gap in _PARAGRAPH_END.finditer(text, start, end)), end]
        for begin, stop in pairwise(paragraphs):
            found = self._sentencex.get_sentence_boundaries("en", text[begin:stop])
            cuts.update(min(begin + sentence["start_index"], stop) for sentence in found)
        spans = []
        for begin, stop in pairwise(sorted(cuts)):
            sentence = text[begin:stop]
            if stripped := sentence.strip():
                begin += sentence.index(stripped)
                spans.append((begin, begin + len(stripped)))
        return spans

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _code_splitter(self, language: str) -> CodeSplitter:
        if language not in LANGUAGES:
            raise InputError(f"no source code is cut as {language!r}; the languages are {', '.join(LANGUAGES)}")
        if language not in self._code:
            self._code[language] = CodeSplitter.from_huggingface_tokenizer(
                grammar(language), self._tokenizer, self.capacity
            )
        return self._code[language]

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
