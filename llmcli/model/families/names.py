"""Where a checkpoint keeps each parameter: Llama's names, of which most families differ in a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.rules import Part, Rule


@dataclass(frozen=True)
class Names:
    """Stored names, without ``.weight`` and ``.bias``; those of a layer follow ``layer``, with its number in it.

    One name for ``qkv`` or ``up`` is a matrix that the file holds stacked. ``transposed``: matrices of
    layers are stored [in, out]. ``by_head``: the stacked qkv has q, k and v of the first head, then of
    the next. ``interleaved``: the features that RoPE turns together lie side by side, not half a head apart.
    """

    embedding: str = "model.embed_tokens"
    positions: str = ""
    norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."
    attn_norm: str = "input_layernorm"
    attn_post_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = ""
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    out: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{}."
    expert_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    transposed: bool = False
    by_head: bool = False
    interleaved: bool = False

    def rules(self, config: ModelConfig) -> list[Rule]:
        """A rule for every parameter that a ``Transformer`` of this config has."""
        table = [_whole("embedding.weight", f"{self.embedding}.weight", config.vocab_size)]
        if config.position == "learned":
            table.append(_whole("positions.weight", f"{self.positions}.weight", config.max_position_embeddings))
        table += _norm("norm", self.norm, config)
        if not config.tie_word_embeddings:
            table.append(_whole("head.weight", f"{self.head}.weight", config.vocab_size))
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"blocks.{layer}.", self.layer.format(layer)
            for norm in config.layer_norms:
                table += _norm(ours + norm, theirs + getattr(self, norm), config)
            table += self._attention(config, ours + "attn.", theirs)
            if config.moe is not None and config.is_moe(layer):
                table += self._experts(config, config.moe, ours + "mlp.", theirs)
            else:
                up = [theirs + name for name in self.up]
                table += self._mlp(config, config.intermediate_size, ours + "mlp.", up, theirs + self.down)
        return table

    def _attention(self, config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        stored = [theirs + name for name in self.qkv]
        if len(stored) == 1:
            grouped = (1, config.num_attention_heads, 3) if self.by_head else None
            qkv = [Part(stored[0], sum(heads) * config.head_dim, self.transposed, grouped)]
        else:
            pairs = [self._pairs(config, count) for count in heads[:2]] + [None]
            qkv = [
                Part(name, count * config.head_dim, self.transposed, grouped)
                for name, count, grouped in zip(stored, heads, pairs, strict=True)
            ]
        table = _linear(ours + "qkv", qkv, bias=config.qkv_bias)
        out = Part(theirs + self.out, config.hidden_size, self.transposed)
        table += _linear(ours + "out", [out], bias=config.out_bias)
        if config.qk_norm is not None:
            table.append(Rule(ours + "q_norm.weight", self._head_norm(config, theirs + self.q_norm, heads[0])))
            table.append(Rule(ours + "k_norm.weight", self._head_norm(config, theirs + self.k_norm, heads[1])))
        return table

    def _pairs(self, config: ModelConfig, heads: int) -> tuple[int, int, int] | None:
        """How rows of ``heads`` heads are brought from pairs side by side to halves."""
        return (heads, config.head_dim // 2, 2) if self.interleaved else None

    def _head_norm(self, config: ModelConfig, stored: str, heads: int) -> tuple[Part, ...]:
        size = config.head_dim
        if config.qk_norm == "head":
            return (Part(f"{stored}.weight", size),)
        if config.qk_norm == "full":
            return (Part(f"{stored}.weight", heads * size),)
        if "{}" in stored:  # a tensor a head
            return tuple(Part(f"{stored.format(head)}.weight", size) for head in range(heads))
        return (Part(f"{stored}.weight", heads * size, grouped=self._pairs(config, heads), shape=(heads, size)),)

    def _mlp(self, config: ModelConfig, wide: int, ours: str, up: Sequence[str], down: str) -> list[Rule]:
        rows = (2 * wide if config.gated_mlp else wide) // len(up)
        table = _linear(ours + "up", [Part(name, rows, self.transposed) for name in up], bias=config.mlp_bias)
        down_part = Part(down, config.hidden_size, self.transposed)
        return table + _linear(ours + "down", [down_part], bias=config.mlp_bias)

    def _experts(self, config: ModelConfig, moe: MoeConfig, ours: str, theirs: str) -> list[Rule]:
        table = [_whole(ours + "router.weight", f"{theirs}{self.router}.weight", moe.num_experts)]
        for number in range(moe.num_experts):
            stored = theirs + self.expert.format(number)
            up = [stored + name for name in self.expert_up]
            table += self._mlp(config, moe.intermediate_size, f"{ours}experts.{number}.", up, stored + self.expert_down)
        return table


def _whole(target: str, source: str, rows: int) -> Rule:
    return Rule(target, (Part(source, rows),))


def _norm(target: str, source: str, config: ModelConfig) -> list[Rule]:
    parts = ["weight", "bias"] if config.norm_bias else ["weight"]
    return [_whole(f"{target}.{part}", f"{source}.{part}", config.hidden_size) for part in parts]


def _linear(target: str, parts: Sequence[Part], *, bias: bool) -> list[Rule]:
    """The rules of a matrix, whose parts are named without ``.weight``, and of its bias if it has one."""
    weights = tuple(Part(f"{p.source}.weight", p.rows, p.transposed, p.grouped, p.shape) for p in parts)
    biases = tuple(Part(f"{p.source}.bias", p.rows, False, p.grouped) for p in parts)
    return [Rule(f"{target}.weight", weights), *([Rule(f"{target}.bias", biases)] if bias else [])]
