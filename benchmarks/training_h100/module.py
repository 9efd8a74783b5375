"""The model that is trained, and its adapter on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.training_h100.base import CONFIG
from benchmarks.training_h100.common import ADAPTERS, DEVICE
from gircse_rag.training.config import TARGETS, TrainConfig
from gircse_rag.training.saving import save_adapter
from gircse_rag.training.unrolled import UnrolledRefinement


class SoftGradient(UnrolledRefinement):
    """How the loss of step k reaches the soft tokens before it: "full"; "none" (each is detached, so a step learns
    through the keys and values of earlier soft tokens alone); "clip" (no text's gradient there may exceed twice the
    batch's geometric mean)."""

    soft_gradient = "full"

    def _soft_token(self, hidden: Tensor) -> Tensor:
        soft = super()._soft_token(hidden.detach() if self.soft_gradient == "none" else hidden)
        if self.soft_gradient == "clip" and soft.requires_grad:
            soft.register_hook(_leveled)
        return soft


def _leveled(gradient: Tensor) -> Tensor:
    norms = gradient.float().norm(dim=-1, keepdim=True).clamp(min=1e-20)
    limit = 2 * norms.log().mean().exp()
    return gradient * (limit / norms).clamp(max=1).to(gradient.dtype)


def build(base: Path, config: TrainConfig, *, groups: int = 2, soft_gradient: str = "full") -> UnrolledRefinement:
    """The base with a fresh adapter. Without a folder at `base` the weights are random: speed does not mind."""
    torch.manual_seed(config.seed)
    if base.exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(CONFIG)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    module = SoftGradient(get_peft_model(model, lora).to(DEVICE), dtype=torch.bfloat16, groups=groups)
    module.soft_gradient = soft_gradient
    return module


def load_adapter(module: UnrolledRefinement, folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(module.model, {k: v.float() for k, v in weights.items()})


def keep_adapter(module: UnrolledRefinement, name: str) -> None:
    """For `score`, which waits for the file `done`."""
    folder = ADAPTERS / name
    save_adapter(folder, module.model, "smollm2-135m-base", torch.bfloat16)
    (folder / "done").touch()
