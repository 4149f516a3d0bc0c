"""Views of a model whose numbers are NaN or infinite: one clear error, never a report that cannot be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmcli import explain
from llmcli.errors import LlmcliError
from llmcli.generation.loaded import LoadedModel
from tests.explain.reference import loaded
from tests.tiny import TinyFactory

IDS = [3, 5, 7, 9]
VIEWS: dict[str, Callable[[LoadedModel], Any]] = {
    "lens": lambda model: explain.lens(model, IDS),
    "attend": lambda model: explain.attend(model, IDS),
    "attention_pattern": lambda model: explain.attention_pattern(model, IDS, "0.0"),
    "why": lambda model: explain.why(model, IDS),
    "score": lambda model: explain.score(model, IDS),
    "branch": lambda model: explain.branch(model, IDS),
    "decide": lambda model: explain.decide(model, "w3 w5", ["w7", "w9"]),
    "step": lambda model: explain.step(model, IDS),
    "position": lambda model: explain.position(model, IDS),
    "neighbours": lambda model: explain.neighbours(model, "5"),
}
# Attention's own kernels turn rows of NaN into 0, so that only these views see them.
SHOW_ATTENTION = ("attend", "attention_pattern", "why")


def damaged(tiny: TinyFactory, value: float, *names: str) -> LoadedModel:
    model = loaded(tiny("llama"))
    with torch.no_grad():
        for name in names:
            dict(model.model.named_parameters())[name].view(-1)[5] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("view", VIEWS)
def test_a_damaged_model_is_an_error(tiny: TinyFactory, view: str, value: float) -> None:
    with pytest.raises(LlmcliError, match="contain NaN or infinity") as caught:
        VIEWS[view](damaged(tiny, value, "embedding.weight", "norm.weight"))
    assert caught.value.kind == "logits-not-finite"


@pytest.mark.parametrize("view", SHOW_ATTENTION)
def test_attention_weights_of_nan_are_an_error(tiny: TinyFactory, view: str) -> None:
    with pytest.raises(LlmcliError, match="contain NaN or infinity"):
        VIEWS[view](damaged(tiny, math.nan, "blocks.0.attn.qkv.weight"))
