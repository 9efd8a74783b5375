"""Supervised soft tokens: train what the soft tokens of a text say.

    p_k   = softmax(head @ h_k / tau)               (V,), k = 0..K-1; at tau = 1 its expectation is soft token k + 1
    p     = mean_k p_k                              the lexical vector of the text
    L     = mean_i  - sum_t q_i(t) log p_i(t)       cross-entropy against the target q_i, over the texts that have one

InfoNCE does not ask soft tokens to mean anything, and they degenerate to " the" or a newline. LaSER (arXiv 2603.01425)
aligns latent steps with a written rationale; here the target are the words of the right answer, weighted by inverse
document frequency, as lexical retrievers learn them (SPLADE, arXiv 2107.05720):

    query      q = 1/2 its own content words + 1/2 those of its positive
    positive   q = 1/2 its own content words + 1/2 those of its query
    negative   q = its own content words
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from gircse_rag.errors import InputError
from gircse_rag.refinement import VOCABULARY_CHUNK
from gircse_rag.training.batches import Batch
from gircse_rag.training.data import Row

Words = Literal["both", "other"]

COMMON = 0.1
"""Share of queries or of passages above which a token is not a content word."""
SAMPLE_ROWS = 10_000
"""Rows whose texts are counted for the inverse document frequencies: one second."""
TEXTS_CHUNK = 64
"""Texts whose target rows of the head are gathered at once: 30 MB at 200 target tokens and d = 576."""


def lexical_loss(
    states: Tensor,
    head: Tensor,
    token_ids: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    prefixes: bool = False,
) -> Tensor:
    """Compute the cross-entropy of the mean soft-token distribution against target tokens.

    The (n, K, V) logits never exist: logarithms of the normalisers are streamed over the vocabulary, and backward
    computes each piece again. Memory grows with n x K x VOCABULARY_CHUNK.

    Args:
        states: (n, K, d), h_0..h_{K-1} of n texts, any float dtype. The computation is in float32 (float64 stays).
        head: (V, d), rows of the LM head; not differentiated.
        token_ids: (n, T) int64, target tokens, padded with any id.
        weights: (n, T) float, q: each row sums to 1, or to 0 if the text has no target. Padding has weight 0.
        temperature: tau > 0 of the head.
        prefixes: average the loss over p after 1, 2, ..., K soft tokens, so that every number of steps is trained.

    Returns:
        Scalar: mean over the texts that have a target, in nats; 0 if none has.

    Raises:
        InputError: shapes are inconsistent, or the temperature is not positive.
    """
    if states.dim() != 3 or head.dim() != 2 or states.shape[2] != head.shape[1] or 0 in states.shape:
        raise InputError(f"states {tuple(states.shape)} and head {tuple(head.shape)} must be (n, K, d) and (V, d)")
    if token_ids.shape != weights.shape or token_ids.dim() != 2 or len(token_ids) != len(states):
        raise InputError(
            f"token_ids {tuple(token_ids.shape)} and weights {tuple(weights.shape)} must both be ({len(states)}, T)"
        )
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}; it must be positive")
    states = states if states.dtype == torch.float64 else states.float()
    weights = weights.to(states.dtype)
    steps = states.shape[1]
    starts = range(0, len(head), VOCABULARY_CHUNK)
    parts = [_save_memory(_log_sum, states, head[start : start + VOCABULARY_CHUNK], temperature) for start in starts]
    normaliser = torch.logsumexp(torch.stack(parts), dim=0)
    rows = [slice(start, start + TEXTS_CHUNK) for start in range(0, len(states), TEXTS_CHUNK)]
    logits = torch.cat([_save_memory(_target_logits, states[r], head, token_ids[r], temperature) for r in rows])
    spoken = torch.logcumsumexp(logits - normaliser[:, :, None], dim=1)
    counts = torch.arange(1, steps + 1, device=states.device, dtype=states.dtype)
    losses = -(weights[:, None] * (spoken - counts.log()[:, None])).sum(dim=2)
    per_text = losses.mean(dim=1) if prefixes else losses[:, -1]
    has_target = (weights.sum(dim=1) > 0).to(states.dtype)
    return (per_text * has_target).sum() / has_target.sum().clamp(min=1)


class ContentWords:
    """Target distributions for the texts of a batch.

    A content word is a token in at most `COMMON` of the queries and of the passages; its weight is its inverse document
    frequency. Both come from the training rows alone, so a resumed run has the same targets.

    Args:
        rows: the training rows.
        tokenizer: the model's tokenizer.
        vocabulary: V, rows of the LM head.
        words: "both" as in the module's header; "other" keeps only words that the text itself lacks (expansion).
    """

    def __init__(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, vocabulary: int, words: Words = "both"
    ) -> None:
        self.tokenizer, self.words = tokenizer, words
        picked = np.random.default_rng(0).permutation(len(rows))[:SAMPLE_ROWS]
        counts = np.zeros((2, vocabulary))
        for side, texts in enumerate(zip(*((rows[i].query, rows[i].positive) for i in picked), strict=True)):
            for ids in self._tokenize(texts):
                counts[side, ids] += 1
        frequency = counts.max(axis=0)
        self.idf = np.log((len(picked) + 1) / (frequency + 0.5))
        self.idf[frequency > max(1, COMMON * len(picked))] = 0

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return `token_ids` and `weights` for `lexical_loss`, (n, T) each, for the n texts of a batch in their order.

        A row without any content word has weights 0.
        """
        queries = self._tokenize([row.query for row in batch.rows])
        positives = self._tokenize([row.positive for row in batch.rows])
        negatives = self._tokenize([row.negative for row in batch.rows if row.negative is not None])
        nothing = np.empty(0, dtype=np.int64)
        pairs = [*zip(queries, positives, strict=True), *zip(positives, queries, strict=True)]
        pairs += [(own, nothing) for own in negatives]
        rows = [self._mix(own, other) for own, other in pairs]
        width = max(1, *(len(ids) for ids, _ in rows))
        token_ids, weights = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width))
        for index, (ids, q) in enumerate(rows):
            token_ids[index, : len(ids)], weights[index, : len(ids)] = ids, q
        return torch.from_numpy(token_ids), torch.from_numpy(weights).float()

    def _mix(self, own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average the distributions of a text's own words and of its counterpart's: ids (T,), weights (T,)."""
        parts = [np.setdiff1d(other, own)] if self.words == "other" else [own, other]
        parts = [part for part in parts if self.idf[part].sum() > 0]
        if not parts:
            return np.empty(0, dtype=np.int64), np.empty(0)
        ids, place = np.unique(np.concatenate(parts), return_inverse=True)
        shares = np.concatenate([self.idf[part] / self.idf[part].sum() for part in parts]) / len(parts)
        weights = np.bincount(place, shares)
        return ids[weights > 0], weights[weights > 0]

    def _tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Distinct token ids of each text, tokenised as in the middle of a sentence."""
        if not texts:
            return []
        encoded = self.tokenizer([f" {text.strip()}" for text in texts], add_special_tokens=False)["input_ids"]
        return [np.unique(np.asarray(ids, dtype=np.int64)) for ids in encoded]


def _log_sum(states: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """log sum_v exp(h . key_v / tau): (n, K, d), (C, d) -> (n, K)."""
    return torch.logsumexp(states @ keys.to(states.dtype).T / temperature, dim=-1)


def _target_logits(states: Tensor, head: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Logits of each text's target tokens: (m, K, d), (V, d), (m, T) -> (m, K, T)."""
    return states @ head[token_ids].to(states.dtype).transpose(1, 2) / temperature


def _save_memory(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function, and again in backward instead of keeping its intermediate results."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
