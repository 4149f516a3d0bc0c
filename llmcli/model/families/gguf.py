"""The families as GGUF files describe them: metadata becomes a config.json and back; tensors have llama.cpp's names.

The family's own parser reads the result, so a model is the same however it is stored. What metadata leaves out is what
the families and llama.cpp both fix, such as the layers of Gemma that have a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import wrong
from llmcli.model.families.gguf_apertus import APERTUS
from llmcli.model.families.gguf_architecture import (
    DELTA_NET_NAMES,
    EXPERT_SIZE,
    EXPERTS,
    NAMES,
    PAIRED,
    RMS,
    SHARED_NAMES,
    STACKED,
    UNGATED,
    WINDOW,
    Architecture,
    Value,
    even,
    expert_field,
    field_of,
    layer_norm,
    mixer_field,
    no_biases,
    normalized_experts,
    refusing,
    tied,
    untied,
)
from llmcli.model.families.gguf_contents import HEADS, KV_HEADS, Contents
from llmcli.model.families.gguf_falcon import BLOOM, FALCON, FALCON_TWO_NORMS, TWO_NORMS
from llmcli.model.families.gguf_gemma4 import GEMMA4
from llmcli.model.families.gguf_hybrid import FALCON_H1, MAMBA2, NEMOTRON_H, NEMOTRON_H_MOE, has, kernel_bias
from llmcli.model.families.gguf_latent import DEEPSEEK, DEEPSEEK_WHOLE
from llmcli.model.families.gguf_llama4 import LLAMA4
from llmcli.model.families.gguf_mixers import delta_net, delta_net_by_head, delta_net_of_groups, mamba, short_conv
from llmcli.model.families.gguf_rope import LOG_MULTIPLIER, log_multiplier, scaling_of, stored_scaling, without_factors
from llmcli.model.mixers.config import DeltaNetConfig, MambaConfig

COMPANIONS = {"adapter": "a LoRA adapter", "mmproj": "an encoder of images or sound", "imatrix": "statistics"}
SAME = {
    "mistral": "llama",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "deepseek_v2": "deepseek_v3",
    "glm4_moe_lite": "deepseek_v3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}  # families that are stored as another one
LFM2_NAMES = replace(NAMES, norm="token_embd_norm", choice_bias="exp_probs_b.bias", mixer=short_conv)
SHARED = (
    field_of("hidden_size", "embedding_length"),
    field_of("intermediate_size", "feed_forward_length"),
    field_of("num_hidden_layers", "block_count"),
    field_of("num_attention_heads", HEADS),
    field_of("num_key_value_heads", KV_HEADS, required=False),
    field_of("head_dim", "attention.key_length", required=False),
    field_of("max_position_embeddings", "context_length"),
    Value("rope_theta", "rope.freq_base", lambda config: config.rope.theta if config.rope else None, required=False),
)
GEMMA2 = (
    *RMS,
    WINDOW,
    Value("attn_logit_softcapping", "attn_logit_softcapping", attrgetter("attention_softcap"), required=False),
    Value("final_logit_softcapping", "final_logit_softcapping", attrgetter("logit_softcap"), required=False),
)
GEMMA3 = (
    *RMS,
    WINDOW,
    Value(
        "rope_local_base_freq",
        "rope.freq_base_swa",
        lambda config: config.local_rope.theta if config.local_rope else None,
        required=False,
    ),
)
# 0: some versions of llama.cpp assume a window where the file has no key.
PHI3 = (*RMS, replace(WINDOW, of=lambda config: config.sliding_window or 0))
GRANITE = (
    *RMS,
    Value("logits_scaling", "logit_scale", lambda config: 1 / config.logit_scale, required=False),
    Value("attention_multiplier", "attention.scale", attrgetter("attention_scale"), required=False),
    Value("embedding_multiplier", "embedding_scale", attrgetter("embedding_scale"), required=False),
    Value("residual_multiplier", "residual_scale", attrgetter("residual_scale"), required=False),
)


LOGIT_SCALE = field_of("logit_scale", "logit_scale")
PARALLEL = Value("use_parallel_residual", "use_parallel_residual", attrgetter("parallel_residual"))


SHARED_EXPERT = replace(
    expert_field("shared_intermediate_size", "expert_shared_feed_forward_length"),
    name="shared_expert_intermediate_size",
)
LFM2 = (*RMS, mixer_field("conv_L_cache", "shortconv.l_cache", "kernel"))
LFM2_MOE = (
    *LFM2,
    *EXPERTS,
    EXPERT_SIZE,
    Value(
        "num_dense_layers",
        "leading_dense_block_count",
        lambda config: None if config.moe is None else len(config.moe.dense_layers),
        required=False,
    ),
)
GRANITE_HYBRID = (
    *GRANITE,
    mixer_field("mamba_d_conv", "ssm.conv_kernel", "kernel"),
    mixer_field("mamba_d_state", "ssm.state_size", "state_size"),
    mixer_field("mamba_n_groups", "ssm.group_count", "groups"),
    mixer_field("mamba_n_heads", "ssm.time_step_rank", "heads"),
)
DELTA_NET = (
    mixer_field("linear_conv_kernel_dim", "ssm.conv_kernel", "kernel"),
    mixer_field("linear_key_head_dim", "ssm.state_size", "key_dim"),
    mixer_field("linear_num_key_heads", "ssm.group_count", "key_heads"),
    mixer_field("linear_num_value_heads", "ssm.time_step_rank", "value_heads"),
)


def architecture_of(contents: Contents) -> Architecture:
    """The architecture of a file. Raises LlmcliError, which lists the known ones, if it is unknown."""
    name, kind = contents.architecture, str(contents.metadata.get("general.type"))
    if kind in COMPANIONS:
        raise LlmcliError(f"the file holds {COMPANIONS[kind]}, not a model", "open the model that it belongs to")
    for variant in VARIANTS:
        if variant.name == name and variant.stored(contents):
            return variant.architecture
    check_architecture(name)
    return ARCHITECTURES[name]


def check_architecture(name: str) -> None:
    """Raise LlmcliError, which lists the known architectures, if this one is unknown."""
    if name not in ARCHITECTURES:
        raise LlmcliError(f"the architecture {name!r:.80} is not supported", "supported: " + ", ".join(ARCHITECTURES))


def architecture_for(config: ModelConfig) -> tuple[str, Architecture]:
    """The architecture that stores a model, with its name. Raises LlmcliError, which lists them, if there is none."""
    for variant in VARIANTS:
        if variant.architecture.model_type == config.model_type and variant.written(config):
            return variant.name, variant.architecture
    wanted = SAME.get(config.model_type, config.model_type)
    for name, architecture in ARCHITECTURES.items():
        if architecture.model_type == wanted:
            return name, architecture
    raise LlmcliError(
        f"models of the family {config.model_type} cannot be written as GGUF", "supported: " + ", ".join(ARCHITECTURES)
    )


def described(contents: Contents) -> dict[str, Any]:
    """The config.json of the model in a file. Raises LlmcliError if the metadata lacks a value that all models have."""
    architecture = architecture_of(contents)
    if "token_embd.weight" not in contents.shapes:
        raise LlmcliError("the file has no tensor token_embd.weight", "it holds no language model, or only a part")
    raw = {
        "model_type": architecture.model_type,
        "vocab_size": contents.rows("token_embd.weight"),
        "num_key_value_heads": contents.need(HEADS),
        "tie_word_embeddings": "output.weight" not in contents.shapes,
        "rope_theta": 10000.0,
        "rope_scaling": scaling_of(contents),
    }
    for value in {value.name: value for value in (*SHARED, *architecture.values)}.values():
        if value.required or contents.find(value.key) is not None:
            raw[value.name] = value.read(contents, value.key)
    if contents.predicting_layers:
        raw["num_hidden_layers"] = contents.layers
    extra = architecture.extra(contents)
    raw |= extra
    if architecture.plain_heads:
        _check_heads(contents, rotated_whole="partial_rotary_factor" not in raw)
    # The ids stay even if there are none: a family's defaults are not for a file without such tokens.
    ids = {f"{role}_token_id": contents.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    kept = {key: value for key, value in raw.items() if value is not None or key in extra}  # null may mean "without"
    return {architecture.keys.get(key, key): value for key, value in kept.items()} | ids


def _check_heads(contents: Contents, *, rotated_whole: bool) -> None:
    """Raise LlmcliError if keys and values differ in size, or not all of a key is rotated although it should be."""
    sizes = {"attention.value_length": contents.head_dim}
    if rotated_whole:
        sizes["rope.dimension_count"] = contents.head_dim
    for key, size in sizes.items():
        if contents.count(key, size) != size:
            raise wrong(key, contents.find(key), str(size))


def metadata_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of ``described``: the metadata of a model, without its tokenizer.

    Raises LlmcliError if no architecture stores the family. Metadata cannot express every config.
    """
    name, architecture = architecture_for(config)
    values = {value.key: value.of(config) for value in (*SHARED, *architecture.values)}
    values |= {"vocab_size": config.vocab_size, "attention.value_length": config.head_dim}
    if config.rope is not None:
        values["rope.dimension_count"] = config.rope.rotated(config.head_dim)
        values |= stored_scaling(config.rope)
    values |= architecture.more(config)
    metadata = {f"{name}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": name, **metadata}


