"""Load evaluation sets from a folder, in full or as a small deterministic sample.

    retrieval/NAME/{corpus.jsonl,queries.jsonl,qrels.tsv}   {"_id", "title", "text"}, {"_id", "text"}, header line
    sts/NAME.tsv                                            score, sentence1, sentence2, header line
    classification/NAME/{train,test}.jsonl                  {"text", "label"}
    clustering/NAME.jsonl                                   {"text", one or more label fields}

Every file may be gzipped (`.gz`). If two classification sets `X_a` and `X_b` have the same test texts and the labels of
one nest in those of the other, they also form the contrast set `contrast/X`. Development rows beside the folder
(`../dev`, `../tasks.json`) add more sets: see `development`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import combinations
from pathlib import Path

from gircse_rag.errors import InputError
from gircse_rag.evaluation import development, formats
from gircse_rag.evaluation.instructions import instruction_for
from gircse_rag.evaluation.sets import EvalSet, NestedContrastSet, ProbeSet
from gircse_rag.prompts import resolve_instruction

Loader = Callable[[], EvalSet]
TASKS = ("retrieval", "sts", "classification", "clustering", "contrast")


def load_sets(
    folder: str | Path,
    sets: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    instructions: Mapping[str, str] | None = None,
) -> list[EvalSet]:
    """Load evaluation sets by name (`sts/stsb_test`), task (`sts`) or pattern (`retrieval/c*`).

    Args:
        folder: an evaluation folder in the format above.
        sets: names, tasks or patterns; None loads all except the development retrieval sets (`dev/...`).
        limit: maximum queries, pairs, test texts or choices per set, always the same ones, and five times as many
            documents and training texts. For a quick look: scores of a sample differ from those of the full set.
        instructions: set name -> instruction (a sentence or a name), instead of the built-in one.

    Raises:
        InputError: no such folder, file or set (the message lists the available sets), a malformed line (with its
            number), a judgement of an unknown query or document, or a limit below 1.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"evaluation folder {root} is not a directory")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit must be a positive whole number, got {limit!r}")
    overrides = {name: resolve_instruction(instruction) for name, instruction in (instructions or {}).items()}
    available = _find_loaders(root, limit, overrides)
    if not available:
        raise InputError(f"{root} holds no evaluation set; it must contain one of the folders {', '.join(TASKS[:4])}")
    if unknown := sorted(set(overrides) - set(available)):
        _raise_load_error(unknown[0], available)
        raise InputError(
            f"instructions are given for unknown sets {', '.join(unknown)}; available: {', '.join(available)}"
        )
    if parts := sorted(name for name in overrides if name.startswith("contrast/")):
        raise InputError(f"{parts[0]} has no instruction of its own; give one for each of the sets that it combines")
    return [available[name]() for name in _choose_names(available, sets)]


def _choose_names(available: Mapping[str, Loader], patterns: Sequence[str] | None) -> list[str]:
    names = list(available)
    if patterns is None:
        return [name for name in names if not name.startswith("dev/")]
    if isinstance(patterns, str):
        raise InputError(f"sets must be a list of names, got the text {patterns!r}; write [{patterns!r}]")
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {n for n in names if fnmatchcase(n, pattern) or n.startswith((f"{pattern}/", f"{pattern}:"))}
        if not matches:
            _raise_load_error(pattern, available)
            raise InputError(f"there is no evaluation set {pattern!r}; available: {', '.join(names)}")
        chosen |= matches
    if not chosen:
        raise InputError(f"no evaluation set was chosen; available: {', '.join(names)}")
    return [name for name in names if name in chosen]


def _find_loaders(root: Path, limit: int | None, overrides: Mapping[str, str]) -> dict[str, Loader]:
    """Map set names to loaders, in report order. A bad file only breaks the sets that need it."""
    loaders: dict[str, Loader] = {}

    def entries(task: str, ending: str) -> list[tuple[str, Path]]:
        """The task's files with this ending or folders (no ending): name without ending, and path without .gz."""
        paths = [p for p in (root / task).glob("*") if not p.name.startswith(".") and p.is_dir() == (not ending)]
        plain = {p.with_name(p.name.removesuffix(".gz")) if ending else p for p in paths}
        return [(p.name.removesuffix(ending), p) for p in sorted(plain) if p.name.endswith(ending)]

    readers: list[tuple[str, str, Callable[[Path, str, str, int | None], EvalSet]]] = [
        ("retrieval", "", formats.read_retrieval),
        ("sts", ".tsv", formats.read_pairs),
        ("classification", "", formats.read_probe),
    ]
    for task, ending, read in readers:
        for stem, path in entries(task, ending):
            name = f"{task}/{stem}"
            loaders[name] = partial(read, path, name, instruction_for(name, overrides), limit)
    probes = {name: loader for name, loader in loaders.items() if name.startswith("classification/")}
    for stem, path in entries("clustering", ".jsonl"):
        try:
            fields = formats.read_label_fields(path)
        except InputError as error:
            loaders[f"clustering/{stem}"] = partial(_raise, error)
            continue
        for field in fields:
            name = f"clustering/{stem}" if len(fields) == 1 else f"clustering/{stem}:{field}"
            loaders[name] = partial(formats.read_clusters, path, field, name, instruction_for(name, overrides), limit)
    for one, other in combinations(probes, 2):
        stem = one.rpartition("_")[0]
        if not stem or stem != other.rpartition("_")[0]:
            continue
        name = f"contrast/{stem.removeprefix('classification/')}"
        try:
            contrast = _combine_probes(name, probes[one](), probes[other]())
        except InputError as error:
            loaders.setdefault(name, partial(_raise, error))  # another pair may be valid
        else:
            if contrast is not None:
                loaders[name] = partial(_return, contrast)
    try:
        loaders |= development.find_sets(root.parent, limit, overrides)
    except InputError as error:
        loaders |= dict.fromkeys(("dev/tasks.json", "contrast/dev"), partial(_raise, error))
    return loaders


def _raise(error: InputError) -> EvalSet:
    raise error


def _raise_load_error(name: str, available: Mapping[str, Loader]) -> None:
    """Raise the error of the file of `name`, if that file could not be read."""
    for known, loader in available.items():
        prefixes = ("dev/",) if known == "dev/tasks.json" else (f"{known}:", f"{known}_")
        if isinstance(loader, partial) and loader.func is _raise and name.startswith(prefixes):
            loader()


def _return(evaluation_set: EvalSet) -> EvalSet:
    return evaluation_set


def _combine_probes(name: str, one: EvalSet, other: EvalSet) -> NestedContrastSet | None:
    """Build the contrast set of two probes with the same test texts; None unless labels of one nest in the other."""
    assert isinstance(one, ProbeSet) and isinstance(other, ProbeSet)
    if one.test_texts != other.test_texts or one.instruction == other.instruction:
        return None
    pairs = len(set(zip(one.test_labels, other.test_labels, strict=True)))
    for fine, coarse in ((one, other), (other, one)):
        if len(set(fine.test_labels)) == pairs > len(set(coarse.test_labels)):
            instructions = fine.instruction, coarse.instruction
            return NestedContrastSet(name, *instructions, fine.test_texts, fine.test_labels, coarse.test_labels)
    return None
