"""Matrix products x W^T + b with weights prepared once, in the fastest form that works here.

    form       where                                        weights           activations
    ONEDNN     CPU, float32 or bfloat16                     reordered copy    as the weights
    FBGEMM     CPU, float16 (x86)                           reordered copy    float32, as the sums
    PLAIN      everywhere else: CUDA, little free memory    as they are       as the weights

oneDNN would otherwise reorder weights at every call. FBGEMM reads half the bytes of float32 weights, and rounding the
weights to float16 is its only loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import linear

from gircse_rag.hardware import has_float16_products

Product = Callable[[Tensor], Tensor]

ROW_BLOCK = 16  # rows of a product with `fixed_rows`; 512 rows in such blocks take up to 1.3 of the time of one product


class Form(Enum):
    """How products are computed."""

    PLAIN = "plain"
    ONEDNN = "oneDNN"
    FBGEMM = "FBGEMM"


def packed_form(weight: Tensor) -> Form:
    """The fastest form for weights of this dtype and device; PLAIN where packing does not work."""
    if weight.device.type != "cpu":
        return Form.PLAIN
    if weight.dtype == torch.float16:
        return Form.FBGEMM if has_float16_products() else Form.PLAIN
    works = (
        weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
    return Form.ONEDNN if works else Form.PLAIN


def make_product(
    weight: Tensor, bias: Tensor | None, form: Form, *, activation: str = "none", fixed_rows: bool = False
) -> Product:
    """Prepare activation(x W^T + b) for rows x, (n, in) -> (n, out).

    Args:
        weight: (out, in).
        bias: (out,), or None.
        activation: "none", or with ONEDNN "swish".
        fixed_rows: compute ROW_BLOCK rows at a time; n must be a multiple. A row's bits then do not depend on n.
    """
    if fixed_rows:
        return FixedRows(make_product(weight, bias, form, activation=activation))
    if form is Form.ONEDNN:
        return PackedLinear(weight, bias, activation)
    if form is Form.FBGEMM:
        return Float16Linear(weight, bias)
    return functools.partial(linear, weight=weight, bias=bias)


class FixedRows:
    """Calls a product with ROW_BLOCK rows at a time.

    Kernels choose their order of summation by the number of rows. With one number of rows, the bits of a row depend
    neither on the other rows nor on its place among them.
    """

    def __init__(self, product: Product) -> None:
        self._product = product

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) == ROW_BLOCK:
            return self._product(x)
        return torch.cat([self._product(rows) for rows in torch.split(x, ROW_BLOCK)])


class PackedLinear:
    """activation(x W^T + b) with W (out, in) reordered for oneDNN; the activation is "none" or "swish"."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = bias
        self._activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self._bias, self._activation, [], "")
        return out


class Float16Linear:
    """x W^T + b with W (out, in) in float16, reordered for FBGEMM; x, b and the sums are float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16(
            weight.detach().float(), None if bias is None else bias.detach().float()
        )

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, self._packed)
        return out
