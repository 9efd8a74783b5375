"""Reading documents: `read_documents`. A file a family of formats, one registry of suffixes (`files.READERS`).

Nothing is passed over in silence: what cannot be read comes out as a `SkippedFile`, in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.frameworks import FrameworkDocument, LangChainDocument, LlamaIndexNode, own_document
from gircse_rag.documents.readers.registry import ROW_SUFFIXES, SUFFIXES, read_file, walk
from gircse_rag.errors import InputError

Readable: TypeAlias = str | os.PathLike[str] | Document | SkippedFile | FrameworkDocument
_READABLE = (str, os.PathLike, Document, SkippedFile, LangChainDocument, LlamaIndexNode)


def read_documents(
    items: Iterable[Readable] | Readable, *, text_field: str = "text", id_field: str | None = None
) -> Iterator[Document | SkippedFile]:
    """Read files, and folders with everything below them, one document at a time.

    A document's id is its file's path relative to the folder that was passed, with forward slashes ("guide/start.md");
    a file passed by itself has its name for an id. So ids do not change with the working directory or with where the
    folder lies. Two folders that both hold a "README.md" collide, which `ingest` reports: pass their parent.

    A .jsonl, .csv, .tsv or .parquet is a document a row: `text_field` is its text, everything else is metadata. Its id
    is "faq.csv#7" if `id_field` names it 7, else its place: "faq.csv:12", the twelfth row, or line of a .jsonl.

    Folders are read in sorted order. Names that start with a dot are left out. Symbolic links are followed, and every
    real folder is read once, so a loop of links ends. docs/guides/documents.md says what each format becomes.

    Args:
        items: paths; LangChain's and LlamaIndex's documents, which keep their ids and metadata; documents of ours,
            which pass as they are; or one of these. An iterator is taken from as documents are asked for.
        text_field: the field or column that is a row's text.
        id_field: the one that names it; left out, "id", if there is one. Where it is given, a row has to have it.

    Raises:
        InputError: a path does not exist, or an item is none of these (index: which). In a sequence, at once and before
            anything is read; in an iterator, when it comes, and there a path that does not exist is only skipped.
    """
    if isinstance(items, _READABLE):
        items = [items]
    if isinstance(items, Sequence):
        for index, item in enumerate(items):
            _check(item, index)
            if isinstance(item, str | os.PathLike) and not os.path.lexists(item):
                raise InputError(f"{os.fspath(item)} does not exist; give a file or a folder", index=index)
    return _read(items, text_field, id_field)


def count_documents(
    paths: Sequence[str | os.PathLike[str]], *, text_field: str = "text", id_field: str | None = None
) -> int:
    """About how many documents `read_documents` will give, for a progress bar.

    Files of rows are read for it. Of any other it is enough that there is a reader, so some may turn out to be no text.
    """
    read_folders: set[tuple[int, int]] = set()
    count = 0
    for path in paths:
        for found in walk(Path(path), read_folders):
            if isinstance(found, SkippedFile):
                continue
            if found.suffix.lower() in ROW_SUFFIXES:
                count += sum(isinstance(row, Document) for row in _read([found], text_field, id_field))
            else:
                count += found.suffix.lower() in SUFFIXES
    return count


def _read(items: Iterable[Readable], text_field: str, id_field: str | None) -> Iterator[Document | SkippedFile]:
    read_folders: set[tuple[int, int]] = set()
    for index, item in enumerate(items):
        _check(item, index)
        if isinstance(item, Document | SkippedFile):
            yield item
        elif isinstance(item, str | os.PathLike):
            root = Path(item)
            for found in walk(root, read_folders):
                if isinstance(found, SkippedFile):
                    yield found
                else:
                    name = found.name if found == root else found.relative_to(root).as_posix()
                    yield from read_file(found, name, text_field, id_field)
        else:
            yield own_document(item)


def _check(item: object, index: int) -> None:
    if not isinstance(item, _READABLE):
        raise InputError(
            f"item {index} is a {type(item).__name__}, not a path, a Document, or one of LangChain or LlamaIndex",
            index=index,
        )


__all__ = ["SUFFIXES", "Readable", "count_documents", "read_documents"]
