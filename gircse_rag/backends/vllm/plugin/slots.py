"""Slots for soft tokens: which request uses which row, and how the scheduler must chunk positions. No vLLM here.

A request with a text of P tokens and K refinement steps becomes a prompt of P + K ids. The last K are *handles*: ids
above the vocabulary that stand for soft tokens not yet known.

    position   0 .. P-1    P    P+1   ..   P+K-1
    id         the text    g_1  g_2   ..   g_K         g_t = vocabulary + (serial + t - 1) * slots + slot

The model embeds a handle by reading row `slot` = (id - vocabulary) % slots of a table. The pooler wrote
softmax(logits / tau) @ E into that row in the step before. One row per request is enough: positions from P on are
computed one per step, in order, and again from the end of the text after a preemption. `serial` repeats only when all
ids are used up, so no two requests hash a block with a handle alike: they share text blocks, never soft ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

LARGEST_ID = 2**31 - 1
"""vLLM stores token ids as int32."""


@dataclass(frozen=True)
class Reservation:
    """What an admitted request holds until it is finished or aborted.

    Attributes:
        slot: its row of the soft tokens' table.
        text: P, the number of its real tokens.
        steps: K, the number of its soft tokens.
        handles: K ids, appended to its prompt.
    """

    slot: int
    text: int
    steps: int
    handles: range

    def chunk(self, computed: int, requested: int) -> int:
        """Number of positions to compute next: never across the end of the text, and one at a time after it.

        Args:
            computed: positions whose keys and values are in the cache.
            requested: number of positions that the scheduler would compute.
        """
        if computed < self.text:
            return min(requested, self.text - computed)
        return min(requested, 1)

    def usable_hit(self, cached: int, block_size: int) -> int:
        """Usable tokens of a prefix-cache hit: whole blocks that leave a text token to compute.

        The first soft token is made from the last text token's hidden state, so that token must be computed. This also
        applies after a preemption, because another request may have cached the text meanwhile.
        """
        return min(cached, (self.text - 1) // block_size * block_size)


class SlotTable:
    """Assigns slots and handles to requests.

    Args:
        vocabulary: V; ids below it are real tokens.
        slots: number of rows of the table, the maximum number of requests that hold one.

    Raises:
        ValueError: too few ids remain above the vocabulary.
    """

    def __init__(self, vocabulary: int, slots: int) -> None:
        self._vocabulary = vocabulary
        self._slots = slots
        self._serials = (LARGEST_ID - vocabulary) // slots
        if slots < 1 or self._serials < 1024:
            raise ValueError(f"{slots} slots above a vocabulary of {vocabulary} leave too few ids")
        self._serial = 0
        self._free = deque(range(slots))
        self._reservations: dict[str, Reservation] = {}

    def __len__(self) -> int:
        """Number of slots in use."""
        return len(self._reservations)

    def get(self, request_id: str) -> Reservation | None:
        return self._reservations.get(request_id)

    def reserve(self, request_id: str, *, text: int, steps: int) -> Reservation | None:
        """Reserve a slot and `steps` handles for a request; None while no slot is free.

        Raises:
            ValueError: the request already holds a slot.
        """
        if request_id in self._reservations:
            raise ValueError(f"request {request_id} holds a slot already")
        if not self._free:
            return None
        if self._serial + steps > self._serials:
            self._serial = 0
        slot = self._free.popleft()
        first = self._vocabulary + self._serial * self._slots + slot
        self._serial += steps
        handles = range(first, first + steps * self._slots, self._slots)
        reservation = self._reservations[request_id] = Reservation(slot, text, steps, handles)
        return reservation

    def release(self, request_id: str) -> None:
        """Release the slot of a request, if it holds one."""
        if reservation := self._reservations.pop(request_id, None):
            self._free.append(reservation.slot)
