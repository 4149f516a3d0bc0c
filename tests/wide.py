"""Random models of every family, wide enough for several blocks of quantized weights in a row."""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from llmcli.model.families import family_of
from llmcli.model.transformer import Transformer
from tests.tiny import CONFIGS

WIDE = {"hidden_size": 96, "n_embd": 96, "intermediate_size": 64, "moe_intermediate_size": 32}


def raw_config(name: str) -> dict[str, Any]:
    """The config.json of a case in ``tiny.CONFIGS``, with most sizes multiples of 32."""
    raw: dict[str, Any] = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    raw |= {key: size for key, size in WIDE.items() if key in raw}
    if "word_embed_proj_dim" in raw:
        raw["word_embed_proj_dim"] = raw["hidden_size"]
    if "mamba_d_ssm" in raw:
        raw["mamba_d_ssm"] = raw["mamba_expand"] * raw["hidden_size"]
    if "mamba_d_head" in raw:
        raw["mamba_d_head"] = raw["mamba_expand"] * raw["hidden_size"] // raw["mamba_n_heads"]
    if raw["model_type"] == "mamba2":
        raw["head_dim"] = raw["expand"] * raw["hidden_size"] // raw["num_heads"]
    return raw


def wide_model(raw: dict[str, Any], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    """A model with random parameters, scaled so that no layer dominates the others."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(family_of(raw).parse(raw)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise / math.sqrt(parameter.shape[1]))
        elif name.endswith("bias"):
            parameter.copy_(0.15 * noise)
        else:
            parameter.copy_(1.0 - model.config.norm_offset + 0.3 * noise)
    return model.to(dtype).eval()
