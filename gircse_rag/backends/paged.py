"""PagedBackend: the paged engine behind the Backend protocol, shared by any number of threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gircse_rag.backend import CANCELLED, CLOSED, Refinement, Request, check_process, check_request
from gircse_rag.engine.attention import has_paged_kernel
from gircse_rag.engine.block_manager import BlockManager
from gircse_rag.engine.decoder import Decoder, check_supported
from gircse_rag.engine.engine import Engine, EngineStats, Outcome
from gircse_rag.engine.kv_cache import GATHERED_BLOCK_SIZE, PAGED_BLOCK_SIZE, KVCache, bytes_per_block
from gircse_rag.engine.model_runner import ModelRunner
from gircse_rag.engine.products import Form, packed_form
from gircse_rag.engine.sequence import Sequence
from gircse_rag.engine.vocabulary import Vocabulary
from gircse_rag.errors import GircseError, InputError, plural
from gircse_rag.spec import MAX_STEPS, EmbeddingSpec
from gircse_rag.weights import DecoderWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKEN_BUDGET = {"cpu": 512, "cuda": 8192}
MAX_RUNNING = {"cpu": 256, "cuda": 1024}
# A query meets at most two such forwards. On a GPU a whole forward takes little longer than a small one.
SHARED_BUDGET = {"cpu": 48}
CPU_CACHE_BYTES = 256 * 2**20
MEMINFO = Path("/proc/meminfo")
MAX_PACKED_FRACTION = 0.25  # of the available memory: maximum for a second copy of the weights, packed for oneDNN
_changing_threads = threading.Lock()
_POLL_SECONDS = 0.25  # how long a call that waits for results may overlook that it was cancelled


class _Call:
    """One call of `refine`, the owner of its sequences. Results go into `done`, mostly from the driving thread."""

    def __init__(self, cancelled: threading.Event | None = None) -> None:
        self.indices: dict[Sequence, int] = {}  # of sequences not yet returned: their place among the requests
        self.done: deque[Outcome] = deque()
        self.ready = threading.Event()  # set with every result by an engine thread
        self.cancelled = cancelled
        self.closed = False


class PagedBackend:
    """Batches the requests of all callers into common forwards.

    One of the threads that wait for results drives the engine one step, for all callers, while the others sleep. A
    server gives the engine a thread of its own (`start_engine_thread`). The prefix cache lives as long as the backend
    and never exceeds `cache_bytes`.

    Args:
        model: a causal LM, or its weights. The engine shares them: weights that decoder.py merges become views of the
            merged ones. The model's own outputs do not change.
        spec: the vector space (salt of the prefix cache), temperature and maximum length.
        cache_bytes: memory for keys and values. None: 256 MiB on a CPU, or more if the longest text needs it; half of
            the free memory on a GPU.
        token_budget: maximum rows per forward; must exceed max_running.
        max_running: maximum number of sequences refined at once. Up to twice as many requests of a call are read ahead
            and sorted by length.
        block_size: rows per KV block. None for token_budget, max_running or block_size: a default for the device.
        prefix_caching: compute equal prompt prefixes only once.
        deterministic: a text's vector has the same bits alone, in any batch and order, and with any number of threads.
            Kernels and their order of summation depend on shapes and threads, so products have a fixed number of rows
            and attention has fixed shapes (engine/fixed.py), step by step and with one thread. On a CPU only.

    Raises:
        CheckpointError: the engine does not support the model.
        InputError: deterministic on another device than a CPU.
    """

    def __init__(
        self,
        model: PreTrainedModel | DecoderWeights,
        spec: EmbeddingSpec,
        *,
        cache_bytes: int | None = None,
        token_budget: int | None = None,
        max_running: int | None = None,
        block_size: int | None = None,
        prefix_caching: bool = True,
        deterministic: bool = False,
    ) -> None:
        weights = model if isinstance(model, DecoderWeights) else DecoderWeights.of(model)
        config, embeddings = weights.config, weights.embeddings
        self._spec = spec
        self._window = config.max_position_embeddings
        longest = min(self._window, spec.max_length + MAX_STEPS)
        check_supported(config, longest)
        self._vocabulary, self._dimension = map(int, embeddings.shape)
        if deterministic and embeddings.device.type != "cpu":
            raise InputError(f"deterministic=True is for a CPU, not {embeddings.device}; use device='cpu'")
        self._deterministic = deterministic
        form = packed_form(embeddings)  # deterministic: whatever memory is free, because other forms round differently
        if not deterministic and form is Form.ONEDNN and weights.num_bytes > MAX_PACKED_FRACTION * _available_bytes():
            form = Form.PLAIN
        device = embeddings.device
        # before the cache, which is sized by the memory that this leaves
        decoder = Decoder(weights, form, fixed_rows=deterministic)
        dtype = decoder.dtype
        paged = has_paged_kernel(config, device, dtype)
        size = block_size or (PAGED_BLOCK_SIZE if paged else GATHERED_BLOCK_SIZE)
        block_bytes = bytes_per_block(config, size, dtype)
        memory = _default_cache_bytes(device, -(-longest // size) * block_bytes) if cache_bytes is None else cache_bytes
        num_blocks = 1 + memory // block_bytes
        cache = KVCache(config, num_blocks, paged=paged, block_size=size, dtype=dtype, device=device)
        vocabulary = Vocabulary(weights, form, dtype, temperature=spec.temperature, fixed_rows=deterministic)
        runner = ModelRunner(decoder, vocabulary, cache, num_heads=config.num_attention_heads, fixed_rows=deterministic)
        self._blocks = BlockManager(num_blocks, size, salt=spec.fingerprint, caching=prefix_caching)
        self._max_running = max_running or MAX_RUNNING.get(device.type, MAX_RUNNING["cpu"])
        self._engine = Engine(
            runner,
            self._blocks,
            token_budget=token_budget or max(TOKEN_BUDGET.get(device.type, TOKEN_BUDGET["cpu"]), self._max_running + 1),
            max_running=self._max_running,
            pools_prompt=spec.pools_prompt,
            shared_budget=SHARED_BUDGET.get(device.type),
            sweeping=form is not Form.FBGEMM and not deterministic,
        )
        self._queue: deque[Sequence] = deque()
        self._ended_calls: deque[_Call] = deque()
        self._condition = threading.Condition()
        self._engine_busy = False
        self._driving_thread = 0  # id of the thread that drives the engine, or drove it last
        self._work = threading.Event()  # wakes the engine thread
        self._has_engine_thread = False
        self._closed = False
        self._process = os.getpid()

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def window(self) -> int:
        """Maximum prompt tokens plus refinement steps of a request."""
        return self._window

    @property
    def stats(self) -> EngineStats:
        """What the engine did so far, and what it holds."""
        engine = getattr(self, "_engine", None)  # absent once the backend is closed
        return EngineStats() if engine is None else engine.stats

    def start_engine_thread(self) -> None:
        """Let a thread of its own drive the engine until `close`; callers then only wait.

        For servers, where many threads call `refine`: OpenMP keeps a pool of threads for each thread that ever ran a
        forward.
        """
        threading.Thread(target=self._drive, name="gircse-engine", daemon=True).start()

    def refine(
        self, requests: Iterable[Request], *, cancelled: threading.Event | None = None
    ) -> Iterator[tuple[int, Refinement | GircseError]]:
        """As `Backend.refine`.

        Args:
            cancelled: once another thread sets it, the call ends with GircseError, and its memory is free one forward
                later.
        """
        call = _Call(cancelled)
        numbered = enumerate(requests)
        exhausted = False
        try:
            while True:
                self._check_open()
                if cancelled is not None and cancelled.is_set():
                    raise GircseError(CANCELLED)
                while call.done:
                    sequence, outcome = call.done.popleft()
                    if sequence in call.indices:  # otherwise a duplicate, see Engine.undelivered
                        yield call.indices.pop(sequence), outcome
                if not exhausted and len(call.indices) <= self._max_running:
                    room = 2 * self._max_running - len(call.indices)
                    batch = list(islice(numbered, room))
                    exhausted = len(batch) < room
                    for index, request in sorted(batch, key=lambda pair: -len(pair[1].token_ids)):
                        self._submit(call, index, request)
                    self._work.set()
                if call.indices:
                    self._wait_for_results(call)
                elif exhausted:
                    return
        finally:
            call.closed = True
            self._ended_calls.append(call)  # may run in garbage collection: must not take a lock that a step needs

    def close(self) -> None:
        if os.getpid() != self._process:
            return
        with self._condition:
            self._closed = True  # first, so calls of other threads end and only the current forward is waited for
            self._work.set()
            self._condition.notify_all()
            # A signal handler may call this during a forward of its own thread, which then must not wait for itself.
            while self._engine_busy and self._driving_thread != threading.get_ident():
                self._condition.wait()
            if not self._engine_busy:
                self._release()

    def _release(self) -> None:
        if hasattr(self, "_engine"):
            del self._engine  # also frees the model and the cache

    def _submit(self, call: _Call, index: int, request: Request) -> None:
        soft_tokens = self._spec.num_soft_tokens(request.steps)
        sequence = Sequence(request.token_ids, soft_tokens, request.tolerance, request.top_k, owner=call)
        call.indices[sequence] = index
        try:
            check_request(request, self._vocabulary, self._window)
            if not self._blocks.fits(sequence.max_rows):
                rows = (self._blocks.num_blocks - 1) * self._blocks.block_size
                raise InputError(
                    f"a prompt of {plural(sequence.num_tokens, 'token')} and "
                    f"{plural(request.steps, 'refinement step')} do not fit the KV "
                    f"cache of {rows} rows; use fewer steps or a shorter text, or load the embedder where more memory "
                    "is free"
                )
        except InputError as error:
            call.done.append((sequence, error))
        else:
            self._queue.append(sequence)

    def _wait_for_results(self, call: _Call) -> None:
        """Wait until `call` has results; drive the engine one step if no other thread does."""
        if self._has_engine_thread:
            call.ready.wait(_POLL_SECONDS)  # times out for a caller that closes the backend or cancels the call
            call.ready.clear()
            return
        is_driver = False
        try:
            with self._condition:
                if self._engine_busy and not call.done and not self._closed:
                    self._condition.wait(None if call.cancelled is None else _POLL_SECONDS)
                if self._engine_busy or call.done or self._closed:
                    return
                is_driver, self._driving_thread = True, threading.get_ident()
                self._engine_busy = True
            self._step_engine()
            if not call.done and not self._queue and not self._engine.scheduler.has_work:
                raise GircseError("the engine lost a text to an interrupt; embed it again")
        finally:
            if is_driver:
                with self._condition:
                    self._engine_busy = False
                    if self._closed:
                        self._release()
                    self._condition.notify_all()

    def _drive(self) -> None:
        """Run the engine thread."""
        with self._condition:
            while self._engine_busy and not self._closed:
                self._condition.wait()
            if self._closed:
                return
            self._engine_busy, self._driving_thread = True, threading.get_ident()
            self._has_engine_thread = True
        try:
            while not self._closed:
                self._work.clear()
                if not (self._queue or self._engine.undelivered or self._engine.scheduler.has_work):
                    self._work.wait()
                    continue
                with suppress(Exception):  # every sequence has ended with the error, which the next step delivers
                    self._step_engine()
        finally:
            with self._condition:
                self._engine_busy = self._has_engine_thread = False
                if self._closed:
                    self._release()
                self._condition.notify_all()

    def _step_engine(self) -> None:
        """Run one step of the engine for all callers. Only the driving thread touches the engine.

        An interrupt may come anywhere. Items are therefore added to the next queue before they leave the previous one,
        and after an interrupt every unfinished sequence ends with an error.
        """
        engine = self._engine
        try:
            while self._queue:
                sequence = self._queue[0]
                if not sequence.owner.closed:
                    engine.scheduler.add(sequence)
                self._queue.popleft()
            while self._ended_calls:
                engine.scheduler.cancel(self._ended_calls[0])
                self._ended_calls.popleft()
            with _one_thread() if self._deterministic else nullcontext():
                engine.step()
        except BaseException as error:
            engine.fail(error)
            raise
        while engine.undelivered:
            sequence, outcome = engine.undelivered[0]
            sequence.owner.done.append((sequence, outcome))
            sequence.owner.ready.set()
            engine.undelivered.popleft()

    def _check_open(self) -> None:
        check_process(self._process)
        if self._closed:
            raise GircseError(CLOSED)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread. The number belongs to the process, so only one engine changes it at a time."""
    with _changing_threads:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _default_cache_bytes(device: torch.device, longest_text_bytes: int) -> int:
    """Memory for keys and values in bytes, enough for the longest text on a CPU."""
    if device.type != "cuda":
        return max(CPU_CACHE_BYTES, longest_text_bytes)
    torch.cuda.empty_cache()  # otherwise the memory freed by merging the weights still counts as used
    return torch.cuda.mem_get_info(device)[0] // 2


def _available_bytes() -> int:
    """Memory still available to programs, including the system's file cache; 0 if unknown."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return 0
    return available
