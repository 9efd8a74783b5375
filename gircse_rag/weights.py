"""The weights and settings of a decoder, independent of transformers' model classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_FOREIGN_SETTINGS = ("attn_logit_softcapping", "final_logit_softcapping", "attention_sinks")


@dataclass(frozen=True)
class DecoderConfig:
    """The settings of config.json that the engine needs, under transformers' names.

    Attributes:
        attention_scaling: factor of the rotary cosines and sines; not 1 for yarn.
        unsupported: settings of other families that this model has, which the engine would ignore.
    """

    model_type: str
    hidden_act: str
    sliding_window: int | None
    unsupported: tuple[str, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    attention_scaling: float


@dataclass(frozen=True)
class DecoderWeights:
    """All weights of a causal LM.

    Attributes:
        config: its settings.
        tensors: the weights by transformers' names. Without "lm_head.weight" the head is tied to the embeddings.
        frequencies: (head_dim / 2,) float32: rotary angle per position.
    """

    config: DecoderConfig
    tensors: Mapping[str, Tensor]
    frequencies: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel) -> DecoderWeights:
        """Take the weights of a transformers model; the tensors are shared, not copied."""
        config, rotary = model.config, model.model.rotary_emb
        tensors = dict(model.named_parameters())
        if tensors.get(HEAD) is not None and tensors[HEAD].data_ptr() == tensors[EMBEDDINGS].data_ptr():
            del tensors[HEAD]
        return cls(
            DecoderConfig(
                model_type=config.model_type,
                hidden_act=config.hidden_act,
                sliding_window=getattr(config, "sliding_window", None),
                unsupported=tuple(name for name in _FOREIGN_SETTINGS if getattr(config, name, None)),
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=model.model.layers[0].self_attn.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                rms_norm_eps=config.rms_norm_eps,
                attention_scaling=float(rotary.attention_scaling),
            ),
            tensors,
            rotary.inv_freq.detach().float(),
        )

    @property
    def embeddings(self) -> Tensor:
        """(V, d): the input embedding matrix E."""
        return self.tensors[EMBEDDINGS].detach()

    @property
    def head(self) -> Tensor:
        """(V, d): the LM head; the same object as `embeddings` if they are tied."""
        return self.tensors[HEAD].detach() if HEAD in self.tensors else self.embeddings

    @property
    def num_bytes(self) -> int:
        """Memory of all weights in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
