"""Models that read images, too: the text model in their files. Tensors of image encoders are dropped by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import num_experts, wrong
from llmcli.model.families.gemma import text_config
from llmcli.model.families.llama import parse_llama
from llmcli.model.families.llama4 import NAMES as LLAMA4_NAMES
from llmcli.model.families.llama4 import parse_llama4
from llmcli.model.families.mistral import parse_ministral3, parse_mistral
from llmcli.model.families.qwen import parse_qwen2, parse_qwen3, parse_qwen3_moe
from llmcli.model.families.rules import Family, Names

Parse = Callable[[Mapping[str, Any]], ModelConfig]

# The defaults of transformers' Qwen2_5_VLTextConfig, Qwen3VLTextConfig and Qwen3VLMoeTextConfig, where they differ from
# Qwen 2's and 3's.
_QWEN2_DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_window_layers": 80,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_QWEN3_DEFAULTS = {"max_position_embeddings": 128000, "rope_theta": 500000.0}
_QWEN3_MOE_DEFAULTS = {
    **_QWEN3_DEFAULTS,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "norm_topk_prob": True,
}


def _with_plain_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without what turns pairs by an image's rows and columns: in a text, all three positions are equal."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type")) not in ("mrope", "default"):
        return dict(raw)
    return {**raw, "rope_scaling": {**scaling, "rope_type": "default"}}


def _qwen2(raw: Mapping[str, Any]) -> ModelConfig:
    return parse_qwen2({**_QWEN2_DEFAULTS, **_with_plain_rope(raw)})


def _qwen3(raw: Mapping[str, Any]) -> ModelConfig:
    return parse_qwen3({**_QWEN3_DEFAULTS, **_with_plain_rope(raw)})


def _qwen3_moe(raw: Mapping[str, Any]) -> ModelConfig:
    experts = {"num_experts": num_experts(raw, 60), "use_sliding_window": False}
    return parse_qwen3_moe({**_QWEN3_MOE_DEFAULTS, **_with_plain_rope(raw), **experts})


# By the text model's ``model_type``.
_TEXT: dict[str, Parse] = {
    "llama": parse_llama,
    "llama4_text": parse_llama4,
    "mistral": parse_mistral,
    "ministral3": parse_ministral3,
    "qwen2_vl_text": _qwen2,
    "qwen2_5_vl_text": _qwen2,
    "qwen3_vl_text": _qwen3,
    "qwen3_vl_moe_text": _qwen3_moe,
}


def _family(
    model_type: str,
    *text_types: str,
    flat: bool = False,
    tokenizer_class: str | None = None,
    names: Names | None = None,
) -> Family:
    """A family whose text model is of one of ``text_types``, the first by default.

    ``flat``: older files describe the text model beside the image encoder, not in ``text_config``. ``names`` are those
    of the tensors if they are not Llama's; a file has one tensor for all experts.
    """

    def parse(raw: Mapping[str, Any]) -> ModelConfig:
        nested = not flat or "text_config" in raw
        text = {"model_type": text_types[0], **text_config(raw)} if nested else {**raw, "model_type": text_types[0]}
        if text["model_type"] not in text_types:
            raise wrong("the model_type of text_config", text["model_type"], "one of " + ", ".join(text_types))
        return replace(_TEXT[text["model_type"]](text), model_type=model_type)

    return Family(
        model_type,
        parse,
        (names or Names()).rules,
        renamed=(
            (r"^(model\.)?language_model\.(model\.)?(?!lm_head)", "model."),
            (r"^language_model\.lm_head", "lm_head"),
        ),
        dropped=(r"(model\.)?(vision_tower|vision_model|multi_modal_projector|visual)\..*",),
        tokenizer_class=tokenizer_class,
        stacks_experts=names is not None,
        text_only=True,
    )


MISTRAL3 = _family("mistral3", "mistral", "ministral3", tokenizer_class="")
LLAMA4 = _family("llama4", "llama4_text", names=LLAMA4_NAMES)
LLAVA = _family("llava", "llama", "mistral", tokenizer_class="")
QWEN2_VL = _family("qwen2_vl", "qwen2_vl_text", flat=True, tokenizer_class="Qwen2Tokenizer")
QWEN2_5_VL = _family("qwen2_5_vl", "qwen2_5_vl_text", flat=True, tokenizer_class="Qwen2Tokenizer")
QWEN3_VL = _family("qwen3_vl", "qwen3_vl_text", tokenizer_class="Qwen2Tokenizer")
QWEN3_VL_MOE = _family(
    "qwen3_vl_moe",
    "qwen3_vl_moe_text",
    tokenizer_class="Qwen2Tokenizer",
    names=Names(expert_up=("gate_up_proj",), expert_transposed=True),
)
