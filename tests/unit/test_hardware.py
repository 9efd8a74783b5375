from __future__ import annotations

import pytest
import torch

from gircse_rag import hardware
from gircse_rag.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_if_the_cpu_multiplies_it_natively(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert hardware.dtype_of("auto", CPU) is expected
    assert hardware.dtype_of("float32", CPU) is torch.float32


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_is_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.dtype_of("auto", torch.device("cuda", 0)) is expected


def test_unknown_dtypes_and_devices_are_named_in_the_error() -> None:
    with pytest.raises(InputError, match=r"int3.*bfloat16"):
        hardware.dtype_of("int3", CPU)
    with pytest.raises(InputError, match=r"abacus.*not usable"):
        hardware.device_of("abacus")
    assert hardware.device_of("cpu") == CPU
    with pytest.raises(InputError, match=r"None is not usable"):
        hardware.device_of(None)  # type: ignore[arg-type]


def test_auto_never_chooses_the_untested_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.device_of("auto") == CPU