def _biases(contents: Contents) -> dict[str, Any]:
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {key: name in contents.shapes for key, name in biases.items()}


def _gemma(contents: Contents, largest: int) -> dict[str, Any]:
    """The queries' scale is that of the head's size, but of the hidden size per head in the model of most layers."""
    per_head = contents.count("embedding_length", 1) // contents.count(HEADS, 1)
    scalar = per_head if contents.need("block_count") == largest else contents.head_dim
    return {"query_pre_attn_scalar": float(scalar)}


def _partly_rotated(contents: Contents) -> dict[str, Any]:
    size = contents.head_dim
    return {"partial_rotary_factor": contents.count("rope.dimension_count", size) / max(size, 1)}


def _phi3(contents: Contents) -> dict[str, Any]:
    return _partly_rotated(contents) | {"sliding_window": contents.find(WINDOW.key) or None}


def _stablelm(contents: Contents) -> dict[str, Any]:
    return _partly_rotated(contents) | {
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in contents.shapes,
        "use_qkv_bias": "blk.0.attn_q.bias" in contents.shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in contents.shapes,
    }


def _cohere(contents: Contents) -> dict[str, Any]:
    return {"use_qk_norm": "blk.0.attn_q_norm.weight" in contents.shapes}


def _windows_in(period: int) -> Callable[[ModelConfig], bool]:
    """Whether all layers but every ``period``-th have a window, as llama.cpp assumes."""
    return lambda config: (
        config.sliding_window is not None
        and all(
            (kind == "full_attention") == ((layer + 1) % period == 0) for layer, kind in enumerate(config.layer_types)
        )
    )


