"""The method itself (GIRCSE, section 3): generate soft tokens and pool their hidden states.

    x_1..x_N   input embeddings of the rendered text
    h_0        last-layer hidden state, after the final norm, at position N
    for k = 1..K:
        s_k = softmax(LMHead(h_{k-1}) / tau) @ E          soft_token
        h_k = hidden state at position N+k for the input embedding s_k
    z_k = normalize(mean(h_1..h_k))                       pool; h_0 is not pooled

LaSER (arXiv 2603.01425) runs the same recursion and pools one state earlier, `pooling="mean_with_prompt"`:

    z_k = normalize(mean(h_0..h_{k-1}))                   K states need K - 1 soft tokens

Pure functions of tensors. Everything accumulates in float32, whatever the model's dtype. float64 inputs stay float64,
which the tests use to check the algebra.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

VOCABULARY_CHUNK = 8192


class SoftToken(NamedTuple):
    """A soft token: the expectation over the vocabulary, and its most probable tokens.

    Attributes:
        embedding: (n, d), float32: s_k, the next input embedding.
        token_ids: (n, top_k) int64, the most probable first, or None when `top_k` is 0.
        weights: (n, top_k) float32, their probabilities, or None.
    """

    embedding: Tensor
    token_ids: Tensor | None
    weights: Tensor | None


def soft_token(
    hidden: Tensor, head: Tensor, embeddings: Tensor, temperature: float = 1.0, *, top_k: int = 0
) -> SoftToken:
    """s = softmax(hidden @ head^T / temperature) @ embeddings, streamed over the vocabulary.

    This is attention with the vocabulary as memory: query `hidden`, keys `head`, values `embeddings`. An online
    softmax keeps one running maximum, normaliser and weighted sum per row, so memory grows with n x VOCABULARY_CHUNK
    and never with n x V.

    Args:
        hidden: (n, d), any float dtype: h_{k-1}.
        head: (V, d), the LM head's rows; must be the same tensor object as `embeddings` when they are tied.
        embeddings: (V, d), the input embedding matrix E.
        temperature: tau > 0.
        top_k: how many of the most probable tokens to report per row; 0 for none.
    """
    hidden = _upcast(hidden)
    n, vocabulary = hidden.shape[0], head.shape[0]
    maximum = hidden.new_full((n, 1), float("-inf"))
    normaliser = hidden.new_zeros(n, 1)
    expectation = hidden.new_zeros(n, embeddings.shape[1])
    top_logits = hidden.new_empty(n, 0)
    top_ids = torch.empty(n, 0, dtype=torch.int64, device=hidden.device)
    for start in range(0, vocabulary, VOCABULARY_CHUNK):
        keys = head[start : start + VOCABULARY_CHUNK].to(hidden.dtype)
        values = keys if head is embeddings else embeddings[start : start + VOCABULARY_CHUNK].to(hidden.dtype)
        logits = hidden @ keys.T / temperature
        new_maximum = torch.maximum(maximum, logits.amax(dim=1, keepdim=True))
        weights = torch.exp(logits - new_maximum)
        rescale = torch.exp(maximum - new_maximum)
        normaliser = normaliser * rescale + weights.sum(dim=1, keepdim=True)
        expectation = expectation * rescale + weights @ values
        maximum = new_maximum
        if top_k:
            ids = torch.arange(start, start + logits.shape[1], device=hidden.device).expand(n, -1)
            candidates = torch.cat([top_logits, logits], dim=1)
            top_logits, picked = candidates.topk(min(top_k, candidates.shape[1]), dim=1)
            top_ids = torch.cat([top_ids, ids], dim=1).gather(1, picked)
    embedding = expectation / normaliser
    if not top_k:
        return SoftToken(embedding, None, None)
    return SoftToken(embedding, top_ids, torch.exp(top_logits - maximum) / normaliser)


def pool(states: Tensor) -> Tensor:
    """z_k = normalize(mean(h_1..h_k)) for every k at once.

    Args:
        states: (..., K, d), the pooled states in order, any float dtype: h_1..h_K, or h_0..h_{K-1} for LaSER.

    Returns:
        (..., K, d) float32, unit rows: z_1..z_K. The mean's 1/k is omitted because normalisation cancels it.
    """
    return torch.nn.functional.normalize(_upcast(states).cumsum(dim=-2), dim=-1)


def settled(previous: Tensor, current: Tensor, tolerance: float) -> Tensor:
    """Whether the last step hardly moved the embedding: 1 - cos(z_{k-1}, z_k) <= tolerance.

    Args:
        previous, current: (..., d), unit rows.
        tolerance: a cosine distance; at 0 only a step that moved nothing counts as settled.

    Returns:
        (...) bool.
    """
    return 1.0 - (_upcast(previous) * _upcast(current)).sum(dim=-1) <= tolerance


def _upcast(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
