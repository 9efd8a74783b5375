# ruff: noqa: E501
"""One training step on the CPU: the authors' unroll, one prefill plus K cached steps by Hugging Face, and ours.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/training_speed.py BASE [--rows 6] [--only ours] > out.json

Same batch (`rows` instructed queries, two passages each, K=5, LoRA r=16), forward and backward, bf16; each variant in a
process of its own (peak memory), two steps each, the second is reported, in seconds of wall clock and of CPU. The
authors' unroll needs 23 GB at 16 rows. `--idle-lock`: see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import idle
from gircse_rag.prompts import DEFAULT_INSTRUCTION, QUERY_TEMPLATE
from gircse_rag.training.config import TARGETS
from gircse_rag.training.losses import icr_loss
from gircse_rag.training.unrolled import UnrolledRefinement

WORDS = (
    "The committee reviewed the annual budget proposal and decided to postpone the vote until next spring because "
    "several members asked for more detailed figures about maintenance costs of public parks"
)
STEPS = 5


def recomputed(model, embeddings, ids, mask):
    """The authors' loop: left padding, the whole sequence at every step, all layers' states, logits of every position."""
    x, states = embeddings[ids], []
    for _ in range(STEPS + 1):
        out = model(inputs_embeds=x, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states.append(out.hidden_states[-1][:, -1])
        soft = torch.softmax(out.logits[:, -1], dim=-1) @ embeddings
        x, mask = torch.cat([x, soft[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(states[1:], 1)


def cached(model, embeddings, ids, mask):
    """One padded prefill and K single-row steps through Hugging Face's cache."""
    past, states = DynamicCache(), []
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model.model(
        inputs_embeds=embeddings[ids], attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
    )
    hidden = out.last_hidden_state[:, -1]
    for k in range(STEPS):
        soft = torch.softmax((hidden @ embeddings.T).float(), -1).to(embeddings.dtype) @ embeddings
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = model.model(
            inputs_embeds=soft[:, None],
            attention_mask=mask,
            position_ids=positions[:, -1:] + 1 + k,
            past_key_values=past,
            use_cache=True,
        )
        hidden = out.last_hidden_state[:, -1]
        states.append(hidden)
    return torch.stack(states, 1)


def measure(variant: str, base: str, rows: int) -> dict:
    torch.manual_seed(0)
    generator = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=64, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)

    def texts(count: int, low: int, high: int) -> list[str]:
        return [" ".join(generator.choices(WORDS.split(), k=generator.randint(low, high))) for _ in range(count)]

    queries, passages = texts(rows, 5, 15), texts(2 * rows, 15, 50)
    queries = [QUERY_TEMPLATE.format(instruction=DEFAULT_INSTRUCTION, text=text) for text in queries]
    if variant == "ours":
        module = UnrolledRefinement(model, groups=4)
        ids = tokenizer(queries + passages, add_special_tokens=False)["input_ids"]

        def forward():
            states = module(ids, STEPS)
            return states[:rows], states[rows:]
    else:
        inner = model.get_base_model()
        embeddings = inner.get_input_embeddings().weight.detach()
        unroll = recomputed if variant == "authors" else cached
        batches = [
            tokenizer(part, padding=True, return_tensors="pt", add_special_tokens=False) for part in (queries, passages)
        ]

        def forward():
            return tuple(unroll(inner, embeddings, batch["input_ids"], batch["attention_mask"]) for batch in batches)

    found = {}
    for _ in range(2):
        begun, cpu = time.perf_counter(), time.process_time()
        loss = icr_loss(*forward())
        middle = time.perf_counter()
        loss.total.backward()
        ended = time.perf_counter()
        found = {"forward_s": middle - begun, "backward_s": ended - middle, "step_s": ended - begun}
        found["step_cpu_s"] = time.process_time() - cpu
        found["loss"] = float(loss.total.detach())
        model.zero_grad()
    return {"variant": variant, **found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--idle-lock", type=Path)
    parser.add_argument("--idle-gate", type=Path)
    parser.add_argument("--rest", type=float, default=10.0, help="seconds for the others after each variant")
    parser.add_argument("--only", choices=("authors", "cached", "ours"))
    parser.add_argument("--inside", action="store_true", help="measure in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.inside:
        print(json.dumps(measure(options.only, options.base, options.rows)))
        return
    variants = [options.only] if options.only else ["ours", "cached", "authors", "ours"]
    results = []
    for variant in variants:
        command = [sys.executable, __file__, options.base, "--rows", str(options.rows), "--only", variant, "--inside"]
        with idle(options):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(results[-1], file=sys.stderr, flush=True)
    report = {"rows": options.rows, "steps": STEPS, "threads": 1, "quiet": options.idle_lock is not None}
    print(json.dumps({**report, "results": results}, indent=1))


if __name__ == "__main__":
    main()