def _gpt_oss(contents: Contents) -> dict[str, Any]:
    """Metadata cannot say that the ends of YaRN's ramp are not rounded, but the family's never are.

    In llama.cpp they are: in the published models, 9 of 32 pairs rotate at another speed, one of them 76% faster.
    """
    scaling = scaling_of(contents) or {"rope_type": "default"}
    return {
        "attention_bias": "blk.0.attn_q.bias" in contents.shapes,
        "rope_scaling": scaling | {"truncate": False},
    }


def _same_theta(config: ModelConfig) -> bool:
    """Whether windowed layers rotate like the others would without scaling."""
    rope, local = config.rope, config.local_rope
    return rope is not None and local is not None and (local.rope_type, local.theta) == ("default", rope.theta)


def _olmo3(contents: Contents) -> dict[str, Any]:
    """Only layers without a window scale their angles."""
    theta = contents.find("rope.freq_base") or 10000.0
    scaled = (scaling_of(contents) or {}) | {"rope_theta": theta}
    nested = {"full_attention": scaled, "sliding_attention": {"rope_theta": theta}}
    return {"rope_scaling": None, "rope_parameters": nested}


def _seed_oss(contents: Contents) -> dict[str, Any]:
    return _biases(contents) | {"attention_out_bias": "blk.0.attn_output.bias" in contents.shapes}


