"""Steps of a ``Transformer`` by the compiled library: the same weights, caches and config, described to C.

C trusts shapes, strides and dtypes, so they are checked here; it checks tokens and positions itself.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from llmcli.engine.native.engine import MATRICES, NativeEngine
from llmcli.engine.native.library import Buffers, Layer, Matrix, Model, Norm, Row, library
from llmcli.engine.native.matrices import FORMATS, MAX_ROWS, Matrices
from llmcli.errors import LlmcliError
from llmcli.model import mlp
from llmcli.model.activations import Activation, curvatures
from llmcli.model.attention import Attention
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig, MoeConfig, RopeConfig
from llmcli.model.layers import Norm as NormModule
from llmcli.model.transformer import Block, Transformer

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
MIN_ANGLES = 512  # positions whose angles are computed together
MAX_TABLES = 64  # of angles that are kept: with dynamic scaling, every text has its own
NO_MEMORY = 1


class NativeStep(NativeEngine):
    """The steps of one model."""

    def __init__(self, model: Transformer, threads: int) -> None:
        self._model = weakref.ref(model)
        self._ropes = (model.config.rope, model.config.local_rope)
        self._angles: dict[tuple[RopeConfig, int], tuple[Tensor, Tensor]] = {}
        self._description = Description(model)
        super().__init__(model, self._description.model, threads)

    @torch.inference_mode()
    def feed(self, ids: Sequence[int], cache: KVCache, wanted: int) -> Tensor:
        """Feed up to MAX_ROWS tokens of one text; return the logits after each of the last ``wanted``, fp32 [.., V].

        Raises LlmcliError if the model has no learned position for them, or if memory runs out.
        """
        model = self._present()
        model.check_positions(cache.length + len(ids))
        model.fix_span(cache, len(ids))
        cache.reserve(len(ids))
        rows = [(token, cache, cache.length + number) for number, token in enumerate(ids)]
        logits = self._run(rows, wanted)
        cache.advance(len(ids))
        return logits

    @torch.inference_mode()
    def feed_each(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Feed each of several texts one token; return the logits after it, fp32 [texts, V]. Raises as ``feed``."""
        model, parts = self._present(), []
        for cache in caches:
            model.check_positions(cache.length + 1)
            model.fix_span(cache, 1)
            cache.reserve(1)
        for start in range(0, len(tokens), MAX_ROWS):
            some = slice(start, start + MAX_ROWS)
            rows = [(token, cache, cache.length) for token, cache in zip(tokens[some], caches[some], strict=True)]
            parts.append(self._run(rows, len(rows)))
        for cache in caches:
            cache.advance(1)
        return torch.cat(parts)

    def unembed(self, x: Tensor) -> Tensor:
        """The logits, fp32 [n, V], of residuals x, fp32 [n, C]."""
        self.check_process()
        assert x.shape[1:] == (self._description.model.hidden,)
        assert x.dtype == torch.float32
        assert x.device.type == "cpu"
        logits = torch.empty(len(x), self._description.vocabulary)
        for start in range(0, len(x), MAX_ROWS):
            part = x[start : start + MAX_ROWS].contiguous()
            rows = (Row * len(part))()
            for number, row in enumerate(rows):
                row.logits = logits[start + number].data_ptr()
            with self.lock:
                failure = self.library.engine_unembed(self.engine, part.data_ptr(), rows, len(part))
            assert not failure
        return logits

    def _run(self, rows: Sequence[tuple[int, KVCache, int]], wanted: int) -> Tensor:
        """Run a step of tokens with their caches and positions; the logits after the last ``wanted``."""
        self.check_process()
        assert 0 <= wanted <= len(rows)
        logits = torch.empty(wanted, self._description.vocabulary)
        described = (Row * len(rows))()
        first = len(rows) - wanted
        tables: list[Tensor] = []  # kept until the step is done: rows point into them
        for number, (row, values) in enumerate(zip(described, rows, strict=True)):
            tables += self._describe(row, *values)
            row.logits = logits[number - first].data_ptr() if number >= first else None
        with self.lock:
            failure = self.library.engine_step(self.engine, described, len(rows))
        if failure == NO_MEMORY:
            raise LlmcliError("there is not enough memory for a context of this length", "use a shorter context")
        assert not failure, "the rows do not fit the model"
        return logits

    def _present(self) -> Transformer:
        model = self._model()
        assert model is not None
        return model

    def _describe(self, row: Row, token: int, cache: KVCache, at: int) -> list[Tensor]:
        """Fill a row; returns the tables of angles that it points into."""
        tables: list[Tensor] = []
        row.token, row.position = token, at
        row.layers = ctypes.addressof(_buffers(cache, self._description.cache))
        for number, rope in enumerate(self._ropes):
            if rope is not None:
                cos, sin = self._rotation(rope, cache.span, at)
                offset = at * cos.stride(0) * cos.element_size()
                row.cos[number], row.sin[number] = cos.data_ptr() + offset, sin.data_ptr() + offset
                tables += (cos, sin)
        return tables

    def _rotation(self, rope: RopeConfig, span: int, position: int) -> tuple[Tensor, Tensor]:
        """The rotation of the positions up to ``position``, at least."""
        table = self._angles.get((rope, span))
        if table is None or len(table[0]) <= position:
            if len(self._angles) >= MAX_TABLES:
                self._angles.clear()
            count, model = max(MIN_ANGLES, 2 * position), self._present()
            table = model.rotation(rope, 0, count, span)
            for angles in table:
                assert angles.shape == (count, rope.rotated(model.config.head_dim))
                assert angles.dtype == torch.float32
                assert angles.is_contiguous()
            self._angles[rope, span] = table
        return table


