"""Device and dtype by name, and the meaning of "auto"."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from gircse_rag.errors import InputError, first_line

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA if available, else the CPU (Apple's GPU is untested).

    Raises:
        InputError: torch does not know the device, or cannot allocate on it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {name!r} is not usable here: {first_line(error)}") from error
    return device


def dtype_of(name: str, device: torch.device, *, float16_weights: bool = False) -> torch.dtype:
    """The dtype called `name`.

    Args:
        name: "auto", or a dtype's name. "auto" is bfloat16 where `device` multiplies it natively, else float32, or
            float16 with `float16_weights`.
        float16_weights: whether the caller can multiply float32 rows by float16 weights (`has_float16_products`).

    Raises:
        InputError: the name is none of auto, float32, bfloat16, float16.
    """
    import torch

    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in choices:
        return choices[name]
    if name != "auto":
        raise InputError(f"dtype {name!r} does not exist; it is one of auto, {', '.join(choices)}")
    if multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if float16_weights and device.type == "cpu" and has_float16_products() else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 natively: an Ampere GPU or newer, a CPU with AVX512-BF16 or AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@functools.cache
def has_float16_products() -> bool:
    """Whether this CPU multiplies float32 rows by float16 weights (FBGEMM): tried once against plain products.

    ARM has no FBGEMM. The shapes cover one row, a block of rows with a remainder, and sizes that no vector divides.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    try:
        for rows, width, outputs in ((1, 64, 96), (7, 57, 33), (20, 130, 65)):
            x, weight, bias = (
                torch.randn(*shape, generator=draw) for shape in ((rows, width), (outputs, width), (outputs,))
            )
            exact = x.double() @ weight.half().double().T + bias.double()
            packed = torch.ops.quantized.linear_prepack_fp16(weight.half().float(), bias)
            if not (torch.ops.quantized.linear_dynamic_fp16(x, packed) - exact).abs().max() < 1e-4:  # also for NaN
                return False
    except (RuntimeError, AttributeError):
        return False
    return True
