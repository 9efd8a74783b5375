"""Distillation from an encoder: a Sentence Transformers model judges every query against every passage of a batch.

    t_ij  = cos(teacher(q_i), teacher(p_j)) / tau_T         bare texts, without instructions
    s_kij = z_k(q_i) . z_k(p_j) / tau                       the student after k refinement steps
    L     = mean_k mean_i KL(softmax_j t_i || softmax_j s_ki)

An encoder cannot follow an instruction, so tasks with `"teacher": false` in tasks.json learn from labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gircse_rag.errors import InputError, first_line, require
from gircse_rag.refinement import pool
from gircse_rag.training.batches import Batch
from gircse_rag.training.data import Row

SAMPLE_ROWS = 200
UNKNOWN = 0.2
"""Share of unknown tokens in the training texts above which a teacher is refused; under 0.01 if it fits."""


def teacher_loss(
    query_states: Tensor,
    passage_states: Tensor,
    similarities: Tensor,
    *,
    temperature: float = 0.02,
    teacher_temperature: float = 0.025,
) -> Tensor:
    """Compute how far the student's softmax over a batch's passages is from the teacher's.

    Args:
        query_states: (B, K, d), raw h_1..h_K of the queries, as for `icr_loss`.
        passage_states: (P, K, d).
        similarities: (B, P), the teacher's cosines.
        temperature: tau > 0 of the student.
        teacher_temperature: tau_T > 0: the teacher's cosines have a spread of their own.

    Returns:
        Scalar in nats, float32 (float64 stays): mean Kullback-Leibler divergence over steps and queries.

    Raises:
        InputError: shapes are inconsistent, or a temperature is not positive.
    """
    if similarities.shape != (len(query_states), len(passage_states)):
        raise InputError(
            f"similarities are {tuple(similarities.shape)}; {len(query_states)} queries and {len(passage_states)} "
            "passages need one each"
        )
    if temperature <= 0 or teacher_temperature <= 0:
        raise InputError(f"temperatures are {temperature} and {teacher_temperature}; both must be positive")
    scores = torch.einsum("ikd,jkd->kij", pool(query_states), pool(passage_states)) / temperature
    student = torch.log_softmax(scores, dim=-1)
    wanted = torch.log_softmax(similarities.to(scores.dtype) / teacher_temperature, dim=-1).expand_as(student)
    return functional.kl_div(student, wanted, log_target=True, reduction="none").sum(dim=-1).mean()


class Teacher:
    """A Sentence Transformers model, loaded from a folder.

    Args:
        folder: of the model. Nothing is downloaded.
        rows: the training rows; their words are checked against the teacher's vocabulary.
        device: where the teacher computes.

    Raises:
        InputError: the folder holds no such model, or its vocabulary does not cover the training texts.
        GircseError: sentence-transformers is not installed.
    """

    def __init__(self, folder: str, rows: Sequence[Row], device: torch.device) -> None:
        library = require("sentence_transformers", "teacher")
        if not Path(folder).is_dir():
            raise InputError(f"teacher is {folder!r}, which is not a folder; give the folder of a sentence encoder")
        try:
            self.model: Any = library.SentenceTransformer(folder, device=str(device), local_files_only=True)
        except Exception as error:  # transformers and safetensors raise many kinds of error
            raise InputError(f"teacher: {folder} holds no Sentence Transformers model: {first_line(error)}") from error
        picked = np.random.default_rng(0).permutation(len(rows))[:SAMPLE_ROWS]
        tokenizer = self.model.tokenizer
        encoded = tokenizer([rows[i].positive for i in picked], add_special_tokens=False)["input_ids"]
        tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
        unknown = float((tokens == tokenizer.unk_token_id).mean()) if tokenizer.unk_token_id is not None else 0.0
        if unknown > UNKNOWN:
            raise InputError(
                f"teacher: the vocabulary of {folder} does not know {unknown:.0%} of the tokens of the training texts; "
                "choose a teacher of their language"
            )

    def similarities(self, batch: Batch) -> Tensor:
        """Cosines of the batch's queries and passages, without instructions: (B, P) float32."""
        texts = [row.query for row in batch.rows] + [row.positive for row in batch.rows]
        texts += [row.negative for row in batch.rows if row.negative is not None]
        options = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
        vectors = cast(Tensor, self.model.encode(texts, **options)).float().clone()
        return vectors[: len(batch.rows)] @ vectors[len(batch.rows) :].T
