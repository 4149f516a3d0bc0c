"""Every mistake in the gated short convolution shows in the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmcli.model.mixers import short_conv
from llmcli.model.mixers.convolution import causal_convolution
from llmcli.model.mixers.short_conv import ShortConv
from tests.parity import WRONG, parity_error
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
