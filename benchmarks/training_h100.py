# ruff: noqa: E501, RUF012, UP031  -- kept as it was run; see docs/training.md
"""Training on a GPU: prepare the base model, probe hyper-parameters on the dev rows, train, evaluate. JSON out.

    python benchmarks/training_h100.py prepare  GGUF_FOLDER BASE           # de-quantise; prints a checksum
    python benchmarks/training_h100.py speed    BASE DATA OUT [batch sizes]  # rows a second, memory; weights may be random
    python benchmarks/training_h100.py runs     BASE DATA OUT PLAN.json    # each entry: config keys, and what to evaluate after

An entry of PLAN is {"name", "config": {TrainConfig keys}, "eval": [sets], "eval_steps": [K], "init": folder or null, "mix": {task: factor}}.
DATA is laid out like shared/data. Nothing here chooses by eval/ test rows: probes name only dev sets.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import queue
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gircse_rag.prompts import prefix
from gircse_rag.refinement import pool
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.training.config import TARGETS, TrainConfig
from gircse_rag.training.data import Batch, Batches, Row, _answers, read_rows, read_tasks
from gircse_rag.training.graphed import GraphedStep, Shape
from gircse_rag.training.losses import icr_loss
from gircse_rag.training.saving import save_adapter
from gircse_rag.training.trainer import Trainer
from gircse_rag.training.unrolled import UnrolledRefinement

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = getattr(torch, os.environ.get("DTYPE", "bfloat16"))
SPEC = EmbeddingSpec(base_model="smollm2-135m-base", base_hash="", tokenizer_hash="", dimension=576)
STARTED = time.perf_counter()


def say(*parts: object) -> None:
    print(f"[{time.perf_counter() - STARTED:6.1f}]", *parts, flush=True)


def prepare(gguf: Path, base: Path, tokenizer: Path) -> None:
    """De-quantise to a Hugging Face folder; gguf's own reader takes 5 s where transformers' takes 30."""
    from gguf import GGUFReader, dequantize

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rms_norm_eps=9.999999747378752e-06,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {}
    for tensor in GGUFReader(str(next(gguf.glob("*.gguf")))).tensors:
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        block, *rest = tensor.name.split(".")
        if block != "blk":
            state[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[block]] = (
                torch.from_numpy(weight)
            )
            continue
        number, kind, _ = rest
        if kind in ("attn_q", "attn_k"):  # GGUF interleaves the halves that rotary positions pair
            heads = 9 if kind == "attn_q" else 3
            weight = weight.reshape(heads, len(weight) // heads // 2, 2, -1).swapaxes(2, 1).reshape(weight.shape)
        state[f"model.layers.{number}.{names[kind]}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
    digest = hashlib.sha256()
    for name, weight in sorted(state.items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.save_pretrained(base)
    for file in tokenizer.iterdir():
        shutil.copy(file, base / file.name)
    say("prepared", digest.hexdigest())


def checksum(base: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(base / "model.safetensors").items()):
        if name != "lm_head.weight":
            digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


class Cached(Batches):
    """Batches that tokenise each text once for all runs of this process, and run ahead in a thread."""

    ids: dict[str, list[int]] = {}

    @classmethod
    def fill(cls, rows, tasks, tokenizer, store: Path) -> None:
        """All texts of `rows`, tokenised once and kept in `store`."""
        texts: dict[str, None] = {}
        for row in rows:
            head = prefix(SPEC.query_template, tasks[row.task].instruction)
            texts[head + row.query] = None
            for text in (row.positive, row.negative):
                if text is not None:
                    texts[(head if tasks[row.task].symmetric else "") + text] = None
        keys = list(texts)
        if not store.exists():
            encoded = []
            for start in range(0, len(keys), 20_000):
                found = tokenizer.backend_tokenizer.encode_batch_fast(
                    keys[start : start + 20_000], add_special_tokens=False
                )
                encoded += [np.array(e.ids[: SPEC.max_length], dtype=np.uint16) for e in found]
            fresh = store.with_suffix(".new.npz")
            np.savez(fresh, ids=np.concatenate(encoded), ends=np.cumsum([len(e) for e in encoded]))
            fresh.rename(store)
        saved = np.load(store)
        ends, ids = saved["ends"], saved["ids"].astype(np.int32)
        cls.ids = {
            key: ids[a:b]
            for key, a, b in zip(keys, np.concatenate(([0], ends[:-1])).tolist(), ends.tolist(), strict=True)
        }
        say("tokens", len(ids), "texts", len(keys))

    def _encode(self, texts, role, instruction):
        head = prefix(self.spec.document_template if role == "document" else self.spec.query_template, instruction)
        missing = [text for text in texts if head + text not in self.ids]
        for text, ids in zip(missing, super()._encode(missing, role, instruction) if missing else [], strict=True):
            self.ids[head + text] = np.array(ids, dtype=np.int32)
        return [self.ids[head + text] for text in texts]

    def start(self, cursor=0):
        ahead: queue.Queue = queue.Queue(maxsize=6)
        stop = threading.Event()

        def work():
            for batch in Batches.start(self, cursor):
                if stop.is_set():
                    return
                ahead.put(batch)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                yield ahead.get()
        finally:
            stop.set()
            while not ahead.empty():
                ahead.get_nowait()


class SoftGradient(UnrolledRefinement):
    """How the loss of step k reaches the soft tokens before it: "full"; "none" (each is detached, so a step learns
    through the keys and values of earlier soft tokens alone); "clip" (no text's gradient there may exceed twice the
    batch's geometric mean)."""

    soft_gradient = "full"

    def _soft_token(self, hidden):
        soft = super()._soft_token(hidden.detach() if self.soft_gradient == "none" else hidden)
        if self.soft_gradient == "clip" and soft.requires_grad:
            soft.register_hook(_leveled)
        return soft


def _leveled(gradient):
    norms = gradient.float().norm(dim=-1, keepdim=True).clamp(min=1e-20)
    limit = 2 * norms.log().mean().exp()
    return gradient * (limit / norms).clamp(max=1).to(gradient.dtype)


def build(base: Path, config: TrainConfig, soft_gradient: str = "full") -> UnrolledRefinement:
    torch.manual_seed(config.seed)
    if base.exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:  # speed alone does not need the real weights
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                tie_word_embeddings=True,
                max_position_embeddings=8192,
                pad_token_id=2,
            )
        )
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).to(DEVICE)
    module = SoftGradient(model, dtype=DTYPE, groups=int(os.environ.get("GROUPS", "2")))
    module.soft_gradient = soft_gradient
    return module


