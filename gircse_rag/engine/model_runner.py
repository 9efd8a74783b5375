"""ModelRunner: computes hidden states and soft tokens. The only file that runs the model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gircse_rag.engine.attention import PagedPlan, Plan, Segment
from gircse_rag.engine.fused import PackedLinear, can_pack
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.kv_cache import KVCache
from gircse_rag.engine.scheduler import Chunk
from gircse_rag.refinement import SoftToken, soft_token

VOCABULARY_ROWS = {"cpu": 64, "cuda": 512}  # rows whose logits exist at once; on a CPU they should fit its cache


class ModelRunner:
    """Packs chunks of sequences into one row of a batch, without padding, and runs the model on it.

    Args:
        model: a model made by `fused_copy`.
        cache: stores keys and values.
        temperature: tau of the soft token's softmax.
        pack: reorder the vocabulary's matrices for oneDNN, as `fused_copy` does for the layers.
    """

    def __init__(self, model: PreTrainedModel, cache: KVCache, *, temperature: float, pack: bool) -> None:
        self._embeddings: Tensor = model.get_input_embeddings().weight.detach()
        self._head: Tensor = model.get_output_embeddings().weight.detach()
        if self._head.data_ptr() == self._embeddings.data_ptr():
            self._head = self._embeddings
        self._body = model.model
        self._cache = cache
        self._temperature = temperature
        self._num_heads = model.config.num_attention_heads
        self._packed_vocabulary: tuple[PackedLinear, PackedLinear] | None = None
        if pack and self._embeddings.dtype == torch.bfloat16 and can_pack(self._embeddings):
            self._packed_vocabulary = PackedLinear(self._head), PackedLinear(self._embeddings.T)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and soft tokens."""
        return self._embeddings.dtype

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> Tensor:
        """Compute the chunks' rows.

        Returns:
            (m, d): hidden states after the final norm. For each chunk that reaches its sequence's end, in order, those
            of the last `num_outputs` rows.
        """
        ids: list[int] = []
        positions: list[int] = []
        soft_rows: list[int] = []
        soft: list[Tensor] = []
        output_rows: list[int] = []
        segments: list[Segment] = []
        for sequence, num_rows in chunks:
            start, end = sequence.num_cached, sequence.num_cached + num_rows
            tokens = sequence.token_ids[start:end]
            soft_inputs = sequence.soft[max(0, start - sequence.num_tokens) : max(0, end - sequence.num_tokens)]
            ids.extend(tokens)
            soft_rows.extend(range(len(ids), len(ids) + len(soft_inputs)))
            ids.extend([0] * len(soft_inputs))
            soft.extend(soft_inputs)
            positions.extend(range(start, end))
            if end == sequence.num_rows:
                output_rows.extend(range(len(ids) - sequence.num_outputs, len(ids)))
            segments.append(Segment(num_rows, end, sequence.block_table))
        cache = self._cache
        plan: Plan = PagedPlan(cache, segments) if cache.paged else GatheredPlan(cache, segments, self._num_heads)
        inputs = torch.nn.functional.embedding(self._index(ids), self._embeddings)
        if soft:
            inputs[self._index(soft_rows)] = torch.stack(soft)
        hidden = self._body(
            inputs_embeds=inputs[None], position_ids=self._index(positions)[None], use_cache=False, plan=plan
        ).last_hidden_state[0]
        output: Tensor = hidden[self._index(output_rows)]
        return output

    @torch.inference_mode()
    def soft_tokens(self, hidden: Tensor, top_k: int = 0) -> SoftToken:
        """Compute s = softmax(hidden W^T / tau) E for (n, d) hidden states: a fast refinement.soft_token.

        Returns:
            embedding (n, d) in the model's dtype; token_ids and weights (n, top_k), or None.
        """
        if hidden.dtype == torch.float32:
            return soft_token(hidden, self._head, self._embeddings, self._temperature, top_k=top_k)
        parts = [
            self._soft_token_in_half_precision(rows, top_k)
            for rows in torch.split(hidden, VOCABULARY_ROWS.get(hidden.device.type, 64))
        ]
        embedding = torch.cat([part.embedding for part in parts])
        if not top_k:
            return SoftToken(embedding, None, None)
        ids = [part.token_ids for part in parts if part.token_ids is not None]
        weights = [part.weights for part in parts if part.weights is not None]
        return SoftToken(embedding, torch.cat(ids), torch.cat(weights))

    def _soft_token_in_half_precision(self, hidden: Tensor, top_k: int) -> SoftToken:
        if self._packed_vocabulary is not None:
            head, embeddings = self._packed_vocabulary
            logits = head(hidden)
        elif hidden.is_cuda:
            logits = torch.mm(hidden, self._head.T, out_dtype=torch.float32)
        else:
            logits = hidden @ self._head.T
        if self._temperature != 1.0:
            logits /= self._temperature
        weights = torch.softmax(logits, dim=-1).to(hidden.dtype)
        embedding = weights @ self._embeddings if self._packed_vocabulary is None else embeddings(weights)
        if not top_k:
            return SoftToken(embedding, None, None)
        top = weights.float().topk(top_k, dim=-1)
        return SoftToken(embedding, top.indices, top.values)

    def _index(self, numbers: list[int]) -> Tensor:
        """Copy to the device; from pinned memory, so the host does not wait for a GPU."""
        on_gpu = self._embeddings.is_cuda
        host = torch.tensor(numbers, dtype=torch.int64, pin_memory=on_gpu)
        return host.to(self._embeddings.device, non_blocking=True) if on_gpu else host
