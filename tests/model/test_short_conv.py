"""Every mistake in the gated short convolution shows in the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.model.mixers import short_conv
from llmcli.model.mixers.convolution import causal_convolution
from llmcli.model.mixers.short_conv import ShortConv
from tests.parity import CLOSE, DECODED, WRONG, parity_error
from tests.tiny import TinyFactory

CASES = ["lfm2", "lfm2-biases"]
Convolution = Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]


def reordered(*order: int) -> Callable[[ShortConv], None]:
    """The three parts of the inputs' matrix in another order."""

    def change(mixer: ShortConv) -> None:
        for parameter in mixer.inputs.parameters():
            parts = parameter.data.chunk(3)
            parameter.data = torch.cat([parts[number] for number in order])

    return change


CODE: dict[str, Convolution] = {
    "kernel reversed": lambda x, weight, bias, past: causal_convolution(x, weight.flip(1), bias, past),
    "no convolution": lambda x, weight, bias, past: (x, past),
    "one position late": lambda x, weight, bias, past: causal_convolution(x.roll(1, dims=1), weight, bias, past),
    "the position itself unseen": lambda x, weight, bias, past: causal_convolution(
        x, torch.cat((weight[:, :-1], torch.zeros_like(weight[:, -1:])), dim=1), bias, past
    ),
    "another feature's kernel": lambda x, weight, bias, past: causal_convolution(x, weight.roll(1, dims=0), bias, past),
}
STATES: dict[str, Callable[[Tensor], Tensor]] = {
    "forgotten": torch.zeros_like,
    "a position off": lambda past: past.roll(1, dims=1),
    "of other features": lambda past: past.roll(1, dims=2),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mistake", CODE)
def test_wrong_code_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, mistake: str) -> None:
    monkeypatch.setattr(short_conv, "causal_convolution", CODE[mistake])
    case = tiny(name)
    assert parity_error(case.load(), case) > WRONG


@pytest.mark.parametrize("name", CASES)
def test_exchanged_gates_show(tiny: TinyFactory, name: str) -> None:
    """The value and the gate before the convolution are multiplied, so only the gate after it can be exchanged."""
    case = tiny(name)
    for order, shows in (((2, 1, 0), False), ((1, 0, 2), True), ((0, 2, 1), True)):
        model = case.load()
        for module in model.modules():
            if isinstance(module, ShortConv):
                reordered(*order)(module)
        assert (parity_error(model, case) > WRONG) == shows


@pytest.mark.parametrize("cuts", [[40], DECODED], ids=["two chunks", "token by token"])
@pytest.mark.parametrize("mistake", STATES)
def test_a_wrong_state_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: str, cuts: list[int]) -> None:
    before = short_conv.state_before

    def changed(cache: Any, *rest: Any) -> tuple[Tensor, ...]:
        (state,) = before(cache, *rest)
        return (STATES[mistake](state) if cache is not None and cache.length else state,)

    monkeypatch.setattr(short_conv, "state_before", changed)
    case = tiny("lfm2-biases")
    assert parity_error(case.load(), case) <= CLOSE
    assert parity_error(case.load(), case, cuts) > WRONG
