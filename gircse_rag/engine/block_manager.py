"""BlockManager: assigns KV blocks to sequences and shares the blocks of common prompt prefixes.

A block is always in exactly one of these states:

    free        in `_free`; holds nothing
    in use      reference count >= 1: in the block tables of that many sequences
    cached      reference count 0, holds a known prompt prefix; in `_cached`, least recently used first

Block 0 is never handed out: it stays all zeros and pads block tables. A block becomes shareable when all its rows are
prompt tokens, computed already or in the forward being scheduled (each layer writes all rows before any row attends).
A block that holds a soft token is never shared.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b
from itertools import takewhile

from gircse_rag.engine.sequence import Sequence


class IntegrityError(RuntimeError):
    """The bookkeeping contradicts itself: a bug in the engine, never the caller's fault."""


class BlockManager:
    """Assigns fixed-size blocks.

    Args:
        num_blocks: number of blocks, including the zero block.
        block_size: rows per block.
        salt: identifies what determines keys and values (model and adapter); prefixes match only within one salt.
        caching: whether prefixes are shared.
    """

    def __init__(self, num_blocks: int, block_size: int, *, salt: str = "", caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_hits = 0  # prompt rows taken from the prefix cache so far
        self._salt = blake2b(salt.encode(), digest_size=16).digest()
        self._caching = caching
        self._free: list[int] = []
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.reset()

    @property
    def num_available(self) -> int:
        """Number of blocks that could be handed out now."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, num_rows: int) -> int:
        """Number of blocks needed for `num_rows` rows."""
        return -(-num_rows // self.block_size)

    def fits(self, num_rows: int) -> bool:
        """Whether the cache is large enough for a sequence of `num_rows` rows."""
        return self.blocks_for(num_rows) < self.num_blocks

    def admit(self, sequence: Sequence) -> bool:
        """Assign prefix hits to a sequence without blocks, if all its known rows and one more would then fit.

        Hits end before the block of the last prompt token, so a forward always has a row to compute. Returning False
        changes nothing.
        """
        hits = self._find_hits(sequence)
        revived = sum(1 for block in hits if not self._references[block])
        needed = self.blocks_for(min(sequence.num_rows + 1, sequence.max_rows)) - len(hits)
        if needed > self.num_available - revived:
            return False
        for block in hits:
            if not self._references[block]:
                del self._cached[block]
            self._references[block] += 1
        sequence.block_table = hits
        sequence.num_shared = sequence.num_registered = len(hits)
        sequence.num_cached = len(hits) * self.block_size
        self.num_hits += sequence.num_cached
        return True

    def grow(self, sequence: Sequence, num_rows: int) -> bool:
        """Lengthen the block table to hold `num_rows` rows. Returning False changes nothing."""
        missing = self.blocks_for(num_rows) - len(sequence.block_table)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            sequence.block_table.append(block)
        return True

    def register(self, sequence: Sequence, num_rows: int) -> None:
        """Make the full blocks among the first `num_rows` rows shareable, as far as they hold only prompt tokens."""
        if not self._caching:
            return
        full = min(num_rows, sequence.num_tokens) // self.block_size
        if full <= sequence.num_registered:
            return
        keys = self._prefix_keys(sequence)
        for number in range(sequence.num_registered, full):
            block, key = sequence.block_table[number], keys[number]
            if key not in self._block_of:  # two sequences may compute one prefix at the same time: the first is kept
                self._block_of[key] = block
                self._key_of[block] = key
        sequence.num_registered = full

    def release(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take all blocks from a sequence.

        Blocks with a known prefix stay cached; the prefix's end is evicted before its beginning. With `forget` (the
        sequence computed NaN), blocks used by this sequence alone are dropped from the prefix cache.
        """
        for block in reversed(sequence.block_table):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if forget and block in self._key_of:
                del self._block_of[self._key_of.pop(block)]
            if block in self._key_of:
                self._cached[block] = None
            else:
                self._free.append(block)
        sequence.block_table = []
        sequence.num_cached = sequence.num_shared = sequence.num_registered = 0

    def forget_prefixes(self) -> None:
        """Drop every cached prefix: the content of the blocks is no longer valid."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._key_of.clear()
        self._block_of.clear()

    def reset(self) -> None:
        """Take all blocks from all sequences: an error may have interrupted the bookkeeping."""
        self.forget_prefixes()
        self._references = [0] * self.num_blocks
        self._free = list(range(self.num_blocks - 1, 0, -1))  # a stack: blocks never used keep their memory untouched

    def check_integrity(self, sequences: list[Sequence]) -> None:
        """Check every invariant of this file against the sequences that hold blocks.

        Raises:
            IntegrityError: a block is leaked, freed twice, shared for writing, or counted wrongly.
        """
        counted = [0] * self.num_blocks
        for sequence in sequences:
            if len(set(sequence.block_table)) != len(sequence.block_table):
                raise IntegrityError(f"a block appears twice in one table: {sequence.block_table}")
            if sequence.num_cached > len(sequence.block_table) * self.block_size:
                raise IntegrityError(f"{sequence.num_cached} rows do not fit in {len(sequence.block_table)} blocks")
            if sequence.num_shared > max(0, sequence.num_tokens - 1) // self.block_size:
                raise IntegrityError("a shared block may hold the last prompt token or a soft token")
            for block in sequence.block_table:
                counted[block] += 1
        if counted != self._references:
            raise IntegrityError("reference counts differ from the block tables")
        free, cached = set(self._free), set(self._cached)
        if len(free) != len(self._free) or free & cached or 0 in free | cached:
            raise IntegrityError("a block is free twice, or the zero block is free")
        if any((counted[block] > 0) == (block in free or block in cached) for block in range(1, self.num_blocks)):
            raise IntegrityError("a block is leaked, or free and in use")
        if {block: key for key, block in self._block_of.items()} != self._key_of or not cached <= self._key_of.keys():
            raise IntegrityError("the prefix index is not one to one")
        for sequence in sequences:
            for number, block in enumerate(sequence.block_table):
                if block in self._key_of and (number + 1) * self.block_size > sequence.num_tokens:
                    raise IntegrityError(f"block {block} holds a soft token but is shareable")
                if counted[block] > 1 and block not in self._key_of:
                    raise IntegrityError(f"block {block} is shared for writing")

    def _prefix_keys(self, sequence: Sequence) -> list[bytes]:
        if sequence.prefix_keys is None:
            key, size, ids = self._salt, self.block_size, sequence.token_ids
            sequence.prefix_keys = []
            for start in range(0, len(ids) - size + 1, size):
                key = blake2b(key + array("q", ids[start : start + size]).tobytes(), digest_size=16).digest()
                sequence.prefix_keys.append(key)
        return sequence.prefix_keys

    def _find_hits(self, sequence: Sequence) -> list[int]:
        if not self._caching:
            return []
        keys = self._prefix_keys(sequence)[: (sequence.num_tokens - 1) // self.block_size]
        return [self._block_of[key] for key in takewhile(self._block_of.__contains__, keys)]

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
