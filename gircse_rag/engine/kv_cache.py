"""KVCache: the tensors behind the blocks, one pool of keys and one of values per layer.

Two layouts, one per attention plan (attention.py):

    gathered   (num_blocks, H_kv, block_size, D)   a head's rows in a block are contiguous: one index_select yields the
                                                   (B * H_kv, L, D) operand of a matrix product
    paged      (num_blocks, block_size, H_kv, D)   the layout that torch's varlen_attn reads through a block table
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gircse_rag.weights import DecoderConfig

GATHERED_BLOCK_SIZE = 2  # queries 8-9% faster than with 4 (fewer instruction rows recomputed), documents the same
PAGED_BLOCK_SIZE = 256  # flash attention requires pages of a multiple of 256 rows


class KVCache:
    """Keys and values of `num_blocks` blocks; rows never written are zeros.

    Args:
        config: the model's configuration.
        num_blocks: number of blocks, including block 0, which stays zeros.
        paged: use the layout of `varlen_attn` instead of the gathered one.

    Attributes:
        keys, values: the pool of each layer.
        flat_blocks: of each layer in the gathered layout, keys and values as (num_blocks * H_kv, block_size * D).
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        *,
        paged: bool,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        heads, width = config.num_key_value_heads, config.head_dim
        shape = (num_blocks, block_size, heads, width) if paged else (num_blocks, heads, block_size, width)
        self.keys = [_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        # Views made once: with one row per forward, making them at every layer costs as much as the attention.
        row = (-1, heads, width) if paged else (-1, width)  # what a slot holds
        pools = list(zip(self.keys, self.values, strict=True))
        self._rows = [(keys.view(row), values.view(row)) for keys, values in pools]
        self.flat_blocks = (
            []
            if paged
            else [(keys.flatten(0, 1).flatten(1), values.flatten(0, 1).flatten(1)) for keys, values in pools]
        )
        self.num_blocks = num_blocks
        self.paged = paged
        self.block_size = block_size
        self.num_kv_heads = heads
        self.head_dim = width

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Store rows of keys and values.

        Non-finite values are stored as zeros, and their key becomes NaN instead. Reason: attention multiplies the
        rows it masks by zero, and 0 * NaN in a value would reach every row of the tile, even earlier rows, whose blocks
        other sequences may share. The mask does cover a NaN in a key: only rows that attend to the key become NaN.

        Args:
            key, value: (T, H_kv, D).
            slots: flat index in a pool of each row of D numbers, in the order of key's rows: (T * H_kv,) gathered,
                (T,) paged.
        """
        keys, values = self._rows[layer]
        key = torch.add(key, value, alpha=0)
        value = torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
        keys.index_copy_(0, slots, key.view(-1, *keys.shape[1:]))
        values.index_copy_(0, slots, value.view(-1, *values.shape[1:]))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU numpy's, which the system maps on first use: blocks never used take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def bytes_per_block(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block in bytes: keys and values of all layers."""
    row = config.num_key_value_heads * config.head_dim * dtype.itemsize
    return 2 * config.num_hidden_layers * block_size * row
