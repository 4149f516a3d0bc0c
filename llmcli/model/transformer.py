"""The decoder-only transformer, token ids in and logits out: one small module for every family.

The model holds no state between calls: what was read before lives in the caller's ``KVCache``.
Shapes: B batch, T positions of this call, S positions to attend to, H query heads, K key/value heads,
D features a head, C hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.model.attention import Attention, Place, causal_mask
from llmcli.model.cache import KVCache, Store
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.layers import Embedding, Linear, Norm, vector
from llmcli.model.mlp import MLP, MoE
from llmcli.model.positions import inverse_frequencies, rotation, span
from llmcli.model.trace import Trace

GPU_BLOCK = 256  # positions by which a cache on a GPU grows: every growth records the step anew; see ``graph``
ROTATIONS = 256  # positions whose angles are computed together while single tokens are decoded


class Block(nn.Module):
    """One layer: attention, then the MLP, each adding to the residual. A norm that a family lacks is the identity."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.sliding = config.layer_type(layer) == "sliding_attention"
        self.rotates = layer not in config.layers_without_rope
        self.parallel, self.scale = config.parallel_residual, config.residual_scale

        def norm(name: str) -> Norm | None:
            return Norm(config, config.hidden_size, bias=config.norm_bias) if name in config.layer_norms else None

        self.attn_norm = norm("attn_norm")
        self.attn = Attention(config, layer)
        self.attn_post_norm = norm("attn_post_norm")
        self.mlp_norm = norm("mlp_norm")
        self.mlp: MLP | MoE
        if config.moe is not None and config.is_moe(layer):
            self.mlp = MoE(config, config.moe)
        else:
            self.mlp = MLP(config, config.intermediate_size)
        self.mlp_post_norm = norm("mlp_post_norm")
        self.shared_norm = config.shared_norm

    def forward(self, x: Tensor, place: Place, cache: Store | None, trace: Trace | None) -> Tensor:
        if trace is not None:
            trace.keep(trace.residual, x)
        normed = x if self.attn_norm is None else self.attn_norm(x)
        attn_out: Tensor = self.attn(normed, place, cache, trace)
        attn_out = self.added(attn_out, self.attn_post_norm)
        after = x + attn_out
        if not self.shared_norm:
            normed = x if self.parallel else after
            normed = normed if self.mlp_norm is None else self.mlp_norm(normed)
        mlp_out = self.added(self.mlp(normed), self.mlp_post_norm)
        if trace is not None:
            trace.keep(trace.attn_out, attn_out)
            trace.keep(trace.mlp_out, mlp_out)
        return after + mlp_out

    def added(self, out: Tensor, norm: Norm | None) -> Tensor:
        """What a sublayer's output adds to the residual."""
        out = out if norm is None else norm(out)
        return out if self.scale == 1 else out * self.scale


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head. Parameters come from ``checkpoint.load`` or from training."""

    alone = True  # whether all of the model is in this process; see ``split``

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.positions = (
            Embedding(config.max_position_embeddings, config.hidden_size) if config.position == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Norm(config, config.hidden_size, bias=config.norm_bias)
        self.head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        # The last rotations of single positions, and what they depend on. No buffers: never to be saved or cast.
        self._rotations: dict[RopeConfig, tuple[tuple[object, ...], tuple[Tensor, Tensor]]] = {}

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def new_cache(self, batch: int = 1) -> KVCache:
        """An empty cache of this model's shape, device and dtype."""
        block = GPU_BLOCK if self.device.type == "cuda" else 1
        return KVCache(self.config, device=self.device, dtype=self.dtype, batch=batch, block=block)

    def forward(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        """Logits [B, T, V] for token ids [B, T] that follow what ``cache`` holds (and are added to it)."""
        return self.unembed(self.hidden(ids, cache, trace))

    def hidden(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        """The residual stream after the last block, [B, T, C]: ``unembed`` only the positions you need."""
        T = ids.shape[1]
        past = 0 if cache is None else cache.length
        x = vector(self.embed(ids, past))
        x = self.through(x, self.places(past, T, self.turn(cache, T)), cache, trace)
        if cache is not None:
            cache.advance(T)
        if trace is not None:
            trace.keep(trace.residual, x)
        return x.view(*ids.shape, -1)

    def through(
        self, x: Tensor, places: tuple[Place, Place], cache: Store | None, trace: Trace | None = None
    ) -> Tensor:
        """The residual stream behind the blocks, from that before them: x [B, T, C] that stands at ``places``."""
        full, sliding = places
        for block in self.blocks:
            place = sliding if block.sliding else full
            x = block(x, place if block.rotates else replace(place, rope=None), cache, trace)
        return x

    def embed(self, ids: Tensor, past: int) -> Tensor:
        """The residual stream before the first block, [B, T, C], of ids that stand behind ``past`` others."""
        x = self.embed_tokens(ids)
        if self.positions is None:
            return x
        T = ids.shape[1]
        self.check_positions(past + T)
        return x + self.positions.weight[past : past + T]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """The scaled embedding of ids, wherever they stand: [B, T, C]."""
        x: Tensor = self.embedding(ids)
        if self.config.embedding_scale != 1:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)  # rounded, as Gemma is trained
        return x

    def check_positions(self, length: int) -> None:
        """Raise where a text of ``length`` has more positions than were learned."""
        limit = self.config.max_position_embeddings
        if self.positions is not None and length > limit:
            raise LlmcliError(f"{length} tokens do not fit the model's context of {limit}", "use fewer")

    def span(self, cache: KVCache | None, count: int) -> int:
        """What decides the angles of the next ``count`` positions; see ``rope.span``."""
        if cache is None:
            return span(self.config.rope, count)
        return span(self.config.rope, max(cache.length + count, cache.planned))

    def stale(self, cache: KVCache, count: int) -> bool:
        """Whether ``count`` more positions would turn otherwise than those in the cache were: then read them anew."""
        return cache.length > 0 and self.span(cache, count) != cache.span

    def turn(self, cache: KVCache | None, count: int) -> int:
        """``span``, noted in the cache."""
        now = self.span(cache, count)
        if cache is not None:
            assert not self.stale(cache, count), "the cache's keys are turned by other angles"
            cache.span = now
        return now

    def places(self, past: int, count: int, span: int) -> tuple[Place, Place]:
        """Where positions past .. past+count-1 stand, for layers with full and with windowed attention."""
        config, window = self.config, self.config.sliding_window
        mask = causal_mask(past, count, self.device) if past and count > 1 else None
        full = Place(self._rotation(config.rope, past, count, span), None, mask)
        if window is None:
            return full, full
        if count > 1 and past + count > window:
            mask = causal_mask(min(past, window - 1), count, self.device, window)
        local = full.rope
        if config.local_rope is not None:
            local = self._rotation(config.local_rope, past, count, span)
        return full, Place(local, window, mask)

    def _rotation(self, rope: RopeConfig | None, past: int, count: int, span: int) -> tuple[Tensor, Tensor] | None:
        if rope is None:
            return None
        if count > 1:
            return self.angles(rope, past, count, span)
        # One token after the other: the angles of the positions around it are computed together.
        key, place = (span, past // ROTATIONS, self.dtype, self.device), past % ROTATIONS
        if rope not in self._rotations or self._rotations[rope][0] != key:
            self._rotations[rope] = key, self.angles(rope, past - place, ROTATIONS, span)
        cos, signed_sin = self._rotations[rope][1]
        return cos[place : place + 1], signed_sin[place : place + 1]

    def angles(self, rope: RopeConfig, past: int, count: int, span: int) -> tuple[Tensor, Tensor]:
        """``rotation`` of positions past .. past+count-1, in the model's dtype and on its device."""
        frequencies = inverse_frequencies(rope, self.config.head_dim, span).to(self.device)
        return rotation(frequencies, past, count, self.dtype, rope.attention_factor)

    def unembed(self, x: Tensor) -> Tensor:
        """Final norm and head: [..., C] -> logits [..., V]. Shared by generation and every view of a layer."""
        normed = self.norm(vector(x))
        logits: Tensor = self.embedding.unembed(normed) if self.head is None else self.head(normed)
        logits = logits.view(*x.shape[:-1], -1)
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
