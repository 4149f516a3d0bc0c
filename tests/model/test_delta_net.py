"""The gated delta net computes its recurrence exactly, in steps and in chunks, and every mistake in it shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.model.attention import Attention, Projection
from llmcli.model.families import FAMILIES
from llmcli.model.families.rules import Source
from llmcli.model.mixers import delta_net
from llmcli.model.mixers.chunks import CHUNK, FEW
from llmcli.model.mixers.convolution import causal_convolution
from llmcli.model.mixers.delta_net import GatedDeltaNet, delta_rule, in_chunks, in_steps, unit
from tests.parity import WRONG, parity_error
from tests.tiny import TinyFactory

CASE = "qwen3_5_text"
LENGTHS = [1, FEW, FEW + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


def inputs(length: int, *, slow: bool = False) -> list[Tensor]:
    """Queries, keys, values, log decays, strengths and a memory, as the mixer computes them; 2 texts, 3 heads."""
    generator = torch.Generator().manual_seed(length)

    def noise(*shape: int) -> Tensor:
        return torch.randn(2, 3, *shape, generator=generator)

    decay = -F.softplus(noise(length)) * (0.01 if slow else 1.0)
    strength = noise(length).sigmoid()
    return [unit(noise(length, 8)) * 8**-0.5, unit(noise(length, 8)), noise(length, 6), decay, strength, noise(8, 6)]


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as written in the paper, S (a (I - b k k^T)) + b v k^T, in float64, text by text, head by head."""
    q, k, v, log_decay, strength, memory = (x.double() for x in (q, k, v, log_decay, strength, memory))
    out, after = torch.empty_like(v), memory.clone()
    identity = torch.eye(k.shape[-1], dtype=torch.float64)
    for text in range(q.shape[0]):
        for head in range(q.shape[1]):
            state = memory[text, head].T  # [D_v, D_k]
            for t in range(q.shape[2]):
                key, b = k[text, head, t], strength[text, head, t]
                forgotten = log_decay[text, head, t].exp() * (identity - b * torch.outer(key, key))
                state = state @ forgotten + b * torch.outer(v[text, head, t], key)
                out[text, head, t] = state @ q[text, head, t]
            after[text, head] = state.T
    return out, after


