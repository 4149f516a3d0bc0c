"""The families as GGUF files describe them: metadata becomes a config.json, and tensors have llama.cpp's names.

The family's own parser reads the result, so a model is the same however it is stored. What metadata leaves out is what
the families and llama.cpp both fix, such as the layers of Gemma that have a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import wrong
from llmcli.model.families.rules import Family, Names, Rule

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
    expert="experts.{}.",  # the reader divides a tensor of all experts: see ``storage/gguf_weights.py``
    expert_up=("ffn_gate", "ffn_up"),
    expert_down="ffn_down",
)
PAIRED = replace(NAMES, interleaved=True)  # converters reorder the rows of q and k of Llama's kin
STACKED = replace(NAMES, qkv=("attn_qkv",), up=("ffn_up",))
HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"
MAX_FACTORS = 2**12  # more pairs than a head has
COMPANIONS = {"adapter": "a LoRA adapter", "mmproj": "an encoder of images or sound", "imatrix": "statistics"}
DROPPED = (r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight")  # part of the config


@dataclass(frozen=True)
class Contents:
    """What a file holds: its metadata, the shapes of its tensors, and ``values``, which reads a small tensor."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: Callable[[str], list[float]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture. Raises LlmcliError if there is none."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise LlmcliError("the metadata has no general.architecture", "the file holds no language model")
        return name

    def find(self, key: str) -> Any:
        """A value of the architecture; None if it is missing. Numbers are the decimals that float32 stores."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return float(f"{value:.7g}") if type(value) is float else value

    def need(self, key: str) -> Any:
        """A value of the architecture, the same for all layers. Raises LlmcliError if it is missing or differs."""
        value = self.find(key)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if value is None:
            raise LlmcliError(f"the metadata has no {self.architecture}.{key}", "the file may be damaged")
        if isinstance(value, list):
            raise wrong(key, "a list", "the same for all layers")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number of the architecture, at least 1. Raises LlmcliError if it is something else."""
        value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, int) or value < 1:
            raise wrong(key, value, "a whole number above 0")
        return value

    @property
    def head_dim(self) -> int:
        """The size of a head. Raises LlmcliError if the numbers that it follows from are not whole."""
        return self.count("attention.key_length", self.count("embedding_length", 1) // self.count(HEADS, 1))


@dataclass(frozen=True)
class Architecture:
    """A family as GGUF files store it: its ``model_type``, its tensors' names, and what is special in its metadata.

    ``extra`` makes the keys of config.json that not all families have. ``norm_shift`` is added to stored norms.
    """

    model_type: str
    names: Names = NAMES
    extra: Callable[[Contents], dict[str, Any]] = lambda contents: {}
    norm_shift: float = 0.0

    def family(self, parsed: Family) -> Family:
        """The family ``parsed`` with the tensors of a GGUF file."""
        return replace(parsed, rules=self.rules, renamed=(), dropped=DROPPED)

    def rules(self, config: ModelConfig) -> list[Rule]:
        """A rule for every parameter of a ``Transformer`` with this config."""
        return [
            replace(rule, sources=tuple(replace(source, shift=self.norm_shift) for source in rule.sources))
            if rule.target.endswith("norm.weight")
            else rule
            for rule in self.names.rules(config)
        ]


def architecture_of(contents: Contents) -> Architecture:
    """The architecture of a file. Raises LlmcliError, which lists the known ones, if it is unknown."""
    name, kind = contents.architecture, str(contents.metadata.get("general.type"))
    if kind in COMPANIONS:
        raise LlmcliError(f"the file holds {COMPANIONS[kind]}, not a model", "open the model that it belongs to")
    if name == "llama" and contents.find("expert_count"):
        return _MIXTRAL
    check_architecture(name)
    return ARCHITECTURES[name]


def check_architecture(name: str) -> None:
    """Raise LlmcliError, which lists the known architectures, if this one is unknown."""
    if name not in ARCHITECTURES:
        raise LlmcliError(f"the architecture {name!r:.80} is not supported", "supported: " + ", ".join(ARCHITECTURES))


def described(contents: Contents) -> dict[str, Any]:
    """The config.json of the model in a file. Raises LlmcliError if the metadata lacks a value that all models have."""
    architecture, heads = architecture_of(contents), contents.need(HEADS)
    if "token_embd.weight" not in contents.shapes:
        raise LlmcliError("the file has no tensor token_embd.weight", "it holds no language model, or only a part")
    raw = {
        "model_type": architecture.model_type,
        "vocab_size": contents.shapes["token_embd.weight"][0],
        "hidden_size": contents.need("embedding_length"),
        "intermediate_size": contents.need("feed_forward_length"),
        "num_hidden_layers": contents.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if contents.find(KV_HEADS) is None else contents.need(KV_HEADS),
        "head_dim": contents.find("attention.key_length"),
        "max_position_embeddings": contents.need("context_length"),
        "tie_word_embeddings": "output.weight" not in contents.shapes,
        "rope_theta": contents.find("rope.freq_base") or 10000.0,
        "rope_scaling": _scaling(contents),
        **architecture.extra(contents),
    }
    rotated = contents.head_dim if "partial_rotary_factor" not in raw else None
    for key, size in {"attention.value_length": contents.head_dim, "rope.dimension_count": rotated}.items():
        if size is not None and contents.count(key, size) != size:
            raise wrong(key, contents.find(key), str(size))
    # The ids stay even if there are none: a family's defaults are not for a file without such tokens.
    ids = {f"{role}_token_id": contents.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return {key: value for key, value in raw.items() if value is not None} | ids


def _scaling(contents: Contents) -> dict[str, Any] | None:
    """``rope_scaling``. Tensors of factors, one for each pair, are LongRoPE's; Llama 3's are those for any length."""
    context, original = contents.need("context_length"), contents.find("rope.scaling.original_context_length")
    stored = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
    if "rope_freqs.weight" in contents.shapes:
        stored, original = dict.fromkeys(stored, "rope_freqs.weight"), context
    if all(math.prod(contents.shapes.get(name, (MAX_FACTORS + 1,))) <= MAX_FACTORS for name in stored.values()):
        scaling: dict[str, Any] = {key: contents.values(name) for key, name in stored.items()}
        attention = contents.find("rope.scaling.attn_factor")
        scaling |= {"rope_type": "longrope", "original_max_position_embeddings": original or context}
        return scaling | ({} if attention is None else {"attention_factor": attention})
    kind, factor = contents.find("rope.scaling.type"), contents.find("rope.scaling.factor")
    if kind is None and contents.find("rope.scale_linear"):  # as old files have it
        kind, factor = "linear", contents.find("rope.scale_linear")
    if kind in (None, "none") or factor in (None, 0.0, 1.0):
        return None
    if kind == "yarn":
        betas = {name: contents.find(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original or context, **betas}
    return {"rope_type": kind, "factor": factor}


def _rms(contents: Contents) -> dict[str, Any]:
    return {"rms_norm_eps": contents.need("attention.layer_norm_rms_epsilon")}


def _llama(contents: Contents) -> dict[str, Any]:
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return _rms(contents) | {key: name in contents.shapes for key, name in biases.items()}


def _granite(contents: Contents) -> dict[str, Any]:
    keys = {
        "logits_scaling": "logit_scale",
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
    }
    return _llama(contents) | {key: contents.find(stored) for key, stored in keys.items()}


def _experts(contents: Contents) -> dict[str, Any]:
    return _rms(contents) | {
        "num_experts": contents.need("expert_count"),
        "num_experts_per_tok": contents.need("expert_used_count"),
    }


def _qwen3_moe(contents: Contents) -> dict[str, Any]:
    width = contents.need("expert_feed_forward_length")
    return _experts(contents) | {"moe_intermediate_size": width, "norm_topk_prob": True}


def _gemma(contents: Contents, largest: int) -> dict[str, Any]:
    """The queries' scale is that of the head's size, but of the hidden size per head in the model of most layers."""
    per_head = contents.count("embedding_length", 1) // contents.count(HEADS, 1)
    scalar = per_head if contents.need("block_count") == largest else contents.head_dim
    return _rms(contents) | {
        "sliding_window": contents.find("attention.sliding_window"),
        "query_pre_attn_scalar": float(scalar),
    }


def _gemma2(contents: Contents) -> dict[str, Any]:
    return _gemma(contents, 46) | {
        "attn_logit_softcapping": contents.find("attn_logit_softcapping"),
        "final_logit_softcapping": contents.find("final_logit_softcapping"),
    }


def _gemma3(contents: Contents) -> dict[str, Any]:
    local = contents.find("rope.freq_base_swa")
    return _gemma(contents, 62) | {"rope_local_base_freq": local}


def _phi3(contents: Contents) -> dict[str, Any]:
    size = contents.head_dim
    return _rms(contents) | {
        "partial_rotary_factor": contents.count("rope.dimension_count", size) / max(size, 1),
        "sliding_window": contents.find("attention.sliding_window") or None,
    }


ARCHITECTURES = {
    "llama": Architecture("llama", PAIRED, _llama),
    "qwen2": Architecture("qwen2", NAMES, _rms),
    "qwen3": Architecture("qwen3", NAMES, _rms),
    "qwen3moe": Architecture("qwen3_moe", NAMES, _qwen3_moe),
    "gemma2": Architecture("gemma2", NAMES, _gemma2, norm_shift=-1.0),
    "gemma3": Architecture("gemma3_text", NAMES, _gemma3, norm_shift=-1.0),
    "phi3": Architecture("phi3", STACKED, _phi3),
    "smollm3": Architecture("smollm3", PAIRED, _llama),
    "granite": Architecture("granite", PAIRED, _granite),
    "olmo2": Architecture("olmo2", NAMES, _rms),
    "olmoe": Architecture("olmoe", NAMES, _experts),
}
_MIXTRAL = Architecture("mixtral", PAIRED, _experts)
