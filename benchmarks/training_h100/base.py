"""The base model: its shape, and how its GGUF becomes a Hugging Face folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.training_h100.common import say

CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    rms_norm_eps=9.999999747378752e-06,
    rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}


def prepare(gguf: Path, base: Path, tokenizer: Path) -> None:
    """De-quantise to a folder in float32; gguf's own reader takes 5 s where transformers' takes 30. Says a checksum."""
    from gguf import GGUFReader, dequantize

    state = {}
    for tensor in GGUFReader(str(next(gguf.glob("*.gguf")))).tensors:
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        block, *rest = tensor.name.split(".")
        if block != "blk":
            state[OUTSIDE[block]] = torch.from_numpy(weight)
            continue
        number, kind, _ = rest
        if kind in ("attn_q", "attn_k"):  # GGUF interleaves the halves that rotary positions pair
            heads = CONFIG.num_attention_heads if kind == "attn_q" else CONFIG.num_key_value_heads
            weight = weight.reshape(heads, len(weight) // heads // 2, 2, -1).swapaxes(2, 1).reshape(weight.shape)
        state[f"model.layers.{number}.{NAMES[kind]}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
    digest = hashlib.sha256()
    for name, weight in sorted(state.items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.save_pretrained(base)
    for file in tokenizer.iterdir():
        shutil.copy(file, base / file.name)
    say("prepared", digest.hexdigest())
