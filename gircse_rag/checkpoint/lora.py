"""A PEFT LoRA adapter: reading its weights, and merging it into its base model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from gircse_rag.errors import CheckpointError

# What PEFT can add to plain LoRA, and changes what is to be merged.
_SPECIAL_LORA = (
    *("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "lora_bias", "modules_to_save"),
    *("layers_to_transform", "layer_replication", "exclude_modules", "target_parameters", "trainable_token_indices"),
    *("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config"),
)
# Ways to begin an adapter that leave the base weights alone, as not every way does.
_KEEP_THE_BASE = ("gaussian", "eva", "orthogonal")


def read_lora(folder: Path) -> dict[str, torch.Tensor]:
    """
    Raises:
        CheckpointError: the folder has no adapter_model.safetensors, or a damaged one.
    """
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{folder} has no adapter_model.safetensors; only safetensors are read")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {folder} is damaged: {error}; get its files again") from error


def merge_lora(
    model: PreTrainedModel, folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """W + scale * B @ A for every adapted layer; every weight must land, every layer the config names must get one.

    Written out, and tested against PEFT, because PEFT takes 1.5 s to wrap, merge and unwrap 210 layers, and this 0.2.

    Raises:
        CheckpointError: it is no plain LoRA adapter of this model; names `folder`, and what is wrong.
    """
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"the adapter in {folder} is a {config.get('peft_type')} adapter; only LoRA is supported")
    special = [key for key in _SPECIAL_LORA if config.get(key) not in (None, False, "none", {}, [])]
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun not in _KEEP_THE_BASE:
        special.append("init_lora_weights")  # PEFT takes the first A and B off the base weights, each time it loads
    if special:
        raise CheckpointError(
            f"the adapter in {folder} sets {special[0]}={config[special[0]]!r}, which is not plain LoRA; merge it with "
            "PEFT (merge_and_unload, save_pretrained) and load the merged folder"
        )
    if outside := [key for key in weights if "lm_head" in key or "embed_tokens" in key]:
        raise CheckpointError(
            f"the adapter in {folder} changes {outside[0]}: soft tokens need the head and the embeddings of the base "
            "model; train it on the attention and MLP projections only"
        )
    misfit = f"the adapter in {folder} does not fit its base model: "
    try:
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
        adapted = [name for name, module in model.named_modules() if _is_target(name, module, config["target_modules"])]
    except (KeyError, TypeError, ZeroDivisionError, re.error) as error:
        raise CheckpointError(f"{misfit}its config is damaged ({type(error).__name__}: {error})") from error
    places = {f"base_model.model.{name}.lora_{half}.weight" for name in adapted for half in "AB"}
    if weights.keys() != places or not places:
        raise CheckpointError(
            f"{misfit}{len(weights.keys() - places)} weights have no place {sorted(weights.keys() - places)[:2]}, "
            f"{len(places - weights.keys())} places got no weight {sorted(places - weights.keys())[:2]}; it was "
            "made for another model, or is incomplete"
        )
    for name in adapted:
        weight = model.get_submodule(name).weight
        A, B = (weights[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        if (B.shape[0], A.shape[1], A.shape[0], B.shape[1]) != (*weight.shape, config["r"], config["r"]):
            raise CheckpointError(
                f"{misfit}{name} is {tuple(weight.shape)}, its A {tuple(A.shape)}, B {tuple(B.shape)}"
            )
        # a new tensor, and at once in its last dtype: writing into the mapped file would copy every page of it first
        weight.data = torch.addmm(weight.detach().float(), B.float(), A.float(), alpha=scale).to(dtype)
    return model


def _is_target(name: str, module: nn.Module, targets: str | list[str]) -> bool:
    """Whether PEFT would have adapted this layer: by a regular expression, or by the end of its name."""
    if not isinstance(module, nn.Linear) or not name.startswith("model."):
        return False
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)
