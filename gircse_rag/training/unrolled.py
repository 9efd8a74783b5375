"""Differentiable refinement: one packed prefill, then K cached single-row steps, gradients through the cache.

The authors recompute the whole sequence at each of K+1 steps, with padding, over all V logits. Here texts are packed
without padding, sorted by length; only attention sees padding, and only within a group of like lengths. Step k feeds
one row a text and attends to the prefill's keys and values and to those of the soft tokens before it.

The decoder is written out for the four families that share it (Llama, Mistral, Qwen2, Qwen3), over the Hugging Face
model's own weights: that lets LoRA be folded and q, k, v be one product. Tests hold it to the Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gircse_rag.deprecation import renamed_arguments
from gircse_rag.errors import InputError
from gircse_rag.spec import FAMILIES
from gircse_rag.training.folding import Folded, Projection
from gircse_rag.training.packing import Group, Packed, pad, take, unpad

Pooling = Literal["refine", "last", "mean"]


class UnrolledRefinement(nn.Module):
    """A causal LM (with a PEFT LoRA adapter on it) as a function from token ids to h_1..h_K.

    Wrap this module, not the model, in DistributedDataParallel: its parameters are the model's. `on_soft_token`, if
    set, is called with the (n, V) weights of every soft token.

    Args:
        model: a Hugging Face causal LM of one of `FAMILIES`, or a PeftModel around one; on its device already.
        dtype: what matrix products run in; default: the model's. Adapter parameters keep their own dtype (float32).
        groups: into how many groups of like lengths a batch is cut for attention.
        clip_text_gradients: clip each text's gradient at a soft token to twice the geometric mean over the texts that
            go forward together. Without it the gradients of a few texts explode along the chain and decide the step.

    Raises:
        InputError: a family or an adapter that this decoder would get wrong.
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
            raise InputError(f"training knows the families {', '.join(FAMILIES)}, not {self.config.model_type}")
        self.dtype: torch.dtype = dtype or causal.dtype
        self.groups, self.clip_text_gradients = groups, clip_text_gradients
        self.on_soft_token: Callable[[Tensor], None] | None = None
        decoder = causal.model
        # Plain attributes: module registration would list (and broadcast, and save) the frozen weights twice.
        self._rotary = [decoder.rotary_emb]
        self._embeddings = decoder.embed_tokens.weight.detach().to(self.dtype)
        head = causal.get_output_embeddings().weight
        tied = head is decoder.embed_tokens.weight
        self._head = self._embeddings if tied else head.detach().to(self.dtype)
        self._norm = _Norm(decoder.norm, self.dtype)
        layers = list(decoder.layers)
        self._norms = [
            (_Norm(layer.input_layernorm, self.dtype), _Norm(layer.post_attention_layernorm, self.dtype))
            for layer in layers
        ]
        self._head_norms = [
            (_Norm(layer.self_attn.q_norm, self.dtype), _Norm(layer.self_attn.k_norm, self.dtype))
            if hasattr(layer.self_attn, "q_norm")
            else None
            for layer in layers
        ]
        attentions, mlps = [layer.self_attn for layer in layers], [layer.mlp for layer in layers]
        self._projections = [
            Projection([[a.q_proj, a.k_proj, a.v_proj] for a in attentions], self.dtype),
            Projection([[a.o_proj] for a in attentions], self.dtype),
            Projection([[m.gate_proj, m.up_proj] for m in mlps], self.dtype),
            Projection([[m.down_proj] for m in mlps], self.dtype),
        ]
        self._shape = (
            self.config.num_attention_heads,
            self.config.num_key_value_heads,
            attentions[0].head_dim,
        )

    def forward(self, texts: Sequence[Sequence[int]] | Packed, steps: int, pooling: Pooling = "refine") -> Tensor:
        """Refine a batch.

        Args:
            texts: n lists of token ids, none empty; or a batch that is packed already.
            steps: K >= 1 refinement steps.
            pooling: "refine" is GIRCSE. "last" and "mean" are the encoder-style baselines: no soft tokens, one state a
                text (K is 1), the last token's or the mean over the text's tokens.

        Returns:
            (n, K, d) in the compute dtype: h_1..h_K, neither averaged nor normalised; what `icr_loss` takes.

        Raises:
            InputError: no step, an empty text, or one longer than the model's sliding window.
        """
        if steps < 1:
            raise InputError(f"steps is {steps}; at least one refinement step is needed")
        packed = texts if isinstance(texts, Packed) else self.pack(texts)
        window = getattr(self.config, "sliding_window", None)
        if window and packed.longest + steps > window and getattr(self.config, "use_sliding_window", True):
            raise InputError(f"a text of {packed.longest} tokens exceeds the model's sliding window of {window}")
        layers = list(zip(*(projection.fold() for projection in self._projections), strict=True))
        x, caches = self._prefill(packed, layers, whole=pooling == "mean")
        hidden = self._norm(x)
        if pooling == "mean":
            return packed.restore(_mean(hidden, packed)[:, None])
        if pooling == "last":
            return packed.restore(hidden[:, None])
        states = []
        for k in range(steps):
            hidden = self._step(self._soft_token(hidden), packed, caches, layers, k)
            states.append(hidden)
        return packed.restore(torch.stack(states, dim=1))

    def pack(self, texts: Sequence[Sequence[int]]) -> Packed:
        """Lists of token ids as this module's forward takes them."""
        device = self._embeddings.device
        # On a GPU a batch is bound by the number of kernels, and a shared prefix is one more group of them.
        share = device.type == "cpu"
        return Packed.build(texts, self.groups, self._shape[1], device, self.dtype, share=share)

    def _soft_token(self, hidden: Tensor) -> Tensor:
        """softmax(hidden @ head^T) @ E, differentiable. (n, V) logits exist: n is one row a text."""
        weights = torch.softmax(hidden @ self._head.T, dim=-1)
        if self.on_soft_token is not None:
            self.on_soft_token(weights)
        soft: Tensor = weights @ self._embeddings
        if self.clip_text_gradients and soft.requires_grad:
            soft.register_hook(_clip_per_text)  # type: ignore[no-untyped-call]
        return soft

    def _prefill(self, packed: Packed, layers: list[tuple[Folded, ...]], whole: bool) -> tuple[Tensor, list[_Cache]]:
        """Last-layer states before the final norm, (T, d), or (n, d) of each text's last token; keys and values."""
        heads = self._shape[0]
        cos, sin = self._angles(packed.positions)
        x, caches = self._embeddings[packed.ids], []
        for index, (qkv, out, gate_up, down) in enumerate(layers):
            first, second = self._norms[index]
            rows = torch.cat(self._rotated(qkv(x, first), index, cos, sin), dim=1).flatten(1)
            beginning, *parts = torch.split(rows, [packed.prefix, *(group.tokens for group in packed.groups)])
            attended, cache, before = [], _Cache([], [], [], []), None
            if packed.prefix:
                q, *before = self._by_head(beginning, 1)
                attended.append(_causal(q, *before).transpose(1, 2).reshape(packed.prefix, -1))
            for part, group in zip(parts, packed.groups, strict=True):
                q, k, v = self._by_head(pad(part, group), group.n)
                if group.prefix and before is not None:
                    k, v = (
                        torch.cat((shared.expand(group.n, -1, -1, -1), mine), dim=2)
                        for shared, mine in zip(before, (k, v), strict=True)
                    )
                cache.keys.append(k.flatten(0, 1))
                cache.values.append(v.flatten(0, 1))
                attended.append(unpad(_causal(q, k, v).transpose(1, 2).reshape(-1, heads * q.shape[-1]), group))
            caches.append(cache)
            mixed = torch.cat(attended) if len(attended) > 1 else attended[0]
            if index == len(layers) - 1 and not whole:  # nobody attends to what the other rows would become
                x, mixed = take(x, packed.last), take(mixed, packed.last)
            x = x + out(mixed)
            x = x + down(gate_up(x, second), _gated)
        return x, caches

    def _by_head(self, grid: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """(n * width, (heads + 2 kv_heads) * size) -> q, k, v, each (n, its heads, width, size)."""
        heads, kv_heads, size = self._shape
        q, k, v = torch.split(
            grid.view(n, len(grid) // n, -1, size).transpose(1, 2), [heads, kv_heads, kv_heads], dim=1
        )
        return q, k, v

    def _step(
        self, x: Tensor, packed: Packed, caches: list[_Cache], layers: list[tuple[Folded, ...]], k: int
    ) -> Tensor:
        """(n, d) soft tokens at position N + k -> (n, d) h_{k+1}; their keys and values join the caches."""
        heads, kv_heads, size = self._shape
        cos, sin = self._angles(packed.lengths + k)
        for index, (qkv, out, gate_up, down) in enumerate(layers):
            first, second = self._norms[index]
            rotated, value = self._rotated(qkv(x, first), index, cos, sin)
            q, key = torch.split(rotated, [heads, kv_heads], dim=1)
            caches[index].soft_keys.append(key)
            caches[index].soft_values.append(value)
            x = x + out(self._attend((q * size**-0.5).view(packed.n, kv_heads, -1, size), caches[index], packed.groups))
            x = x + down(gate_up(x, second), _gated)
        return self._norm(x)

    def _attend(self, q: Tensor, cache: _Cache, groups: list[Group]) -> Tensor:
        """One row a text (scaled) against its prefix and its soft tokens so far, as two products and one softmax."""
        kv_heads, repeats, size = q.shape[1:]
        count, sizes = len(cache.soft_keys), [group.n for group in groups]
        soft_keys = torch.split(torch.stack(cache.soft_keys, dim=2), sizes)
        soft_values = torch.split(torch.stack(cache.soft_values, dim=2), sizes)
        mixed = []
        for index, (rows, group) in enumerate(zip(torch.split(q, sizes), groups, strict=True)):
            query = rows.reshape(group.n * kv_heads, repeats, size)
            own_keys, own_values = (own[index].reshape(-1, count, size) for own in (soft_keys, soft_values))
            scores = torch.cat(
                (
                    torch.baddbmm(group.bias, query, cache.keys[index].transpose(1, 2)),
                    torch.bmm(query, own_keys.transpose(1, 2)),
                ),
                dim=-1,
            )
            on_text, on_soft = torch.split(torch.softmax(scores, dim=-1), [group.prefix + group.width, count], dim=-1)
            attended = torch.baddbmm(torch.bmm(on_soft, own_values), on_text, cache.values[index])
            mixed.append(attended.view(group.n, -1))
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary[0](self._embeddings, positions[None])
        return cos[0, :, None].to(self.dtype), sin[0, :, None].to(self.dtype)

    def _rotated(self, rows: Tensor, index: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of q, k, v -> (t, heads + kv_heads, size) queries and keys, rotated; (t, kv_heads, size) values."""
        heads, kv_heads, size = self._shape
        qk, v = torch.split(rows.view(len(rows), -1, size), [heads + kv_heads, kv_heads], dim=1)
        if (norms := self._head_norms[index]) is not None:  # Qwen3 normalises each head first
            q, k = torch.split(qk, [heads, kv_heads], dim=1)
            qk = torch.cat((norms[0](q), norms[1](k)), dim=1)
        return _Rotate.apply(qk, cos, sin), v  # type: ignore[no-untyped-call]


class _Cache:
    """Keys and values of one layer: the prefill's, (n * kv_heads, width, size) a group; (n, kv_heads, size) a step."""

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], soft_keys: list[Tensor], soft_values: list[Tensor]
    ) -> None:
        self.keys, self.values, self.soft_keys, self.soft_values = keys, values, soft_keys, soft_values


def _clip_per_text(gradient: Tensor) -> Tensor:
    """(n, d) with each row's norm clipped to twice the geometric mean of all rows' norms."""
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
    """Rotary positions; the gradient is the rotation back, so nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, _half_turn(x), sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, _half_turn(grad), sin, value=-1), None, None


def _half_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _mean(hidden: Tensor, packed: Packed) -> Tensor:
    """(T, d) states of all tokens -> (n, d), each text's mean."""
    rows = hidden.float()
    sums = rows.new_zeros(packed.n + 1, rows.shape[1]).index_add(0, packed.owners, rows)[:-1]
    if packed.prefix:
        begins = torch.cat([packed.lengths.new_full((group.n,), int(group.prefix > 0)) for group in packed.groups])
        sums = sums + begins[:, None] * rows[: packed.prefix].sum(dim=0)
    return (sums / packed.lengths[:, None]).to(hidden.dtype)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, heads, width, size) queries, the last `width` of the keys' positions; (n, kv_heads, ...) keys and values.

    Padding is on the right, where a causal mask already hides it from every real row.
    """
    if not q.is_cuda:
        return _causal_plain(q, k.flatten(0, 1), v.flatten(0, 1))
    # cuDNN's kernel plans anew for each shape (5 ms a layer), and here every batch is another shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _causal_plain(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same as plain products: on a CPU a flash kernel's set-up costs more than short rows do."""
    n, heads, width, size = q.shape
    repeats, length = heads * n // len(keys), keys.shape[1]
    queries = (q * size**-0.5).reshape(len(keys), repeats * width, size)
    scores = torch.bmm(queries, keys.transpose(1, 2)).view(len(keys), repeats, width, length)
    mask = torch.ones(width, length, dtype=torch.bool, device=q.device).triu(1 + length - width)
    weights = torch.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)
    return torch.bmm(weights.view(len(keys), repeats * width, length), values).view(n, heads, width, size)
