"""From a folder in the evaluation format to sets, whole or as a small deterministic sample.

    retrieval/NAME/{corpus.jsonl,queries.jsonl,qrels.tsv}   {"_id", "title", "text"}, {"_id", "text"}, header line
    sts/NAME.tsv                                            score, sentence1, sentence2, header line
    classification/NAME/{train,test}.jsonl                  {"text", "label"}
    clustering/NAME.jsonl                                   {"text", one or more label fields}

Every file may be gzipped (`.gz`). Two classification sets `X_a` and `X_b` over the same test texts, where one's labels
nest in the other's, also make the contrast set `contrast/X`. Training-format development rows beside the folder
(`../dev`, `../tasks.json`) add more: see `development`.
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

Loader = Callable[[], EvalSet]
TASKS = ("retrieval", "sts", "classification", "clustering", "contrast")


def load_sets(
    folder: str | Path,
    sets: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    instructions: Mapping[str, str] | None = None,
) -> list[EvalSet]:
    """Read the sets called `sets`: names (`sts/stsb_test`), whole tasks (`sts`) or patterns (`retrieval/c*`).

    Args:
        folder: an evaluation folder as described above.
        sets: None takes everything but the development retrieval sets (`dev/...`), which must be asked for.
        limit: at most so many queries, pairs, test texts or choices a set, always the same ones, and five times as many
            documents and training texts. For quick looks: scores on a sample are not those of the set.
        instructions: set name -> instruction, in place of the built-in one.

    Raises:
        InputError: no such folder, file or set (the message names those there are), a malformed line (by number), a
            judgement that names an unknown query or document, a limit below 1.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"evaluation folder {root} is not a directory")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit must be a positive number of queries, pairs or texts, got {limit!r}")
    overrides = dict(instructions or {})
    available = _find(root, limit, overrides)
    if not available:
        raise InputError(f"{root} holds no evaluation set; expected one of the folders {', '.join(TASKS[:4])} in it")
    if unknown := sorted(set(overrides) - set(available)):
        _raise_broken(unknown[0], available)
        raise InputError(
            f"an instruction is given for {', '.join(unknown)}; the sets there are: {', '.join(available)}"
        )
    if parts := sorted(name for name in overrides if name.startswith("contrast/")):
        raise InputError(f"{parts[0]} has no instruction of its own: give one for each set that it is made of")
    return [available[name]() for name in _choose(available, sets)]


def _choose(available: Mapping[str, Loader], patterns: Sequence[str] | None) -> list[str]:
    names = list(available)
    if patterns is None:
        return [name for name in names if not name.startswith("dev/")]
    if isinstance(patterns, str):
        raise InputError(f"sets must be a list of names, got the text {patterns!r}; write [{patterns!r}]")
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {n for n in names if fnmatchcase(n, pattern) or n.startswith((f"{pattern}/", f"{pattern}:"))}
        if not matches:
            _raise_broken(pattern, available)
            raise InputError(f"there is no evaluation set {pattern!r}; the sets there are: {', '.join(names)}")
        chosen |= matches
    if not chosen:
        raise InputError(f"no evaluation set was chosen; the sets there are: {', '.join(names)}")
    return [name for name in names if name in chosen]


def _find(root: Path, limit: int | None, overrides: Mapping[str, str]) -> dict[str, Loader]:
    """Name -> loader, in the order in which they are reported. A bad file is an error of the sets it is for."""
    found: dict[str, Loader] = {}

    def stems(task: str, ending: str) -> list[tuple[str, Path]]:
        paths = [p for e in (ending, f"{ending}.gz") for p in (root / task).glob(f"*{e}")]
        plain = sorted({p.with_name(p.name.removesuffix(".gz")) for p in paths if not p.name.startswith(".")})
        return [(p.name.removesuffix(ending), p) for p in plain]

    def folders(task: str) -> list[Path]:
        inside = (root / task).iterdir() if (root / task).is_dir() else ()
        return sorted(p for p in inside if p.is_dir() and not p.name.startswith("."))

    for path in folders("retrieval"):
        name = f"retrieval/{path.name}"
        found[name] = partial(formats.read_retrieval, path, name, instruction_for(name, overrides), limit)
    for stem, path in stems("sts", ".tsv"):
        name = f"sts/{stem}"
        found[name] = partial(formats.read_pairs, path, name, instruction_for(name, overrides), limit)
    probes: dict[str, Loader] = {}
    for path in folders("classification"):
        name = f"classification/{path.name}"
        probes[name] = partial(formats.read_probe, path, name, instruction_for(name, overrides), limit)
    found |= probes
    for stem, path in stems("clustering", ".jsonl"):
        try:
            fields = formats.read_label_fields(path)
        except InputError as error:
            found[f"clustering/{stem}"] = partial(_raise, error)
            continue
        for field in fields:
            name = f"clustering/{stem}" if len(fields) == 1 else f"clustering/{stem}:{field}"
            found[name] = partial(formats.read_clusters, path, field, name, instruction_for(name, overrides), limit)
    for one, other in combinations(probes, 2):
        stem = one.rpartition("_")[0]
        if not stem or stem != other.rpartition("_")[0]:
            continue
        name = f"contrast/{stem.removeprefix('classification/')}"
        try:
            contrast = _nested(name, probes[one](), probes[other]())
        except InputError as error:
            found.setdefault(name, partial(_raise, error))  # another pair may be whole
        else:
            if contrast is not None:
                found[name] = partial(_given, contrast)
    try:
        found |= development.find(root.parent, limit, overrides)
    except InputError as error:
        found |= dict.fromkeys(("dev/tasks.json", "contrast/dev"), partial(_raise, error))
    return found


def _raise(error: InputError) -> EvalSet:
    raise error


def _raise_broken(name: str, available: Mapping[str, Loader]) -> None:
    """Raise the error of the file that `name` would have come from, if that could not be read."""
    for known, loader in available.items():
        beginnings = ("dev/",) if known == "dev/tasks.json" else (f"{known}:", f"{known}_")
        if isinstance(loader, partial) and loader.func is _raise and name.startswith(beginnings):
            loader()


def _given(evaluation_set: EvalSet) -> EvalSet:
    return evaluation_set


def _nested(name: str, one: EvalSet, other: EvalSet) -> NestedContrastSet | None:
    """The contrast set of two probes over the same test texts, None if neither's labels nest in the other's."""
    assert isinstance(one, ProbeSet) and isinstance(other, ProbeSet)
    if one.test_texts != other.test_texts or one.instruction == other.instruction:
        return None
    pairs = set(zip(one.test_labels, other.test_labels, strict=True))
    if len({a for a, _ in pairs}) == len(pairs) > len({b for _, b in pairs}):
        fine, coarse = one, other
    elif len({b for _, b in pairs}) == len(pairs) > len({a for a, _ in pairs}):
        fine, coarse = other, one
    else:
        return None
    return NestedContrastSet(
        name=name,
        fine_instruction=fine.instruction,
        coarse_instruction=coarse.instruction,
        texts=fine.test_texts,
        fine_labels=fine.test_labels,
        coarse_labels=coarse.test_labels,
    )