def embedder(module: UnrolledRefinement, tokenizer, pooling: str, chunk_tokens: int = 100_000):
    @torch.no_grad()
    def embed(texts, role, instruction, steps):
        head = prefix(SPEC.document_template if role == "document" else SPEC.query_template, instruction)
        ids = [
            i[: SPEC.max_length]
            for i in tokenizer([head + text for text in texts], add_special_tokens=False)["input_ids"]
        ]
        order, out = np.argsort([-len(i) for i in ids], kind="stable"), [None] * len(ids)
        start = 0
        while start < len(order):
            count = max(1, chunk_tokens // len(ids[order[start]]))
            part = order[start : start + min(count, 4096)]
            z = pool(module([ids[i] for i in part], max(1, *steps, 1), pooling))
            z = z[:, [min(k, z.shape[1]) - 1 for k in steps]] if pooling == "refine" else z.expand(-1, len(steps), -1)
            for i, row in zip(part, z.float().cpu().numpy(), strict=True):
                out[i] = row
            start += len(part)
        return np.stack(out)

    return embed


def evaluate_module(module, tokenizer, pooling, data, sets, steps, name, limit=None):
    from gircse_rag.evaluation import evaluate

    begun = time.perf_counter()
    steps = steps if pooling == "refine" else [0]
    report = evaluate(
        embedder(module, tokenizer, pooling),
        data / "eval",
        steps=steps,
        sets=sets,
        model=name,
        limit=limit,
    )
    table = {r.name: {str(k): round(float(s.value), 4) for k, s in r.scores[r.main].items()} for r in report.sets}
    say(name, "evaluated in", round(time.perf_counter() - begun, 1))
    return table, report


def development(result: dict) -> float:
    """What a run is chosen by: the mean over development sets and STS-B dev, at the last K scored."""
    return round(float(np.mean([list(v.values())[-1] for v in result["scores"].values()])), 3)


def summary(table: dict) -> dict:
    def mean(start: str) -> dict:
        rows = [v for k, v in table.items() if k.startswith(start)]
        return {k: round(float(np.mean([r[k] for r in rows])), 2) for k in rows[0]} if rows else {}

    return {kind: mean(kind) for kind in ("dev/", "sts/", "contrast/", "retrieval/", "classification/", "clustering/")}


def mixed(rows, mix: dict[str, float]):
    """Rows with tasks repeated or thinned: a copy gets a zero-width change of nothing; duplicates never share a batch pass."""
    by_task: dict[str, list] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    out = []
    for task, members in by_task.items():
        factor = mix.get(task, 1.0)
        generator = np.random.default_rng(0)
        whole, part = int(factor), factor - int(factor)
        out += members * whole
        out += [members[i] for i in generator.permutation(len(members))[: int(part * len(members))]]
    return out


class Fixed(Cached):
    """Batches of exactly `batch_size` rows (short ones repeat their first rows), passages as positive, negative, ...

    Tasks of few classes would take many right answers for in-batch negatives. CLINC's domains follow from the pairs of
    its two tasks (same intent implies same domain; the negative of the intent task shares the domain): exactly the 10
    domains come out. The tasks in OWN_ONLY have no such help: there only the row's own negative counts.
    """

    OWN_ONLY = frozenset({"snips_same_intent", "medical_same_question_type", "aws_same_action"})

    def __init__(self, rows, tasks, *args, **kwargs):
        super().__init__(rows, tasks, *args, **kwargs)
        wide, links = "clinc_same_domain", []
        for row in rows:
            if row.task in (wide, "clinc_same_intent"):
                links.append(Row(wide, row.query, row.positive, None))
            if row.task == "clinc_same_intent" and row.negative is not None:
                links.append(Row(wide, row.query, row.negative, None))
        if links:
            domains = _answers(links, tasks)
            say("domains", len(set(domains.values())))
            self._answers.update(domains)

    def encode(self, rows, cursor=0):
        rows = rows + rows[: self.batch_size - len(rows)]
        task = self.tasks[rows[0].task]
        head = prefix(SPEC.query_template, task.instruction)
        passages = [text for row in rows for text in (row.positive, row.negative)]
        columns: dict[str | None, list[int]] = {}
        for column, passage in enumerate(passages):
            columns.setdefault(passage, []).append(column)
        right = np.zeros((len(rows), len(passages)), dtype=bool)
        right[:, columns.pop(None, [])] = True
        for index, row in enumerate(rows):
            for passage in self._answers[row.task, row.query] & columns.keys():
                right[index, columns[passage]] = True
        if row.task in self.OWN_ONLY:
            own = np.zeros_like(right)
            own[np.arange(len(rows)), np.arange(len(rows)) * 2 + 1] = True
            right |= ~own
        side = head if task.symmetric else ""
        texts = [self.ids[head + row.query] for row in rows]
        texts += [NOTHING if text is None else self.ids[side + text] for text in passages]
        return Batch(rows, texts, np.arange(len(rows)) * 2, right, cursor)


NOTHING = np.zeros(1, dtype=np.int32)


def classes(base: Path, data: Path, store: Path, size: int, count: int, groups: int) -> None:
    """Group tasks into `count` classes that share a shape; runs on any machine and writes JSON."""
    tokenizer, tasks = AutoTokenizer.from_pretrained(base), read_tasks(data / "tasks.json")
    rows = read_rows([data / "train"], tasks)
    Cached.fill(rows, tasks, tokenizer, store.with_suffix(".npz"))
    batches = Fixed(rows, tasks, tokenizer, SPEC, batch_size=size)
    found: dict[str, list] = {}
    for epoch in range(2):
        for indices in batches._epoch(epoch):
            batch = batches.encode([rows[i] for i in indices])
            found.setdefault(batch.rows[0].task, []).append(np.sort([len(t) for t in batch.texts]))
    weights = {task: len(x) for task, x in found.items()}
    real = sum(int(np.sum(x)) for x in found.values())
    members = [([task], np.stack(x).max(axis=0)) for task, x in found.items()]

    def cost(names, envelope):
        return Shape.enclosing(envelope[None], groups).tokens * sum(weights[n] for n in names)

    costs = {(i, i): cost(*m) for i, m in enumerate(members)}
    say("padding with a class a task: %.3f" % (sum(costs.values()) / real))
    while len(members) > count:
        best = None
        for i in range(len(members)):
            for j in range(i + 1, len(members)):
                if abs(members[i][1].sum() / members[j][1].sum() - 1) > 0.8:
                    continue
                names, envelope = members[i][0] + members[j][0], np.maximum(members[i][1], members[j][1])
                increase = cost(names, envelope) - cost(*members[i]) - cost(*members[j])
                if best is None or increase < best[0]:
                    best = (increase, i, j, names, envelope)
        _, i, j, names, envelope = best
        members = [m for k, m in enumerate(members) if k not in (i, j)] + [(names, envelope)]
    out = []
    for names, envelope in members:
        shape = Shape.enclosing(envelope[None], groups)
        out.append({"tasks": names, "counts": shape.counts, "widths": shape.widths, "tokens": shape.tokens})
    say(
        "padding %.3f" % (sum(cost(*m) for m in members) / real),
        "largest",
        max(o["tokens"] for o in out),
        "tokens of an epoch",
        real / 2,
    )
    store.write_text(json.dumps(out))


class Graphs:
    """One captured step a class of tasks, for one setting of what a graph fixes; shared by runs that differ in the rest."""

    def __init__(
        self, base: Path, config: TrainConfig, shapes: list[dict], deep: list[dict], share: float, soft_gradient: str
    ) -> None:
        """`config.steps` = [low, high]: `share` of the batches take K = high, on the shapes of `deep`, the others low."""
        self.module, self.share = build(base, config, soft_gradient), share
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.parameters = parameters
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self.step_of, steps = {}, []
        for k, entries in zip(sorted(set(config.step_range)), (shapes, deep), strict=False):
            for entry in sorted(entries, key=lambda e: -e["tokens"]):
                step = GraphedStep(
                    self.module,
                    Shape(tuple(entry["counts"]), tuple(entry["widths"])),
                    config.batch_size,
                    k if config.pooling == "refine" else 1,
                    pooling=config.pooling,
                    temperature=config.temperature,
                    reg_weight=config.reg_weight,
                )
                steps.append(step)
                self.step_of.update({(k, task): step for task in entry["tasks"]})
        self.depths = sorted(set(config.step_range))
        if DEVICE == "cuda":
            steps[0].warm_up()
            for step in steps:
                if step.steps == steps[0].steps and step is not steps[0]:
                    step.warm_up()
            torch.cuda.synchronize()
            say("warm", torch.cuda.max_memory_allocated() / 1e9)
            for step in steps:
                step.capture(steps[0].pool if step is not steps[0] else None)
            say("captured", len(steps), "graphs, GB", torch.cuda.memory_reserved() / 1e9)
        self.limits = {id(s): np.repeat(s.shape.widths, s.shape.counts) for s in steps}
        self.cut = 0

    def restart(self, seed: int) -> None:
        """A fresh adapter, as peft makes it: A uniform in +-1/sqrt(inputs), B zero."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, p in self.module.model.named_parameters():
                if p.requires_grad and "lora_A" in name:
                    torch.nn.init.kaiming_uniform_(p, a=5**0.5)
                elif p.requires_grad:
                    p.zero_()

    def __call__(self, batch: Batch):
        deep = len(self.depths) > 1 and np.random.default_rng(batch.cursor).random() < self.share
        step = self.step_of[self.depths[int(deep)], batch.rows[0].task]
        order = np.argsort([len(t) for t in batch.texts], kind="stable")
        for rank, limit in enumerate(self.limits[id(step)]):
            text = batch.texts[order[rank]]
            if len(text) > limit:  # a rare long text in a class whose grid was sized on sampled batches
                batch.texts[order[rank]] = text[:limit]
                self.cut += 1
        return step(batch.texts, batch.not_negatives).clone()


def check(graphs: Graphs, batch: Batch, config: TrainConfig) -> None:
    """The graph's loss and gradients against the packed step's, on one batch, with the adapter moved off zero."""
    parameters = [p for p in graphs.module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.add_(0.01 * torch.randn_like(p))
    numbers = graphs(batch)
    found = torch.cat([p.grad.flatten() for p in parameters]).clone()
    for p in parameters:
        p.grad.zero_()
    states = graphs.module(batch.texts, config.step_range[0], config.pooling)
    b = len(batch.rows)
    loss = icr_loss(
        states[:b],
        states[b:],
        config.temperature,
        config.reg_weight,
        not_negatives=torch.from_numpy(batch.not_negatives).to(DEVICE),
    )
    loss.total.backward()
    expected = torch.cat([p.grad.flatten() for p in parameters])
    say(
        "check: graph",
        [round(x, 4) for x in numbers.tolist()],
        "packed",
        round(float(loss.total), 4),
        [round(x, 4) for x in loss.stepwise.tolist()],
        "gradient relative error %.4f, norm %.4f"
        % (float((found - expected).norm() / expected.norm()), float(expected.norm())),
    )
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)


def runs(base: Path, data: Path, out: Path, plan: list[dict], shapes: list[dict], deep: list[dict] = ()) -> None:
    tokenizer = AutoTokenizer.from_pretrained(os.environ.get("TOKENIZER", base))
    tasks = read_tasks(data / "tasks.json")
    rows = read_rows([data / "train"], tasks)
    Cached.fill(rows, tasks, tokenizer, data / "ids.npz")
    gc.collect()
    gc.freeze()  # each capture collects garbage, and would walk half a million arrays
    results, graphs, key = [], None, None
    for entry in plan:
        name = entry["name"]
        if "known" in entry:  # an earlier session's run, to choose among: its scores, and what it was trained with
            results.append({"name": name, "failed": None, "scores": entry["known"], "own_config": entry["config"]})
            continue
        if "choose" in entry:  # what the best of some earlier runs was trained with, by development sets alone
            best = max((r for r in results if r["name"] in entry["choose"] and not r["failed"]), key=development)
            say(name, "takes after", best["name"], {r["name"]: development(r) for r in results if "scores" in r})
            entry = {**entry, "after": best["name"], "soft_gradient": best.get("soft_gradient", "full")}
            entry["config"] = {**best["own_config"], **entry.get("config", {})}
            if entry.get("copy"):
                shutil.copytree(Path("/tmp/adapters") / best["name"], Path("/tmp/copying"))
                Path("/tmp/copying").rename(Path("/tmp/adapters") / name)
                continue
        own_config = entry["config"]
        values = {"output": "/tmp/runs", "data": "train", "tasks": "tasks.json", **entry["config"]}
        config = TrainConfig.of(values)
        fixed = (
            config.batch_size,
            config.steps,
            config.pooling,
            config.temperature,
            config.reg_weight,
            config.rank,
            config.alpha,
            entry.get("soft_gradient", "full"),
        )
        if fixed != key:
            graphs = None
            torch.cuda.empty_cache() if DEVICE == "cuda" else None
            graphs, key = Graphs(base, config, shapes, deep, entry.get("share", 0.0), fixed[-1]), fixed
        module = graphs.module
        parameters = [p for p in module.parameters() if p.requires_grad]
        graphs.restart(config.seed)
        if entry.get("init"):
            set_peft_model_state_dict(
                module.model,
                {k: v.float() for k, v in load_file(Path(entry["init"]) / "adapter_model.safetensors").items()},
            )
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=DEVICE == "cuda"
        )
        first = entry.get("cursor", 0)
        batches = Fixed(
            mixed(rows, entry.get("mix", {})), tasks, tokenizer, SPEC, batch_size=config.batch_size, seed=config.seed
        )
        if entry.get("check"):
            check(graphs, next(iter(batches.start(0))), config)
        say(name, "starts")
        begun, log, pending, failed, cursor = time.perf_counter(), [], [], None, first
        limit, marks = entry.get("until"), sorted(entry.get("milestones", []))
        if limit is not None:  # seconds after the program's start
            limit -= begun - STARTED
        total = config.rows
        for batch in batches.start(first):
            if cursor >= total:
                break
            rate = (
                TrainConfig.of({**values, "rows": total}).rate(cursor, first) if limit else config.rate(cursor, first)
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            numbers = graphs(batch)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient)
            optimizer.step()
            cursor = batch.cursor
            pending.append((cursor, batch.rows[0].task, rate, torch.cat((numbers, norm[None]))))
            while marks and cursor >= marks[0]:
                adapter(module, f"{name}_{marks.pop(0)}")
            if len(pending) == 20:
                block = [p[3].tolist() for p in pending]
                log += [[*p[:3], *values_] for p, values_ in zip(pending, block, strict=True)]
                pending = []
                recent = np.concatenate([row[3:] for row in log[-20:]])
                if not np.isfinite(recent).all():
                    failed = f"not finite near row {cursor}"
                    say(name, failed)
                    break
                elapsed = time.perf_counter() - begun
                if limit and cursor < total - config.decay_rows:
                    # what the time left allows is known only now: end (and decay) where it will run out
                    possible = first + int((cursor - first) / elapsed * limit)
                    if elapsed > 0.15 * limit:
                        total = min(config.rows, max(possible, cursor + config.decay_rows))
                if len(log) % entry.get("every", 100) == 0:
                    window = np.array([[*row[3:6], *row[-3:]] for row in log[-100:]]).mean(axis=0)
                    say(
                        name,
                        cursor,
                        "loss %.3f reg %.4f L1 %.3f L_K %.3f spread %.2f |g| %.2f" % tuple(window),
                        "rows/s %.0f" % ((cursor - first) / elapsed),
                        "cut",
                        graphs.cut,
                    )
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        result = {
            **entry,
            "seconds_used": seconds,
            "rows_seen": cursor,
            "failed": failed,
            "own_config": own_config,
            "config": {**config.to_dict(), "rows": total},
        }
        if entry.get("log"):
            (out / f"{name}_log.json").write_text(
                json.dumps([[round(v, 5) if isinstance(v, float) else v for v in row] for row in log])
            )
        if entry.get("save"):
            adapter(module, name)
        say(name, "rows", cursor, "s %.1f" % seconds, "rows/s %.0f" % ((cursor - first) / seconds))
        if entry.get("eval") and not failed:
            table, report = evaluate_module(
                module, tokenizer, config.pooling, data, entry["eval"], entry["eval_steps"], name, entry.get("limit")
            )
            report.save(out / f"{name}_report.json")
            result["scores"], result["summary"] = table, summary(table)
            say(name, result["summary"], "stsb_dev", table.get("sts/stsb_dev"))
        results.append(result)
        (out / "results.json").write_text(json.dumps(results))
    for r in results:
        print(
            r["name"],
            r.get("rows_seen"),
            "%.1f s" % r.get("seconds_used", 0),
            json.dumps(r.get("summary")),
            json.dumps(r.get("scores", {}).get("sts/stsb_dev")),
        )


def adapter(module, name: str) -> None:
    folder = Path("/tmp/adapters") / name
    save_adapter(folder, module.model, "smollm2-135m-base", torch.bfloat16)
    (folder / "done").touch()


def score(base: Path, data: Path, out: Path, plan: list[dict]) -> None:
    """Full reports of adapters as they appear (in /tmp/adapters, from `runs` beside it); a {"name", "pooling", "sets", "steps"} each."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    module = build(base, TrainConfig.of({"output": "/tmp/score", "data": "t", "tasks": "t", "rows": 1}))
    waiting = list(plan)
    while waiting:
        for entry in list(waiting):
            folder = Path("/tmp/adapters") / entry["name"]
            if not (folder / "done").exists():
                continue
            waiting.remove(entry)
            weights = load_file(folder / "adapter_model.safetensors")
            set_peft_model_state_dict(module.model, {k: v.float() for k, v in weights.items()})
            name = f"{entry['name']}_{entry['sets'][0].split('/')[0]}"
            table, report = evaluate_module(
                module, tokenizer, entry.get("pooling", "refine"), data, entry["sets"], entry["steps"], name
            )
            report.save(out / f"{name}.json")
            say(name, {k: list(v.values()) for k, v in table.items()})
        time.sleep(0.5)


def speed(base: Path, data: Path, out: Path, sizes: list[int]) -> None:
    tasks = read_tasks(data / "tasks.json")
    tokenizer = AutoTokenizer.from_pretrained(Path(os.environ.get("TOKENIZER", str(base))))
    rows = read_rows([data / "train"], tasks)
    say("rows", len(rows))
    Cached.fill(rows, tasks, tokenizer, data / "ids.npz")
    table = []
    for size in sizes:
        config = TrainConfig.of(
            {
                "output": "/tmp/speed",
                "data": "t",
                "tasks": "t",
                "rows": 10**9,
                "batch_size": size,
                "learning_rate": 1e-4,
                "chunk_tokens": 100_000,
            }
        )
        batches = Cached(rows, tasks, tokenizer, SPEC, batch_size=size)
        module = build(base, config)
        trainer = Trainer(module, batches, config)
        it, done, begun, tokens = batches.start(0), 0, None, 0
        torch.cuda.reset_peak_memory_stats() if DEVICE == "cuda" else None
        limit = int(os.environ.get("STEPS", "14"))
        for index, batch in zip(range(limit), it, strict=False):
            if index == 4:
                begun = time.perf_counter()
            t = time.perf_counter()
            trainer.step(batch)
            if index >= 4:
                done += len(batch.rows)
                tokens += sum(map(len, batch.texts))
            if (size == sizes[0] and index < 12) or index < 3:
                n = sum(map(len, batch.texts))
                say(
                    size,
                    batch.rows[0].task,
                    "tokens",
                    n,
                    "longest",
                    max(map(len, batch.texts)),
                    "s %.3f" % (time.perf_counter() - t),
                )
        seconds = time.perf_counter() - begun
        table.append(
            {
                "batch": size,
                "rows_per_second": done / seconds,
                "tokens_per_second": tokens / seconds,
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None,
            }
        )
        say(table[-1])
        if size == sizes[-1] and os.environ.get("PROFILE"):
            from torch.profiler import profile

            with profile() as p:
                trainer.step(next(it))
                torch.cuda.synchronize()
            print(p.key_averages().table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=60)[:9000])
        del module, trainer
        torch.cuda.empty_cache() if DEVICE == "cuda" else None
    (out / "speed.json").write_text(json.dumps(table))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "prepare":
        prepare(*map(Path, arguments))
    elif command == "speed":
        speed(Path(arguments[0]), Path(arguments[1]), Path(arguments[2]), [int(a) for a in arguments[3:]])
    elif command == "tokens":
        data = Path(arguments[1])
        tasks = read_tasks(data / "tasks.json")
        Cached.fill(
            read_rows([data / "train"], tasks), tasks, AutoTokenizer.from_pretrained(arguments[0]), data / "ids.npz"
        )
    elif command == "runs":
        runs(
            Path(arguments[0]),
            Path(arguments[1]),
            Path(arguments[2]),
            json.loads(Path(arguments[3]).read_text()),
            *(json.loads(Path(a).read_text()) for a in arguments[4:6]),
        )
    elif command == "score":
        score(*map(Path, arguments[:3]), json.loads(Path(arguments[3]).read_text()))
    elif command == "classes":
        classes(Path(arguments[0]), Path(arguments[1]), Path(arguments[2]), *map(int, arguments[3:]))
