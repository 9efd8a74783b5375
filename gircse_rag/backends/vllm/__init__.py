"""GIRCSE in vLLM, as a plugin: `pip install "gircse-rag[vllm]"`, `gircse export`, and vLLM serves the exported folder.

    __init__            entry points of the plugin: registers four architectures and the HTTP endpoints
    export              writes the folder that vLLM loads
    connect             backend, tokenizer and spec for Embedder.from_pretrained(backend="vllm")
    in_process          backend: vLLM in this process
    server_client       backend: a running server

    plugin/             runs inside vLLM's processes
      settings          what the plugin needs to know of a checkpoint
      checks            verifies vLLM's private functions, and refuses unsupported configurations
      slots             assigns each request a slot for its soft token (does not import vLLM)
      scheduler         appends a handle per soft token to a request, and chunks its positions accordingly
      model             embeds handles, makes soft tokens, pools
      llm_inputs        steps, role and instruction for LLM.embed
      endpoints         steps, role and instruction over HTTP
      scoring           /score and /rerank with an instructed query

vLLM calls `register` and `endpoints` in each of its processes.
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
"""`model_type` -> the architecture that `gircse export` writes into config.json."""


def register() -> None:
    """Entry point `vllm.general_plugins`: register our architectures with vLLM. May be called repeatedly.

    Raises nothing, because it runs in every vLLM process, even for models that are not ours.
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
        logging.getLogger("gircse_rag.vllm").error(
            "gircse-rag could not register its architectures (%s): it was tested with vLLM 0.32", error
        )


def endpoints() -> Any:
    """Entry point `vllm.endpoint_plugins`: steps, role and instruction over HTTP, if VLLM_PLUGINS contains gircse."""
    from gircse_rag.backends.vllm.plugin.endpoints import GircseEndpoints

    return GircseEndpoints()
