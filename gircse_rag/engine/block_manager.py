"""BlockManager: who owns which KV block, and which blocks hold a prefix that others may share.

Ownership of a block, always exactly one of:

    free        in `_free`; holds nothing
    in use      reference count >= 1: in the block tables of that many sequences
    cached      reference count 0, holds a known prompt prefix; in `_cached`, least recently used first

Block 0 is never handed out: it stays all zeros, and tables are padded with it. A block becomes shareable when every
one of its rows is a prompt token and is computed, or will be in the forward that is being scheduled (a layer writes
all rows before any row attends). A block that holds a soft token is never shared.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from gircse_rag.engine.sequence import Sequence


class IntegrityError(RuntimeError):
    """The bookkeeping contradicts itself: a bug in the engine, never the caller's fault."""


class BlockManager:
    """Hands out fixed-size blocks.

    Args:
        num_blocks: including the zero block.
        block_size: rows a block.
        salt: names what fixes keys and values (model and adapter); prefixes of different salts never match.
        caching: whether prefixes are shared at all.
    """

    def __init__(self, num_blocks: int, block_size: int, *, salt: str = "", caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_hits = 0  # prompt rows that a prefix hit saved, since the start
        self._salt = blake2b(salt.encode(), digest_size=16).digest()
        self._caching = caching
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, 0, -1))  # a stack: memory never used stays untouched
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that could be handed out now."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, num_rows: int) -> int:
        """Blocks that hold `num_rows` rows."""
        return -(-num_rows // self.block_size)

    def fits(self, num_rows: int) -> bool:
        """Whether a sequence of `num_rows` rows could ever be held."""
        return self.blocks_for(num_rows) < self.num_blocks

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence without blocks its prefix hits, if all its known rows and one more would then fit.

        Hits end before the block of the last prompt token, so a forward always has a row to compute. On False
        nothing has changed.
        """
        hits = self._hits(sequence)
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
        """Lengthen the block table to hold `num_rows` rows. On False nothing has changed."""
        missing = self.blocks_for(num_rows) - len(sequence.block_table)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            sequence.block_table.append(block)
        return True

    def register(self, sequence: Sequence, num_rows: int) -> None:
        """Let others share the blocks that the first `num_rows` rows fill, as far as they are all prompt."""
        if not self._caching:
            return
        full = min(num_rows, sequence.num_tokens) // self.block_size
        if full <= sequence.num_registered:
            return
        keys = self._keys(sequence)
        for number in range(sequence.num_registered, full):
            block, key = sequence.block_table[number], keys[number]
            if key not in self._block_of:  # two sequences may compute the same prefix at once: the first is kept
                self._block_of[key] = block
                self._key_of[block] = key
        sequence.num_registered = full

    def release(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take all blocks from a sequence.

        Blocks with a known prefix stay cached, the tail to be evicted before the head. With `forget` (the sequence
        computed NaN) those that only it used are forgotten, so that a fault of the machine is not kept.
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
        """Share nothing that was computed so far: what the blocks hold is not to be trusted."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._key_of.clear()
        self._block_of.clear()

    def reset(self) -> None:
        """Take all blocks from everybody: an error may have come in the middle of the bookkeeping."""
        self.forget_prefixes()
        self._references = [0] * self.num_blocks
        self._free = list(range(self.num_blocks - 1, 0, -1))

    def check_integrity(self, sequences: list[Sequence]) -> None:
        """Check every invariant of this file against the sequences that hold blocks.

        Raises:
            IntegrityError: a block is leaked, freed twice, shared for writing, or counted wrongly.
        """
        counted = [0] * self.num_blocks
        for sequence in sequences:
            if len(set(sequence.block_table)) != len(sequence.block_table):
                raise IntegrityError(f"a block is twice in one table: {sequence.block_table}")
            if sequence.num_cached > len(sequence.block_table) * self.block_size:
                raise IntegrityError(f"{sequence.num_cached} rows in {len(sequence.block_table)} blocks")
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
                    raise IntegrityError(f"block {block} holds a soft token and can be shared")
                if counted[block] > 1 and block not in self._key_of:
                    raise IntegrityError(f"block {block} is shared for writing")

    def _keys(self, sequence: Sequence) -> list[bytes]:
        if sequence.prefix_keys is None:
            key, size, ids = self._salt, self.block_size, sequence.token_ids
            sequence.prefix_keys = []
            for start in range(0, len(ids) - size + 1, size):
                key = blake2b(key + array("q", ids[start : start + size]).tobytes(), digest_size=16).digest()
                sequence.prefix_keys.append(key)
        return sequence.prefix_keys

    def _hits(self, sequence: Sequence) -> list[int]:
        hits: list[int] = []
        if self._caching:
            for key in self._keys(sequence)[: (sequence.num_tokens - 1) // self.block_size]:
                block = self._block_of.get(key)
                if block is None:
                    break
                hits.append(block)
        return hits

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