def _buffers(cache: KVCache, empty: KVCache) -> ctypes.Array[Buffers]:
    """The cache's present buffers, described once until one of them is replaced. ``empty`` is one of the model's."""
    if not isinstance(cache.prepared, ctypes.Array):
        assert cache.attending == empty.attending
        described = (Buffers * len(cache.attending))()
        for layer, buffers in enumerate(described):
            keys, values, first = cache.buffers(layer)
            like, capacity = empty.buffers(layer)[0], keys.shape[2]
            for held in (keys, values):
                assert held.shape == (1, like.shape[1], capacity, like.shape[3])
                assert held.is_contiguous()
                assert held.dtype == like.dtype
                assert held.device == like.device
            buffers.keys, buffers.values = keys.data_ptr(), values.data_ptr()
            buffers.capacity, buffers.first = capacity, first
        cache.prepared = described
    return cache.prepared


class Description(Matrices):
    """A model's weights and config as structures of C, and the tensors that they point to."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        config = model.config
        self.vocabulary, self.cache = config.vocab_size, model.new_cache()
        layers = (Layer * config.num_hidden_layers)()
        for number, (layer, block) in enumerate(zip(layers, model.blocks, strict=True)):
            assert isinstance(block, Block)
            self._fill(layer, block, number, model)
        self.keep(layers)
        moe, vocabulary, hidden = config.moe, config.vocab_size, config.hidden_size
        inner = [config.intermediate_size] if moe is None or moe.dense_layers else []
        inner += [] if moe is None else [moe.intermediate_size, moe.shared_intermediate_size or 0]
        embedding, positions = self.matrix(model.embedding, vocabulary, hidden), config.max_position_embeddings
        self.model = Model(
            layers=layers,
            embedding=embedding,
            positions=Matrix() if model.positions is None else self.matrix(model.positions, positions, hidden),
            head=embedding if model.head is None else self.matrix(model.head, vocabulary, hidden),
            embedded=self._norm(model.embedding_norm, hidden),
            final=self._norm(model.norm, hidden),
            embedding_scale=config.embedding_scale,
            residual_scale=config.residual_scale,
            logit_scale=config.logit_scale,
            logit_cap=config.logit_softcap or 0.0,
            attention_scale=config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
            attention_cap=config.attention_softcap or 0.0,
            norm_eps=config.norm_eps,
            qkv_limit=config.qkv_limit or 0.0,
            gate_limit=config.gate_limit or 0.0,
            up_offset=config.up_offset,
            query_growth=config.query_scale_beta,
            query_context=1 if config.rope is None else config.rope.original_max_position_embeddings,
            layers_count=config.num_hidden_layers,
            hidden=hidden,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            inner=max(inner),
            cache_format=FORMATS[self.cache.dtype],
            activation=ACTIVATIONS.index(config.activation),
            layer_norm=config.norm == "layer",
            parallel=config.parallel_residual,
            shared_norm=config.shared_norm,
            gated=config.gated_mlp,
            norm_experts=moe is not None and moe.normalize,
            qk_norm_full=config.qk_norm == "full",
            qk_norm_per_head=config.qk_norm == "heads",
            norm_after_rope=config.qk_norm_after_rope,
        )
        for number, rope in enumerate((config.rope, config.local_rope)):
            self.model.rotated[number] = 0 if rope is None else rope.rotated(config.head_dim)

    def _fill(self, layer: Layer, block: Block, number: int, model: Transformer) -> None:
        config = model.config
        hidden, q, kv = config.hidden_size, config.q_size, config.kv_size
        assert isinstance(block.attn, Attention)
        for name in ("attn", "attn_post", "mlp", "mlp_post"):
            setattr(layer, name, self._norm(getattr(block, f"{name}_norm"), hidden))
        shared = config.qk_norm == "head"
        layer.q = self._norm(block.attn.q_norm, config.head_dim if shared else q)
        layer.k = self._norm(block.attn.k_norm, config.head_dim if shared else kv)
        assert not layer.q.bias
        assert not layer.k.bias
        layer.qkv, layer.out = self.matrix(block.attn.qkv, q + 2 * kv, hidden), self.matrix(block.attn.out, hidden, q)
        layer.window = (config.sliding_window or 0) if block.sliding else 0
        local = block.sliding and config.local_rope is not None
        layer.rope = int(local) if config.rope is not None and block.rotates else -1
        if block.attn.sinks is not None:
            assert block.attn.sinks.shape == (config.num_attention_heads,)
            layer.sinks = self.at(block.attn.sinks.detach().float().contiguous())
        if isinstance(block.mlp, mlp.MLP):
            layer.up, layer.down = self._mlp(block.mlp, config, config.intermediate_size)
            if block.mlp.curve is not None:
                layer.curve[0], layer.curve[1] = curvatures(block.mlp.curve).tolist()
        elif isinstance(block.mlp, mlp.MoE):
            self._fill_experts(layer, block.mlp, config)

    def _fill_experts(self, layer: Layer, module: mlp.MoE, config: ModelConfig) -> None:
        assert config.moe is not None
        count = len(module.experts)
        experts = (Matrix * (2 * count))()
        for index, expert in enumerate(module.experts):
            assert isinstance(expert, mlp.MLP)
            experts[2 * index], experts[2 * index + 1] = self._mlp(expert, config, config.moe.intermediate_size)
        layer.experts, layer.router = self.keep(experts), self.matrix(module.router, count, config.hidden_size)
        layer.experts_count, layer.experts_per_token = count, module.per_token
        if module.shared is not None:
            assert config.moe.shared_intermediate_size is not None
            layer.up, layer.down = self._mlp(module.shared, config, config.moe.shared_intermediate_size)
        if module.shared_gate is not None:
            gate = self.matrix(module.shared_gate, 1, config.hidden_size)
            layer.router.rest, layer.router.rows = ctypes.addressof(self.keep(gate)), count + 1

    def _mlp(self, module: mlp.MLP, config: ModelConfig, wide: int) -> tuple[Matrix, Matrix]:
        up = self.matrix(module.up, 2 * wide if config.gated_mlp else wide, config.hidden_size)
        return up, self.matrix(module.down, config.hidden_size, wide)

    def _norm(self, norm: NormModule | None, size: int) -> Norm:
        if norm is None:
            return Norm()
        assert norm.weight.shape == (size,)
        assert norm.bias is None or norm.bias.shape == (size,)
        bias = None if norm.bias is None else self.at(norm.bias.detach().float().contiguous())
        return Norm(self.at(norm.scale().detach().contiguous()), bias)


def native_step(model: Transformer) -> NativeStep | None:
    """The steps of ``model``, with as many threads as torch has; None if it cannot run here."""
    known = _has_known_layers(model.config) and _has_known_modules(model)
    if library() is None or model.device.type != "cpu" or model.dtype not in FORMATS or not known:
        return None
    return NativeStep(model, torch.get_num_threads())


def _has_known_layers(config: ModelConfig) -> bool:
    """Whether C computes everything that the config describes."""
    unknown = (
        config.mixer is not None,
        config.position == "alibi",
        config.attention_chunks,
        config.floor_scale is not None,
        config.global_head_dim is not None,
        config.num_global_key_value_heads is not None,
        config.attention_k_eq_v,
        config.value_norm,
        config.qk_norm == "unweighted",
        config.num_kv_shared_layers != 0,
        config.hidden_size_per_layer_input is not None,
        config.layer_scalar,
        config.latent is not None,
        config.attention_gate,
        config.qk_norm_after_rope and config.qk_norm == "full",
        {config.attention_out_scale, config.gate_scale, config.mlp_out_scale} != {1},
    )
    return not any(unknown) and (config.moe is None or _has_known_router(config.moe))


def _has_known_router(moe: MoeConfig) -> bool:
    """Whether C computes everything that the experts' config describes."""
    unknown = (
        moe.scores != "softmax",
        moe.choice_bias,
        moe.normalize_eps != 0,
        moe.scale != 1,
        moe.groups != 1,
        moe.weighs_inputs,
        moe.expert_scale,
        moe.beside_mlp,
        moe.router_norm,
    )
    return not any(unknown)


def _has_known_modules(model: Transformer) -> bool:
    """Whether every module with weights is one that C computes; a caller may have put others into the model."""
    return all(
        type(module) in (NormModule, *MATRICES) for module in model.modules() if next(module.children(), None) is None
    )
