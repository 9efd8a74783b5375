"""GIRCSE inside vLLM, as a plugin: `pip install "gircse-rag[vllm]"`, `gircse export`, and vLLM serves the folder.

    __init__     the plugin's entry point: registers four architectures
    checks       what of vLLM it leans on, and what it refuses
    slots        which request keeps its soft token where (no vLLM in it)
    scheduler    appends a handle for each soft token to a request, and cuts its positions accordingly
    model        embeds handles, makes soft tokens, pools
    prompts      steps, role and instruction for LLM.embed
    serving      and over HTTP
    export       the folder that vLLM loads
    backend      Embedder in process; client: Embedder against a server

`register` and `endpoints` are called by vLLM in each of its processes.
"""

from __future__ import annotations

import logging
from typing import Any

ARCHITECTURES = {
    "llama": "GircseLlamaForCausalLM",
    "mistral": "GircseMistralForCausalLM",
    "qwen2": "GircseQwen2ForCausalLM",
    "qwen3": "GircseQwen3ForCausalLM",
}
"""What `gircse export` writes into config.json, by `model_type`."""


def register() -> None:
    """Entry point `vllm.general_plugins`: make vLLM know our architectures. Called any number of times.

    Raises nothing: it runs wherever vLLM does, also for models that have nothing to do with us.
    """
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        from gircse_rag.backends.vllm.plugin.checks import GircseConfig

        for name in ARCHITECTURES.values():
            if name not in ModelRegistry.get_supported_archs():
                ModelRegistry.register_model(name, f"gircse_rag.backends.vllm.plugin.model:{name}")
            MODELS_CONFIG_MAP[name] = GircseConfig
    except (ImportError, AttributeError, TypeError) as error:
        logging.getLogger("vllm.gircse").error(
            "gircse-rag could not register its architectures (%s): it was tested with vLLM 0.32", error
        )


def endpoints() -> Any:
    """Entry point `vllm.endpoint_plugins`: steps, role and instruction over HTTP, if VLLM_PLUGINS names gircse."""
    from gircse_rag.backends.vllm.plugin.endpoints import GircseEndpoints

    return GircseEndpoints()
