"""A wrong state of a recurrent layer shows in the logits as soon as a text is read in several passes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.model.mixers import delta_net, mamba, short_conv
from tests.parity import CLOSE, DECODED, WRONG, parity_error
from tests.tiny import TinyFactory

MIXERS: dict[str, tuple[ModuleType, list[str]]] = {  # the parts of the state: the convolution's inputs, and a memory
    "qwen3_5_text": (delta_net, ["convolution", "memory"]),
    "granitemoehybrid": (mamba, ["convolution", "memory"]),
    "falcon_h1": (mamba, ["convolution", "memory"]),
    "lfm2-biases": (short_conv, ["convolution"]),
}
MISTAKES: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "convolution": {
        "forgotten": torch.zeros_like,
        "a position off": lambda past: past.roll(1, dims=1),
        "of other features": lambda past: past.roll(1, dims=2),
    },
    "memory": {"forgotten": torch.zeros_like, "of another head": lambda memory: memory.roll(1, dims=1)},
}
ROWS = [(name, part, mistake) for name, (_, parts) in MIXERS.items() for part in parts for mistake in MISTAKES[part]]


@pytest.mark.parametrize("cuts", [[40], DECODED], ids=["two chunks", "token by token"])
@pytest.mark.parametrize(("name", "part", "mistake"), ROWS)
def test_a_wrong_state_shows(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, part: str, mistake: str, cuts: list[int]
) -> None:
    (module, parts), case = MIXERS[name], tiny(name)
    before, wrong = module.state_before, parts.index(part)

    def changed(cache: Any, *rest: Any) -> tuple[Tensor, ...]:
        state: tuple[Tensor, ...] = before(cache, *rest)
        if cache is None or not cache.length:
            return state
        return (*state[:wrong], MISTAKES[part][mistake](state[wrong]), *state[wrong + 1 :])

    monkeypatch.setattr(module, "state_before", changed)
    assert parity_error(case.load(), case) <= CLOSE
    assert parity_error(case.load(), case, cuts) > WRONG
