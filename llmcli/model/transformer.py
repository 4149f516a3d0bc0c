"""The decoder-only transformer: token ids in, logits out, one small module for every family.

The model holds no state between calls: the keys and values of what it has read are in the caller's ``KVCache``.
Shapes: B batch, T positions of this call, S positions attended to, H query heads, K key/value heads,
D features per head, C hidden size, V vocabulary size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.model import positions
from llmcli.model.attention import Attention
from llmcli.model.cache import KeyValueStore, KVCache, PassStore
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.hooks import Hooks, PassHooks
from llmcli.model.latent_attention import LatentAttention
from llmcli.model.layers import Embedding, Linear, Norm
from llmcli.model.mixers.build import build_mixer
from llmcli.model.mlp import MLP, MLPAndExperts, MoE
from llmcli.model.per_layer import layer_input, layer_inputs
from llmcli.model.positions import Angles, Placement, Placements, Rotation
from llmcli.model.trace import Trace, kept


class Block(nn.Module):
    """One layer: attention and MLP, each added to the residual. A norm that a family lacks is the identity.

    Recurrent layers have a mixer in attention's place, hybrid ones beside it. A layer may lack the MLP, or whatever
    mixes positions, which then adds 0. With per-layer embeddings, a third part is added.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.sliding = config.layer_type(layer) == "sliding_attention"
        self.rotates = layer not in config.layers_without_rope
        self.parallel, self.scale = config.parallel_residual, config.residual_scale

        norms = config.layer_norms(layer)

        def norm(name: str) -> Norm | None:
            return Norm(config, config.hidden_size, bias=config.norm_bias) if name in norms else None

        self.attn_norm = norm("attn_norm")
        self.attn = _attention(config, layer) if config.has_attention(layer) else None
        self.mixer = build_mixer(config, config.mixer, layer) if config.mixer and config.has_mixer(layer) else None
        self.attn_post_norm = norm("attn_post_norm")
        self.mlp_norm = norm("mlp_norm")
        self.mlp: MLP | MoE | MLPAndExperts | None = None
        if config.moe is not None and config.has_mlp_and_experts(layer):
            self.mlp = MLPAndExperts(config, config.moe, config.mlp_size(layer))
        elif config.moe is not None and config.is_moe(layer):
            self.mlp = MoE(config, config.moe)
        elif config.has_mlp(layer):
            self.mlp = MLP(config, config.mlp_size(layer))
        self.mlp_post_norm = norm("mlp_post_norm")
        self.shared_norm = config.shared_norm
        self.input = layer_input(config)
        self.scalar = nn.Parameter(torch.empty(1)) if config.layer_scalar else None

    def forward(
        self,
        x: Tensor,
        placement: Placement,
        cache: KeyValueStore | None,
        trace: Trace | None,
        given: Tensor | None = None,
        hooks: PassHooks | None = None,
    ) -> Tensor:
        """The residual stream after the layer, [B, T, C]; ``given`` [B, T, P] is its part of the layers' inputs."""
        if trace is not None:
            trace.keep(trace.residual, x)
        read = x if hooks is None else hooks("attn_in", self.layer, x)
        normed = read if self.attn_norm is None else self.attn_norm(read)
        attn_out = self.contribution(self.mix(normed, placement, cache, trace, hooks), self.attn_post_norm)
        if hooks is not None:
            attn_out = hooks("attn", self.layer, attn_out)
        after = x + attn_out
        if not self.shared_norm or hooks is not None:
            read = x if self.parallel else after
            read = read if hooks is None else hooks("mlp_in", self.layer, read)
            norm = self.attn_norm if self.shared_norm else self.mlp_norm
            normed = read if norm is None else norm(read)
        mlp_out = self.transform(normed, hooks)
        if trace is not None:
            trace.keep(trace.attn_out, attn_out)
            trace.keep(trace.mlp_out, mlp_out)
        after = after + mlp_out
        if self.input is not None:
            input_out: Tensor = self.input(after, given)
            after = after + input_out
            if trace is not None:
                trace.keep(trace.input_out, input_out)
        after = after if self.scalar is None else after * self.scalar.float()
        return after if hooks is None else hooks.added(self.layer, x, after)

    def mix(
        self,
        x: Tensor,
        placement: Placement,
        cache: KeyValueStore | None,
        trace: Trace | None,
        hooks: PassHooks | None = None,
    ) -> Tensor:
        """What attention and the mixer compute from the normalized residual stream x [B, T, C]: their sum."""
        attended: Tensor | None = None if self.attn is None else self.attn(x, placement, cache, trace, hooks)
        if self.mixer is None:
            return torch.zeros_like(x) if attended is None else attended
        mixed: Tensor = self.mixer(x, cache)
        if attended is None:
            return mixed
        if trace is not None:
            added = self.contribution(mixed, None)
            trace.mixer_out[self.mixer.layer] = kept(added if trace.rows is None else added[:, trace.rows])
        return attended + mixed

    def transform(self, x: Tensor, hooks: PassHooks | None) -> Tensor:
        """What the MLP adds to the residual stream, given what it reads, normalized: x [B, T, C]."""
        if self.mlp is None:
            return torch.zeros_like(x)
        if hooks is None:
            return self.contribution(self.mlp(x), self.mlp_post_norm)
        inside = partial(hooks, "neurons", self.layer)
        out = self.mlp(x, inside) if isinstance(self.mlp, MLP) else self.mlp(x)
        return hooks("mlp", self.layer, self.contribution(out, self.mlp_post_norm))

    def contribution(self, out: Tensor, norm: Norm | None) -> Tensor:
        """What attention or the MLP adds to the residual, given its output: normalized and scaled."""
        out = out if norm is None else norm(out)
        return out if self.scale == 1 else out * self.scale


