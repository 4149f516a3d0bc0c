"""Tiny random models of every supported family, built and saved by transformers, in which every mistake shows.

Every parameter is random (transformers initializes norms to 1 and biases to 0, where forgetting them would not show),
and scaled so that attention is neither uniform nor concentrated on a single position.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ApertusConfig,
    ArceeConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeLiteConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    HeliumConfig,
    HunYuanDenseV1Config,
    Lfm2Config,
    Lfm2MoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    NanoChatConfig,
    NemotronHConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.utils import logging

from llmcli.engine.transformer import EngineTransformer
from llmcli.generation.filters import Temperature
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint

VOCAB = 97
CONTEXT = 128
ROPE_ORIGINAL = 32  # the "pre-training" context of models with scaled rope: tests go far beyond it
WINDOW = 24  # positions that windowed layers see, far fewer than in a test's text

CPU = torch.device("cpu")


# What most families share. All sizes differ: fewer key/value heads than heads, and a head_dim that is not
# hidden_size / num_attention_heads. The eps is so large that forgetting it shows.
_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 0.02,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
# For families whose heads divide the hidden size.
_EVEN = {**_SHARED, "head_dim": 12, "num_attention_heads": 4, "num_key_value_heads": 2}
_LAYER_NORM = {key: value for key, value in _EVEN.items() if key not in ("rms_norm_eps", "head_dim")}

_FALCON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "layer_norm_epsilon": 0.02,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ROPE_ORIGINAL,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": 4.0,
        "beta_fast": 2.0,
        "beta_slow": 0.25,
        "original_max_position_embeddings": ROPE_ORIGINAL,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.6],
        "long_factor": [1.0, 1.5, 2.5, 3.0, 3.5, 4.0],
        "original_max_position_embeddings": ROPE_ORIGINAL,
    },
}

_MAMBA = {key: value for key, value in _EVEN.items() if key != "head_dim"} | {
    "num_local_experts": 0,
    "shared_intermediate_size": 56,
    "embedding_multiplier": 1.5,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
    "mamba_n_heads": 6,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
_LFM2 = {key: value for key, value in _EVEN.items() if key != "rms_norm_eps"} | {"norm_eps": 0.02}
_MOE = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
_EXPERTS = {**_MOE, "num_experts": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
_DELTA_NET = {key: value for key, value in _SHARED.items() if key != "num_hidden_layers"} | {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 32,
    "rope_parameters": _SHARED["rope_parameters"] | {"partial_rotary_factor": 0.25},
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
}
_LATENT = {
    **{key: value for key, value in _SHARED.items() if key not in ("head_dim", "num_key_value_heads")},
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 16,
    "v_head_dim": 14,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
}
_GEMMA = {
    **_SHARED,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 4,
    "hidden_activation": "gelu_pytorch_tanh",
}


def _of(kind: type[PretrainedConfig], shared: dict[str, Any], **changed: Any) -> PretrainedConfig:
    return kind(**copy.deepcopy(shared | changed))  # some config classes change their arguments


def _llama(**changed: Any) -> PretrainedConfig:
    return _of(LlamaConfig, _SHARED, **changed)


def _gpt2(**changed: Any) -> GPT2Config:
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": CONTEXT,
        "layer_norm_epsilon": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GPT2Config(**(values | changed))


def _phi3(**changed: Any) -> PretrainedConfig:
    return _of(Phi3Config, _EVEN, pad_token_id=None, **changed)


CONFIGS: dict[str, PretrainedConfig] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True, num_attention_heads=4, num_key_value_heads=4, head_dim=12),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama-linear": _llama(hidden_act="gelu_pytorch_tanh", rope_parameters=_ROPES["linear"]),
    "llama-dynamic": _llama(max_position_embeddings=ROPE_ORIGINAL, rope_parameters=_ROPES["dynamic"]),
    "llama-llama3": _llama(tie_word_embeddings=True, num_key_value_heads=1, rope_parameters=_ROPES["llama3"]),
    "llama-yarn": _llama(rope_parameters=_ROPES["yarn"]),
    "llama-yarn-mscale": _llama(
        rope_parameters=_ROPES["yarn"] | {"mscale": 1.2, "mscale_all_dim": 0.5, "truncate": False}
    ),
    "mistral": _of(MistralConfig, _SHARED, sliding_window=WINDOW),
    "mistral-full": _of(MistralConfig, _SHARED, sliding_window=None),
    "qwen2": _of(Qwen2Config, _EVEN),
    "qwen2-windows": _of(Qwen2Config, _EVEN, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _of(Qwen3Config, _SHARED),
    "qwen3-windows": _of(
        Qwen3Config, _SHARED, attention_bias=True, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "smollm3": _of(SmolLM3Config, _EVEN, pad_token_id=None, no_rope_layers=[1, 0, 1]),
    "smollm3-windows": _of(
        SmolLM3Config,
        _EVEN,
        pad_token_id=None,
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=WINDOW,
    ),
    "gemma2": _of(Gemma2Config, _GEMMA, attn_logit_softcapping=4.0, final_logit_softcapping=2.0),
    "gemma3_text": _of(
        Gemma3TextConfig, _GEMMA, num_hidden_layers=4, sliding_window_pattern=3, query_pre_attn_scalar=8
    ),
    "gemma3_text-linear": _of(
        Gemma3TextConfig,
        _GEMMA,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        rope_parameters={
            "full_attention": _ROPES["linear"],
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "phi3": _phi3(sliding_window=WINDOW),
    "phi3-longrope": _phi3(
        rope_parameters=_ROPES["longrope"] | {"partial_rotary_factor": 0.75},
        original_max_position_embeddings=ROPE_ORIGINAL,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
    ),
    "gpt2": _gpt2(),
    "gpt2-untied": _gpt2(tie_word_embeddings=False, n_inner=40, activation_function="gelu"),
    "gpt_neox": _of(GPTNeoXConfig, _LAYER_NORM, layer_norm_eps=0.02, num_attention_heads=3),
    "gpt_neox-serial": _of(
        GPTNeoXConfig, _LAYER_NORM, layer_norm_eps=0.02, num_attention_heads=3, use_parallel_residual=False
    ),
    "olmo2": _of(Olmo2Config, _EVEN),
    "granite": _of(
        GraniteConfig,
        _EVEN,
        embedding_multiplier=1.5,
        attention_multiplier=0.4,
        residual_multiplier=0.7,
        logits_scaling=2.0,
    ),
    "stablelm": _of(
        StableLmConfig,
        _LAYER_NORM,
        layer_norm_eps=0.02,
        use_qkv_bias=True,
        num_attention_heads=3,
        num_key_value_heads=1,
    ),
    "stablelm-parallel": _of(
        StableLmConfig,
        _LAYER_NORM,
        layer_norm_eps=0.02,
        use_parallel_residual=True,
        qk_layernorm=True,
        num_attention_heads=6,
        num_key_value_heads=2,
        rope_parameters=_SHARED["rope_parameters"] | {"partial_rotary_factor": 0.5},
    ),
    "starcoder2": _of(
        Starcoder2Config, _LAYER_NORM, norm_epsilon=0.02, sliding_window=WINDOW, tie_word_embeddings=True
    ),
    "cohere": _of(CohereConfig, _LAYER_NORM, layer_norm_eps=0.02, logit_scale=0.5, tie_word_embeddings=True),
    "cohere-normed": _of(
        CohereConfig, _LAYER_NORM, layer_norm_eps=0.02, use_qk_norm=True, attention_bias=True, logit_scale=0.5
    ),
    "mixtral": _of(MixtralConfig, _SHARED, **_MOE, num_local_experts=4, sliding_window=WINDOW),
    "qwen3_moe": _of(
        Qwen3MoeConfig,
        _SHARED,
        **_MOE,
        num_experts=6,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        mlp_only_layers=[0],
        use_sliding_window=True,
        sliding_window=WINDOW,
    ),
    "qwen2_moe": _of(Qwen2MoeConfig, _EVEN, **_EXPERTS),
    "olmoe": _of(OlmoeConfig, _EVEN, **_MOE, num_experts=5),
    "qwen3_5_text": _of(
        Qwen3_5TextConfig,
        _DELTA_NET | {"layer_types": ["linear_attention", "full_attention"] * 2},
        num_hidden_layers=4,
    ),
    "qwen3_next": _of(Qwen3NextConfig, _DELTA_NET, **_EXPERTS, norm_topk_prob=False),
    "qwen3_5_moe_text": _of(Qwen3_5MoeTextConfig, _DELTA_NET, **_EXPERTS),
    "granitemoehybrid-experts": _of(
        GraniteMoeHybridConfig,
        _MAMBA | _MOE | {"num_local_experts": 5, "intermediate_size": 24},
        layer_types=["linear_attention", "full_attention"],
        position_embedding_type="rope",
    ),
    "llama4_text": _of(
        Llama4TextConfig,
        _EVEN | _MOE | {"intermediate_size": 24, "num_experts_per_tok": 1},
        intermediate_size_mlp=72,
        num_local_experts=5,
        no_rope_layers=[1, 0],
        moe_layers=[1],
        attention_chunk_size=WINDOW,
        floor_scale=16,
        attn_scale=0.5,
    ),
    "lfm2_moe": _of(
        Lfm2MoeConfig,
        _LFM2 | _MOE,
        layer_types=["conv", "full_attention"],
        num_dense_layers=1,
        num_experts=5,
        moe_intermediate_size=24,
        routed_scaling_factor=1.5,
    ),
    "granitemoehybrid": _of(
        GraniteMoeHybridConfig,
        _MAMBA,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mamba_n_groups=2,
    ),
    "granitemoehybrid-rope": _of(
        GraniteMoeHybridConfig,
        _MAMBA,
        layer_types=["full_attention", "linear_attention", "full_attention"],
        position_embedding_type="rope",
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        time_step_limit=[0.1, 2.0],
    ),
    "mamba2": Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=2,
        num_heads=6,
        head_dim=16,
        state_size=8,
        n_groups=2,
        layer_norm_epsilon=0.02,
        use_bias=True,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "falcon_h1": _of(
        FalconH1Config,
        _SHARED,
        num_hidden_layers=2,
        mamba_d_ssm=60,
        mamba_n_heads=6,
        mamba_d_head=10,
        mamba_d_state=8,
        mamba_n_groups=2,
        mamba_rms_norm=True,
        mlp_bias=True,
        embedding_multiplier=1.5,
        lm_head_multiplier=0.7,
        mlp_multipliers=[0.6, 1.4],
        key_multiplier=0.8,
        attention_in_multiplier=1.2,
        attention_out_multiplier=0.9,
        ssm_multipliers=[0.7, 1.3, 0.8, 1.2, 0.6],
        ssm_in_multiplier=1.1,
        ssm_out_multiplier=0.75,
    ),
    "nemotron_h": _of(
        NemotronHConfig,
        _SHARED,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        layer_norm_epsilon=0.02,
        mamba_num_heads=6,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        time_step_min=0.1,
        n_routed_experts=6,
        n_group=3,
        topk_group=2,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=40,
        routed_scaling_factor=1.5,
    ),
    "lfm2": _of(
        Lfm2Config,
        _LFM2,
        layer_types=["conv", "full_attention", "conv"],
        intermediate_size=90,
        block_multiple_of=8,
    ),
    "lfm2-biases": _of(
        Lfm2Config,
        _LFM2,
        layer_types=["full_attention", "conv", "full_attention"],
        conv_bias=True,
        conv_L_cache=4,
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=False,
    ),
    "gpt_oss": _of(
        GptOssConfig,
        _SHARED,
        **_MOE,
        num_local_experts=5,
        sliding_window=WINDOW,
        swiglu_limit=1.5,
        rope_parameters=_ROPES["yarn"] | {"truncate": False},
    ),
    "deepseek_v2": _of(
        DeepseekV2Config,
        _LATENT,
        q_lora_rank=None,
        n_routed_experts=9,
        n_shared_experts=2,
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        num_experts_per_tok=4,
        routed_scaling_factor=1.5,
        first_k_dense_replace=1,
        rope_parameters=_ROPES["yarn"] | {"mscale": 0.9, "mscale_all_dim": 0.7},
    ),
    "deepseek_v3": _of(
        DeepseekV3Config,
        _LATENT,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        attention_bias=True,
        rope_parameters=_ROPES["yarn"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "glm4_moe_lite": _of(Glm4MoeLiteConfig, _LATENT, n_routed_experts=5),
    "olmo3": _of(
        Olmo3Config,
        _EVEN,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": _ROPES["yarn"],
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "ministral3": _of(Ministral3Config, _SHARED, rope_parameters=_ROPES["yarn"] | {"llama_4_scaling_beta": 0.5}),
    "seed_oss": _of(SeedOssConfig, _SHARED, attention_out_bias=True, mlp_bias=True),
    "arcee": _of(ArceeConfig, _SHARED, attention_bias=True, mlp_bias=True),
    "nanochat": _of(NanoChatConfig, _EVEN, final_logit_softcapping=4.0),
    "cohere2": _of(
        Cohere2Config,
        _LAYER_NORM,
        layer_norm_eps=0.02,
        logit_scale=0.5,
        sliding_window=WINDOW,
        sliding_window_pattern=3,
    ),
    "exaone4": _of(Exaone4Config, _SHARED, sliding_window=WINDOW, sliding_window_pattern=2),
    "glm4": _of(Glm4Config, _SHARED, num_hidden_layers=2, pad_token_id=None),
    "ernie4_5": _of(Ernie4_5Config, _SHARED, use_bias=True),
    "hunyuan_v1_dense": _of(
        HunYuanDenseV1Config,
        _SHARED,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 3.0, "factor": 1.0},
    ),
    "apertus": _of(ApertusConfig, _EVEN, rope_parameters=_ROPES["llama3"]),
    "gemma": _of(GemmaConfig, _SHARED, num_hidden_layers=2, tie_word_embeddings=True, pad_token_id=None),
    "olmo": _of(OlmoConfig, _LAYER_NORM, num_hidden_layers=2, clip_qkv=2.5, pad_token_id=None),
    "helium": _of(HeliumConfig, _EVEN, num_hidden_layers=2, attention_bias=True, mlp_bias=True, pad_token_id=None),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        attention_types=[[["global", "local"], 1], [["local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=CONTEXT,
        layer_norm_epsilon=0.02,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": OPTConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        ffn_dim=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "phi": _of(PhiConfig, _LAYER_NORM, num_hidden_layers=2, layer_norm_eps=0.02),
    "gptj": GPTJConfig(
        vocab_size=VOCAB,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        rotary_dim=6,
        layer_norm_epsilon=0.02,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "bloom": BloomConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        n_layer=2,
        n_head=6,
        seq_length=CONTEXT,
        layer_norm_epsilon=0.02,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "falcon": FalconConfig(**_FALCON, num_attention_heads=3),
    "falcon-grouped": FalconConfig(
        **_FALCON, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, bias=True
    ),
}
CONFIGS["gemma4_text"] = _of(
    Gemma4TextConfig,
    {key: value for key, value in _GEMMA.items() if key != "query_pre_attn_scalar"},
    num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    global_head_dim=32,
    rope_parameters={
        "full_attention": {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
    num_kv_shared_layers=2,
    use_double_wide_mlp=True,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCAB,
    final_logit_softcapping=6.0,
)
CONFIGS["gemma4_text-moe"] = _of(
    Gemma4TextConfig,
    {key: value for key, value in _GEMMA.items() if key != "query_pre_attn_scalar"},
    num_hidden_layers=2,
    layer_types=["sliding_attention", "full_attention"],
    global_head_dim=32,
    attention_k_eq_v=True,
    num_global_key_value_heads=3,
    rope_parameters={
        "full_attention": {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
    hidden_size_per_layer_input=0,
    enable_moe_block=True,
    num_experts=5,
    top_k_experts=2,
    moe_intermediate_size=24,
)
CASES = tuple(CONFIGS)
# The cases that together have every kind of layer, of positions and of state, for tests of what is built on a model.
# Tests of the model itself, of its tensors' names and of its config.json take all cases.
KINDS = (
    "llama",
    "llama-dynamic",
    "mistral",
    "smollm3-windows",
    "llama4_text",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gemma4_text-moe",
    "phi3-longrope",
    "gpt2",
    "gpt_neox",
    "cohere",
    "granite",
    "qwen2_moe",
    "olmo2",
    "ministral3",
    "qwen3_5_text",
    "nemotron_h",
    "lfm2_moe",
    "gpt_oss",
    "deepseek_v3",
    "bloom",
)
RECURRENT = (
    "qwen3_5_text",
    "qwen3_next",
    "qwen3_5_moe_text",
    "granitemoehybrid-experts",
    "lfm2_moe",
    "lfm2",
    "lfm2-biases",
    "granitemoehybrid",
    "granitemoehybrid-rope",
    "mamba2",
    "nemotron_h",
    "falcon_h1",
)  # cases with recurrent layers, which not every engine runs
LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")  # cases with latent attention
WITHOUT_RECURRENT = tuple(name for name in CASES if name not in RECURRENT)
SPLIT = tuple(name for name in WITHOUT_RECURRENT if not name.startswith(("gemma4", *LATENT)))  # by tensor parallelism
# Not a case of every test: with enough heads for four ranks.
CONFIGS["gpt_neox-six"] = _of(GPTNeoXConfig, _LAYER_NORM, layer_norm_eps=0.02, num_attention_heads=6)
# Seeds for the cases that would soon repeat themselves with seed 0.
SEEDS = {
    "bloom": 1,
    "falcon": 4,
    "mamba2": 3,
    "nemotron_h": 4,
    "llama-yarn-mscale": 1,
    "llama4_text": 1,
    "gemma2": 3,
    "gemma3_text": 1,
    "gemma3_text-linear": 7,
    "gemma4_text": 7,
    "gemma4_text-moe": 5,
    "gpt2": 2,
    "gpt_neo": 2,
    "opt": 4,
    "gpt_neox": 2,
    "gpt_neox-serial": 2,
    "starcoder2": 4,
}


@dataclass(frozen=True)
class Tiny:
    """A case: the folder that transformers wrote, and transformers' own model loaded from it."""

    name: str
    folder: Path
    reference: PreTrainedModel

    def load(self) -> Transformer:
        """llmcli's model, newly loaded from the folder, so that a test may change it."""
        return load(self.folder, device=CPU, dtype=torch.float32)


