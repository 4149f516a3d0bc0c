"""Apertus in GGUF files, whose metadata has the numbers that its activation learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmcli.model.families.fields import wrong
from llmcli.model.families.gguf_architecture import RMS, UNGATED, Architecture, refusing, untied
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.families.gguf_rope import scaling_of

CURVE = {"xielu.alpha_p": "act_fn.alpha_p", "xielu.alpha_n": "act_fn.alpha_n"}  # one number for each layer
CONSTANTS = {"xielu.beta": 0.5, "xielu.eps": -1e-6}  # the same in all models
ROUNDING = 2**-7  # relative: files of 16 bits have been converted


def _apertus(contents: Contents) -> dict[str, Any]:
    for key, value in CONSTANTS.items():
        found = contents.metadata.get(key, value)
        for number in found if isinstance(found, list) else [found]:
            if type(number) is not float or not abs(number - value) <= ROUNDING * abs(value):
                raise wrong(key, number, str(value))
    return {
        "attention_bias": "blk.0.attn_q.bias" in contents.shapes,
        "rope_scaling": scaling_of(contents) or {"rope_type": "default"},
    }


APERTUS = Architecture(
    "apertus",
    replace(UNGATED, curve=tuple(CURVE.values())),
    RMS,
    _apertus,
    refused=refusing(tie_word_embeddings=untied),
)