@pytest.mark.parametrize("slow", [False, True], ids=["fast decay", "slow decay"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rule", [in_steps, in_chunks, delta_rule])
def test_the_rule_is_the_papers(rule: Callable[..., tuple[Tensor, Tensor]], length: int, slow: bool) -> None:
    found, expected = rule(*inputs(length, slow=slow)), by_definition(*inputs(length, slow=slow))
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours.double() - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_the_convolution_sees_the_last_positions_only() -> None:
    generator = torch.Generator().manual_seed(0)
    x, past = torch.randn(2, 9, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    weight, bias = torch.randn(5, 4, generator=generator), torch.randn(5, generator=generator)
    out, after = causal_convolution(x, weight, bias, past)
    joined = torch.cat((past, x), dim=1)
    for t in range(9):
        expected = (joined[:, t : t + 4] * weight.T).sum(dim=1) + bias
        assert torch.allclose(out[:, t], expected, atol=1e-6)
    assert torch.equal(after, x[:, -3:])
    assert torch.equal(causal_convolution(x[:, :1], weight, None, past)[1], joined[:, 1:4])


# Mistakes that parity with transformers must detect.

Patch = Callable[[pytest.MonkeyPatch], None]
PROJECT, CONVOLVE, RULE, HEADS = Attention.project, causal_convolution, delta_rule, GatedDeltaNet._heads


def with_inputs(**changed: Callable[[Tensor], Tensor]) -> Patch:
    """The rule with some of its inputs replaced."""
    names = ("q", "k", "v", "log_decay", "strength", "memory")

    def rule(*given: Tensor) -> tuple[Tensor, Tensor]:
        return RULE(*(changed.get(name, lambda x: x)(x) for name, x in zip(names, given, strict=True)))

    return lambda monkeypatch: monkeypatch.setattr(delta_net, "delta_rule", rule)


def read_before_writing(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The output is read from the memory before the position's own value is written."""
    outs = []
    for t in range(q.shape[2]):
        one = slice(t, t + 1)
        outs.append(q[:, :, one] @ (memory * log_decay[:, :, t, None, None].exp()))
        _, memory = in_steps(
            q[:, :, one], k[:, :, one], v[:, :, one], log_decay[:, :, one], strength[:, :, one], memory
        )
    return torch.cat(outs, dim=2), memory


def without_correction(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Values are added to the memory, as in linear attention, without subtracting what it predicts."""
    outs = []
    for t in range(q.shape[2]):
        memory = memory * log_decay[:, :, t, None, None].exp()
        memory = memory + k[:, :, t].unsqueeze(-1) * (v[:, :, t] * strength[:, :, t, None]).unsqueeze(2)
        outs.append(q[:, :, t : t + 1] @ memory)
    return torch.cat(outs, dim=2), memory


def convolved(change: Callable[..., tuple[Tensor, Tensor]]) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(delta_net, "causal_convolution", change)


def on_module(name: str, change: Callable[..., Any]) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(delta_net, name, change)


def heads_in_turn(self: GatedDeltaNet, x: Tensor, size: int) -> Tensor:
    """Value head i is served by key head i modulo their number."""
    heads = x.reshape(*x.shape[:2], -1, size).transpose(1, 2)
    return heads.repeat(1, self.sizes.value_heads // heads.shape[1], 1, 1)


def gates(change: Callable[[Tensor], Tensor]) -> Patch:
    def project(self: Attention, *args: Any) -> Projection:
        found = PROJECT(self, *args)
        assert found.gate is not None
        return found._replace(gate=change(found.gate))

    return lambda monkeypatch: monkeypatch.setattr(Attention, "project", project)


def rules_with(change: Callable[[Source], Source]) -> Patch:
    """The family's tensor rules with every source changed."""
    family = FAMILIES[CASE]

    def rules(config: Any) -> Any:
        return [dataclasses.replace(rule, sources=tuple(map(change, rule.sources))) for rule in family.rules(config)]

    return lambda monkeypatch: monkeypatch.setitem(FAMILIES, CASE, dataclasses.replace(family, rules=rules))


def exchanged(one: str, other: str) -> Callable[[Source], Source]:
    """Two stored tensors of the same shape, each read in the other's place."""

    def change(source: Source) -> Source:
        for left, right in ((one, other), (other, one)):
            if left in source.name:
                return dataclasses.replace(source, name=source.name.replace(left, right))
        return source

    return change


MISTAKES: dict[str, Patch] = {
    "queries not scaled": with_inputs(q=lambda q: q * q.shape[-1] ** 0.5),
    "keys not of length 1": with_inputs(k=lambda k: k * 1.1),
    "no decay": with_inputs(log_decay=torch.zeros_like),
    "decay not through softplus": with_inputs(log_decay=lambda decay: decay * 1.05),
    "full strength": with_inputs(strength=torch.ones_like),
    "decays of other heads": with_inputs(log_decay=lambda decay: decay.roll(1, dims=1)),
    "values of other heads": with_inputs(v=lambda v: v.roll(1, dims=1)),
    "read before writing": on_module("delta_rule", read_before_writing),
    "no correction": on_module("delta_rule", without_correction),
    "queries and keys not normalized": on_module("unit", lambda x: x),
    "convolution reversed": convolved(lambda x, weight, bias, past: CONVOLVE(x, weight.flip(1), bias, past)),
    "convolution of one position": convolved(lambda x, weight, bias, past: (x.float() * weight[:, -1].float(), past)),
    "convolution a position late": convolved(
        lambda x, weight, bias, past: CONVOLVE(x.roll(1, dims=1), weight, bias, past)
    ),
    "key heads in turn": lambda monkeypatch: monkeypatch.setattr(GatedDeltaNet, "_heads", heads_in_turn),
    "attention not gated": gates(torch.ones_like),
    "gates not through a sigmoid": gates(torch.logit),
    "gates of other heads": gates(lambda gate: gate.roll(1, dims=1)),
    "queries and gates not by head": rules_with(lambda source: dataclasses.replace(source, parts=())),
    "strengths for decays": rules_with(exchanged("in_proj_a", "in_proj_b")),
    "decays and their biases": rules_with(exchanged("A_log", "dt_bias")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    case = tiny(CASE)
    MISTAKES[mistake](monkeypatch)
    assert parity_error(case.load(), case) > WRONG