TinyFactory = Callable[[str], Tiny]  # from a case's name; see the fixture ``tiny``


def load(folder: Path, **options: Any) -> Transformer:
    """The model in ``folder`` as commands run it; ``options`` as for ``Checkpoint.load``."""
    return Checkpoint.read(folder).load(build=EngineTransformer, **options)


def make(name: str, folder: Path) -> Tiny:
    """Build the case, check that its attention and logits are neither too flat nor too sharp, and save it."""
    with torch.inference_mode(False):  # otherwise the reference's buffers could not be changed outside of it
        return _make(name, folder)


def _make(name: str, folder: Path) -> Tiny:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    randomize(model, seed=SEEDS.get(name, 0))
    model.save_pretrained(folder)
    reference = load_with_transformers(folder)
    reference.generation_config.eos_token_id = None  # so that texts have the requested length
    with torch.no_grad():
        out = reference(random_ids(CONTEXT, seed=1), output_attentions=True)
    assert 1.0 < out.logits.std() < 10.0
    most = 0.95 if name in ("nanochat", "llama4_text") else 0.8  # heads normalized without weights select little
    for weights in getattr(out, "attentions", ()):  # Mamba-2 has none
        assert 0.2 < relative_entropy(weights) < most, f"{name}: attention entropy {relative_entropy(weights):.2f}"
    return Tiny(name, folder, reference)


