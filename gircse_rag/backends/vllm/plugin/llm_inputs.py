"""Role, instruction and steps for `vllm.LLM.embed`.

    llm = LLM("exported-folder")
    llm.embed(prompts(llm, texts, role="query", instruction="..."), pooling_params=params([5, 20]))

Bare strings are embedded as documents, with the checkpoint's own number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from transformers import PreTrainedTokenizerBase

from gircse_rag.backends.vllm.plugin.settings import STEPS, Settings, spec_of
from gircse_rag.errors import InputError
from gircse_rag.prompts import Role, check_role
from gircse_rag.spec import EmbeddingSpec, check_steps
from gircse_rag.tokens import encode, read_instruction


def prompts(llm: Any, texts: Sequence[str], *, role: Role, instruction: str | None = None) -> list[Any]:
    """Render texts as inputs of `llm.embed`.

    Args:
        llm: a `vllm.LLM` of an exported folder.
        texts, role, instruction: as in `Embedder.embed`.

    Raises:
        InputError: an argument or a text is invalid, or a text is longer than the spec's max_length.
    """
    model = llm.model_config
    rendered = render(llm.get_tokenizer(), spec_of(model.hf_config, model.model), texts, role, instruction)
    return [{"prompt_token_ids": ids} for ids in rendered]


def params(steps: int | Sequence[int]) -> Any:
    """`PoolingParams` with a number of refinement steps, or a list of them for a list of numbers, one per text.

    Raises:
        InputError: a number of steps is invalid.
    """
    from vllm import PoolingParams

    if isinstance(steps, Sequence):
        return [params(one) for one in steps]
    check_steps(steps)
    return PoolingParams(extra_kwargs={STEPS: steps})


def render(
    tokenizer: PreTrainedTokenizerBase,
    spec: EmbeddingSpec,
    texts: Sequence[str],
    role: Role,
    instruction: str | None,
    *,
    truncate: bool = False,
) -> list[list[int]]:
    """Render texts for their role and tokenise them.

    Args:
        truncate: cut texts longer than the spec's max_length at their end; otherwise they are an error.

    Raises:
        InputError: as `prompts`.
    """
    check_role(role, instruction)
    if instruction is not None:
        instruction = read_instruction(instruction)
    rendered = []
    for index, text in enumerate(texts):
        prompt = encode(tokenizer, spec, text, role=role, instruction=instruction, index=index)
        if prompt.truncated and not truncate:
            raise InputError(
                f"text {index} is longer than {spec.max_length} tokens; split it into chunks (over HTTP, "
                "truncate_prompt_tokens=-1 cuts its end)",
                index=index,
            )
        rendered.append(list(prompt.token_ids))
    return rendered


def with_steps(
    settings: Settings,
    prompts: Sequence[Sequence[int]],
    steps: Sequence[int | None],
    pooling_params: Any,
    make_inputs: Callable[[], Sequence[dict[str, Any]]],
) -> Sequence[dict[str, Any]]:
    """Make the engine inputs of a request's prompts, each with a copy of `pooling_params` and its own steps.

    Args:
        steps: K per prompt; None is the spec's.
        make_inputs: vLLM's own way from the request to its inputs; called when all steps are valid.

    Raises:
        InputError: a number of steps is invalid, or too large beside its prompt.
    """
    extra_kwargs = [{} if value is None else {STEPS: value} for value in steps]
    for prompt, value in zip(prompts, extra_kwargs, strict=True):
        settings.steps_of(value, len(prompt))
    engine_inputs = make_inputs()
    for engine_input, value in zip(engine_inputs, extra_kwargs, strict=True):
        engine_input["params"] = copy(pooling_params)
        engine_input["params"].extra_kwargs = value
    return engine_inputs
