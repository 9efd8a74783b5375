"""The four decoders as GIRCSE embedders: handles in, soft tokens between the steps, the pooled vector out.

In each step of the engine a request computes a chunk of its text, or one handle. The pooler then uses the last hidden
state h of that chunk, depending on t = positions computed - P:

    t < 0        nothing: the text is incomplete
    t = 0        h is h_0: table[slot] = softmax(head(h) / tau) @ E
    0 < t < K    h is h_t: sum += h, and table[slot] = softmax(head(h) / tau) @ E
    t = K        h is h_K: sum += h, and the output is normalize(sum)

A spec that pools the prompt (LaSER) starts the sum with h_0 and has one soft token less: K below is the number of soft
tokens, which may then be 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from gircse_rag.backends.vllm.plugin.scheduler import RESERVATION
from gircse_rag.backends.vllm.plugin.settings import Settings


class SoftTokens(nn.Module):
    """State of refinement, one row per slot.

    Attributes:
        table: (slots, d), the model's dtype: the soft token that the slot's next handle stands for.
        sums: (slots, d) float32: the sum of the states to pool so far.
    """

    table: Tensor
    sums: Tensor

    def __init__(self, settings: Settings, dimension: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._vocabulary, self._slots = settings.vocabulary, settings.slots
        shape = (settings.slots, dimension)
        self.register_buffer("table", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.register_buffer("sums", torch.zeros(shape, dtype=torch.float32, device=device), persistent=False)

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split `ids` (n,): which are handles, their slots (0 for tokens), and the token ids (0 for handles).

        Padding after a batch may be any id; its row is computed and discarded.
        """
        soft = ids >= self._vocabulary
        return soft, torch.where(soft, (ids - self._vocabulary) % self._slots, 0), torch.where(soft, 0, ids)

    def add(self, slots: Tensor, states: Tensor, first: Tensor) -> Tensor:
        """Update sums: h_t where `first`, else sum + h_t. What an earlier request left in the slot does not matter.

        Returns:
            (n, d) float32: the new sums of `slots`.
        """
        sums = states.float() + self.sums[slots].masked_fill(first[:, None], 0.0)
        self.sums.index_copy_(0, slots, sums)
        return sums


class GircsePooler(Pooler):
    """Runs after each step of the engine, identically on every tensor-parallel rank."""

    def __init__(self, model: GircseMixin, *, pools_prompt: bool) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule: the model holds the pooler
        self._first_pooled = 0 if pools_prompt else 1  # h_0 or h_1

    def get_supported_tasks(self) -> set[str]:
        return {"embed"}

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> Any:
        cursor = pooling_metadata.get_pooling_cursor()
        last = cursor.last_token_indices_gpu
        params = pooling_metadata.pooling_params
        reserved: list[Any] = [(one.extra_kwargs or {}).get(RESERVATION) for one in params]  # slot, P and K
        if None in reserved:  # vLLM profiles its memory with inputs that bypass the scheduler
            return list(self.model.soft_token(hidden_states[last]).float())
        outputs: list[Tensor | None] = [None] * len(reserved)
        times = [length - text for (_, text, _), length in zip(reserved, cursor.seq_lens_cpu.tolist(), strict=True)]
        rows = [row for row, time in enumerate(times) if time >= 0]
        if not rows:
            return outputs
        states, soft = hidden_states[last[rows]], self.model.soft
        where = torch.tensor([reserved[row][0] for row in rows], device=states.device)
        if pooled := [i for i, row in enumerate(rows) if times[row] >= self._first_pooled]:
            first = torch.tensor([times[rows[i]] == self._first_pooled for i in pooled], device=states.device)
            sums = soft.add(where[pooled], states[pooled], first)
            for i, vector in zip(pooled, nn.functional.normalize(sums, dim=-1), strict=True):
                if times[rows[i]] == reserved[rows[i]][2]:
                    outputs[rows[i]] = vector
        if unfinished := [i for i, row in enumerate(rows) if outputs[row] is None]:
            tokens = self.model.soft_token(states[unfinished])
            soft.table.index_copy_(0, where[unfinished], tokens.to(soft.table.dtype))
        return outputs


class GircseMixin:
    """Mixin for vLLM's causal LMs, whose weights and layers are used unchanged."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        settings = Settings.of(vllm_config)
        embedding = self.model.embed_tokens  # type: ignore[attr-defined]
        dtype, device = vllm_config.model_config.dtype, embedding.weight.device
        dimension = vllm_config.model_config.hf_config.hidden_size
        self._temperature = settings.spec.temperature
        self.soft = SoftTokens(settings, dimension, dtype, device)
        # CUDA graphs replay with fixed addresses, so inputs must always be in the same buffer.
        rows = max(
            vllm_config.scheduler_config.max_num_batched_tokens,
            vllm_config.compilation_config.max_cudagraph_capture_size or 0,
        )
        self.register_buffer(  # type: ignore[attr-defined]
            "input_buffer", torch.zeros(rows, dimension, dtype=dtype, device=device), persistent=False
        )
        self.pooler = GircsePooler(self, pools_prompt=settings.spec.pools_prompt)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(n,) ids of tokens and handles -> (n, d) input embeddings."""
        is_soft, slots, tokens = self.soft.split(input_ids)
        embedded: Tensor = super().embed_input_ids(tokens)  # type: ignore[misc]
        return torch.where(is_soft[:, None], self.soft.table[slots], embedded)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.input_buffer[: input_ids.shape[0]]  # type: ignore[attr-defined]
            inputs_embeds.copy_(self.embed_input_ids(input_ids))
        return super().forward(None, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]

    def soft_token(self, states: Tensor) -> Tensor:
        """softmax(head(states) / tau) @ E: (n, d) -> (n, d).

        Each tensor-parallel rank holds the same rows of head and E. It sums its share of the numerator and of the
        normaliser, relative to the largest logit of all ranks; one all-reduce adds the shares.
        """
        embedding = self.model.embed_tokens  # type: ignore[attr-defined]
        shard = embedding.shard_indices
        num_local = shard.org_vocab_end_index - shard.org_vocab_start_index  # without the padding
        weight = embedding.weight[:num_local]
        logits = self.logits_processor(self.lm_head, states, skip_gather=True)  # type: ignore[attr-defined]
        logits = logits[:, :num_local].float() / self._temperature
        token: Tensor
        if embedding.tp_size == 1:
            token = torch.softmax(logits, dim=-1).to(weight.dtype) @ weight
            return token
        ranks = get_tp_group()
        # a rank may hold only padding
        largest = logits.amax(-1, keepdim=True) if num_local else logits.new_full((len(logits), 1), float("-inf"))
        largest = ranks.all_gather(largest, dim=-1).amax(-1, keepdim=True)
        weights = torch.exp(logits - largest)
        share = torch.cat([(weights.to(weight.dtype) @ weight).float(), weights.sum(-1, keepdim=True)], dim=-1)
        total = ranks.all_reduce(share)
        token = total[:, :-1] / total[:, -1:]
        return token


@default_pooling_type(seq_pooling_type="LAST")
class GircseLlamaForCausalLM(GircseMixin, LlamaForCausalLM):
    """Llama."""


@default_pooling_type(seq_pooling_type="LAST")
class GircseMistralForCausalLM(GircseMixin, MistralForCausalLM):
    """Mistral."""


@default_pooling_type(seq_pooling_type="LAST")
class GircseQwen2ForCausalLM(GircseMixin, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


@default_pooling_type(seq_pooling_type="LAST")
class GircseQwen3ForCausalLM(GircseMixin, Qwen3ForCausalLM):
    """Qwen3."""
