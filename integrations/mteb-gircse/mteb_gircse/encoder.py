"""GircseEncoder: an MTEB encoder backed by `gircse_rag.Embedder`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError, GircseWarning, InputError
from gircse_rag.prompts import Role
from gircse_rag.tokens import read_instruction, without_controls
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder, PromptSource
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray

TASK_PROMPTS: dict[str, str] = {
    "Retrieval": "question_answering",
    "Reranking": "question_answering",
    "STS": "similar_sentence",
    "PairClassification": "similar_sentence",
    "BitextMining": "similar_sentence",
    "Summarization": "similar_sentence",
    "Classification": "same_intent",
    "MultilabelClassification": "same_domain",
    "Clustering": "same_domain",
}
"""Named instruction per MTEB task type, used where MTEB has no prompt for the task."""


class GircseEncoder(AbsEncoder):
    """MTEB encoder for a GIRCSE checkpoint, for use with `mteb.evaluate`.

    Queries get the task's instruction, documents get none. In a task without sides (STS, clustering, classification),
    every text gets the instruction. The instruction is the first that exists of: `prompts` by task name, MTEB's prompt
    for the task, `prompts` by task type, TASK_PROMPTS by task type.

    Args:
        model_name: the model's name in MTEB, and the checkpoint to load unless `checkpoint` is given.
        revision: the expected fingerprint, which MTEB uses to identify results. None: any.
        device, dtype, steps, backend, dimensions: as for `Embedder.from_pretrained`.
        prompts: task name or type -> an instruction, or the name of one of gircse-rag's instructions.
        checkpoint: a bundled name, a local folder or a Hub id.

    Attributes:
        mteb_model_meta: the ModelMeta, from which `mteb.evaluate` can load the same model.

    Raises:
        ValueError: an argument is invalid, or the model cannot be loaded.
    """

    prompt_priority = (PromptSource.CUSTOM_PROMPT, PromptSource.DEFAULT_TASK_PROMPT, PromptSource.TASK_TYPE_PROMPT)

    def __init__(
        self,
        model_name: str = "smollm2-135m",
        revision: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        steps: int | None = None,
        backend: str | None = None,
        dimensions: int | None = None,
        prompts: Mapping[str, str] | None = None,
        checkpoint: str | None = None,
    ) -> None:
        checkpoint = checkpoint or model_name
        options: dict[str, Any] = {} if backend is None else {"backend": backend}
        try:
            self.model = Embedder.from_pretrained(
                checkpoint, device=device or "auto", dtype=dtype, steps=steps, dimensions=dimensions, **options
            )
        except GircseError as error:
            raise ValueError(str(error)) from error
        if revision not in (None, self.model.fingerprint):
            raise ValueError(f"{checkpoint} has fingerprint {self.model.fingerprint}, but revision asks for {revision}")
        self.prompts_dict = {
            task: read_instruction(prompt) for task, prompt in {**TASK_PROMPTS, **(prompts or {})}.items()
        }
        settings: dict[str, Any] = {"dtype": dtype, "steps": steps, "backend": backend, "dimensions": dimensions}
        settings["prompts"] = dict(prompts or {})
        self.mteb_model_meta = _make_meta(self.model, checkpoint, settings)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed texts: (n, d) float32, unit rows.

        Benchmarks contain empty texts. Such invalid texts get zero vectors and one GircseWarning.

        Raises:
            GircseError: a valid text could not be embedded, for example for lack of memory.
        """
        texts = [without_controls(text) for batch in inputs for text in batch["text"]]
        role: Role = "symmetric" if prompt_type is None else "query"
        instruction: str | None = None
        if prompt_type == PromptType.document:
            role = "document"
        else:
            instruction = self.get_instruction(task_metadata, prompt_type) or None
        result = self.model.embed(texts, role=role, instruction=instruction, on_error="return")
        for error in result.errors.values():
            if not isinstance(error, InputError):
                raise error
        if result.errors:
            warnings.warn(
                f"{task_metadata.name}: {len(result.errors)} of {len(texts)} texts are invalid and get "
                f"zero vectors; first: {next(iter(result.errors.values()))}",
                GircseWarning,
                stacklevel=2,
            )
        vectors = result.vectors
        vectors[list(result.errors)] = 0
        return vectors


def _load(name: str, revision: str | None = None, *, device: str | None = None, **settings: Any) -> GircseEncoder:
    return GircseEncoder(name, revision, device=device, **settings)


def _make_meta(embedder: Embedder, checkpoint: str, settings: dict[str, Any]) -> ModelMeta:
    spec = embedder.spec
    return ModelMeta(
        loader=_load,
        loader_kwargs={"checkpoint": checkpoint, **settings},
        name=checkpoint if checkpoint.count("/") == 1 else f"gircse/{Path(checkpoint).name}",
        revision=embedder.fingerprint,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=spec.max_length,
        embed_dim=embedder.dimension,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        experiment_kwargs=None,
    )
