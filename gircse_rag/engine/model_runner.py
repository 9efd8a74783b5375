"""ModelRunner: computes hidden states and soft tokens of sequences. The only file that runs the model."""

from __future__ import annotations

import torch
from torch import Tensor

from gircse_rag.engine.attention import PagedPlan, Plan, Segment
from gircse_rag.engine.decoder import Decoder
from gircse_rag.engine.fixed import FixedPlan
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.kv_cache import KVCache
from gircse_rag.engine.products import ROW_BLOCK
from gircse_rag.engine.scheduler import Chunk
from gircse_rag.engine.vocabulary import Vocabulary
from gircse_rag.refinement import SoftToken


class ModelRunner:
    """Packs chunks of sequences into one row of a batch, without padding, and runs the model on it.

    Args:
        decoder: computes hidden states.
        vocabulary: embeds token ids and makes soft tokens.
        cache: stores keys and values.
        num_heads: query heads per layer.
        fixed_rows: the bits of a row do not depend on the other rows. Decoder and vocabulary have it too.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        cache: KVCache,
        *,
        num_heads: int,
        fixed_rows: bool = False,
    ) -> None:
        self.decoder = decoder
        self._vocabulary = vocabulary
        self._cache = cache
        self._num_heads = num_heads
        self._fixed_rows = fixed_rows

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and soft tokens."""
        return self.decoder.dtype

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
            segments.append(Segment(num_rows, end, sequence.block_table, sequence.num_tokens))
        if self._fixed_rows:
            padding = [0] * (-len(ids) % ROW_BLOCK)
            ids.extend(padding)
            positions.extend(padding)
        plan = self._plan(segments)
        inputs = self._vocabulary.embed(self._index(ids))
        if soft:
            inputs[self._index(soft_rows)] = torch.stack(soft)
        hidden = self.decoder(inputs, self._index(positions), plan)
        output: Tensor = hidden[self._index(output_rows)]
        return output

    def _plan(self, segments: list[Segment]) -> Plan:
        if self._cache.paged:
            return PagedPlan(self._cache, segments)
        return (FixedPlan if self._fixed_rows else GatheredPlan)(self._cache, segments, self._num_heads)

    @torch.inference_mode()
    def soft_tokens(self, hidden: Tensor, top_k: int = 0) -> SoftToken:
        """Compute s = softmax(hidden W^T / tau) E for (n, d) hidden states: a fast refinement.soft_token.

        Returns:
            embedding (n, d) in the model's dtype; token_ids and weights (n, top_k), or None.
        """
        return self._vocabulary.soft_tokens(hidden, top_k)

    def _index(self, numbers: list[int]) -> Tensor:
        """Copy to the device; from pinned memory, so the host does not wait for a GPU."""
        device = self._vocabulary.device
        host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
        return host.to(device, non_blocking=True)