def _attention(config: ModelConfig, layer: int) -> Attention | LatentAttention:
    return Attention(config, layer) if config.latent is None else LatentAttention(config, config.latent, layer)


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head. Parameters are uninitialized: a checkpoint or training sets them.

    ``hooks.hooked`` makes a model with the same parameters whose forward passes are changed.
    """

    hooks: Hooks | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.positions = (
            Embedding(config.max_position_embeddings, config.hidden_size) if config.position == "learned" else None
        )
        self.inputs = layer_inputs(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.embedding_norm = Norm(config, config.hidden_size, bias=config.norm_bias) if config.embedding_norm else None
        self.norm = Norm(config, config.hidden_size, bias=config.norm_bias)
        self.head = (
            None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        )
        self._angles = Angles(config)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype as config.json and ``load`` name it, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def fill_constants(self, dtype: torch.dtype, device: torch.device) -> None:
        """Put ones into the norms if the model has no norm weights, and was made on the meta device."""
        if self.config.norm_weight:
            return
        for module in self.modules():
            if isinstance(module, Norm):
                module.weight = torch.ones(module.weight.shape, dtype=dtype, device=device)

    def new_cache(self, batch: int = 1) -> KVCache:
        """An empty cache of this model's shape, device and dtype."""
        return KVCache(self.config, device=self.device, dtype=self.dtype, batch=batch)

    def forward(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        """The logits [B, T, V] of token ids [B, T] that continue the text in ``cache``, to which they are added."""
        return self.unembed(self.hidden(ids, cache, trace))

    def hidden(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        """The residual stream after the last block, [B, T, C]. ``unembed`` only the positions you need."""
        T = ids.shape[1]
        past = 0 if cache is None else cache.length
        placements = self.placements(past, T, self.fix_span(cache, T))
        at = None if self.hooks is None else torch.arange(past, past + T, device=self.device)
        x = self.run_blocks(ids, self.embed(ids, past), placements, cache, trace, at)
        if cache is not None:
            cache.advance(T)
        if trace is not None:
            trace.keep(trace.residual, x)
        return x

    def run_blocks(
        self,
        ids: Tensor,
        x: Tensor,
        placements: Placements,
        cache: KeyValueStore | None,
        trace: Trace | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Run all blocks on the residual stream x [B, T, C] of ids [B, T]; return the one after the last block.

        ``at`` are the positions, [T] or [B, T], if the model has hooks.
        """
        hooks = None if self.hooks is None or at is None else self.hooks.begin(at)
        x = x if hooks is None else hooks("residual", -1, x)
        if cache is None and self.config.num_kv_shared_layers:
            cache = PassStore()
        given = None if self.inputs is None else self.inputs(ids, x)  # [B, T, L, P]
        first = 0
        if hooks is not None and hooks.hooks.start is not None:
            first, x = hooks.hooks.start.layer, hooks.hooks.start.x.to(x)
        for layer, block in enumerate(self.blocks[first:], first):
            placement = placements.windowed if block.sliding else placements.full
            placement = placement if block.rotates else placement.unrotated()
            x = block(x, placement, cache, trace, None if given is None else given[:, :, layer], hooks)
        return x

    def embed(self, ids: Tensor, past: int) -> Tensor:
        """The residual stream before the first block, [B, T, C], for ids [B, T] at positions past .. past+T-1.

        Raises LlmcliError if a position is beyond the learned ones.
        """
        x = self.embed_tokens(ids)
        if self.positions is None:
            return x
        T = ids.shape[1]
        self.check_positions(past + T)
        return x + self.positions.weight[past : past + T]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """The scaled or normalized embedding of ids [B, T], independent of position: [B, T, C]."""
        x: Tensor = self.embedding(ids)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def check_positions(self, length: int) -> None:
        """Raise LlmcliError if a text of ``length`` tokens needs more learned positions than there are."""
        limit = self.config.max_position_embeddings
        if self.positions is not None and length > limit:
            raise LlmcliError(f"{length} tokens do not fit the model's context of {limit}", "use fewer tokens")

    def span(self, cache: KVCache | None, count: int) -> int:
        """The span of a text with ``count`` more positions: which rotary angles it gets; see ``positions.span``."""
        if cache is None:
            return positions.span(self.config.rope, count)
        return positions.span(self.config.rope, max(cache.length + count, cache.planned))

    def stale(self, cache: KVCache, count: int) -> bool:
        """Whether ``count`` more positions need other angles than the cached keys have, which must be recomputed."""
        return cache.length > 0 and self.span(cache, count) != cache.span

    def fix_span(self, cache: KVCache | None, count: int) -> int:
        """``span``, recorded in the cache."""
        span = self.span(cache, count)
        if cache is not None:
            assert not self.stale(cache, count), "the cached keys were rotated by other angles"
            cache.span = span
        return span

    def placements(self, past: int, count: int, span: int) -> Placements:
        """The placements of positions past .. past+count-1, for layers with full and with windowed attention."""
        rotate_by = partial(self.rotation, past=past, count=count, span=span)
        return positions.consecutive(self.config, past, count, self.device, rotate_by)

    def rotation(self, rope: RopeConfig, past: int, count: int, span: int) -> Rotation:
        """cos and signed sin of positions past .. past+count-1, each fp32 [count, R], on the model's device."""
        return self._angles.at(rope, past, count, span, device=self.device)

    def unembed(self, x: Tensor) -> Tensor:
        """Final norm and head: [..., C] -> logits [..., V] in fp32, for generation and for views of any layer."""
        normed = self.norm(x)
        if self.head is None:
            return self.bounded(self.embedding.unembed(normed))
        logits = self.head.unembed(normed)
        return self.bounded(logits if self.head.bias is None else logits + self.head.bias.float())

    def bounded(self, logits: Tensor) -> Tensor:
        """The logits, given what the head computes [..., V]: scaled and capped, if the config says so."""
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
