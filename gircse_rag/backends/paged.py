"""PagedBackend: the paged engine behind the Backend protocol, shared by any number of threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel

from gircse_rag.backend import Refinement, Request, check_request
from gircse_rag.engine.attention import has_paged_kernel
from gircse_rag.engine.block_manager import BlockManager
from gircse_rag.engine.engine import Engine, Outcome
from gircse_rag.engine.fused import can_pack, check_supported, fused_copy
from gircse_rag.engine.kv_cache import GATHERED_BLOCK_SIZE, PAGED_BLOCK_SIZE, KVCache, bytes_per_block
from gircse_rag.engine.model_runner import ModelRunner
from gircse_rag.engine.sequence import Sequence
from gircse_rag.errors import GircseError, InputError
from gircse_rag.spec import MAX_STEPS, EmbeddingSpec

TOKEN_BUDGET = {"cpu": 512, "cuda": 8192}
MAX_RUNNING = {"cpu": 256, "cuda": 1024}
CPU_CACHE_BYTES = 256 * 2**20
MEMORY = Path("/proc/meminfo")
PACKED_SHARE = 0.25  # of the available memory that reordered weights may take


class _Call:
    """One `refine` under way: the owner of its sequences. Its own thread reads `done`, whoever drives writes it."""

    def __init__(self) -> None:
        self.indices: dict[Sequence, int] = {}
        self.done: deque[Outcome] = deque()
        self.closed = False


class PagedBackend:
    """Refines requests of all its callers in common forwards.

    There is no engine thread: whoever waits for a result drives the engine one step, for everybody, while the other
    waiting threads sleep. The prefix cache lives as long as the backend and never grows beyond `cache_bytes`.

    Args:
        model: a causal LM in eval mode; it computes what it did, and its parameters are shared: where weights are
            merged (see fused.py) they become views of ours.
        spec: names the vector space (the prefix cache's salt) and holds temperature and maximum length.
        cache_bytes: memory for keys and values; None takes 256 MiB on a CPU, or more if the longest text needs it,
            and half of what is free on a GPU.
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
        self._vocabulary, self._dimension = map(int, weights.shape)
        self._window = int(model.config.max_position_embeddings)
        longest = min(self._window, spec.max_length + MAX_STEPS)
        check_supported(model, longest)
        device, dtype = weights.device, weights.dtype
        paged = has_paged_kernel(model.config, device, dtype)
        size = block_size or (PAGED_BLOCK_SIZE if paged else GATHERED_BLOCK_SIZE)
        pack = can_pack(weights) and _model_bytes(model) <= PACKED_SHARE * _available_bytes()
        fast = fused_copy(model, pack=pack)  # before the cache, whose size depends on what is then free
        block_bytes = bytes_per_block(model.config, size, dtype)
        memory = _default_cache_bytes(device, -(-longest // size) * block_bytes) if cache_bytes is None else cache_bytes
        num_blocks = 1 + memory // block_bytes
        cache = KVCache(model.config, num_blocks, paged=paged, block_size=size, dtype=dtype, device=device)
        runner = ModelRunner(fast, cache, temperature=spec.temperature, pack=pack)
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
        self._driver = 0  # the thread that drives, or drove last
        self._closed = False
        self._process = os.getpid()

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
                    sequence, outcome = call.done.popleft()
                    if sequence in call.indices:  # else delivered twice, see Engine.undelivered
                        yield call.indices.pop(sequence), outcome
                if not exhausted and len(call.indices) <= self._max_running:
                    room = 2 * self._max_running - len(call.indices)
                    batch = list(islice(numbered, room))
                    exhausted = len(batch) < room
                    for index, request in sorted(batch, key=lambda pair: -len(pair[1].token_ids)):
                        self._submit(call, index, request)
                if call.indices:
                    self._wait(call)
                elif exhausted:
                    return
        finally:
            call.closed = True
            self._abandoned.append(call)  # this may run inside a garbage collection: take no lock that a step needs

    def close(self) -> None:
        if os.getpid() != self._process:
            return
        with self._turn:
            self._closed = True  # first: calls of other threads end, and only the forward under way is waited for
            self._turn.notify_all()
            while self._driving and self._driver != threading.get_ident():  # a signal's handler may interrupt a forward
                self._turn.wait()
            if not self._driving:
                self._release()

    def _release(self) -> None:
        if hasattr(self, "_engine"):
            del self._engine  # and with it the model and the cache

    def _submit(self, call: _Call, index: int, request: Request) -> None:
        sequence = Sequence(
            request.token_ids,
            request.steps,
            tolerance=request.tolerance,
            top_k=request.top_k,
            owner=call,
        )
        call.indices[sequence] = index
        try:
            check_request(request, self._vocabulary)
            self._check_fits(sequence)
        except InputError as error:
            call.done.append((sequence, error))
        else:
            self._inbox.append(sequence)

    def _check_fits(self, sequence: Sequence) -> None:
        prompt = f"a prompt of {sequence.num_tokens} tokens and {sequence.steps} refinement steps"
        if sequence.max_rows > self._window:
            raise InputError(
                f"{prompt} do not fit the model's window of {self._window} positions; use fewer steps or a smaller "
                "max_length"
            )
        if not self._blocks.fits(sequence.max_rows):
            rows = (self._blocks.num_blocks - 1) * self._blocks.block_size
            raise InputError(
                f"{prompt} do not fit the KV cache of {rows} rows; use fewer steps or a shorter text, or load the "
                "embedder where more memory is free"
            )

    def _wait(self, call: _Call) -> None:
        """Return when `call` has results, having driven the engine if nobody else did."""
        drives = False
        try:
            with self._turn:
                while self._driving and not call.done and not self._closed:
                    self._turn.wait()
                if call.done or self._closed:
                    return
                drives, self._driver = True, threading.get_ident()
                self._driving = True
            self._drive()
            if not call.done and not self._inbox and not self._engine.scheduler.has_work:
                raise GircseError("the engine lost a text to an interrupt; embed it again")
        finally:
            if drives:
                with self._turn:
                    self._driving = False
                    if self._closed:
                        self._release()
                    self._turn.notify_all()

    def _drive(self) -> None:
        """One step of the engine, for all callers. Only the driving thread touches the engine.

        An interrupt may come anywhere. Therefore nothing is taken out of a queue before it is where it goes to, and
        what was under way ends with an error for each caller.
        """
        engine = self._engine
        try:
            while self._inbox:
                sequence = self._inbox[0]
                if not sequence.owner.closed:
                    engine.add(sequence)
                self._inbox.popleft()
            while self._abandoned:
                engine.cancel(self._abandoned[0])
                self._abandoned.popleft()
            engine.step()
        except BaseException as error:
            engine.fail(error)
            raise
        while engine.undelivered:
            sequence, outcome = engine.undelivered[0]
            sequence.owner.done.append((sequence, outcome))
            engine.undelivered.popleft()

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise GircseError(
                "this embedder was loaded before the process forked; load it in the new process, or start that by "
                "spawn (multiprocessing.get_context('spawn'))"
            )
        if self._closed:
            raise GircseError("this embedder is closed; load a new one with Embedder.from_pretrained")


def _default_cache_bytes(device: torch.device, longest: int) -> int:
    """Memory for keys and values; `longest` is what those of the longest text take."""
    if device.type != "cuda":
        return max(CPU_CACHE_BYTES, longest)
    torch.cuda.empty_cache()  # what merging the weights freed counts as used until then
    return torch.cuda.mem_get_info(device)[0] // 2


def _model_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _available_bytes() -> int:
    """Memory that programs may still take, what the system holds files in included; 0 if it does not tell."""
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return 0
    return available
