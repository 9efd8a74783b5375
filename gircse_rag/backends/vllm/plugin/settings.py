"""The plugin's settings, read from the entry "gircse" that `gircse export` writes into config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gircse_rag.checkpoint.spec_file import EXPORT_KEY
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.spec import EmbeddingSpec, check_steps

STEPS = "steps"
"""The key of `PoolingParams.extra_kwargs` that holds a request's number of refinement steps."""


@dataclass(frozen=True)
class Settings:
    """Settings of one engine.

    Attributes:
        spec: the vector space; its temperature applies to all requests, its number of steps is the default.
        vocabulary: V, number of rows of the embedding matrix.
        slots: number of rows of the soft tokens' table.
        window: maximum prompt tokens plus refinement steps of a request.
    """

    spec: EmbeddingSpec
    vocabulary: int
    slots: int
    window: int

    @classmethod
    def of(cls, vllm_config: Any) -> Settings:
        """Read the settings from a `vllm.config.VllmConfig`.

        Raises:
            CheckpointError: the checkpoint was not written by `gircse export`.
        """
        model = vllm_config.model_config
        # Running requests hold a slot, and so do preempted ones, which run next.
        slots = 2 * vllm_config.scheduler_config.max_num_seqs
        return cls(spec_of(model.hf_config, model.model), model.hf_config.vocab_size, slots, model.max_model_len)

    def steps_of(self, extra: dict[str, Any] | None, text: int) -> int:
        """K of a request: from its `PoolingParams.extra_kwargs`, or the spec's.

        Raises:
            InputError: it is no valid number of steps, or does not fit the window after `text` prompt tokens.
        """
        steps = (extra or {}).get(STEPS, self.spec.document_steps)
        check_steps(steps)
        if text + steps > self.window:
            raise InputError(
                f"a prompt of {text} tokens and {steps} refinement steps do not fit max_model_len {self.window}; use "
                "fewer steps, a shorter text or a larger max_model_len"
            )
        return int(steps)


def spec_of(hf_config: Any, name: str) -> EmbeddingSpec:
    """The spec in a model's configuration (an object or a dict).

    Raises:
        CheckpointError: the configuration has no spec, or an invalid one.
    """
    entry = hf_config.get(EXPORT_KEY) if isinstance(hf_config, dict) else getattr(hf_config, EXPORT_KEY, None)
    if not isinstance(entry, dict) or not isinstance(entry.get("spec"), dict):
        raise CheckpointError(f'{name} has no "{EXPORT_KEY}" in its config.json; write the folder with `gircse export`')
    try:
        return EmbeddingSpec.from_dict(entry["spec"])
    except InputError as error:
        raise CheckpointError(f"{name}: config.json: {error}") from error
