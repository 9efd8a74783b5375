"""Differentiable refinement: one packed prefill, then K cached single-row steps, with gradients through the cache.

The authors recompute the whole padded sequence at each of K+1 steps, with all V logits at every position. Here the T
tokens of n texts are packed without padding, sorted by length; attention pads within groups of similar lengths. Each
step feeds one row per text, which attends to the keys and values of the prefill and of the earlier soft tokens.

The decoder is implemented here for the four families that share it (Llama, Mistral, Qwen2, Qwen3), over the Hugging
Face model's own weights. This allows folded LoRA and one product for q, k and v. Tests compare its results with theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gircse_rag.deprecation import renamed_arguments
from gircse_rag.errors import InputError
from gircse_rag.spec import FAMILIES
from gircse_rag.training.folding import Folded, Projection
from gircse_rag.training.packing import Group, Packed, Texts, pad, take, unpad

Pooling = Literal["refine", "last", "mean"]


class UnrolledRefinement(nn.Module):
    """Refine token ids to h_1..h_K with a causal LM (and its PEFT LoRA adapter), differentiably.

    Wrap this module, not the model, in DistributedDataParallel: its parameters are the model's. If `on_soft_token` is
    set, every refinement step calls it with the (n, V) weights of its soft tokens.

    Args:
        model: a Hugging Face causal LM of one of `FAMILIES`, or a PeftModel around one, already on its device.
        dtype: of the matrix products (default: the model's). Adapter parameters keep their own dtype (float32).
        groups: maximum number of groups of similar lengths into which attention splits a batch.
        clip_text_gradients: clip each text's soft-token gradient to twice the batch's geometric mean. Without it,
            the gradients of a few texts explode over the steps and dominate the update.

    Raises:
        InputError: an unsupported model family or adapter.
    """

    @renamed_arguments(level_gradients="clip_text_gradients")
    def __init__(
        self, model: Any, *, dtype: torch.dtype | None = None, groups: int = 2, clip_text_gradients: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = causal.config
        if self.config.model_type not in FAMILIES:
            raise InputError(f"training supports the families {', '.join(FAMILIES)}, not {self.config.model_type}")
        self.dtype: torch.dtype = dtype or causal.dtype
        self.groups, self.clip_text_gradients = groups, clip_text_gradients
        self.on_soft_token: Callable[[Tensor], None] | None = None
        decoder = causal.model
        # Plain attributes, not submodules: registration would broadcast and save the frozen weights twice.
        self._rotary = [decoder.rotary_emb]
        self._embeddings = decoder.embed_tokens.weight.detach().to(self.dtype)
        head = causal.get_output_embeddings().weight
        tied = head is decoder.embed_tokens.weight
        self._lm_head: Tensor = self._embeddings if tied else head.detach().to(self.dtype)
        norm, layers = partial(_Norm, dtype=self.dtype), list(decoder.layers)
        attentions, mlps = [layer.self_attn for layer in layers], [layer.mlp for layer in layers]
        self._norm = norm(decoder.norm)
        self._norms = [(norm(layer.input_layernorm), norm(layer.post_attention_layernorm)) for layer in layers]
        self._qk_norms = [(norm(a.q_norm), norm(a.k_norm)) if hasattr(a, "q_norm") else None for a in attentions]
        self._projections = [
            Projection([[a.q_proj, a.k_proj, a.v_proj] for a in attentions], self.dtype),
            Projection([[a.o_proj] for a in attentions], self.dtype),
            Projection([[m.gate_proj, m.up_proj] for m in mlps], self.dtype),
            Projection([[m.down_proj] for m in mlps], self.dtype),
        ]
        self._shape = (self.config.num_attention_heads, self.config.num_key_value_heads, attentions[0].head_dim)

    @property
    def head(self) -> Tensor:
        """(V, d), rows of the LM head in the compute dtype."""
        return self._lm_head

    def release_base(self) -> None:
        """Free the frozen weights of `model`, of which this module holds copies in its own dtype.

        Afterwards `model` only holds the adapter: it can be trained, saved and loaded, but computes nothing by itself.
        """
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.new_empty(0)

    def forward(
        self, texts: Texts | Packed, steps: int, pooling: Pooling = "refine", prompt_state: bool = False
    ) -> Tensor:
        """Refine a batch.

        Args:
            texts: n non-empty lists of token ids, or a packed batch.
            steps: K >= 1 refinement steps.
            pooling: "refine" is GIRCSE. "last" and "mean" are encoder-style baselines without soft tokens: K is 1,
                and the state is that of the last token or the mean over all tokens.
            prompt_state: return h_0 too, before the others; for "refine" only. K may then be 0.

        Returns:
            (n, K, d) in the compute dtype: h_1..h_K, neither averaged nor normalised: the input of `icr_loss`. With
            `prompt_state`, (n, K + 1, d): h_0..h_K.

        Raises:
            InputError: too few steps, an empty text, or a text that with its steps exceeds the model's sliding window.
        """
        if steps < (0 if prompt_state else 1):
            raise InputError(f"steps is {steps}; at least one refinement step is needed")
        packed = texts if isinstance(texts, Packed) else self.pack(texts)
        window = getattr(self.config, "sliding_window", None)
        if window and packed.longest + steps > window and getattr(self.config, "use_sliding_window", True):
            raise InputError(f"{packed.longest} tokens and {steps} steps exceed the model's sliding window of {window}")
        layers = list(zip(*(projection.fold() for projection in self._projections), strict=True))
        x, caches = self._prefill(packed, layers, all_rows=pooling == "mean")
        hidden = self._norm(x)
        if pooling == "mean":
            return packed.restore(_mean_pool(hidden, packed)[:, None])
        if pooling == "last":
            return packed.restore(hidden[:, None])
        states = [hidden] if prompt_state else []
        for k in range(steps):
            hidden = self._step(self._soft_token(hidden), packed, caches, layers, k)
            states.append(hidden)
        return packed.restore(torch.stack(states, dim=1))

    def pack(self, texts: Texts) -> Packed:
        """Pack lists of token ids for `forward`."""
        device = self._embeddings.device
        # Share the texts' common prefix on a CPU only: it adds kernels, whose number limits the speed on a GPU.
        share = device.type == "cpu"
        return Packed.build(texts, self.groups, self._shape[1], device, self.dtype, share=share)

    def _soft_token(self, hidden: Tensor) -> Tensor:
        """softmax(hidden @ head^T) @ E, differentiable. Materialises the (n, V) logits: one row per text."""
        weights = torch.softmax(hidden @ self._lm_head.T, dim=-1)
        if self.on_soft_token is not None:
            self.on_soft_token(weights)
        soft: Tensor = weights @ self._embeddings
        if self.clip_text_gradients and soft.requires_grad:
            soft.register_hook(_clip_per_text)  # type: ignore[no-untyped-call]
        return soft

    def _prefill(self, packed: Packed, layers: list[tuple[Folded, ...]], all_rows: bool) -> tuple[Tensor, list[_Cache]]:
        """Run the packed tokens through all layers.

        Returns states before the final norm, (T, d) if `all_rows`, else (n, d) of last tokens; and a cache per layer.
        """
        cos, sin = self._angles(packed.positions)
        x, caches = self._embeddings[packed.ids], []
        for index, (qkv, out, gate_up, down) in enumerate(layers):
            input_norm, mlp_norm = self._norms[index]
            rows = torch.cat(self._rotate(qkv(x, input_norm), index, cos, sin), dim=1).flatten(1)
            prefix_rows, *parts = torch.split(rows, [packed.prefix, *(group.tokens for group in packed.groups)])
            attended, cache, prefix_kv = [], _Cache([], [], [], []), None
            if packed.prefix:
                q, *prefix_kv = self._by_head(prefix_rows, 1)
                attended.append(_causal_attention(q, *prefix_kv).transpose(1, 2).reshape(packed.prefix, -1))
            for part, group in zip(parts, packed.groups, strict=True):
                q, k, v = self._by_head(pad(part, group), group.n)
                if group.prefix and prefix_kv is not None:
                    shared_k, shared_v = (shared.expand(group.n, -1, -1, -1) for shared in prefix_kv)
                    k, v = torch.cat((shared_k, k), dim=2), torch.cat((shared_v, v), dim=2)
                cache.keys.append(k.flatten(0, 1))
                cache.values.append(v.flatten(0, 1))
                grid = _causal_attention(q, k, v).transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])
                attended.append(unpad(grid, group))
            caches.append(cache)
            mixed = torch.cat(attended) if len(attended) > 1 else attended[0]
            if index == len(layers) - 1 and not all_rows:  # no later layer reads the other rows
                x, mixed = take(x, packed.last), take(mixed, packed.last)
            x = x + out(mixed)
            x = x + down(gate_up(x, mlp_norm), _swiglu)
        return x, caches

    def _by_head(self, grid: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split (n * width, (heads + 2 kv_heads) * head_dim) into q, k, v, each (n, its heads, width, head_dim)."""
        heads, kv_heads, head_dim = self._shape
        by_head = grid.view(n, len(grid) // n, -1, head_dim).transpose(1, 2)
        q, k, v = torch.split(by_head, [heads, kv_heads, kv_heads], dim=1)
        return q, k, v

    def _step(
        self, x: Tensor, packed: Packed, caches: list[_Cache], layers: list[tuple[Folded, ...]], k: int
    ) -> Tensor:
        """Run one step: (n, d) soft tokens s_{k+1} -> (n, d) h_{k+1}. Appends their keys and values to the caches."""
        heads, kv_heads, head_dim = self._shape
        cos, sin = self._angles(packed.lengths + k)
        for index, (qkv, out, gate_up, down) in enumerate(layers):
            input_norm, mlp_norm = self._norms[index]
            rotated, value = self._rotate(qkv(x, input_norm), index, cos, sin)
            q, key = torch.split(rotated, [heads, kv_heads], dim=1)
            caches[index].soft_keys.append(key)
            caches[index].soft_values.append(value)
            q = (q * head_dim**-0.5).view(packed.n, kv_heads, -1, head_dim)
            x = x + out(self._attend(q, caches[index], packed.groups))
            x = x + down(gate_up(x, mlp_norm), _swiglu)
        return self._norm(x)

    def _attend(self, q: Tensor, cache: _Cache, groups: list[Group]) -> Tensor:
        """Attend from one (scaled) row per text to its prefill and its soft tokens: two products, one softmax."""
        kv_heads, repeats, head_dim = q.shape[1:]
        count, sizes = len(cache.soft_keys), [group.n for group in groups]
        soft_keys = torch.split(torch.stack(cache.soft_keys, dim=2), sizes)
        soft_values = torch.split(torch.stack(cache.soft_values, dim=2), sizes)
        mixed = []
        for index, (rows, group) in enumerate(zip(torch.split(q, sizes), groups, strict=True)):
            query = rows.reshape(group.n * kv_heads, repeats, head_dim)
            own_keys, own_values = (own[index].reshape(-1, count, head_dim) for own in (soft_keys, soft_values))
            text_scores = torch.baddbmm(group.bias, query, cache.keys[index].transpose(1, 2))
            scores = torch.cat((text_scores, torch.bmm(query, own_keys.transpose(1, 2))), dim=-1)
            on_text, on_soft = torch.split(torch.softmax(scores, dim=-1), [group.prefix + group.width, count], dim=-1)
            attended = torch.baddbmm(torch.bmm(on_soft, own_values), on_text, cache.values[index])
            mixed.append(attended.view(group.n, -1))
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary[0](self._embeddings, positions[None])
        return cos[0, :, None].to(self.dtype), sin[0, :, None].to(self.dtype)

    def _rotate(self, rows: Tensor, index: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Split t rows of q, k, v; rotate q and k: (t, heads + kv_heads, head_dim), and v: (t, kv_heads, head_dim)."""
        heads, kv_heads, head_dim = self._shape
        qk, v = torch.split(rows.view(len(rows), -1, head_dim), [heads + kv_heads, kv_heads], dim=1)
        if (norms := self._qk_norms[index]) is not None:  # Qwen3 normalises each head
            q, k = torch.split(qk, [heads, kv_heads], dim=1)
            qk = torch.cat((norms[0](q), norms[1](k)), dim=1)
        return _Rotate.apply(qk, cos, sin), v  # type: ignore[no-untyped-call]


class _Cache(NamedTuple):
    """One layer: per group of texts (n * kv_heads, prefix + width, head_dim), per step (n, kv_heads, head_dim)."""

    keys: list[Tensor]
    values: list[Tensor]
    soft_keys: list[Tensor]
    soft_values: list[Tensor]


def _clip_per_text(gradient: Tensor) -> Tensor:
    """Clip each row's norm of (n, d) to twice the geometric mean of all rows' norms."""
    norms = gradient.float().norm(dim=-1, keepdim=True).clamp(min=1e-20)
    limit = 2 * norms.log().mean().exp()
    clipped: Tensor = gradient * (limit / norms).clamp(max=1).to(gradient.dtype)
    return clipped


class _Norm:
    """RMSNorm with a frozen weight."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.weight: Tensor = module.weight.detach().to(dtype)
        self.epsilon = float(module.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class _Rotate(torch.autograd.Function):
    """Rotary position embedding. Its gradient is the inverse rotation, so only the angles are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, _rotate_half(x), sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, _rotate_half(grad), sin, value=-1), None, None


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _mean_pool(hidden: Tensor, packed: Packed) -> Tensor:
    """Average the states of all tokens (T, d) per text: (n, d)."""
    rows = hidden.float()
    sums = rows.new_zeros(packed.n + 1, rows.shape[1]).index_add(0, packed.owners, rows)[:-1]  # without prefix
    if packed.prefix:
        has_prefix = torch.cat([packed.lengths.new_full((group.n,), int(group.prefix > 0)) for group in packed.groups])
        sums = sums + has_prefix[:, None] * rows[: packed.prefix].sum(dim=0)
    return (sums / packed.lengths[:, None]).to(hidden.dtype)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (n, heads, width, head_dim), the last `width` positions, to k, v (n, kv_heads, length, _).

    Padding is on the right, hidden by the causal mask. On a GPU no prefix is shared, so k is as long as q.
    """
    if not q.is_cuda:
        return _causal_attention_on_cpu(q, k.flatten(0, 1), v.flatten(0, 1))
    # cuDNN plans its kernel for each new shape (5 ms per layer), and every batch has a new shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _causal_attention_on_cpu(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same by plain matrix products: for short texts, a flash kernel's fixed cost exceeds its gain."""
    n, heads, width, head_dim = q.shape
    repeats, length = heads * n // len(keys), keys.shape[1]
    queries = (q * head_dim**-0.5).reshape(len(keys), repeats * width, head_dim)
    scores = torch.bmm(queries, keys.transpose(1, 2)).view(len(keys), repeats, width, length)
    mask = torch.ones(width, length, dtype=torch.bool, device=q.device).triu(1 + length - width)
    weights = torch.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)
    return torch.bmm(weights.view(len(keys), repeats * width, length), values).view(n, heads, width, head_dim)
