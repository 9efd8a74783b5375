from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gircse_rag import refinement
from gircse_rag.refinement import pool, settled, soft_token


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocabulary", [1, 7, 8, 9, 64])
def test_streaming_equals_the_plain_softmax(monkeypatch: pytest.MonkeyPatch, vocabulary: int, tied: bool) -> None:
    monkeypatch.setattr(refinement, "VOCABULARY_CHUNK", 8)
    hidden, head = _random(3, 5), _random(vocabulary, 5, seed=1)
    embeddings = head if tied else _random(vocabulary, 5, seed=2)
    token = soft_token(hidden, head, embeddings, temperature=0.7)
    expected = torch.softmax(hidden @ head.T / 0.7, dim=1) @ embeddings
    torch.testing.assert_close(token.embedding, expected)
    assert token.token_ids is None
    assert token.weights is None


@settings(max_examples=50, deadline=None)
@given(top_k=st.integers(1, 30), vocabulary=st.integers(1, 30), seed=st.integers(0, 10))
def test_streaming_keeps_the_top_tokens(top_k: int, vocabulary: int, seed: int) -> None:
    hidden, head = _random(2, 4, seed=seed), _random(vocabulary, 4, seed=seed + 100)
    weights = torch.softmax(hidden @ head.T, dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refinement, "VOCABULARY_CHUNK", 4)
        token = soft_token(hidden, head, head, top_k=top_k)
    expected = weights.topk(min(top_k, vocabulary))
    assert token.token_ids is not None
    assert token.weights is not None
    assert torch.equal(token.token_ids, expected.indices)
    torch.testing.assert_close(token.weights, expected.values)


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.full((1, 2), 1e4)
    head = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert torch.equal(soft_token(hidden, head, head).embedding, torch.ones(1, 2))


def test_bfloat16_is_accumulated_in_float32() -> None:
    hidden, head = _random(4, 16, dtype=torch.bfloat16), _random(5000, 16, seed=1, dtype=torch.bfloat16)
    token = soft_token(hidden, head, head)
    expected = torch.softmax(hidden.double() @ head.double().T, dim=1) @ head.double()
    assert token.embedding.dtype == torch.float32
    torch.testing.assert_close(token.embedding.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_full_logit_matrix_is_never_materialised() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, head = torch.randn(64, 4), torch.randn(50_000, 4)
    with Watch():
        soft_token(hidden, head, head, top_k=8)
    assert 0 < largest <= 64 * (refinement.VOCABULARY_CHUNK + 8) < 64 * 50_000


def test_pool_is_the_normalised_running_mean() -> None:
    states = _random(2, 4, 3)
    z = pool(states)
    for k in range(1, 5):
        mean = states[:, :k].mean(dim=1)
        torch.testing.assert_close(z[:, k - 1], mean / mean.norm(dim=1, keepdim=True))
    assert pool(states.bfloat16()).dtype == torch.float32


def test_settled_compares_cosine_distance() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    assert settled(a, b, 0.1).tolist() == [True, False]
    assert settled(a, b, 0.21).tolist() == [True, True]
