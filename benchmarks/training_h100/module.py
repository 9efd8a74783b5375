"""The model that is trained, and its adapter on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.training_h100.base import CONFIG
from benchmarks.training_h100.common import ADAPTERS, DEVICE, PRODUCTS
from gircse_rag.errors import InputError
from gircse_rag.training.config import TARGETS, TrainConfig
from gircse_rag.training.saving import save_adapter
from gircse_rag.training.unrolled import UnrolledRefinement


class Detached(UnrolledRefinement):
    """No gradient through a soft token: a step learns through the keys and values of earlier soft tokens alone."""

    def _soft_token(self, hidden: Tensor) -> Tensor:
        return super()._soft_token(hidden.detach())


def build(base: Path, config: TrainConfig, *, groups: int = 2, detached: bool = False) -> UnrolledRefinement:
    """The base with a fresh adapter. Without a folder at `base` the weights are random: speed does not mind."""
    torch.manual_seed(config.seed)
    if base.exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(CONFIG)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    kind = Detached if detached else UnrolledRefinement
    module = get_peft_model(model, lora).to(DEVICE)
    return kind(module, dtype=PRODUCTS, groups=groups, level_gradients=config.level_gradients)


def load_adapter(module: UnrolledRefinement, folder: Path) -> None:
    set_adapter(module, products(folder))


def set_adapter(module: UnrolledRefinement, weights: dict[str, Tensor]) -> None:
    """`weights` as `products` gives them: what peft multiplies by alpha / rank here is divided out."""
    config = module.model.peft_config["default"]
    scaling = config.lora_alpha / config.r
    wrong = {v.shape[0] for k, v in weights.items() if "lora_A" in k} - {config.r}
    if wrong:
        raise InputError(f"the adapter has rank {wrong}, and the module rank {config.r}")
    set_peft_model_state_dict(module.model, {k: v / scaling if "lora_B" in k else v for k, v in weights.items()})


def products(folder: Path) -> dict[str, Tensor]:
    """An adapter whose B A is what it adds to the weights, whatever its alpha; float32."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    weights = {k: v.float() for k, v in load_file(folder / "adapter_model.safetensors").items()}
    return {k: v * scaling if "lora_B" in k else v for k, v in weights.items()}


def averaged(parts: Sequence[tuple[Path, float]], rank: int) -> dict[str, Tensor]:
    """The weighted sum of adapters' products B A, cut to `rank` by an exact singular value decomposition."""
    found = [(products(folder), share) for folder, share in parts]
    out: dict[str, Tensor] = {}
    for name in found[0][0]:
        if "lora_A" not in name:
            continue
        other = name.replace("lora_A", "lora_B")
        first = torch.cat([state[name] for state, _ in found]).to(DEVICE)  # (ranks, inputs)
        second = torch.cat([share * state[other] for state, share in found], dim=1).to(DEVICE)
        (q_b, r_b), (q_a, r_a) = torch.linalg.qr(second), torch.linalg.qr(first.T)
        u, s, v = torch.linalg.svd(r_b @ r_a.T)
        root = s[:rank].sqrt()
        out[other] = (q_b @ u[:, :rank] * root).cpu().contiguous()
        out[name] = (root[:, None] * (v[:rank] @ q_a.T)).cpu().contiguous()
    return out


def keep_adapter(module: UnrolledRefinement, name: str) -> None:
    """For `score`, which waits for the file `done`."""
    folder = ADAPTERS / name
    save_adapter(folder, module.model, "smollm2-135m-base", torch.bfloat16)
    (folder / "done").touch()
