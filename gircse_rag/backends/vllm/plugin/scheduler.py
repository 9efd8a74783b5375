"""vLLM's scheduler, with room for soft tokens after every text. slots.py explains slots and handles.

Custom schedulers are not a public interface of vLLM. `checks` therefore compares every vLLM function that is overridden
or called here with that of the tested version.
"""

from __future__ import annotations

import logging
from copy import copy
from typing import Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from gircse_rag.backends.vllm.plugin.settings import Settings
from gircse_rag.backends.vllm.plugin.slots import Reservation, SlotTable
from gircse_rag.errors import InputError

log = logging.getLogger("gircse_rag.vllm")

RESERVATION = "gircse"
"""The key of `PoolingParams.extra_kwargs` under which the worker finds (slot, tokens of the text, soft tokens)."""


class GircseSchedulerMixin:
    """Assigns a request its slot and handles when it is first considered for admission. It keeps them if preempted.

    A request whose steps do not fit ends with the current step, with a NaN vector and an error in the log: vLLM's front
    end accepts no other failure from a pooling model. Requests over HTTP or from an Embedder are checked earlier.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.vllm_config)  # type: ignore[attr-defined]
        self.slots = SlotTable(self.settings.vocabulary, self.settings.slots)
        self._refused: set[str] = set()

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        reservation = self.slots.get(request.request_id) or self._admit(request)
        blocks, cached, boundary, diverged = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        if reservation is not None:
            usable = reservation.usable_hit(cached, self.block_size)  # type: ignore[attr-defined]
            if usable < cached:
                blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, usable)  # type: ignore[attr-defined]
                cached = usable
        return blocks, cached, boundary, diverged

    def _admit(self, request: Any) -> Reservation | None:
        params, length = request.pooling_params, request.num_prompt_tokens
        try:
            steps = self.settings.spec.num_soft_tokens(self.settings.steps_of(params.extra_kwargs, length))
        except InputError as error:
            log.error("request %s is answered with NaN: %s", request.request_id, error)
            self._refused.add(request.request_id)
            return None
        reservation = self.slots.reserve(request.request_id, text=length, steps=steps)
        if reservation is None:
            return None
        request.prompt_token_ids = [*request.prompt_token_ids, *reservation.handles]
        request._all_token_ids.extend(reservation.handles)
        request.num_prompt_tokens = length + steps
        request.update_block_hashes()
        request.pooling_params = copy(params)  # several requests may share one object
        request.pooling_params.extra_kwargs = {
            **(params.extra_kwargs or {}),
            RESERVATION: (reservation.slot, length, steps),
        }
        return reservation

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        num_tokens: int = super()._reserve_prefill_lookahead(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens
        )
        reservation = self.slots.get(request.request_id)
        return 0 if reservation is None else reservation.chunk(num_computed_tokens, num_tokens)  # 0: no slot yet

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        if self._refused:
            for request in self.finish_requests(self._refused, RequestStatus.FINISHED_ERROR):  # type: ignore[attr-defined]
                outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                    EngineCoreOutput(
                        request_id=request.request_id,
                        new_token_ids=[],
                        pooling_output=torch.full((self.settings.spec.dimension,), torch.nan),
                        finish_reason=request.get_finished_reason(),
                    )
                )
            self._refused = set()
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.slots.release(request.request_id)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]


class GircseScheduler(GircseSchedulerMixin, Scheduler):
    """For engines that finish a step before scheduling the next, the default for pooling models."""


class GircseAsyncScheduler(GircseSchedulerMixin, AsyncScheduler):
    """For engines that schedule one step ahead."""
