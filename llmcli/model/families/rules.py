"""What defines a family: how its config.json is parsed, and its tensor names, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmcli.model.config import ModelConfig, MoeConfig

if TYPE_CHECKING:  # a download looks up the family without loading torch
    from torch import Tensor


# Precomputed tensors that old versions of transformers stored: angles of rotary positions, causal masks.
BUFFERS = r"(.*\.)?(rotary_emb\.\w+|(attn|attention)\.(masked_)?bias)"


@dataclass(frozen=True)
class Family:
    """Everything that is specific to one ``model_type``.

    ``renamed`` are (pattern, replacement) pairs for re.sub, applied to stored names, which differ in old or multimodal
    files. ``dropped`` are patterns (re.fullmatch) of stored tensors that are not parameters, such as those of an image
    encoder; ``BUFFERS`` are dropped, too. ``tokenizer_class`` is the one that transformers uses for the family: "" for
    those that use tokenizer.json as it is, None if each model's files name one. ``stacks_experts``: a file has one
    tensor for all experts of a layer, although each expert has a rule of its own. ``constants`` are numbers that every
    layer stores although they are the same in all models; ``{}`` in their names is the layer's number. ``text_only``:
    the models read images, too, but only their text model is loaded.
    """

    model_type: str
    parse: Callable[[Mapping[str, Any]], ModelConfig]
    rules: Callable[[ModelConfig], list[Rule]]
    renamed: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    tokenizer_class: str | None = None
    stacks_experts: bool = False
    constants: tuple[tuple[str, float], ...] = ()
    text_only: bool = False

    def rename(self, name: str) -> str:
        """The name that the family's rules use for a stored name."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def drops(self, name: str) -> bool:
        """Whether the stored tensor called ``name`` is known not to be a parameter."""
        return any(re.fullmatch(pattern, name) for pattern in (BUFFERS, *self.dropped))


Runs = tuple[tuple[int, float], ...]  # numbers of rows, one after another, and what they are multiplied by


