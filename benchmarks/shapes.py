"""Models with the shape of a published one and random weights: speed does not depend on the weights' values."""

from __future__ import annotations

import argparse
import random
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from benchmarks.common import Prompts
from gircse_rag.spec import EmbeddingSpec

SHAPES: dict[str, Any] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    ),
}
PEAKED = 10.0  # factor of the embeddings: a soft token's weight then lies in few tokens, as in a trained model


def load(arguments: argparse.Namespace) -> SimpleNamespace:
    """A random model of the shape, and its spec: LaSER's pooling for Qwen3, GIRCSE's for all others."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = SHAPES[arguments.shape]
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, arguments.dtype))
    model.eval().requires_grad_(False)
    model.get_input_embeddings().weight.mul_(PEAKED)
    pooling = "mean_with_prompt" if config.model_type == "qwen3" else "mean"
    spec = EmbeddingSpec(
        base_model=arguments.shape, base_hash="0", tokenizer_hash="0", dimension=config.hidden_size, pooling=pooling
    )
    return SimpleNamespace(model=model, spec=spec)


def texts(name: str, number: int) -> tuple[Prompts, Prompts]:
    """Random documents of 5 to 150 tokens (65 on average), and short queries that share 19 tokens."""
    vocabulary = SHAPES[name].vocab_size
    return (
        _prompts(vocabulary, number, shared=0, low=5, mode=40, high=150),
        _prompts(vocabulary, number, shared=19, low=3, mode=6, high=18),
    )


def _prompts(vocabulary: int, number: int, *, shared: int, low: int, mode: int, high: int) -> Prompts:
    """Random prompts: `shared` common tokens, then a triangular number of tokens between `low` and `high`."""
    rng = random.Random(0)
    prefix = tuple(rng.randrange(vocabulary) for _ in range(shared))
    lengths = [int(rng.triangular(low, high, mode)) for _ in range(number)]
    return [prefix + tuple(rng.randrange(vocabulary) for _ in range(length)) for length in lengths]


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse to write the results of a random model into the folder of the bundled model's."""
    if arguments.shape and arguments.out is None:
        parser.error("--shape needs --out FILE, because its results are not the bundled model's")
