"""LoRA, folded into the weights once per training step, so that a projection costs one matrix product, not three.

Forward:   y = x W'^T + bias,  W' = W + B A   (shared by the K + 1 forwards of a step)
Backward:  dx = g W',  dA = (g B)^T x,  dB = g^T (x A^T)

The gradients equal those of unfolded LoRA. W is frozen, so its (large) gradient is never computed; x A^T is not stored.
Projections with the same input (q, k, v; gate, up) are stacked: they share the product with A, and B is block-diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gircse_rag.errors import InputError

PreOp = Callable[[Tensor], Tensor]


class Folded(NamedTuple):
    """One projection of one layer (or several stacked ones), folded for one training step.

    Attributes:
        weight: W', (out, in), in the compute dtype.
        bias: (out,) or None.
        a, b: (R, in) and (out, R) in the compute dtype, attached to the adapter's parameters; b includes the scaling.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor

    def __call__(self, x: Tensor, pre_op: PreOp | None = None) -> Tensor:
        """Project `pre_op(x)`. `pre_op` is cheap (a norm, a gate): backward recomputes it instead of storing it."""
        result: Tensor = _FoldedLinear.apply(pre_op, x, *self)  # type: ignore[no-untyped-call]
        return result


class _FoldedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre_op: PreOp | None, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        ctx.pre_op = pre_op
        ctx.save_for_backward(x, weight, a, b)
        return functional.linear(x if pre_op is None else pre_op(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, a, b = ctx.saved_tensors
        inner = x
        if ctx.pre_op is not None:
            with torch.enable_grad():
                inner = ctx.pre_op(x := x.detach().requires_grad_())
        grad_a = grad_b = None
        if len(a):
            low = inner.detach()
            grad_a = (grad @ b).T @ low
            grad_b = grad.T @ (low @ a.T)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad @ weight
            if ctx.pre_op is not None:
                (grad_x,) = torch.autograd.grad(inner, x, grad_x)
        return None, grad_x, None, None, grad_a, grad_b


class Projection:
    """One projection (or several stacked ones) of all layers: base weights and references to the adapter's weights."""

    def __init__(self, modules: list[list[nn.Module]], dtype: torch.dtype) -> None:
        """`modules[layer][part]`: Linear layers, or PEFT's LoRA layers around them."""
        parts = [[_Part(module) for module in layer] for layer in modules]
        # Cast each weight first: float32 stacks of all layers would take half a gigabyte.
        weights = [[_base(module).weight.detach().to(dtype) for module in layer] for layer in modules]
        self.base = torch.stack([torch.cat(layer) for layer in weights])
        self.bias = None
        if parts[0][0].bias is not None:
            biases = [torch.cat([part.bias for part in layer if part.bias is not None]) for layer in parts]
            self.bias = torch.stack(biases).to(dtype)
        self.parts = list(zip(*parts, strict=True))
        if any(len({part.rank for part in column}) != 1 for column in self.parts):
            raise InputError("the adapter's rank differs from layer to layer; training needs one rank per projection")

    def fold(self) -> list[Folded]:
        """Fold all layers: one `Folded` per layer. Call it once per training step."""
        total = sum(column[0].rank for column in self.parts)
        layers, _, width = self.base.shape
        downs, ups, offset = [self.base.new_zeros(layers, 0, width, dtype=torch.float32)], [], 0
        for column in self.parts:
            rank, out = column[0].rank, column[0].out
            if rank:
                downs.append(torch.stack([part.a.float() for part in column]))
                up = torch.stack([part.b.float() for part in column]) * column[0].scaling
                ups.append(functional.pad(up, (offset, total - offset - rank)))
            else:
                ups.append(self.base.new_zeros(layers, out, total, dtype=torch.float32))
            offset += rank
        a, b = torch.cat(downs, dim=1), torch.cat(ups, dim=1)
        with torch.no_grad():  # layer by layer: float32 copies of all of them take half a gigabyte
            weights = [
                base if not total else (base + up @ down).to(base.dtype)
                for base, up, down in zip(self.base, b, a, strict=True)
            ]
        a, b = a.to(self.base.dtype), b.to(self.base.dtype)
        bias = [None] * layers if self.bias is None else self.bias.unbind(0)
        return [Folded(*row) for row in zip(weights, bias, a.unbind(0), b.unbind(0), strict=True)]


def _base(module: nn.Module) -> Any:
    """The Linear layer within a LoRA layer, or the layer itself."""
    return getattr(module, "base_layer", module)


class _Part:
    """One Linear of one layer and its LoRA pair, if any."""

    def __init__(self, module: nn.Module) -> None:
        base = _base(module)
        self.out: int = base.weight.shape[0]
        self.bias: Tensor | None = None if base.bias is None else base.bias.detach()
        self.rank, self.scaling = 0, 1.0
        if base is module:
            return
        lora: Any = module
        if lora.merged or len(lora.active_adapters) != 1 or any(lora.use_dora.values()):
            raise InputError("training folds exactly one plain, unmerged LoRA adapter; this model has another kind")
        (name,) = lora.active_adapters
        if getattr(lora.lora_dropout[name], "p", 0.0):
            raise InputError(
                "LoRA dropout must be 0: folded weights cannot drop out the input of A; set lora_dropout to 0"
            )
        self._down, self._up = lora.lora_A[name], lora.lora_B[name]
        self.rank, self.scaling = self._down.weight.shape[0], float(lora.scaling[name])

    # Looked up in every step: FSDP replaces a module's weights by its own views during forward.
    @property
    def a(self) -> Tensor:
        return cast(Tensor, self._down.weight)

    @property
    def b(self) -> Tensor:
        return cast(Tensor, self._up.weight)
