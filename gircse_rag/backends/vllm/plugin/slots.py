"""Which running request keeps its soft token where, and how the scheduler must cut its positions. Knows no vLLM.

A request with a text of P tokens and K refinement steps becomes a prompt of P + K ids. The last K are *handles*: ids
above the vocabulary that stand for soft tokens not yet known.

    position   0 .. P-1    P    P+1   ..   P+K-1
    id         the text    g_1  g_2   ..   g_K         g_t = vocabulary + (serial + t - 1) * slots + slot

The model embeds a handle by reading row `slot` = (id - vocabulary) % slots of a table, into which the pooler of the
step before has written softmax(logits / tau) @ E. One row a request is enough, because positions from P on are always
computed one a step, in order, and again from the text's end if the request is preempted. `serial` never repeats until
the ids are used up, so no two requests hash a block that holds a handle alike: text blocks are shared between
requests, soft ones never.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

LARGEST_ID = 2**31 - 1
"""vLLM keeps token ids as int32."""


@dataclass(frozen=True)
class Reservation:
    """What one admitted request holds until it is finished or aborted.

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

    def chunk(self, computed: int, wanted: int) -> int:
        """How many positions to compute next: never across the text's end, and one at a time behind it.

        Args:
            computed: positions whose keys and values are in the cache.
            wanted: what the scheduler would compute.
        """
        if computed < self.text:
            return min(wanted, self.text - computed)
        return min(wanted, 1)

    def usable_hit(self, cached: int, block_size: int) -> int:
        """The part of a prefix-cache hit that may be used: whole blocks that leave a text token to compute.

        The last text token's hidden state makes the first soft token, and nothing else does. This holds whether
        the request is new or resumes after a preemption: another request may have cached its text meanwhile.
        """
        return min(cached, (self.text - 1) // block_size * block_size)


class SlotTable:
    """Hands out slots and handles.

    Args:
        vocabulary: V, ids below it are real tokens.
        slots: rows of the table, the most requests that may hold one.

    Raises:
        ValueError: the ids above the vocabulary are too few to be of use.
    """

    def __init__(self, vocabulary: int, slots: int) -> None:
        self._vocabulary = vocabulary
        self._slots = slots
        self._serials = (LARGEST_ID - vocabulary) // slots
        if slots < 1 or self._serials < 1024:
            raise ValueError(f"{slots} slots above a vocabulary of {vocabulary} leave too few ids")
        self._serial = 0
        self._free = deque(range(slots))
        self._held: dict[str, Reservation] = {}

    def __len__(self) -> int:
        """How many slots are held."""
        return len(self._held)

    def get(self, request_id: str) -> Reservation | None:
        return self._held.get(request_id)

    def reserve(self, request_id: str, *, text: int, steps: int) -> Reservation | None:
        """A slot and `steps` handles for a request, or None while no slot is free.

        Raises:
            ValueError: it holds one already.
        """
        if request_id in self._held:
            raise ValueError(f"request {request_id} holds a slot already")
        if not self._free:
            return None
        if self._serial + steps > self._serials:
            self._serial = 0
        slot = self._free.popleft()
        first = self._vocabulary + self._serial * self._slots + slot
        self._serial += steps
        handles = range(first, first + steps * self._slots, self._slots)
        reservation = self._held[request_id] = Reservation(slot, text, steps, handles)
        return reservation

    def release(self, request_id: str) -> None:
        """Take back what a request holds; one that holds nothing is no error."""
        if reservation := self._held.pop(request_id, None):
            self._free.append(reservation.slot)
