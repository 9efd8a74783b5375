"""Role, instruction and steps for `vllm.LLM.embed`.

    llm = LLM("exported-folder")
    llm.embed(prompts(llm, texts, role="query", instruction="..."), pooling_params=params([5, 20]))

Bare strings are embedded as documents, with the checkpoint's own number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from gircse_rag.backends.vllm.plugin.settings import STEPS, spec_of
from gircse_rag.errors import InputError
from gircse_rag.prompts import Role, check_role
from gircse_rag.spec import EmbeddingSpec, check_steps
from gircse_rag.tokens import check_instruction, encode


def prompts(llm: Any, texts: Sequence[str], *, role: Role, instruction: str | None = None) -> list[Any]:
    """What `llm.embed` takes: the rendered texts' token ids.

    Args:
        llm: a `vllm.LLM` of an exported folder.
        texts, role, instruction: as `Embedder.embed`.

    Raises:
        InputError: an argument or a text is refused, or a text is longer than the spec's max_length.
    """
    model = llm.model_config
    rendered = render(llm.get_tokenizer(), spec_of(model.hf_config, model.model), texts, role, instruction)
    return [{"prompt_token_ids": ids} for ids in rendered]


def params(steps: int | Sequence[int]) -> Any:
    """`PoolingParams` with a number of refinement steps, or a list of them with one number a text.

    Raises:
        InputError: a number is refused.
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
    may_cut: bool = False,
) -> list[list[int]]:
    """Texts -> token ids, rendered for their role.

    Args:
        may_cut: whether the end of a text beyond the spec's max_length is left out; else it is an error.

    Raises:
        InputError: as `prompts`.
    """
    check_role(role, instruction)
    if instruction is not None:
        check_instruction(instruction)
    rendered = []
    for index, text in enumerate(texts):
        prompt = encode(tokenizer, spec, text, role=role, instruction=instruction, index=index)
        if prompt.truncated and not may_cut:
            raise InputError(
                f"text {index} is longer than {spec.max_length} tokens; split it into chunks (over HTTP, "
                "truncate_prompt_tokens=-1 has its end cut)",
                index=index,
            )
        rendered.append(list(prompt.token_ids))
    return rendered
