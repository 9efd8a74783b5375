"""Adapt a model to a user's documents and questions: `adapt`.

    read     documents -> chunks, pairs -> questions, split by document        inputs
    before   embed the pool and the questions with the current model           candidates, measuring
    train    hard negatives, rehearsal, checks, the best weights               rows, training
    after    embed the same with the new model, score, report                  measuring, report

Everything is kept in OUT/.adapt until the report is written; the same call goes on from there.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from gircse_rag.adaptation import report, rows
from gircse_rag.adaptation.candidates import choose_pool
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.lexical import Lexical
from gircse_rag.adaptation.measuring import Measured
from gircse_rag.adaptation.pairs import Pairs
from gircse_rag.adaptation.plan import Plan, choose_settings, pool_size
from gircse_rag.adaptation.progress import Phase, Progress
from gircse_rag.adaptation.report import REPORT, Adapted, Moved, Wording
from gircse_rag.adaptation.scoring import Ranking
from gircse_rag.adaptation.self_pairs import MadePairs, agree, describe
from gircse_rag.adaptation.training import CHOSEN, AdaptTrainer, Check, Limits
from gircse_rag.adaptation.validation import Validation, make_validation
from gircse_rag.adaptation.vectors import PART, StoredVectors
from gircse_rag.checkpoint.locate import locate
from gircse_rag.checkpoint.spec_file import SPEC_FILE, read_json
from gircse_rag.documents.readers import Readable
from gircse_rag.embedder import Embedder
from gircse_rag.errors import CheckpointError, InputError, require
from gircse_rag.evaluation.vectors import FromEmbedder, check_steps
from gircse_rag.tokens import read_instruction
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.run import train

WORK = ".adapt"
MAX_FALL = 0.03
"""Largest fall of the probes' rank correlation: a run that forgets more keeps earlier weights."""
NO_PAIRS = (
    "there are no pairs; give questions with their documents. Or train on pairs that are made from the documents "
    "(--self-pairs; in Python self_pairs=True)"
)
_CHUNK_TOKENS = 1_600
"""Tokens per training pass: with SmolLM2-135M, the process takes 2.8 GB at most."""


def adapt(
    documents: Iterable[Readable] | Readable,
    pairs: Pairs | None = None,
    *,
    self_pairs: bool = False,
    out: str | Path,
    model: str = "smollm2-135m",
    instructions: Sequence[str] = (),
    minutes: float | None = 10.0,
    steps: Sequence[int] = (1, 5, 20),
    device: str = "auto",
    dtype: str = "auto",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Adapted:
    """Adapt a model to documents and the questions that they answer.

    Holds out questions, trains on the others, and reports what it gained on those held out. A killed run goes on when
    the same call is made again; a finished one returns its report.

    Args:
        documents: as for `read_documents`.
        pairs: questions with a document id or a passage, as for `read_pairs`.
        self_pairs: without pairs, make them from the documents. What that gains on public sets is not measured yet.
        out: folder for the new model and its report.
        model: bundled name, folder or Hub id to start from.
        instructions: wordings that users will search with, or names of known ones (`INSTRUCTIONS`), the main one first,
            for questions without their own; it becomes the new model's default. Empty: the model's default.
        minutes: time budget, which chooses pool and rows; None for no limit.
        steps: values of K in the report; the model's own is always there.
        device, dtype: as for `Embedder.from_pretrained`.
        on_progress: called often, in this thread.

    Raises:
        InputError: bad documents, pairs or options: too few questions, none that can be held out, no disk space.
        CheckpointError: the model cannot be loaded or trained, or `out` belongs to another run.
        MissingExtraError: the extra `adapt` is not installed.
    """
    for module in ("accelerate", "bm25s", "pytrec_eval", "matplotlib", "scipy"):
        require(module, "adapt")
    if (pairs is None) != self_pairs:
        raise InputError(NO_PAIRS if pairs is None else "self_pairs makes pairs from the documents; give no others")
    instructions = [read_instruction(instruction) for instruction in instructions]
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes is {minutes}; it must be above 0, or None for no limit")
    started, out = time.monotonic(), Path(out)
    embedder = Embedder.from_pretrained(model, device=device, dtype=dtype)
    inputs = Inputs.read(documents, pairs, embedder, instructions)
    chosen_steps = check_steps((*steps, embedder.spec.document_steps))
    digest = f"{inputs.digest} {minutes} {chosen_steps}"
    finished = _read_finished(out, digest)
    if finished is not None:
        return finished
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        with FileLock(out / WORK / ".lock", timeout=0):
            run = _Run(out, model, device, dtype, inputs, chosen_steps, minutes, digest, started, on_progress)
            return run.go(embedder)
    except Timeout as error:
        raise CheckpointError(f"another process adapts into {out}; wait, or choose another folder") from error
    except OSError as error:
        raise InputError(f"could not write to {out}: {error.strerror or error}; free some disk space") from error


def _read_finished(out: Path, digest: str) -> Adapted | None:
    """The report of a finished run of the same data; None if there is none.

    Raises:
        CheckpointError: `out` holds something else.
    """
    if not (out / REPORT).exists():
        if out.exists() and not (out / WORK).exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out} is not empty and holds no run of `adapt`; choose another folder")
        return None
    record = read_json(out / REPORT)
    if record.pop("digest", None) != digest:
        raise CheckpointError(f"{out} holds a model adapted to other data or options; choose another folder")
    return Adapted.of(record)


