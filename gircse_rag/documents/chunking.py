"""Cut documents into chunks that fit the model.

`semantic-text-splitter` cuts at the largest units of meaning that fit: sections, paragraphs, sentences and words; in
source code, definitions, blocks and statements. `by` adds places where a cut is required. Markdown tables that do not
fit are cut between rows here, and each part repeats the header.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from gircse_rag.documents.document import Document
from gircse_rag.documents.front_matter import front_matter_end
from gircse_rag.documents.languages import LANGUAGES, grammar
from gircse_rag.documents.nesting import nesting_depth
from gircse_rag.documents.outline import NO_OUTLINE, may_have_tables, read_outline
from gircse_rag.documents.tables import Spans, Table, cuts_a_table, pack_rows, skip_repeated_rows, table_around
from gircse_rag.errors import InputError, refuse_rust_errors, require
from gircse_rag.prompts import prefix
from gircse_rag.spec import EmbeddingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

By: TypeAlias = Literal["tokens", "sentences", "headings"]
_Splitter: TypeAlias = TextSplitter | MarkdownSplitter | CodeSplitter

# Runs without white space (base64, minified scripts) are broken up at this length before the splitter sees them: it
# then takes 2 seconds per megabyte instead of 60.
_LONG_RUN = re.compile(r"\S{4096}(?=\S)")
# Code nested deeper than this is cut as plain text. The code splitter's time grows faster than the cube of the depth:
# 50 s per megabyte at 64 levels, 500 s at 100. Among 67,000 files of other projects the deepest had 40 levels.
_MAX_CODE_DEPTH = 64
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
# The ASCII white space that the splitter strips from pieces; str.strip() strips more.
_SPACE = " \t\n\v\f\r"
# Tokens reserved at each end: text merges with the template around it into slightly more or fewer tokens.
_MERGE_MARGIN = 4


@dataclass(frozen=True)
class Chunk:
    """A piece of a document, stripped of white space at both ends.

    Attributes:
        number: position in the document, from 0.
        text: `header + document.text[start:end]`; has at most `Chunker.capacity` tokens.
        start, end: character offsets in the document.
        headings: path of Markdown headings above the first character, outermost first; () for plain text.
        page: page of the text, from 1; None if the document has no pages.
        header: header of the Markdown table whose rows the chunk continues, with the rule below it; else "".
    """

    number: int
    text: str
    start: int
    end: int
    headings: tuple[str, ...] = ()
    page: int | None = None
    header: str = ""


class Chunker:
    """Cuts texts so that each chunk, rendered as a document, has at most `spec.max_length` tokens.

    Source code is cut at definitions, whatever `by` says. Code nested more than 64 levels deep (`nesting_depth`) is cut
    as plain text. No chunk spans two pages. YAML front matter of Markdown is in no chunk. A Markdown table that does
    not fit into one chunk gets chunks of its own, of whole rows, each with the header unless that takes more than half.

    Args:
        by: "tokens": as much text per chunk as fits. "sentences": whole sentences (extra `sentences`). "headings":
            no chunk spans two Markdown sections (nor with "sentences"). Only what does not fit is cut further.
        max_tokens: limit per chunk; the model's limit if None.
        overlap: maximum tokens that a chunk repeats from the end of the chunk before it, in whole units (sentences,
            lines, words). Chunks never overlap across pages or in tables that repeat their header, or across sections
            with "headings" and "sentences".

    Attributes:
        capacity: tokens per chunk: `max_tokens`, or what the document template and the suffix leave.
        recipe: changes whenever the same text may be cut differently; a stored document with another one is outdated.

    Raises:
        InputError: template and suffix leave no room or less than `max_tokens`, `by` is unknown, or `overlap` is
            not below `capacity`.
        MissingExtraError: `by` is "sentences" and the extra is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | Tokenizer,
        spec: EmbeddingSpec,
        *,
        by: By = "tokens",
        max_tokens: int | None = None,
        overlap: int = 0,
    ) -> None:
        if by not in get_args(By):
            raise InputError(f"chunks cannot be cut by {by!r}; choose one of {', '.join(get_args(By))}")
        fast = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
        # A copy: the embedder's own tokenizer may be set to truncate, which would make every text look short.
        fast = Tokenizer.from_str(fast.to_str())
        fast.no_truncation()
        fast.no_padding()
        frame = [part for part in (prefix(spec.document_template, None), spec.suffix) if part]
        reserved = sum(len(fast.encode(part, add_special_tokens=False).ids) + _MERGE_MARGIN for part in frame)
        room = spec.max_length - reserved
        if room < 1:
            raise InputError(
                f"document template and suffix take {reserved} of the {spec.max_length} tokens: no room for text"
            )
        if max_tokens is not None and not 1 <= max_tokens <= room:
            raise InputError(f"max_tokens is {max_tokens}; the model leaves room for 1 to {room}")
        self.capacity = room if max_tokens is None else max_tokens
        if isinstance(overlap, bool) or not isinstance(overlap, int) or not 0 <= overlap < self.capacity:
            raise InputError(f"overlap is {overlap!r}; it must be from 0 to {self.capacity - 1} tokens")
        settings = [by] * (by != "tokens") + [f"overlap{overlap}"] * (overlap > 0)
        self.recipe = "/".join(["1", str(self.capacity), *settings])
        self._by = by
        self._overlap = overlap
        self._tokenizer = fast
        # With such a tokenizer every token covers at least one byte, so a text has no more tokens than bytes.
        level = fast.pre_tokenizer
        self._by_bytes = fast.normalizer is None and isinstance(level, ByteLevel) and not level.add_prefix_space
        self._sentencex = require("sentencex", "sentences") if by == "sentences" else None
        self._plain = TextSplitter.from_huggingface_tokenizer(fast, self.capacity, overlap)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(fast, self.capacity, overlap)
        self._code: dict[str, CodeSplitter] = {}

    def recipe_of(self, document: Document) -> str:
        """The recipe, extended by the properties of `document` that change its cuts."""
        kinds = [document.language] if document.language is not None else []
        if document.language is not None and nesting_depth(document.text) > _MAX_CODE_DEPTH:
            kinds.append("flat")
        kinds += ["pages"] * bool(document.paged) + ["outline"] * bool(document.markdown)
        kinds += ["title"] * bool(document.markdown and front_matter_end(document.text))
        kinds += ["tables"] * bool(document.markdown and may_have_tables(document.text))
        return "/".join([self.recipe, *kinds])

    def cut(self, document: Document) -> list[Chunk]:
        """Cut a document, whose text must be valid Unicode and not only white space, into chunks, in order.

        Raises:
            InputError: `document.language` is not supported, or the tokenizer or a splitter fails on the text.
            MissingExtraError: the language's grammar is not installed.
        """
        with refuse_rust_errors("its text"):
            return self._cut(document)

    def _cut(self, document: Document) -> list[Chunk]:
        text = document.text
        outline = read_outline(text) if document.markdown else NO_OUTLINE
        page_ends = [match.end() for match in re.finditer("\f", text)] if document.paged else []
        cuts = {outline.body, len(text), *(end for end in page_ends if end > outline.body)}
        prose = document.language is None
        if self._by != "tokens" and prose:
            cuts.update(outline.starts)
        whole, large = self._sort_tables(text, outline.tables if prose and not document.paged else ())
        cuts.update(place for table in large.values() for place in (table.start, table.end))
        splitter = self._splitter(document)
        chunks: list[Chunk] = []
        for start, end in pairwise(sorted(cuts)):
            pieces: Spans
            header = ""
            if (table := large.get(start)) is not None:
                header = text[table.start : table.body]
                split = partial(self._split, text, splitter=self._half)
                pieces = pack_rows(text, table, self.capacity, self._sizes, split)
            elif self._sentencex is not None and prose:
                pieces = self._pack_sentences(text, start, end, whole)
            else:
                pieces = self._split_around(text, start, end, splitter, whole)
            page = bisect.bisect_right(page_ends, start) + 1 if document.paged else None
            for begin, stop in pieces:
                above = header if table is not None and begin > table.start else ""
                number, path = len(chunks), outline.path_at(begin)
                chunks.append(Chunk(number, above + text[begin:stop], begin, stop, path, page, above))
        return chunks

    def _sort_tables(self, text: str, tables: Sequence[Table]) -> tuple[list[Table], dict[int, Table]]:
        """The tables that fit into a chunk, and by their start those that do not and repeat their header."""
        whole, large = [], {}
        for table in tables:
            if self._size(text[table.start : table.end]) <= self.capacity:
                whole.append(table)
            elif self._size(text[table.start : table.body]) + _MERGE_MARGIN <= self.capacity // 2:
                large[table.start] = table
        return whole, large

    @cached_property
    def _half(self) -> TextSplitter:
        """Cuts a row of a table whose header takes the other half of each chunk."""
        return TextSplitter.from_huggingface_tokenizer(self._tokenizer, self.capacity // 2)

    def _splitter(self, document: Document) -> _Splitter:
        if document.language is None:
            return self._markdown if document.markdown else self._plain
        code = self._code_splitter(document.language)
        return self._plain if nesting_depth(document.text) > _MAX_CODE_DEPTH else code

    def _split(self, text: str, start: int, end: int, splitter: _Splitter) -> Iterator[tuple[int, int]]:
        """Cut text[start:end] with `splitter`: (start, end) of each piece, as offsets in `text`."""
        part = text[start:end]
        cuts = [0, *(run.end() for run in _LONG_RUN.finditer(part)), len(part)]
        for begin, stop in pairwise(cuts):
            at = start + begin
            pieces = self._pieces(part[begin:stop], splitter)
            spans = [(at + offset, at + offset + len(piece)) for offset, piece in pieces if piece.strip()]
            yield from self._limit_overlap(text, spans) if self._overlap else spans

    def _split_around(
        self, text: str, start: int, end: int, splitter: _Splitter, whole: Sequence[Table]
    ) -> Iterator[tuple[int, int]]:
        """Cut text[start:end] with `splitter`, but none of the tables in `whole`, which fit into a chunk."""
        pieces = list(self._split(text, start, end, splitter))
        if cuts_a_table(text, pieces, whole):  # it does after a word or sentence that it had to cut
            places = {place for table in whole for place in (table.start, table.end) if start <= place <= end}
            bounds = sorted({start, *places, end})
            pieces = [piece for a, b in pairwise(bounds) for piece in self._split(text, a, b, splitter)]
        return skip_repeated_rows(text, pieces, whole)

    def _limit_overlap(self, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Drop a piece that lies in its neighbour, and let a piece start later that repeats more than `overlap`.

        The splitters measure the overlap of trimmed text, and near carriage returns they repeat whole pieces.
        """
        kept: list[tuple[int, int]] = []
        for begin, stop in spans:
            while kept and kept[-1][0] >= begin and kept[-1][1] <= stop:
                kept.pop()
            if kept and kept[-1][1] >= stop:
                continue
            if kept and begin < (end := kept[-1][1]) and self._size(text[begin:end]) > self._overlap:
                begin = end + len(text[end:stop]) - len(text[end:stop].lstrip())
            if begin < stop:
                kept.append((begin, stop))
        return kept

    def _pieces(self, text: str, splitter: _Splitter) -> list[tuple[int, str]]:
        """The splitter's (offset, piece) pairs. A text with fewer bytes than `capacity` skips the splitter."""
        if splitter is self._plain and self._by_bytes and len(text) <= self.capacity and text.isascii():
            piece = text.strip(_SPACE)
            return [(text.index(piece), piece)]
        return splitter.chunk_indices(text)

    def _pack_sentences(self, text: str, start: int, end: int, whole: Sequence[Table]) -> Iterator[tuple[int, int]]:
        """Pack as many whole sentences per chunk as fit; cut a sentence that does not fit like plain text.

        The tables in `whole`, which fit into a chunk, are not cut.
        """
        sentences = self._sentences(text, start, end, whole)
        sizes = self._sizes([text[a:b] for a, b in sentences])
        first = packed = 0  # sentences[:packed] are in a chunk
        while packed < len(sentences):
            last, total = first + 1, sizes[first]
            while last < len(sentences) and total + sizes[last] <= self.capacity:
                total += sizes[last]
                last += 1
            # Joined sentences, with white space between them, may have more tokens than the sum of their sizes.
            while last > first + 1 and self._size(text[sentences[first][0] : sentences[last - 1][1]]) > self.capacity:
                last -= 1
            if last <= packed:  # after the repeated sentences there is no room for a new one
                first += 1
                continue
            span = sentences[first][0], sentences[last - 1][1]
            if last == first + 1 and sizes[first] > self.capacity:
                yield from self._split(text, *span, self._plain)
            else:
                yield span
            first = packed = last
            repeated = 0
            while first > 0 and (repeated := repeated + sizes[first - 1]) <= self._overlap:
                first -= 1

    def _sentences(self, text: str, start: int, end: int, whole: Sequence[Table]) -> list[tuple[int, int]]:
        """(start, end) of each sentence and each table in text[start:end], without surrounding white space."""
        assert self._sentencex is not None
        cuts = {start, end}
        # One paragraph at a time. Only the starts of the sentences are used, so no text between them is lost.
        paragraphs = [start, *(gap.end() for gap in _PARAGRAPH_END.finditer(text, start, end)), end]
        for begin, stop in pairwise(paragraphs):
            boundaries = self._sentencex.get_sentence_boundaries("en", text[begin:stop])
            cuts.update(min(begin + sentence["start_index"], stop) for sentence in boundaries)
        cuts = {cut for cut in cuts if table_around(cut, whole) is None} | {end}
        spans = []
        for begin, stop in pairwise(sorted(cuts)):
            sentence = text[begin:stop]
            if stripped := sentence.strip():
                begin += sentence.index(stripped)
                spans.append((begin, begin + len(stripped)))
        return spans

    def _sizes(self, texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _code_splitter(self, language: str) -> CodeSplitter:
        if language not in LANGUAGES:
            raise InputError(f"cannot cut code in the language {language!r}; choose one of {', '.join(LANGUAGES)}")
        if language not in self._code:
            splitter = CodeSplitter.from_huggingface_tokenizer(
                grammar(language), self._tokenizer, self.capacity, self._overlap
            )
            self._code[language] = splitter
        return self._code[language]
