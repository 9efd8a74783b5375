"""The method transcribed from the paper in float64: no cache, no streaming, no code shared with the library.

The boolean switches introduce plausible mistakes; tests check that each mistake is detected.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def refine(
    model: PreTrainedModel,
    token_ids: list[int],
    steps: int,
    *,
    temperature: float = 1.0,
    head_is_embeddings: bool = False,
    skip_final_norm: bool = False,
    pool_h0: bool = False,
) -> tuple[Tensor, Tensor]:
    """(steps, d) z_1..z_K and (steps, V) soft-token weights, float64."""
    model = copy.deepcopy(model).double()
    if skip_final_norm:
        model.model.norm = torch.nn.Identity()
    E = model.get_input_embeddings().weight
    head = E if head_is_embeddings else model.lm_head.weight
    x = E[token_ids]
    states = [model.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, -1]]
    weights = []
    for _ in range(steps):
        weights.append(torch.softmax(head @ states[-1] / temperature, dim=0))
        x = torch.cat([x, (weights[-1] @ E)[None]])
        states.append(model.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, -1])
    pooled = states if pool_h0 else states[1:]
    z = [torch.stack(pooled[: len(pooled) - steps + k]).mean(0) for k in range(1, steps + 1)]
    return torch.stack([row / row.norm() for row in z]), torch.stack(weights)
