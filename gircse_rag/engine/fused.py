"""Faster replacements of Hugging Face's modules, in a copy of the model that shares its weights.

The decoder layers, the rotary tables and the forward stay transformers'. The replacements compute the same:

    Linear       weights reordered once for oneDNN's kernels, which otherwise reorder them at every call (CPU)
    attention    one product for q, k and v; the rotation in three calls instead of ten
    SwiGLU       the activation inside the gate's product (CPU), or one product for gate and up (CUDA)
    RMSNorm      one call
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu
from transformers import PreTrainedModel

from gircse_rag.engine.attention import ATTENTION_NAME, Plan, paged_attention
from gircse_rag.errors import CheckpointError
from gircse_rag.spec import FAMILIES


def check_supported(model: PreTrainedModel, max_rows: int) -> None:
    """Refuse a model that the paged attention would compute wrongly.

    Args:
        max_rows: length of the longest sequence; a sliding window at least as long has no effect.

    Raises:
        CheckpointError: another family, a shorter sliding window, a soft-cap, attention sinks, another activation.
    """
    config = model.config
    advice = "use backend='reference'"
    if config.model_type not in FAMILIES:
        raise CheckpointError(f"the paged engine supports {', '.join(FAMILIES)}; this is {config.model_type}: {advice}")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_rows:
        raise CheckpointError(f"the sliding window of {window} is shorter than {max_rows} rows: {advice}")
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "attention_sinks"):
        if getattr(config, name, None):
            raise CheckpointError(f"the paged engine does not support {name}: {advice}")
    if config.hidden_act != "silu":
        raise CheckpointError(f"the paged engine supports the activation silu, not {config.hidden_act}: {advice}")


def fused_copy(model: PreTrainedModel, *, pack: bool) -> PreTrainedModel:
    """Copy a model for the engine: shared parameters, faster modules and the paged attention.

    Args:
        pack: reorder weights for oneDNN; the copy then holds its own weights. Otherwise weights are merged per layer
            and the original's weights become views of the merged ones, so none is held twice.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    fused: PreTrainedModel = copy.deepcopy(model, memo=shared)
    fused.set_attn_implementation(ATTENTION_NAME)
    product: Callable[..., nn.Module] = PackedLinear if pack else PlainLinear
    for layer in fused.model.layers:
        layer.self_attn = FusedAttention(layer.self_attn, product)
        layer.mlp = PackedSwiGLU(layer.mlp) if pack else SwiGLU(layer.mlp)
        layer.input_layernorm = FusedRMSNorm(layer.input_layernorm)
        layer.post_attention_layernorm = FusedRMSNorm(layer.post_attention_layernorm)
    fused.model.norm = FusedRMSNorm(fused.model.norm)
    return fused.eval()


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed products support this weight: on a CPU, in a dtype that it multiplies."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class _HooklessModule(nn.Module):
    """A module without hooks: with one row, nn.Module's own call costs a tenth of the matrix products."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class PackedLinear(_HooklessModule):
    """activation(x W^T + b) with W (out, in) reordered for oneDNN; the activation is "none" or "swish"."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none") -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = bias
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, self._activation, [], "")
        return out


class PlainLinear(_HooklessModule):
    """x W^T + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = weight
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class FusedAttention(_HooklessModule):
    """Attention with one product for q, k and v, one rotation for q and k, and the paged cache."""

    def __init__(self, attention: Any, product: Callable[..., nn.Module]) -> None:
        super().__init__()
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._qkv = product(*_merge_linears(projections, views=product is PlainLinear))
        self._output = product(attention.o_proj.weight, attention.o_proj.bias)
        self._q_norm = getattr(attention, "q_norm", None)  # Qwen3
        self._k_norm = getattr(attention, "k_norm", None)
        self._head_dim = attention.head_dim
        self._q_heads = attention.q_proj.out_features // attention.head_dim
        self._kv_heads = attention.k_proj.out_features // attention.head_dim
        self._scaling = attention.scaling
        self.layer_idx = attention.layer_idx

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], *, plan: Plan, **kwargs: object
    ) -> tuple[Tensor, None]:
        qkv = self._qkv(hidden_states).view(*hidden_states.shape[:-1], -1, self._head_dim)
        rotated = qkv[..., : self._q_heads + self._kv_heads, :]
        if self._q_norm is not None and self._k_norm is not None:
            query, key = torch.split(rotated, [self._q_heads, self._kv_heads], dim=-2)
            rotated = torch.cat((self._q_norm(query), self._k_norm(key)), dim=-2)
        cos, sin = (table.unsqueeze(-2) for table in position_embeddings)
        first, second = rotated.chunk(2, dim=-1)
        rotated = torch.addcmul(rotated * cos, torch.cat((second.neg(), first), dim=-1), sin)
        query, key = torch.split(rotated, [self._q_heads, self._kv_heads], dim=-2)
        value = qkv[..., self._q_heads + self._kv_heads :, :]
        query, key, value = (rows.transpose(1, 2) for rows in (query, key, value))
        out, _ = paged_attention(self, query, key, value, None, scaling=self._scaling, plan=plan)
        return self._output(out), None


class SwiGLU(_HooklessModule):
    """down(silu(gate(x)) * up(x)), with gate and up in one product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self._gate_up = PlainLinear(*_merge_linears([mlp.gate_proj, mlp.up_proj], views=True))
        self._down = PlainLinear(mlp.down_proj.weight, mlp.down_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        out: Tensor = self._down(silu(gate) * up)
        return out


class PackedSwiGLU(_HooklessModule):
    """down(silu(gate(x)) * up(x)) with silu applied inside oneDNN's product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self._gate = PackedLinear(mlp.gate_proj.weight, mlp.gate_proj.bias, activation="swish")
        self._up = PackedLinear(mlp.up_proj.weight, mlp.up_proj.bias)
        self._down = PackedLinear(mlp.down_proj.weight, mlp.down_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._down(self._gate(x).mul_(self._up(x)))
        return out


class FusedRMSNorm(_HooklessModule):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self._weight = norm.weight
        self._epsilon = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._weight.shape, self._weight, self._epsilon)


def _merge_linears(linears: list[nn.Linear], *, views: bool) -> tuple[Tensor, Tensor | None]:
    """Stack the linears' weights and biases. With `views`, their own weights become views of the stacked one."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if views:
        parts = torch.split(weight, [linear.out_features for linear in linears])
        for linear, part in zip(linears, parts, strict=True):
            linear.weight.data = part
    if all(linear.bias is None for linear in linears):
        return weight, None
    return weight, torch.cat([linear.bias.detach() for linear in linears])