def _kv_heads(config: ModelConfig) -> dict[str, Any]:
    """The key/value heads of each layer; recurrent layers have none."""
    layers = range(config.num_hidden_layers)
    return {KV_HEADS: [config.num_key_value_heads if config.has_attention(layer) else 0 for layer in layers]}


def _kinds(contents: Contents, recurrent: str) -> list[str]:
    """The kinds of the layers, by their key/value heads."""
    heads = contents.find(KV_HEADS)
    heads = heads if isinstance(heads, list) else [1] * contents.layers
    return ["full_attention" if each else recurrent for each in heads]


def _lfm2(contents: Contents) -> dict[str, Any]:
    return {"layer_types": _kinds(contents, "conv"), "block_auto_adjust_ff_dim": False}


SIGMOID = 2  # llama.cpp's number


def _lfm2_moe(contents: Contents) -> dict[str, Any]:
    if contents.find("expert_gating_func") != SIGMOID:
        raise wrong("expert_gating_func", contents.find("expert_gating_func"), f"{SIGMOID} (sigmoid)")
    return {"layer_types": _kinds(contents, "conv")}


def _granite_hybrid(contents: Contents) -> dict[str, Any]:
    """In models with experts, the MLP that other models have serves every token."""
    experts, kinds = contents.find("expert_count") or 0, _kinds(contents, "mamba")
    attending = f"blk.{kinds.index('full_attention') if 'full_attention' in kinds else 0}."
    shared = "expert_shared_feed_forward_length" if experts else "feed_forward_length"
    return {
        "num_local_experts": experts,
        "num_experts_per_tok": contents.find("expert_used_count") if experts else None,
        "shared_intermediate_size": contents.need(shared),
        "layer_types": kinds,
        "position_embedding_type": "nope" if contents.find("rope.scaling.finetuned") is False else "rope",
        "attention_bias": f"{attending}attn_q.bias" in contents.shapes,
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in contents.shapes),
    }


def _granite_hybrid_more(config: ModelConfig) -> dict[str, Any]:
    experts: dict[str, Any] = {"expert_count": 0}
    if config.moe is not None:
        experts = {
            "feed_forward_length": config.moe.intermediate_size,
            "expert_count": config.moe.num_experts,
            "expert_used_count": config.moe.num_experts_per_tok,
            "expert_shared_feed_forward_length": config.moe.shared_intermediate_size,
        }
    width = config.mixer.width if isinstance(config.mixer, MambaConfig) else None
    scaling = {"rope.scaling.finetuned": config.position == "rope"}
    return {"ssm.inner_size": width, **_kv_heads(config), **scaling, **experts}


def _delta_net(contents: Contents) -> dict[str, Any]:
    layers = contents.layers
    recurrent, interval = contents.find("attention.recurrent_layers"), contents.count("full_attention_interval", 4)
    if not isinstance(recurrent, list):
        recurrent = [(layer + 1) % interval != 0 for layer in range(layers)]
    kinds = ["linear_attention" if each else "full_attention" for each in recurrent[:layers]]
    heads = contents.count("ssm.time_step_rank", 1)
    return _partly_rotated(contents) | {
        "layer_types": kinds,
        "linear_value_head_dim": contents.count("ssm.inner_size", heads) // heads,
    }


def _delta_net_more(config: ModelConfig) -> dict[str, Any]:
    layers = range(config.num_hidden_layers)
    width = config.mixer.values if isinstance(config.mixer, DeltaNetConfig) else None
    kinds = {"attention.recurrent_layers": [config.has_mixer(layer) for layer in layers]}
    return {"ssm.inner_size": width, "full_attention_interval": 4, **kinds}


