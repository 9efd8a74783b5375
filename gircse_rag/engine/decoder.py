"""The decoder's forward over packed rows: one for every family, dtype and device.

    x = x + Attention(norm(x))          q, k and v in one product; the rotation of q and k; the paged cache
    x = x + down(silu(gate(n)) * up(n))     n = norm(x); gate and up in one product, or silu inside oneDNN's product

It computes what transformers' modules compute, with a quarter of their torch calls: with one row, the calls cost as
much as the products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from gircse_rag.engine.attention import Plan
from gircse_rag.engine.products import Form, Product, make_product
from gircse_rag.errors import CheckpointError
from gircse_rag.spec import FAMILIES
from gircse_rag.weights import DecoderConfig, DecoderWeights

Norm = Callable[[Tensor], Tensor]


def check_supported(config: DecoderConfig, max_rows: int) -> None:
    """Refuse a model that the engine would compute wrongly.

    Args:
        max_rows: length of the longest sequence; a sliding window at least as long has no effect.

    Raises:
        CheckpointError: another family, a shorter sliding window, a soft-cap, attention sinks, another activation.
    """
    advice = "use backend='reference'"
    if config.model_type not in FAMILIES:
        raise CheckpointError(f"the paged engine supports {', '.join(FAMILIES)}; this is {config.model_type}: {advice}")
    if config.sliding_window is not None and config.sliding_window < max_rows:
        raise CheckpointError(
            f"the sliding window of {config.sliding_window} is shorter than {max_rows} rows: {advice}"
        )
    for name in config.unsupported:
        raise CheckpointError(f"the paged engine does not support {name}: {advice}")
    if config.hidden_act != "silu":
        raise CheckpointError(f"the paged engine supports the activation silu, not {config.hidden_act}: {advice}")


class Decoder:
    """Computes hidden states.

    Args:
        weights: the model's weights. With Form.PLAIN the weights of q, k and v, and of gate and up, become views of
            merged ones, so that none is held twice; the other forms hold copies.
        form: how products are computed.
        fixed_rows: a row's bits do not depend on the other rows; their number must be a multiple of ROW_BLOCK.

    Attributes:
        layers: callables, (T, d) -> (T, d); the order is the model's.
        dtype: of the hidden states.
    """

    def __init__(self, weights: DecoderWeights, form: Form, *, fixed_rows: bool = False) -> None:
        config = weights.config
        self.dtype = torch.float32 if form is Form.FBGEMM else weights.embeddings.dtype
        self._scaling = config.attention_scaling
        self._frequencies = weights.frequencies.to(weights.embeddings.device)
        self._complex = _rotates_complex(self.dtype, form)
        self.layers = [
            Layer(weights, number, form, self.dtype, fixed_rows) for number in range(config.num_hidden_layers)
        ]
        self._norm = make_norm(weights.tensors["model.norm.weight"], config.rms_norm_eps, self.dtype)

    def __call__(self, inputs: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """Compute hidden states after the final norm: (T, d) input embeddings -> (T, d).

        Args:
            positions: (T,) int64, position of each row in its sequence.
            plan: attends to the cache.
        """
        rotation = self._rotation(positions)
        x = inputs
        for layer in self.layers:
            x = layer.forward(x, rotation, plan)
        return self._norm(x)

    def _rotation(self, positions: Tensor) -> Rotation:
        angles = positions[:, None].float() * self._frequencies
        if self._complex:
            return torch.polar(angles.new_tensor(self._scaling), angles)[:, None]
        both = torch.cat((angles, angles), dim=-1)[:, None]
        return (both.cos() * self._scaling).to(self.dtype), (both.sin() * self._scaling).to(self.dtype)


Rotation = Tensor | tuple[Tensor, Tensor]
"""Of one forward: (T, 1, D / 2) complex; in half precision cosines and sines, (T, 1, D) each, as in transformers."""


class Layer:
    """One decoder layer."""

    def __init__(self, weights: DecoderWeights, number: int, form: Form, dtype: torch.dtype, fixed_rows: bool) -> None:
        config, tensors = weights.config, weights.tensors
        prefix = f"model.layers.{number}."
        self._number = number
        self._scaling = config.head_dim**-0.5
        self._q_heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._rotated_heads = self._q_heads + self._kv_heads
        self._complex = _rotates_complex(dtype, form)

        def norm(name: str, *, interleaved: bool = False) -> Norm:
            weight = tensors[prefix + name]
            weight = _interleave(weight, config.head_dim) if interleaved else weight
            return make_norm(weight, config.rms_norm_eps, dtype)

        def product(*names: str, interleaved: int = 0, activation: str = "none") -> Product:
            parts = [tensors[f"{prefix}{name}.weight"] for name in names]
            biases = [tensors[f"{prefix}{name}.bias"] for name in names if f"{prefix}{name}.bias" in tensors]
            if interleaved:
                parts[:interleaved] = [_interleave(part, config.head_dim) for part in parts[:interleaved]]
                biases[:interleaved] = [_interleave(bias, config.head_dim) for bias in biases[:interleaved]]
            weight = _merge(parts, views=form is Form.PLAIN)
            bias = torch.cat([bias.detach() for bias in biases]).to(dtype) if biases else None
            return make_product(weight, bias, form, activation=activation, fixed_rows=fixed_rows)

        self._attention_norm = norm("input_layernorm.weight")
        self._qkv = product(*(f"self_attn.{name}_proj" for name in "qkv"), interleaved=2 if self._complex else 0)
        self._q_norm = self._k_norm = None
        if f"{prefix}self_attn.q_norm.weight" in tensors:  # Qwen3
            self._q_norm = norm("self_attn.q_norm.weight", interleaved=self._complex)
            self._k_norm = norm("self_attn.k_norm.weight", interleaved=self._complex)
        # The rotation then needs no further view of its pairs.
        self._head_shape = (config.head_dim // 2, 2) if self._complex and self._q_norm is None else (config.head_dim,)
        self._output = product("self_attn.o_proj")
        self._mlp_norm = norm("post_attention_layernorm.weight")
        if form is Form.ONEDNN:
            self._gate = product("mlp.gate_proj", activation="swish")
            self._up = product("mlp.up_proj")
        else:
            self._gate_up = product("mlp.gate_proj", "mlp.up_proj")
        self._activates_inside = form is Form.ONEDNN
        self._down = product("mlp.down_proj")

    def forward(self, x: Tensor, rotation: Rotation, plan: Plan) -> Tensor:
        """(T, d) -> (T, d)."""
        qkv = self._qkv(self._attention_norm(x)).view(len(x), -1, *self._head_shape)
        rotated, value = torch.split(qkv, [self._rotated_heads, self._kv_heads], dim=1)
        if self._q_norm is not None and self._k_norm is not None:
            query, key = torch.split(rotated, [self._q_heads, self._kv_heads], dim=1)
            rotated = torch.cat((self._q_norm(query), self._k_norm(key)), dim=1)
        query, key = torch.split(_rotate(rotated, rotation), [self._q_heads, self._kv_heads], dim=1)
        x = self._output(plan.attend(self._number, query, key, value, self._scaling)).add_(x)
        normed = self._mlp_norm(x)
        if self._activates_inside:
            gated = self._gate(normed).mul_(self._up(normed))
        else:
            gate, up = self._gate_up(normed).chunk(2, dim=-1)
            gated = silu(gate).mul_(up)
        return self._down(gated).add_(x)


def make_norm(weight: Tensor, epsilon: float, dtype: torch.dtype) -> Norm:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, computed in float32."""
    return functools.partial(
        rms_norm, normalized_shape=weight.shape, weight=weight.detach().to(dtype, copy=True), eps=epsilon
    )


