"""Read documents from files, folders and frameworks with `read_documents`.

One module per family of formats; `registry.READERS` maps file suffixes to readers. Nothing is dropped silently: input
that cannot be read is returned as a `SkippedFile`, in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.frameworks import FrameworkDocument, LangChainDocument, LlamaIndexNode, to_document
from gircse_rag.documents.readers.registry import ROW_SUFFIXES, SUFFIXES, read_file, walk
from gircse_rag.errors import InputError

Readable: TypeAlias = str | os.PathLike[str] | Document | SkippedFile | FrameworkDocument
_READABLE = (str, os.PathLike, Document, SkippedFile, LangChainDocument, LlamaIndexNode)


def read_documents(
    items: Iterable[Readable] | Readable,
    *,
    text_field: str = "text",
    id_field: str | None = None,
    follow_symlinks: bool = False,
) -> Iterator[Document | SkippedFile]:
    """Read files, and folders with everything below them, one document at a time.

    A file's document id is its path relative to the folder that was passed, with forward slashes ("guide/start.md"), or
    its name if the file itself was passed. Ids are therefore independent of the working directory. If two folders both
    contain a "README.md", their ids collide, which `ingest` reports: pass the parent folder instead.

    Each row of a .jsonl, .csv, .tsv or .parquet file is a document: `text_field` holds its text, the other fields are
    metadata. Its id is "faq.csv#7" if `id_field` holds 7, else "faq.csv:12" for row 12 (of a .jsonl: line 12).

    Folders are read in sorted order. Names that start with a dot are left out. Symbolic links that stay in their folder
    are followed, and every real folder is read once, so link loops end. A link that leads out of the folder is skipped.
    docs/guides/documents.md describes each format.

    Args:
        items: one or several of: paths; LangChain or LlamaIndex documents, which keep their ids and metadata; our own
            documents, which are returned unchanged. Iterators are consumed lazily.
        text_field: field or column that holds a row's text.
        id_field: field or column that holds a row's id, required in every row. None: "id", optional.
        follow_symlinks: also follow links that lead out of their folder. A link in `items` is always followed.

    Raises:
        InputError: a path does not exist, or an item has another type (`index` says which). For a sequence this is
            raised before anything is read. For an iterator it is raised on reaching the item, and a path that does not
            exist is skipped instead.
    """
    if isinstance(items, _READABLE):
        items = [items]
    if isinstance(items, Sequence):
        for index, item in enumerate(items):
            _check_item(item, index)
            if isinstance(item, str | os.PathLike) and not os.path.lexists(item):
                raise InputError(f"{os.fspath(item)} does not exist; give an existing file or folder", index=index)
    return _read(items, text_field, id_field, follow_symlinks)


def count_documents(
    paths: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    id_field: str | None = None,
    follow_symlinks: bool = False,
) -> int:
    """Estimate how many documents `read_documents` will return, for a progress bar.

    Files with rows are read and counted exactly. Any other file with a known suffix counts as one, readable or not.
    """
    read_folders: set[tuple[int, int]] = set()
    count = 0
    for path in paths:
        for entry in walk(Path(path), read_folders, follow_symlinks=follow_symlinks):
            if isinstance(entry, SkippedFile):
                continue
            if entry.suffix.lower() in ROW_SUFFIXES:
                count += sum(isinstance(row, Document) for row in _read([entry], text_field, id_field, False))
            else:
                count += entry.suffix.lower() in SUFFIXES
    return count


def _read(
    items: Iterable[Readable], text_field: str, id_field: str | None, follow_symlinks: bool
) -> Iterator[Document | SkippedFile]:
    read_folders: set[tuple[int, int]] = set()
    for index, item in enumerate(items):
        _check_item(item, index)
        if isinstance(item, Document | SkippedFile):
            yield item
        elif isinstance(item, str | os.PathLike):
            root = Path(item)
            for entry in walk(root, read_folders, follow_symlinks=follow_symlinks):
                if isinstance(entry, SkippedFile):
                    yield entry
                else:
                    name = entry.name if entry == root else entry.relative_to(root).as_posix()
                    yield from read_file(entry, name, text_field, id_field)
        else:
            yield to_document(item)


def _check_item(item: object, index: int) -> None:
    if not isinstance(item, _READABLE):
        raise InputError(
            f"item {index} is a {type(item).__name__}; give paths, Documents, or documents of LangChain or LlamaIndex",
            index=index,
        )


__all__ = ["SUFFIXES", "Readable", "count_documents", "read_documents"]
