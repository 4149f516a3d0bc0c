"""What describes an architecture of llama.cpp: its tensors' names, its metadata, and what it cannot express."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.families.rules import Family, Names, Rule, Runs, Source

NAMES = Names(
    embedding="token_embd",
    positions="position_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    attn_norm="attn_norm",
    attn_post_norm="post_attention_norm",
    mlp_norm="ffn_norm",
    mlp_post_norm="post_ffw_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    q_norm="attn_q_norm",
    k_norm="attn_k_norm",
    out="attn_output",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    router="ffn_gate_inp",
    expert="experts.{}.",  # the reader divides a tensor of all experts: see ``storage/gguf/weights.py``
    expert_up=("ffn_gate", "ffn_up"),
    expert_down="ffn_down",
)
PAIRED = replace(NAMES, interleaved=True)  # converters reorder the rows of q and k of Llama's kin
UNGATED = replace(NAMES, up=("ffn_up",))
STACKED = replace(UNGATED, qkv=("attn_qkv",))
SHARED_NAMES = replace(
    NAMES,
    shared_up=("ffn_gate_shexp", "ffn_up_shexp"),
    shared_down="ffn_down_shexp",
    shared_gate="ffn_gate_inp_shexp",
)
DELTA_NET_NAMES = replace(SHARED_NAMES, mlp_norm="post_attention_norm")
DROPPED = (r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight")  # part of the config


@dataclass(frozen=True)
class Value:
    """A number of a model: its key in config.json and, after the architecture's name, in the metadata.

    ``of`` returns it for a config; None: it has none. A file must have the value if it is ``required``; ``read`` finds
    it there.
    """

    name: str
    key: str
    of: Callable[[ModelConfig], int | float | None]
    required: bool = True
    read: Callable[[Contents, str], Any] = Contents.need


def field_of(name: str, key: str, *, required: bool = True) -> Value:
    return Value(name, key, attrgetter(name), required)


def expert_field(name: str, key: str) -> Value:
    return Value(name, key, lambda config: None if config.moe is None else getattr(config.moe, name))


RMS = (Value("rms_norm_eps", "attention.layer_norm_rms_epsilon", attrgetter("norm_eps")),)
EXPERTS = (
    *RMS,
    expert_field("num_experts", "expert_count"),
    expert_field("num_experts_per_tok", "expert_used_count"),
)
EXPERT_SIZE = replace(expert_field("intermediate_size", "expert_feed_forward_length"), name="moe_intermediate_size")
WINDOW = field_of("sliding_window", "attention.sliding_window", required=False)


def layer_norm(name: str) -> Value:
    return Value(name, "attention.layer_norm_epsilon", attrgetter("norm_eps"))


def mixer_field(name: str, key: str, of: str) -> Value:
    return Value(name, key, lambda config: getattr(config.mixer, of, None))


@dataclass(frozen=True)
class Architecture:
    """A family as GGUF files store it: its ``model_type``, its tensors' names, and what is special in its metadata.

    ``values`` are the numbers that not all families have; ``extra`` makes the keys of config.json that are no such
    numbers, and ``more`` the metadata. ``keys`` has the family's names for keys of config.json. ``norm_shift`` is added
    to stored norms, but not to those of mixers. ``refused`` returns the fields of a config that llama.cpp does not
    accept, although metadata can express them. ``dropped`` are patterns of stored tensors that are not parameters.
    ``multipliers`` are those of stored rows by the tensors' names, for values that metadata cannot express, and
    ``multiplied`` returns the config of a model with such weights. ``bare`` are names of tensors without ``.weight``.
    ``plain_heads``: keys and values have the size that the metadata states, and keys are rotated as a whole or by
    ``partial_rotary_factor``.
    """

    model_type: str
    names: Names = NAMES
    values: tuple[Value, ...] = RMS
    extra: Callable[[Contents], dict[str, Any]] = lambda contents: {}
    norm_shift: float = 0.0
    refused: Callable[[ModelConfig], list[str]] = lambda config: []
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    dropped: tuple[str, ...] = ()
    plain_heads: bool = True
    multipliers: Callable[[ModelConfig], Mapping[str, Runs]] = lambda config: {}
    multiplied: Callable[[ModelConfig], ModelConfig] = lambda config: config
    bare: tuple[str, ...] = ()

    def family(self, parsed: Family, contents: Contents) -> Family:
        """The family ``parsed`` with the tensors of a GGUF file."""
        layers, predicting = contents.layers, contents.predicting_layers
        after = (rf"blk\.({'|'.join(map(str, range(layers, layers + predicting)))})\..*",) if predicting else ()
        return replace(parsed, rules=self.rules, renamed=(), dropped=(*DROPPED, *self.dropped, *after))

    def rules(self, config: ModelConfig) -> list[Rule]:
        """A rule for every parameter of a ``Transformer`` with this config."""
        multipliers = self.multipliers(config)
        return [
            replace(rule, sources=tuple(self._stored(rule.target, source, multipliers) for source in rule.sources))
            for rule in self.names.rules(config)
        ]

    def _stored(self, target: str, source: Source, multipliers: Mapping[str, Runs]) -> Source:
        """A source of the parameter ``target`` as the file has it."""
        path, _, suffix = source.name.rpartition(".")
        name = path.rpartition(".")[2]
        if target.endswith("norm.weight") and not target.endswith("mixer.norm.weight"):
            source = replace(source, shift=self.norm_shift)
        if name in multipliers:
            source = replace(source, multipliers=multipliers[name])
        return replace(source, name=path) if name in self.bare and suffix == "weight" else source


def normalized_experts(contents: Contents) -> dict[str, Any]:
    return {"norm_topk_prob": True}


def refusing(**wanted: Callable[[ModelConfig], bool]) -> Callable[[ModelConfig], list[str]]:
    """``Architecture.refused``: the names of the conditions that a config does not meet."""
    return lambda config: [name for name, meets in wanted.items() if not meets(config)]


def even(config: ModelConfig) -> bool:
    return config.q_size == config.hidden_size


def tied(config: ModelConfig) -> bool:
    return config.tie_word_embeddings


def untied(config: ModelConfig) -> bool:
    return not config.tie_word_embeddings


def no_biases(config: ModelConfig) -> bool:
    return not (config.qkv_bias or config.out_bias or config.mlp_bias)


def groups_alike(config: ModelConfig) -> bool:
    """llama.cpp compares groups by their two best experts, as DeepSeek-V3 does, and not all groups may be chosen."""
    moe = config.moe
    return moe is None or moe.groups == 1 or (moe.group_best == 2 and moe.groups_per_tok < moe.groups)