@dataclass(frozen=True)
class Source:
    """A stored tensor, and the number of rows that it fills in a parameter.

    ``transposed``: stored [in, out]. ``grouped`` (a, b, c): the stored rows, viewed as [a, b, c, ...], become the
    parameter's as [a, c, b, ...]. ``parts`` (sizes): the stored rows are equal groups, each of these parts one after
    another; the parameter's are the first parts of all groups, then the second ones, and so on. ``ahead`` rows precede
    and ``kept`` rows follow each of the ``grouped``'s a groups of b c rows, and ``leading`` rows precede them all: they
    stay where they are. ``columns_grouped`` is ``grouped`` for columns. ``shape`` is the stored shape if it differs
    from rows and columns. ``shift`` is added to the stored values. ``minus_exp``: stored are -e^x for the parameter's
    values x. ``skipped`` stored rows precede the parameter's. Stored rows are the parameter's times ``multipliers``.
    """

    name: str
    rows: int
    transposed: bool = False
    grouped: tuple[int, int, int] | None = None
    parts: tuple[int, ...] = ()
    kept: int = 0
    ahead: int = 0
    leading: int = 0
    columns_grouped: tuple[int, int, int] | None = None
    shape: tuple[int, ...] = ()
    shift: float = 0.0
    minus_exp: bool = False
    skipped: int = 0
    multipliers: Runs = ()

    def stored_shape(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the stored tensor must have for a parameter of shape [rows of all sources, *columns]."""
        shape = self.shape or (self.skipped + self.rows, *columns)
        return shape[::-1] if self.transposed else shape

    @property
    def as_stored(self) -> bool:
        """Whether the stored rows are the parameter's, in the same order."""
        moved = self.transposed or self.grouped or self.columns_grouped or self.parts or self.skipped
        return not (self.computed or moved)

    @property
    def keeps_rows(self) -> bool:
        """Whether each stored row is one of the parameter, in any order."""
        return not (self.computed or self.transposed or self.columns_grouped)

    @property
    def computed(self) -> bool:
        """Whether stored numbers are computed from the parameter's, which needs float32."""
        return bool(self.shift or self.minus_exp or self.multipliers)

    def arranged(self, stored: Tensor, columns: tuple[int, ...]) -> Tensor:
        """The stored tensor as the parameter's rows: [rows, *columns]."""
        import torch

        rows = (stored.T if self.transposed else stored).reshape(self.skipped + self.rows, *columns)[self.skipped :]
        rows = rows + self.shift if self.shift else rows
        rows = torch.log(-rows) if self.minus_exp else rows
        rows = rows / self._factors(rows) if self.multipliers else rows
        rows = rows if self.columns_grouped is None else self._regrouped(rows.T, self.columns_grouped).T
        if self.parts:
            groups = rows.reshape(-1, sum(self.parts), *columns)
            return torch.cat([part.flatten(0, 1) for part in torch.split(groups, list(self.parts), dim=1)])
        if self.grouped is None:
            return rows
        moved = self._regrouped(rows[self.leading :], self.grouped, self.kept, self.ahead)
        return torch.cat((rows[: self.leading], moved)) if self.leading else moved

    @staticmethod
    def _regrouped(rows: Tensor, sizes: tuple[int, int, int], kept: int = 0, ahead: int = 0) -> Tensor:
        """Rows of a groups of b c rows, and of those that follow each group or precede it, with b and c exchanged."""
        import torch

        a, b, c = sizes
        before, moved, after = torch.split(rows.reshape(a, ahead + b * c + kept, -1), [ahead, b * c, kept], dim=1)
        moved = moved.reshape(a, b, c, -1).transpose(1, 2).reshape(a, b * c, -1)
        return torch.cat((before, moved, after), dim=1).reshape(rows.shape)

    def _factors(self, rows: Tensor) -> Tensor:
        """``multipliers`` for each of the rows, in a shape that broadcasts."""
        import torch

        factors = [torch.full((count,), factor, dtype=rows.dtype) for count, factor in self.multipliers]
        return torch.cat(factors).view(-1, *[1] * (rows.ndim - 1))

    def arranged_rows(self) -> Tensor:
        """The index of each of the parameter's rows among the stored rows (or columns, if ``transposed``): [rows]."""
        import torch

        return replace(self, transposed=False, columns_grouped=None).arranged(
            torch.arange(self.skipped + self.rows), ()
        )

    def in_file(self, rows: Tensor, columns: tuple[int, ...]) -> Tensor:
        """The inverse of ``arranged``: rows [rows, *columns] as the stored tensor; skipped ones are 0."""
        import torch

        rows = rows * self._factors(rows) if self.multipliers else rows
        if self.parts:
            groups = self.rows // sum(self.parts)
            parts = torch.split(rows, [groups * size for size in self.parts])
            rows = torch.cat([part.reshape(groups, -1, *columns) for part in parts], dim=1)
        if self.grouped is not None:
            a, b, c = self.grouped
            moved = self._regrouped(rows[self.leading :], (a, c, b), self.kept, self.ahead)
            rows = torch.cat((rows[: self.leading], moved)) if self.leading else moved
        if self.columns_grouped is not None:
            a, b, c = self.columns_grouped
            rows = self._regrouped(rows.T, (a, c, b)).T
        rows = rows - self.shift if self.shift else rows
        rows = -torch.exp(rows) if self.minus_exp else rows
        rows = torch.cat((rows.new_zeros(self.skipped, *columns), rows)) if self.skipped else rows
        shape = self.stored_shape(columns)
        return rows.reshape(shape[::-1]).T if self.transposed else rows.reshape(shape)


@dataclass(frozen=True)
class Rule:
    """A parameter of ``Transformer``, and the stored tensors that fill it, stacked along its rows."""

    target: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Names:
    """A family's tensor names, without ``.weight`` and ``.bias``; the defaults are Llama's.

    Names within a layer are appended to ``layer``, which contains the layer's number. A single name for ``qkv`` or
    ``up`` is a stacked matrix. ``transposed``: the layers' matrices are stored [in, out]. ``by_head``: the stacked qkv
    holds the queries of the first key head, its key and its value, then those of the next key head. ``interleaved``:
    the two features of a rotary pair are adjacent, not half a head apart. ``expert_transposed``: only the experts'
    matrices are stored [in, out]. ``up_interleaved``: the features of a stacked gate and up alternate.
    ``positions_skipped``: rows of ``positions`` that precede position 0's. ``layer_inputs`` are the table, projection
    and norm of per-layer embeddings, ``layer_input`` a layer's gate, output and norm. ``norms_beside`` are those
    after the MLP, before and after the experts beside it. ``mixer`` gives the rules of a recurrent layer's mixer from
    the config and what precedes its names and the stored ones, ``latent`` those of latent attention.
    """

    embedding: str = "model.embed_tokens"
    embedding_norm: str = ""
    positions: str = ""
    positions_skipped: int = 0
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
    layer_input: tuple[str, str, str] = ("", "", "")
    layer_inputs: tuple[str, str, str] = ("", "", "")
    layer_scalar: str = ""
    sinks: str = "self_attn.sinks"
    curve: tuple[str, ...] = ()
    out: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{}."
    expert_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    choice_bias: str = ""
    shared_up: tuple[str, ...] = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
    shared_down: str = "mlp.shared_expert.down_proj"
    shared_gate: str = "mlp.shared_expert_gate"
    router_norm: str = ""
    expert_scale: str = ""
    norms_beside: tuple[str, str, str] = ("", "", "")
    transposed: bool = False
    expert_transposed: bool = False
    up_interleaved: bool = False
    by_head: bool = False
    interleaved: bool = False
    mixer: Callable[[ModelConfig, str, str], list[Rule]] | None = None
    latent: Callable[[ModelConfig, str, str], list[Rule]] | None = None

    def rules(self, config: ModelConfig) -> list[Rule]:
        """A rule for every parameter of a ``Transformer`` with this config."""
        table = [_whole("embedding.weight", f"{self.embedding}.weight", config.vocab_size)]
        if config.position == "learned":
            count = config.max_position_embeddings
            learned = Source(f"{self.positions}.weight", count, skipped=self.positions_skipped)
            table.append(Rule("positions.weight", (learned,)))
        if config.embedding_norm:
            table += _norm("embedding_norm", self.embedding_norm, config)
        table += _norm("norm", self.norm, config)
        if not config.tie_word_embeddings:
            table += linear("head", [Source(self.head, config.vocab_size)], bias=config.head_bias)
        if config.hidden_size_per_layer_input is not None:
            table += self._layer_inputs(config, config.hidden_size_per_layer_input)
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"blocks.{layer}.", self.layer.format(layer)
            for norm in config.layer_norms(layer):
                table += _norm(ours + norm, theirs + getattr(self, norm), config)
            if config.has_attention(layer):
                if self.latent is None:
                    table += self._attention(config, layer, ours + "attn.", theirs)
                else:
                    table += self.latent(config, ours + "attn.", theirs)
            if self.mixer is not None and config.has_mixer(layer):
                table += self.mixer(config, ours + "mixer.", theirs)
            if config.moe is not None and config.has_mlp_and_experts(layer):
                table += self._mlp_and_experts(config, config.moe, layer, ours + "mlp.", theirs)
            elif config.moe is not None and config.is_moe(layer):
                table += self._experts(config, config.moe, ours + "mlp.", theirs)
            elif config.has_mlp(layer):
                table += self._layer_mlp(config, layer, ours + "mlp.", theirs)
            if config.hidden_size_per_layer_input is not None:
                table += self._layer_input(config, config.hidden_size_per_layer_input, ours + "input.", theirs)
            if config.layer_scalar:
                table.append(_whole(ours + "scalar", theirs + self.layer_scalar, 1))
        return table

    def _layer_inputs(self, config: ModelConfig, size: int) -> list[Rule]:
        tokens, wide = config.vocab_size_per_layer_input, config.num_hidden_layers * size
        assert tokens is not None
        embedding, projection, norm = self.layer_inputs
        return [
            _whole("inputs.embedding.weight", f"{embedding}.weight", tokens),
            *linear("inputs.projection", [Source(projection, wide)], bias=False),
            _whole("inputs.norm.weight", f"{norm}.weight", size),
        ]

    def _layer_input(self, config: ModelConfig, size: int, ours: str, theirs: str) -> list[Rule]:
        gate, out, norm = (theirs + name for name in self.layer_input)
        return [
            *linear(ours + "gate", [Source(gate, size)], bias=False),
            *linear(ours + "out", [Source(out, config.hidden_size)], bias=False),
            *_norm(ours + "norm", norm, config),
        ]

    def _attention(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        heads, size = config.projected_heads(layer), config.head_size(layer)
        stored = [theirs + name for name in self.qkv]
        if len(stored) == 1:
            group = heads[0] // heads[1] * size
            parts = (group, size, size) if self.by_head and heads[1] > 1 else ()
            qkv = [Source(stored[0], sum(heads) * size, self.transposed, parts=parts)]
        else:
            qkv = [
                Source(name, count * size, self.transposed) for name, count in zip(stored, heads, strict=True) if count
            ]
            qkv[:2] = [
                replace(source, **self._pairs(config, count)) for source, count in zip(qkv[:2], heads, strict=False)
            ]
            if config.attention_gate:  # stored with the queries: head 0's query, its gate, head 1's query, …
                qkv[0] = Source(stored[0], 2 * config.q_size, parts=(config.head_dim, config.head_dim))
        table = linear(ours + "qkv", qkv, bias=config.qkv_bias)
        out = Source(theirs + self.out, config.hidden_size, self.transposed)
        table += linear(ours + "out", [out], bias=config.out_bias)
        if config.attention_sinks:
            table.append(_whole(ours + "sinks", theirs + self.sinks, config.num_attention_heads))
        if config.qk_norm not in (None, "unweighted") and config.norm_weight:
            table.append(Rule(ours + "q_norm.weight", self._head_norm(config, theirs + self.q_norm, heads[0], size)))
            if heads[1]:
                k_norm = self._head_norm(config, theirs + self.k_norm, heads[1], size)
                table.append(Rule(ours + "k_norm.weight", k_norm))
        return table

    def _pairs(self, config: ModelConfig, heads: int) -> dict[str, Any]:
        """How a ``Source`` of ``heads`` heads arranges rotary pairs that are adjacent in the file, as its fields."""
        if not self.interleaved:
            return {}
        rotated = config.head_dim if config.rope is None else config.rope.rotated(config.head_dim)
        return {"grouped": (heads, rotated // 2, 2), "kept": config.head_dim - rotated}

    def _head_norm(self, config: ModelConfig, stored: str, heads: int, size: int) -> tuple[Source, ...]:
        if config.qk_norm == "head":
            return (Source(f"{stored}.weight", size),)
        if config.qk_norm == "full":
            return (Source(f"{stored}.weight", heads * size),)
        if "{}" in stored:  # one tensor per head
            return tuple(Source(f"{stored.format(head)}.weight", size) for head in range(heads))
        return (Source(f"{stored}.weight", heads * size, shape=(heads, size), **self._pairs(config, heads)),)

    def _mlp(
        self, config: ModelConfig, wide: int, ours: str, up: Sequence[str], down: str, *, transposed: bool
    ) -> list[Rule]:
        rows = (2 * wide if config.gated_mlp else wide) // len(up)
        grouped = (1, wide, 2) if self.up_interleaved else None
        table = linear(ours + "up", [Source(name, rows, transposed, grouped) for name in up], bias=config.mlp_bias)
        down_source = Source(down, config.hidden_size, transposed)
        return table + linear(ours + "down", [down_source], bias=config.mlp_bias)

    def _layer_mlp(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        up, wide = [theirs + name for name in self.up], config.mlp_size(layer)
        table = self._mlp(config, wide, ours, up, theirs + self.down, transposed=self.transposed)
        if config.activation == "xielu":
            table.append(Rule(ours + "curve", tuple(Source(theirs + name, 1) for name in self.curve)))
        return table

    def _mlp_and_experts(self, config: ModelConfig, moe: MoeConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        table = self._layer_mlp(config, layer, ours + "mlp.", theirs)
        table += self._experts(config, moe, ours + "moe.", theirs)
        targets = ("mlp_norm", "mlp_post_norm", "moe_norm", "moe_post_norm")
        for target, name in zip(targets, (self.mlp_norm, *self.norms_beside), strict=True):
            table += _norm(ours + target, theirs + name, config)
        return table

    def _experts(self, config: ModelConfig, moe: MoeConfig, ours: str, theirs: str) -> list[Rule]:
        transposed = self.transposed or self.expert_transposed
        table = linear(ours + "router", [Source(theirs + self.router, moe.num_experts)], bias=moe.router_bias)
        for number in range(moe.num_experts):
            stored = theirs + self.expert.format(number)
            up = [stored + name for name in self.expert_up]
            target, down = f"{ours}experts.{number}.", stored + self.expert_down
            table += self._mlp(config, moe.intermediate_size, target, up, down, transposed=transposed)
        if moe.router_norm:
            table.append(_whole(ours + "router_norm.weight", theirs + self.router_norm, config.hidden_size))
        if moe.expert_scale:
            table.append(_whole(ours + "expert_scale", theirs + self.expert_scale, moe.num_experts))
        if moe.choice_bias:
            table.append(_whole(ours + "choice_bias", theirs + self.choice_bias, moe.num_experts))
        if moe.shared_intermediate_size is not None:
            up, down = [theirs + name for name in self.shared_up], theirs + self.shared_down
            shared = moe.shared_intermediate_size
            table += self._mlp(config, shared, ours + "shared.", up, down, transposed=self.transposed)
        if moe.shared_gate:
            table += linear(ours + "shared_gate", [Source(theirs + self.shared_gate, 1)], bias=False)
        return table


def _whole(target: str, name: str, rows: int) -> Rule:
    return Rule(target, (Source(name, rows),))


def _norm(target: str, name: str, config: ModelConfig) -> list[Rule]:
    suffixes = ["weight"] * config.norm_weight + ["bias"] * config.norm_bias
    return [_whole(f"{target}.{suffix}", f"{name}.{suffix}", config.hidden_size) for suffix in suffixes]


def linear(target: str, sources: Sequence[Source], *, bias: bool) -> list[Rule]:
    """The rules for a matrix, whose sources are named without ``.weight``, and for its bias if it has one."""
    weights = tuple(replace(source, name=f"{source.name}.weight") for source in sources)
    biases = tuple(replace(source, name=f"{source.name}.bias", transposed=False, shape=()) for source in sources)
    return [Rule(f"{target}.weight", weights), *([Rule(f"{target}.bias", biases)] if bias else [])]