def _rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate (T, heads, D) by each row's angles: j and D / 2 + j together; complex, neighbours, perhaps (D / 2, 2)."""
    if isinstance(rotation, Tensor):
        if heads.dim() == 3:
            return _rotate(heads.view(*heads.shape[:2], -1, 2), rotation).flatten(-2)
        return torch.view_as_real(torch.view_as_complex(heads) * rotation)
    cos, sin = rotation
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((second.neg(), first), dim=-1), sin)


def _rotates_complex(dtype: torch.dtype, form: Form) -> bool:
    """One complex product rotates faster. It needs reordered weights, which Form.PLAIN does not copy."""
    return dtype == torch.float32 and form is not Form.PLAIN


def _interleave(rows: Tensor, width: int) -> Tensor:
    """Reorder the outputs of a projection so that j and j + D / 2 of each head, which rotate together, are neighbours.

    Scores do not change, because q and k change their order alike.
    """
    rows = rows.detach()
    return rows.view(-1, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _merge(parts: list[Tensor], *, views: bool) -> Tensor:
    """Stack weights. With `views`, the parts become views of the result."""
    if len(parts) == 1:
        return parts[0].detach()
    merged = torch.cat([part.detach() for part in parts])
    if views:
        for part, view in zip(parts, torch.split(merged, [len(part) for part in parts]), strict=True):
            part.data = view
    return merged
