"""The vocabulary's two matrices: input embeddings and LM head. Makes soft tokens fast.

    s = softmax(h W^T / tau) E

With float32 hidden states on a CPU, only the TOP_TOKENS heaviest tokens enter the sum over E, unless they leave out
more than MAX_LEFT_OUT of a row's weight. Nearly all of the weight of a trained model lies in them (5e-6 is left out in
the median), so the product with E, half of the work, becomes a sum of 256 rows, and E needs no reordered copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gircse_rag.engine.products import ROW_BLOCK, Form, Product, make_product
from gircse_rag.refinement import VOCABULARY_CHUNK, SoftToken, soft_token
from gircse_rag.weights import DecoderWeights

VOCABULARY_ROWS = {"cpu": 64, "cuda": 512}  # rows whose logits exist at once; on a CPU they should fit its cache
TOP_TOKENS = 256
MAX_LEFT_OUT = 1e-4  # of a row's weight: moves a soft token by about 1 - cos = 5e-9


class Vocabulary:
    """Looks up input embeddings and makes soft tokens.

    Args:
        temperature: tau of the softmax.
        fixed_rows: compute ROW_BLOCK soft tokens at a time, so that the bits of one do not depend on the others.

    Attributes:
        dtype: of input embeddings, hidden states and soft tokens.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        form: Form,
        dtype: torch.dtype,
        *,
        temperature: float,
        fixed_rows: bool = False,
    ) -> None:
        self.dtype = dtype
        self._fixed_rows = fixed_rows
        self._embeddings, self._head = weights.embeddings, weights.head
        self._temperature = temperature
        self._logits: Product | None = None
        self._expectation: Product | None = None  # packed E^T, in bfloat16 only
        if form is not Form.PLAIN:
            self._logits = make_product(self._head, None, form)
            if dtype == torch.bfloat16:
                self._expectation = make_product(self._embeddings.T, None, form)
            self._head = self._embeddings  # an untied head is in the product alone

    @property
    def device(self) -> torch.device:
        return self._embeddings.device

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, d) input embeddings."""
        return torch.nn.functional.embedding(ids, self._embeddings).to(self.dtype)

    def soft_tokens(self, hidden: Tensor, top_k: int = 0) -> SoftToken:
        """Compute soft tokens for (n, d) hidden states: a fast refinement.soft_token.

        Returns:
            embedding (n, d) in `dtype`; token_ids and weights (n, top_k), or None.
        """
        if self._fixed_rows:
            count = len(hidden)
            padded = torch.cat((hidden, hidden[-1:].expand(-count % ROW_BLOCK, -1)))
            made = self._in_parts(padded, top_k, ROW_BLOCK)
            return SoftToken(*(None if part is None else part[:count] for part in made))  # type: ignore[arg-type]
        if self.dtype == torch.float32 and self._logits is None:
            return self._soft_tokens(hidden, top_k)
        return self._in_parts(hidden, top_k, VOCABULARY_ROWS.get(self.device.type, 64))

    def _in_parts(self, hidden: Tensor, top_k: int, size: int) -> SoftToken:
        parts = [self._soft_tokens(rows, top_k) for rows in torch.split(hidden, size)]
        embedding = torch.cat([part.embedding for part in parts])
        if not top_k:
            return SoftToken(embedding, None, None)
        ids = [part.token_ids for part in parts if part.token_ids is not None]
        weights = [part.weights for part in parts if part.weights is not None]
        return SoftToken(embedding, torch.cat(ids), torch.cat(weights))

    def _soft_tokens(self, hidden: Tensor, top_k: int) -> SoftToken:
        if self.dtype == torch.float32 and self._logits is None:
            return soft_token(hidden, self._head, self._embeddings, self._temperature, top_k=top_k)
        if self._logits is not None:
            logits = self._logits(hidden)
        elif hidden.is_cuda:
            logits = torch.mm(hidden, self._head.T, out_dtype=torch.float32)
        else:
            logits = hidden @ self._head.T
        if self._temperature != 1.0:
            logits /= self._temperature
        weights = torch.softmax(logits, dim=-1).to(self.dtype)
        if self.dtype == torch.float32:
            return self._heaviest(weights, top_k)
        embedding = weights @ self._embeddings if self._expectation is None else self._expectation(weights)
        if not top_k:
            return SoftToken(embedding, None, None)
        top = weights.float().topk(top_k, dim=-1)
        return SoftToken(embedding, top.indices, top.values)

    def _heaviest(self, weights: Tensor, top_k: int) -> SoftToken:
        """Sum the heaviest tokens' rows of E, and all rows where those leave out too much. Each row decides alone."""
        count = min(max(TOP_TOKENS, top_k), weights.shape[1])
        top, ids = weights.topk(count, dim=-1, sorted=top_k > 0)
        chosen = self._embeddings.index_select(0, ids.view(-1)).float().view(*ids.shape, -1)
        embedding = torch.bmm(top[:, None], chosen)[:, 0]
        spread = ~(1 - top.sum(dim=-1) <= MAX_LEFT_OUT)  # also NaN
        if spread.any():
            rows = self._expect(weights)[spread] if self._fixed_rows else self._expect(weights[spread])
            embedding[spread] = rows
        return SoftToken(embedding, ids[:, :top_k], top[:, :top_k]) if top_k else SoftToken(embedding, None, None)

    def _expect(self, weights: Tensor) -> Tensor:
        """weights @ E in float32, streamed: (n, V) -> (n, d)."""
        total = weights.new_zeros(len(weights), self._embeddings.shape[1])
        parts = torch.split(weights, VOCABULARY_CHUNK, dim=1)
        for part, rows in zip(parts, torch.split(self._embeddings, VOCABULARY_CHUNK), strict=True):
            total.addmm_(part, rows.float())
        return total
