"""LoRA folded once a training step, so that a projection costs one matrix product and not three.

Forward:   y = x W'^T + bias,  W' = W + B A   (folded once; every one of the K + 1 forwards of a step shares it)
Backward:  dx = g W',  dA = (g B)^T x,  dB = g^T (x A^T)

W is frozen, so its (large) gradient is never formed, and x A^T is never kept: the gradients are those of unfolded LoRA.
Projections that read the same input are stacked (q, k, v; gate, up) and share A's product; B is then block-diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gircse_rag.errors import InputError

Before = Callable[[Tensor], Tensor]


class Folded(NamedTuple):
    """One projection (or several stacked ones) of one layer, ready for this training step.

    Attributes:
        weight: (out, in), W', in the compute dtype.
        bias: (out,) or None.
        a, b: (R, in) and (out, R) in the compute dtype, attached to the adapter's parameters; scaling is inside b.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor

    def __call__(self, x: Tensor, before: Before | None = None) -> Tensor:
        """`before` is a cheap function of x (a norm, a gate) that is recomputed in backward instead of kept."""
        result: Tensor = _FoldedLinear.apply(before, x, *self)  # type: ignore[no-untyped-call]
        return result


class _FoldedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, before: Before | None, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(x, weight, a, b)
        return functional.linear(x if before is None else before(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, a, b = ctx.saved_tensors
        if ctx.before is None:
            inner = x
        else:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                inner = ctx.before(x)
        grad_a = grad_b = None
        if len(a):
            low = inner.detach()
            grad_a = (grad @ b).T @ low
            grad_b = grad.T @ (low @ a.T)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad @ weight
            if ctx.before is not None:
                (grad_x,) = torch.autograd.grad(inner, x, grad_x)
        return None, grad_x, None, None, grad_a, grad_b


class Projection:
    """The same projection (or stacked ones: `names`) in every layer: base weights, and where the adapter's live."""

    def __init__(self, modules: list[list[nn.Module]], dtype: torch.dtype) -> None:
        """`modules[layer][part]`: Linear layers, or PEFT's LoRA layers around them."""
        parts = [[_Part(module) for module in layer] for layer in modules]
        self.base = torch.stack([torch.cat([part.weight for part in layer]) for layer in parts]).to(dtype)
        self.bias = None
        if parts[0][0].bias is not None:
            self.bias = torch.stack(
                [torch.cat([part.bias for part in layer if part.bias is not None]) for layer in parts]
            )
            self.bias = self.bias.to(dtype)
        self.parts = [list(column) for column in zip(*parts, strict=True)]
        for column in self.parts:
            if len({part.rank for part in column}) != 1:
                raise InputError("the adapter's rank differs from layer to layer; training needs one rank a projection")

    def fold(self) -> list[Folded]:
        """One Folded a layer. Cheap, but not free: once a training step."""
        total = sum(column[0].rank for column in self.parts)
        layers, _, width = self.base.shape
        downs, ups, offset = [self.base.new_zeros(layers, 0, width, dtype=torch.float32)], [], 0
        for column in self.parts:
            rank, out = column[0].rank, column[0].weight.shape[0]
            if rank:
                downs.append(torch.stack([part.a.float() for part in column]))
                up = torch.stack([part.b.float() for part in column]) * column[0].scaling
                ups.append(functional.pad(up, (offset, total - offset - rank)))
            else:
                ups.append(self.base.new_zeros(layers, out, total, dtype=torch.float32))
            offset += rank
        a, b = torch.cat(downs, dim=1), torch.cat(ups, dim=1)
        with torch.no_grad():  # a layer at a time: float32 copies of them all would be half a gigabyte
            weights = [
                base if not total else (base + up @ down).to(base.dtype)
                for base, up, down in zip(self.base, b, a, strict=True)
            ]
        a, b = a.to(self.base.dtype), b.to(self.base.dtype)
        bias = [None] * layers if self.bias is None else self.bias.unbind(0)
        return [Folded(*row) for row in zip(weights, bias, a.unbind(0), b.unbind(0), strict=True)]


class _Part:
    """One Linear of one layer and its LoRA pair, if any."""

    def __init__(self, module: nn.Module) -> None:
        base: Any = getattr(module, "base_layer", module)
        self.weight: Tensor = base.weight.detach()
        self.bias: Tensor | None = None if base.bias is None else base.bias.detach()
        self.rank, self.scaling = 0, 1.0
        if base is module:
            return
        lora: Any = module
        if lora.merged or len(lora.active_adapters) != 1 or any(lora.use_dora.values()):
            raise InputError("training folds exactly one plain, unmerged LoRA adapter; this model carries another kind")
        (name,) = lora.active_adapters
        if getattr(lora.lora_dropout[name], "p", 0.0):
            raise InputError(
                "LoRA dropout must be 0: folded weights have no place between A and its input; set dropout to 0"
            )
        self._down, self._up = lora.lora_A[name], lora.lora_B[name]
        self.rank, self.scaling = self._down.weight.shape[0], float(lora.scaling[name])

    # Looked up anew each step: FSDP swaps the weights of a module for views of its own during forward.
    @property
    def a(self) -> Tensor:
        weight: Tensor = self._down.weight
        return weight

    @property
    def b(self) -> Tensor:
        weight: Tensor = self._up.weight
        return weight