@dataclass
class _Run:
    out: Path
    model: str
    device: str
    dtype: str
    inputs: Inputs
    steps: tuple[int, ...]
    minutes: float | None
    digest: str
    started: float
    on_progress: Callable[[Progress], None]
    made: list[MadePairs] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.out / WORK

    def go(self, embedder: Embedder) -> Adapted:
        """Run the phases that are not done yet."""
        inputs, plan_path = self.inputs, self.work / "plan.json"
        plan, lexical = Plan.load(plan_path, self.digest), Lexical(inputs.corpus.chunks)
        if plan is None:
            seconds = self._seconds_per_chunk(embedder)
            plan = Plan(self.digest, pool_size(len(inputs.corpus.chunks), seconds, self.minutes), seconds)
            plan.save(plan_path)
        pool = np.array(choose_pool(inputs.corpus, inputs.questions, inputs.split, lexical, plan.pool))
        by_words = np.stack([lexical.scores(question.text)[pool] for question in inputs.questions])
        phase = Phase("before", len(inputs.questions) + len(pool), self.on_progress)
        measured = Measured(inputs, self._store(embedder, phase), pool, by_words, self.steps)
        asked = measured.ask(inputs.questions)
        dense = measured.similarities(asked)
        if inputs.made:
            agreed = agree(inputs.made, dense, pool)
            self.made, self.inputs = describe(inputs.made, agreed), inputs.keep(agreed)
            inputs = self.inputs
        if not plan.rows:
            plan = self._plan_training(plan, embedder, pool)
            plan.save(plan_path)
        before = measured.rank(asked[inputs.split.held_out], inputs.split.held_out)
        examples = rows.mine_examples(inputs.questions, inputs.split, dense, by_words, pool)
        validation = make_validation(
            inputs, embedder.tokenizer, plan.max_length, dense, by_words, pool, plan.check_passages
        )
        embedder.close()  # the caller holds it too; training loads another copy of the model
        del embedder, measured
        gc.collect()
        chosen, original = self._train(plan, examples, validation)
        if not chosen.share:
            return self._finish(by_words, before, before, chosen, original, [])
        folder = self._write_spec()
        phase = Phase("after", len(inputs.split.held_out) + len(pool), self.on_progress)
        with Embedder.from_pretrained(str(folder), device=self.device, dtype=self.dtype) as adapted:
            measured = Measured(inputs, self._store(adapted, phase), pool, by_words, self.steps)
            after = measured.rank(measured.ask(inputs.held_out), inputs.split.held_out)
            wordings = measured.compare_wordings()
        return self._finish(by_words, before, after, chosen, original, wordings)

    def _store(self, embedder: Embedder, phase: Phase) -> StoredVectors:
        return StoredVectors(self.work / "vectors", FromEmbedder(embedder), embedder.fingerprint, phase.advance)

    def _seconds_per_chunk(self, embedder: Embedder) -> float:
        """Measured on one part of evenly spaced chunks."""
        chunks = self.inputs.corpus.chunks
        sample = [chunks[i] for i in np.linspace(0, len(chunks) - 1, min(PART, len(chunks))).astype(int)]
        begun = time.monotonic()
        FromEmbedder(embedder)(sample, "document", None, (self.inputs.spec.document_steps,))
        return (time.monotonic() - begun) / len(sample)

    def _plan_training(self, plan: Plan, embedder: Embedder, pool: np.ndarray) -> Plan:
        tokenize = embedder.tokenizer.backend_tokenizer.encode_batch
        chunks = [self.inputs.corpus.chunks[i] for i in pool]
        questions = [question.text for question in self.inputs.questions]
        lengths = [[len(encoding.ids) for encoding in tokenize(texts)] for texts in (chunks, questions)]
        return choose_settings(
            plan,
            questions=len(self.inputs.split.train),
            max_length=self.inputs.spec.max_length,
            fresh=locate(self.model).adapter is None,
            chunk_tokens=lengths[0],
            question_tokens=lengths[1],
            minutes=self.minutes,
            spent=time.monotonic() - self.started,
        )

    def _train(self, plan: Plan, examples: list[rows.Example], validation: Validation) -> tuple[Check, Check]:
        """Train, or read the result of finished training: checks of the chosen weights and of the original ones."""
        folder, result = (self.work / "training").resolve(), self.work / CHOSEN
        if not (result.exists() and (folder / "checkpoint").exists()):
            data, tasks = rows.write(folder.parent / "rows", self.inputs, examples)
            located = locate(self.model)
            base = located.base_name
            config = TrainConfig(
                output=str(folder),
                data=(str(data),),
                tasks=str(tasks),
                model=str(Path(base).resolve()) if Path(base).is_dir() else base,
                adapter=None if located.adapter is None else str(located.adapter),
                steps=self.inputs.spec.document_steps,
                rows=plan.rows,
                batch_size=plan.batch_size,
                chunk_tokens=_CHUNK_TOKENS,
                learning_rate=plan.learning_rate,
                temperature=plan.temperature,
                symmetric=plan.symmetric,
                warmup_rows=plan.rows // 10,
                clip_text_gradients=True,
                max_length=plan.max_length,
                save_rows=plan.check_rows,
                device=self.device,
                dtype=self.dtype,
            )

            class Bound(AdaptTrainer):
                pass

            Bound.folder, Bound.validation = self.work, validation
            Bound.limits = Limits(plan.check_rows, plan.train_seconds, MAX_FALL)
            phase = Phase("train", plan.rows, self.on_progress)
            train(config, lambda record: phase.reach(record["cursor"]), trainer=Bound)
        record = json.loads(result.read_text(encoding="utf-8"))
        return Check(**record["chosen"]), Check(**record["original"])

    def _write_spec(self) -> Path:
        """Give the new model its default instruction and the old model's length; return its folder."""
        folder = self.work / "training" / "checkpoint"
        fields = read_json(folder / SPEC_FILE)
        fields |= {"max_length": self.inputs.spec.max_length, "default_instruction": self.inputs.instructions[0]}
        (folder / SPEC_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        return folder

    def _finish(
        self,
        by_words: np.ndarray,
        before: dict[tuple[str, int], Ranking],
        after: dict[tuple[str, int], Ranking],
        chosen: Check,
        original: Check,
        wordings: list[Wording],
    ) -> Adapted:
        """Move the model to its place, write the report, and remove the working folder."""
        inputs, own = self.inputs, ("dense", self.inputs.spec.document_steps)
        changes = [
            line for kind, k in sorted(before) for line in report.compare(kind, k, before[kind, k], after[kind, k])
        ]
        probes, strange = (original.probes, chosen.probes), float((by_words.max(axis=1) == 0).mean())
        adapted = Adapted(
            folder=self.out,
            model=self.model,
            changed=chosen.share > 0,
            share=chosen.share,
            changes=changes,
            moved=[
                Moved(question.text, int(old), int(new))
                for question, old, new in zip(inputs.held_out, before[own].ranks, after[own].ranks, strict=True)
            ],
            wordings=wordings,
            probes=probes,
            counts={
                "documents": len(inputs.corpus.documents),
                "chunks": len(inputs.corpus.chunks),
                "pool": by_words.shape[1],
                "questions": len(inputs.questions),
                "train": len(inputs.split.train),
                "validation": len(inputs.split.validation),
                "held_out": len(inputs.split.held_out),
                "rows": chosen.rows,
            },
            split_by=inputs.split.by,
            skipped=inputs.skipped,
            advice=report.advise(changes, wordings, own[1], chosen.share, probes, strange, bool(self.made)),
            made=self.made,
            commands=report.next_commands(self.out, self.model, chosen.share > 0),
            seconds=time.monotonic() - self.started,
        )
        # adapt.json is written last: a folder with it is complete.
        if adapted.changed:
            shutil.copytree(self.work / "training" / "checkpoint", self.out, dirs_exist_ok=True)
        adapted.save(self.digest)
        shutil.rmtree(self.work, ignore_errors=True)
        return adapted