def load_with_transformers(folder: Path) -> PreTrainedModel:
    """The model in ``folder``, loaded by transformers, in fp32 with eager attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Randomize every parameter: norm weights around 1, biases around 0, and matrices scaled by their inputs."""
    generator = torch.Generator().manual_seed(seed)
    model_type = model.config.model_type
    adds_one = any(family in model_type for family in ("gemma", "qwen3_5", "qwen3_next"))  # to the stored weight
    adds_one = adds_one and "gemma4" not in model_type
    with torch.no_grad():
        for name, parameter in learned(model):
            noise = torch.randn(parameter.shape, generator=generator)
            offset = 0.0 if adds_one and "linear_attn" not in name else 1.0
            if name.endswith("A_log"):
                parameter.copy_(0.7 * noise - 2)  # so slow a decay that a state's past shows
            elif name.endswith("bias"):
                parameter.copy_(0.15 * noise)
            elif parameter.ndim == 1 or "norm" in name:
                parameter.copy_(offset + _norm_gain(name, model_type) + 0.3 * noise)
            else:
                parameter.copy_(_deviation(name, parameter.shape, model_type) * noise)


def learned(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters, and what transformers does not count among them: biases that choose experts, layers' factors."""
    ends = ("expert_bias", "correction_bias", "layer_scalar")
    return [*model.named_parameters(), *(entry for entry in model.named_buffers() if entry[0].endswith(ends))]


def _norm_gain(name: str, model_type: str) -> float:
    """What is added to a norm's weight, by its role."""
    if any(
        part in name
        for part in (
            "q_norm",
            "k_norm",
            "query_layernorm",
            "key_layernorm",
            "q_layernorm",
            "k_layernorm",
            "_layernorm.norms",
        )
    ):
        # Queries and keys long enough for attention to be selective; Gemma 4 does not divide their products.
        return -0.4 if "gemma4" in model_type else 0.6
    # Gemma's embedding is scaled up and is also the head: unless layers add more, a model repeats its last token.
    if name.endswith("layer_scalar"):
        return -0.4  # otherwise the residual stream, and with it its rounding, would grow from layer to layer
    return 2.0 if "gemma" in model_type and "post_" in name else 0.0


def _deviation(name: str, shape: torch.Size, model_type: str) -> float:
    """The standard deviation of a matrix's elements, by its role."""
    if any(part in name for part in ("wpe", "embed_in", "embed_positions")):
        return 1.0
    if any(part in name for part in ("embed", "wte", "lm_head")):
        return (1.5 if "gemma" in model_type else 3.0) / math.sqrt(shape[1])  # logits of order 1 to 10
    fan_in = shape[0] if model_type == "gpt2" and ".c_" in name else shape[-1]  # GPT-2 stores [in, out]
    qk = 0.8 if model_type == "gpt_neo" else 1.6  # GPT-Neo does not divide scores
    gain = {"c_attn": 1.8, "q_proj": qk, "k_proj": qk}  # queries and keys long enough for attention to be selective
    return next((g for part, g in gain.items() if part in name), 1.5) / math.sqrt(fan_in)


def random_ids(count: int, *, seed: int, batch: int = 1) -> Tensor:
    """Token ids [B, T] that depend only on the arguments."""
    return torch.randint(VOCAB, (batch, count), generator=torch.Generator().manual_seed(seed))


def relative_entropy(weights: Tensor) -> float:
    """The mean entropy of causal attention weights [B, H, T, T], relative to each row's maximum."""
    entropy = torch.special.entr(weights).sum(-1)[..., 1:]  # the first query sees only itself
    most = torch.arange(2, weights.shape[-1] + 1).log()
    return float((entropy / most).mean())


def greedy(model: Transformer, prompt: Sequence[int], count: int, cache: KVCache | None = None) -> list[int]:
    """The ``count`` tokens that greedy decoding generates after ``prompt``."""
    sampler = Sampler([Temperature(0.0)], seed=0)
    return [step.token for step in steps(model, prompt, sampler=sampler, max_new_tokens=count, cache=cache)]


def chunks(ids: Tensor, cuts: list[int]) -> list[Tensor]:
    """``ids`` [B, T] cut before each of the positions ``cuts``."""
    edges = sorted({0, ids.shape[1], *cuts})
    return [ids[:, start:end] for start, end in itertools.pairwise(edges)]
