"""Soft tokens from the heaviest tokens, against the sum over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from gircse_rag.engine import vocabulary as module
from gircse_rag.engine.products import packed_form
from gircse_rag.engine.vocabulary import Vocabulary
from gircse_rag.refinement import soft_token
from gircse_rag.weights import DecoderWeights
from tests import tiny
from tests.unit.engine.test_decoder import needs_float16_products

DTYPES = [torch.float32, pytest.param(torch.float16, marks=needs_float16_products)]


def make(dtype: torch.dtype, *, tied: bool, temperature: float = 1.0) -> tuple[Vocabulary, DecoderWeights]:
    weights = DecoderWeights.of(tiny.model(tied=tied).to(dtype))
    form = packed_form(weights.embeddings)
    return Vocabulary(weights, form, torch.float32, temperature=temperature), weights


def hidden_states() -> torch.Tensor:
    """Rows whose weight lies in ever fewer tokens: the first nearly uniform, the last nearly one token."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(70, 32, generator=draw) * torch.logspace(-3, 1, 70)[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_soft_tokens_equal_the_whole_sum(dtype: torch.dtype, tied: bool, temperature: float) -> None:
    vocabulary, weights = make(dtype, tied=tied, temperature=temperature)
    hidden = hidden_states()
    expected = soft_token(hidden, weights.head.float(), weights.embeddings.float(), temperature, top_k=3)
    found = vocabulary.soft_tokens(hidden, 3)
    assert found.token_ids is not None and expected.token_ids is not None
    assert found.weights is not None and expected.weights is not None
    assert torch.nn.functional.cosine_similarity(found.embedding, expected.embedding).min() > 1 - 1e-6
    assert (found.embedding - expected.embedding).abs().max() < 1e-3
    assert torch.equal(found.token_ids, expected.token_ids)
    assert (found.weights - expected.weights).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_spread_rows_are_summed_in_full_and_decide_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOP_TOKENS", 8)
    vocabulary, weights = make(dtype, tied=True)
    hidden = hidden_states()
    summed: list[int] = []
    expect = vocabulary._expect

    def recording(weights: torch.Tensor) -> torch.Tensor:
        summed.append(len(weights))
        return expect(weights)

    monkeypatch.setattr(vocabulary, "_expect", recording)
    together = vocabulary.soft_tokens(hidden).embedding
    assert 0 < sum(summed) < len(hidden)
    expected = soft_token(hidden, weights.head.float(), weights.embeddings.float()).embedding
    assert torch.nn.functional.cosine_similarity(together, expected).min() > 1 - 1e-6
    alone = torch.cat([vocabulary.soft_tokens(row[None]).embedding for row in hidden])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_row_stays_alone(dtype: torch.dtype) -> None:
    vocabulary, _ = make(dtype, tied=True)
    hidden = hidden_states()
    expected = vocabulary.soft_tokens(hidden).embedding
    hidden[3] = float("nan")
    found = vocabulary.soft_tokens(hidden).embedding
    assert found[3].isnan().all()
    others = torch.arange(len(hidden)) != 3
    assert (found[others] - expected[others]).abs().max() < 1e-6