def _qwen3_5_more(config: ModelConfig) -> dict[str, Any]:
    """Pairs rotate by three positions, which differ only in images; the sections are those of all published models."""
    return _delta_net_more(config) | {"rope.dimension_sections": [11, 11, 10, 0]}


def _same_dims(config: ModelConfig) -> bool:
    """Whether the heads of a delta net have keys and values of the same size."""
    return not isinstance(config.mixer, DeltaNetConfig) or config.mixer.key_dim == config.mixer.value_dim


PUBLISHED_LAYERS, PUBLISHED_WINDOW = 64, 4096  # of the EXAONE 4 that has windows


def _exaone4(contents: Contents) -> dict[str, Any]:
    """llama.cpp knows from the number of layers whether three of four have a window."""
    window = contents.find(WINDOW.key) or PUBLISHED_WINDOW
    return {"sliding_window": window if contents.layers == PUBLISHED_LAYERS else None}


def _exaone4_more(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {}
    layers = range(config.num_hidden_layers)
    return {f"{WINDOW.key}_pattern": [config.layer_type(layer) == "sliding_attention" for layer in layers]}


def _windows_of_exaone4(config: ModelConfig) -> bool:
    if config.sliding_window is None:
        return config.num_hidden_layers != PUBLISHED_LAYERS
    return config.num_hidden_layers == PUBLISHED_LAYERS and _windows_in(4)(config)


TEMPERATURE = "attention.temperature_scale"


def _ministral3(contents: Contents) -> dict[str, Any]:
    scaling = {"rope_type": "default"} | (scaling_of(contents) or {})
    growth = contents.number(LOG_MULTIPLIER)
    if growth:
        scaling |= {"mscale": 1.0, "mscale_all_dim": growth}
    return {"rope_scaling": scaling | {"llama_4_scaling_beta": contents.find(TEMPERATURE) or 0.0}}


ARCHITECTURES = {
    "llama": Architecture("llama", PAIRED, extra=_biases),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", NAMES, (*EXPERTS, EXPERT_SIZE), normalized_experts),
    "qwen2moe": Architecture("qwen2_moe", SHARED_NAMES, (*EXPERTS, EXPERT_SIZE, SHARED_EXPERT)),
    "gemma2": Architecture(
        "gemma2", NAMES, GEMMA2, lambda contents: _gemma(contents, 46), -1.0, refusing(tie_word_embeddings=tied)
    ),
    "gemma3": Architecture("gemma3_text", NAMES, GEMMA3, lambda contents: _gemma(contents, 62), -1.0),
    "phi2": Architecture(
        "phi", UNGATED, (layer_norm("layer_norm_eps"),), _partly_rotated, refused=refusing(head_dim=even)
    ),
    "phi3": Architecture("phi3", STACKED, PHI3, _phi3, refused=refusing(head_dim=even)),
    "smollm3": Architecture(
        "smollm3",
        PAIRED,
        extra=_biases,
        refused=refusing(
            attention_bias=lambda config: not config.out_bias, mlp_bias=lambda config: not config.mlp_bias
        ),
    ),
    "granite": Architecture("granite", PAIRED, GRANITE, _biases),
    "olmo2": Architecture("olmo2"),
    "olmoe": Architecture(
        "olmoe",
        NAMES,
        EXPERTS,
        refused=refusing(
            head_dim=even,
            num_key_value_heads=lambda config: config.kv_size == config.q_size,
            tie_word_embeddings=untied,
        ),
    ),
    "gpt2": Architecture(
        "gpt2",
        STACKED,
        (layer_norm("layer_norm_epsilon"),),
        keys={
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
    ),
    "gptneox": Architecture(
        "gpt_neox",
        STACKED,
        (layer_norm("layer_norm_eps"), PARALLEL),
        _partly_rotated,
        refused=refusing(head_dim=even, attention_bias=lambda config: config.qkv_bias, tie_word_embeddings=untied),
    ),
    "starcoder2": Architecture(
        "starcoder2",
        UNGATED,
        (layer_norm("norm_epsilon"),),
        lambda contents: {"use_bias": "blk.0.attn_q.bias" in contents.shapes},
        refused=refusing(head_dim=even),
    ),
    "stablelm": Architecture(
        "stablelm",
        NAMES,
        (layer_norm("layer_norm_eps"), replace(PARALLEL, required=False)),
        _stablelm,
        refused=refusing(head_dim=even, tie_word_embeddings=untied),
    ),
    "command-r": Architecture(
        "cohere",
        PAIRED,
        (layer_norm("layer_norm_eps"), LOGIT_SCALE),
        _cohere,
        refused=refusing(
            head_dim=even,
            tie_word_embeddings=tied,
            qk_norm=lambda config: (config.qk_norm is not None) == (config.num_hidden_layers >= 64),
        ),
    ),
    "cohere2": Architecture(
        "cohere2",
        PAIRED,
        (layer_norm("layer_norm_eps"), LOGIT_SCALE, WINDOW),
        refused=refusing(head_dim=even, tie_word_embeddings=tied, attention_bias=no_biases, layer_types=_windows_in(4)),
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        replace(NAMES, mlp_norm="post_attention_norm", sinks="attn_sinks.weight"),
        (*EXPERTS, replace(EXPERT_SIZE, required=False), WINDOW),
        _gpt_oss,
        refused=refusing(
            attention_bias=lambda config: config.qkv_bias,
            layer_types=_windows_in(2),
            rope_scaling=lambda config: (
                config.rope is None or config.rope.rope_type != "yarn" or not config.rope.truncate
            ),
            swiglu_limit=lambda config: config.gate_limit == 7.0,
        ),
    ),
    "seed_oss": Architecture(
        "seed_oss",
        replace(NAMES, mlp_norm="post_attention_norm"),
        extra=_seed_oss,
        refused=refusing(
            attention_out_bias=lambda config: not config.out_bias, mlp_bias=lambda config: not config.mlp_bias
        ),
    ),
    "arcee": Architecture(
        "arcee", replace(PAIRED, up=("ffn_up",)), extra=_biases, refused=refusing(attention_bias=no_biases)
    ),
    "ernie4_5": Architecture(
        "ernie4_5",
        PAIRED,
        extra=lambda contents: {"use_bias": "blk.0.attn_q.bias" in contents.shapes},
        refused=refusing(use_bias=no_biases),
    ),
    "glm4": Architecture(
        "glm4",
        replace(PAIRED, up=("ffn_up",)),
        extra=lambda contents: _partly_rotated(contents) | {"attention_bias": "blk.0.attn_q.bias" in contents.shapes},
    ),
    "lfm2": Architecture(
        "lfm2",
        LFM2_NAMES,
        LFM2,
        _lfm2,
        refused=refusing(head_dim=even),
        keys={"rms_norm_eps": "norm_eps"},
        more=_kv_heads,
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        LFM2_NAMES,
        LFM2_MOE,
        _lfm2_moe,
        refused=refusing(head_dim=even),
        keys={"rms_norm_eps": "norm_eps"},
        more=lambda config: _kv_heads(config) | {"expert_gating_func": SIGMOID},
    ),
    "qwen35": Architecture(
        "qwen3_5_text",
        replace(DELTA_NET_NAMES, mixer=delta_net),
        (*RMS, *DELTA_NET),
        _delta_net,
        -1.0,
        refusing(linear_value_head_dim=_same_dims),
        more=_qwen3_5_more,
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        replace(DELTA_NET_NAMES, mixer=delta_net),
        (
            *EXPERTS,
            EXPERT_SIZE,
            SHARED_EXPERT,
            *DELTA_NET,
            field_of("intermediate_size", "feed_forward_length", required=False),
        ),
        _delta_net,
        -1.0,
        refusing(linear_value_head_dim=_same_dims),
        more=_qwen3_5_more,
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        replace(DELTA_NET_NAMES, mixer=delta_net_by_head),
        (*EXPERTS, EXPERT_SIZE, SHARED_EXPERT, *DELTA_NET),
        lambda contents: _delta_net(contents) | normalized_experts(contents),
        -1.0,
        refusing(linear_value_head_dim=_same_dims),
        more=_delta_net_more,
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        replace(SHARED_NAMES, interleaved=True, mixer=mamba),
        GRANITE_HYBRID,
        _granite_hybrid,
        refused=refusing(mamba_conv_bias=kernel_bias),
        more=_granite_hybrid_more,
    ),
    "gemma": Architecture(
        "gemma", norm_shift=-1.0, refused=refusing(tie_word_embeddings=tied, rope_scaling=without_factors)
    ),
    "olmo": Architecture(
        "olmo",
        PAIRED,
        (
            layer_norm("layer_norm_eps"),
            replace(field_of("qkv_limit", "attention.clamp_kqv", required=False), name="clip_qkv"),
        ),
        refused=refusing(head_dim=even, attention_bias=no_biases, rope_scaling=without_factors),
    ),
    "exaone4": Architecture(
        "exaone4",
        NAMES,
        (*RMS, WINDOW),
        _exaone4,
        refused=refusing(head_dim=even, layer_types=_windows_of_exaone4),
        more=_exaone4_more,
    ),
    "mistral3": Architecture(
        "ministral3",
        PAIRED,
        (*RMS, replace(field_of("query_scale_beta", TEMPERATURE, required=False), name="llama_4_scaling_beta")),
        _ministral3,
        refused=refusing(
            rope_scaling=lambda config: (
                config.query_scale_beta == 0 or (config.rope is not None and config.rope.rope_type == "yarn")
            )
        ),
        more=lambda config: {LOG_MULTIPLIER: log_multiplier(config)},
    ),
    "apertus": APERTUS,
    "deepseek2": DEEPSEEK,
    "gemma4": GEMMA4,
    "falcon-h1": FALCON_H1,
    "mamba2": MAMBA2,
    "bloom": BLOOM,
    "falcon": FALCON,
    "llama4": LLAMA4,
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": NEMOTRON_H_MOE,
    "hunyuan-dense": Architecture("hunyuan_v1_dense", extra=_biases, refused=refusing(attention_bias=no_biases)),
}
_MIXTRAL = Architecture("mixtral", PAIRED, EXPERTS)
_OLMO3 = Architecture(
    "olmo3",
    NAMES,
    (*RMS, replace(WINDOW, required=True)),
    _olmo3,
    refused=refusing(
        attention_bias=no_biases,
        head_dim=even,
        layer_types=_windows_in(4),
        rope_parameters=_same_theta,
    ),
)


@dataclass(frozen=True)
class Variant:
    """An architecture that shares llama.cpp's ``name`` with another one.

    ``stored`` says whether a file with this name has it, ``written`` whether a model of its family is stored as it.
    """

    name: str
    architecture: Architecture
    stored: Callable[[Contents], bool]
    written: Callable[[ModelConfig], bool] = lambda config: True


VARIANTS = (
    Variant("llama", _MIXTRAL, lambda contents: bool(contents.find("expert_count"))),
    Variant("olmo2", _OLMO3, lambda contents: bool(contents.find(WINDOW.key))),
    Variant(
        "qwen3next",
        replace(ARCHITECTURES["qwen3next"], names=replace(ARCHITECTURES["qwen3next"].names, mixer=delta_net_of_groups)),
        lambda contents: has(contents, "ssm_in.weight"),
        written=lambda config: False,
    ),
    Variant(
        "deepseek2",
        DEEPSEEK_WHOLE,
        lambda contents: "blk.0.attn_kv_b.weight" in contents.shapes,
        written=lambda config: False,
    ),
    Variant(
        "falcon",
        FALCON_TWO_NORMS,
        lambda contents: TWO_NORMS in contents.shapes,
        written=lambda config: config.parallel_residual and not config.shared_norm,
    ),
    Variant("nemotron_h_moe", NEMOTRON_H_MOE, lambda contents: True, written=lambda config: config.moe is not None),
)
