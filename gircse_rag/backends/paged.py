"""PagedBackend: the paged engine behind the Backend protocol, shared by any number of threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from transformers import PreTrainedModel

from gircse_rag.backends.base import Refinement, Request
from gircse_rag.engine.attention import has_paged_kernel
from gircse_rag.engine.block_manager import BlockManager
from gircse_rag.engine.engine import Engine
from gircse_rag.engine.fused import can_pack, check_supported
from gircse_rag.engine.kv_cache import GATHERED_BLOCK_SIZE, PAGED_BLOCK_SIZE, KVCache, bytes_per_block
from gircse_rag.engine.model_runner import ModelRunner
from gircse_rag.engine.sequence import Sequence
from gircse_rag.errors import GircseError, InputError
from gircse_rag.spec import MAX_STEPS, EmbeddingSpec

TOKEN_BUDGET = {"cpu": 512, "cuda": 8192}
MAX_RUNNING = {"cpu": 256, "cuda": 1024}
CPU_CACHE_BYTES = 256 * 2**20
PACKED_SHARE = 0.25  # of the available memory that reordered weights may take


class _Call:
    """One `refine` under way: the owner of its sequences."""

    def __init__(self) -> None:
        self.indices: dict[Sequence, int] = {}
        self.done: deque[tuple[int, Refinement | GircseError]] = deque()
        self.closed = False


class PagedBackend:
    """Refines requests of all its callers in common forwards.

    There is no engine thread: whoever waits for a result drives the engine one step, for everybody, while the other
    waiting threads sleep. The prefix cache lives as long as the backend and never grows beyond `cache_bytes`.

    Args:
        model: a causal LM in eval mode; left as it is, its parameters are shared.
        spec: names the vector space (the prefix cache's salt) and holds temperature and maximum length.
        cache_bytes: memory for keys and values; None takes 256 MiB on a CPU and half of what is free on a GPU.
        token_budget: rows a forward at most, more than max_running.
        max_running: sequences refined at once. Of one call twice as many are under way, sorted by length.
        block_size: rows a KV block.
            All three: None takes what suits the device.
        prefix_caching: whether equal prompt prefixes are computed once.

    Raises:
        CheckpointError: the model is of a kind the engine would get wrong.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: EmbeddingSpec,
        *,
        cache_bytes: int | None = None,
        token_budget: int | None = None,
        max_running: int | None = None,
        block_size: int | None = None,
        prefix_caching: bool = True,
    ) -> None:
        weights = model.get_input_embeddings().weight
        self._dimension = int(weights.shape[1])
        self._window = int(model.config.max_position_embeddings)
        check_supported(model, min(self._window, spec.max_length + MAX_STEPS))
        device, dtype = weights.device, weights.dtype
        paged = has_paged_kernel(device, dtype)
        size = block_size or (PAGED_BLOCK_SIZE if paged else GATHERED_BLOCK_SIZE)
        memory = _default_cache_bytes(device) if cache_bytes is None else cache_bytes
        num_blocks = 1 + memory // bytes_per_block(model.config, size, dtype)
        cache = KVCache(model.config, num_blocks, paged=paged, block_size=size, dtype=dtype, device=device)
        pack = can_pack(weights) and _model_bytes(model) <= PACKED_SHARE * _available_bytes()
        runner = ModelRunner(model, cache, temperature=spec.temperature, pack=pack)
        self._blocks = BlockManager(num_blocks, size, salt=spec.fingerprint, caching=prefix_caching)
        self._max_running = max_running or MAX_RUNNING.get(device.type, MAX_RUNNING["cpu"])
        self._engine = Engine(
            runner,
            self._blocks,
            token_budget=token_budget or max(TOKEN_BUDGET.get(device.type, TOKEN_BUDGET["cpu"]), self._max_running + 1),
            max_running=self._max_running,
        )
        self._inbox: deque[Sequence] = deque()
        self._abandoned: deque[_Call] = deque()
        self._turn = threading.Condition()
        self._driving = False
        self._closed = False

    @property
    def dimension(self) -> int:
        return self._dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        call = _Call()
        numbered = enumerate(requests)
        exhausted = False
        try:
            while True:
                self._check_open()
                while call.done:
                    yield call.done.popleft()
                if not exhausted and len(call.indices) <= self._max_running:
                    room = 2 * self._max_running - len(call.indices)
                    batch = list(islice(numbered, room))
                    exhausted = len(batch) < room
                    for index, request in sorted(batch, key=lambda pair: -len(pair[1].token_ids)):
                        self._submit(call, index, request)
                if call.indices:
                    self._wait(call)
                elif exhausted and not call.done:
                    return
        finally:
            call.closed = True
            self._abandoned.append(call)  # this may run inside a garbage collection: take no lock that a step needs

    def close(self) -> None:
        with self._turn:
            while self._driving:
                self._turn.wait()
            self._closed = True
            self._turn.notify_all()

    def _submit(self, call: _Call, index: int, request: Request) -> None:
        sequence = Sequence(
            request.token_ids,
            request.steps,
            tolerance=request.tolerance,
            num_heaviest=request.soft_tokens,
            owner=call,
        )
        try:
            self._check_fits(sequence)
        except InputError as error:
            call.done.append((index, error))
        else:
            call.indices[sequence] = index
            self._inbox.append(sequence)

    def _check_fits(self, sequence: Sequence) -> None:
        prompt = f"a prompt of {sequence.num_tokens} tokens and {sequence.steps} refinement steps"
        if not sequence.num_tokens:
            raise InputError("a prompt needs at least one token")
        if sequence.max_rows > self._window:
            raise InputError(
                f"{prompt} do not fit the model's window of {self._window} positions; use fewer steps or a smaller "
                "max_length"
            )
        if not self._blocks.fits(sequence.max_rows):
            rows = (self._blocks.num_blocks - 1) * self._blocks.block_size
            raise InputError(f"{prompt} do not fit the KV cache of {rows} rows; give it more memory (cache_bytes)")

    def _wait(self, call: _Call) -> None:
        """Return when `call` has results, having driven the engine if nobody else did."""
        with self._turn:
            while self._driving and not call.done and not self._closed:
                self._turn.wait()
            if call.done or self._closed:
                return
            self._driving = True
        try:
            self._drive()
        finally:
            with self._turn:
                self._driving = False
                self._turn.notify_all()

    def _drive(self) -> None:
        """One step of the engine, for all callers. Only the driving thread touches the engine."""
        while self._inbox:
            sequence = self._inbox.popleft()
            if not sequence.owner.closed:
                self._engine.add(sequence)
        while self._abandoned:
            self._engine.cancel(self._abandoned.popleft())
        for sequence, outcome in self._engine.step():
            call = sequence.owner
            call.done.append((call.indices.pop(sequence), outcome))

    def _check_open(self) -> None:
        if self._closed:
            raise GircseError("this embedder is closed; load a new one with Embedder.from_pretrained")


def _default_cache_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_CACHE_BYTES


def _model_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _available_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 0
