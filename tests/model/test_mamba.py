"""Mamba-2 computes its recurrence exactly, in steps and in chunks, and every mistake in it shows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FalconH1Config

from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families import FAMILIES
from llmcli.model.mixers import mamba
from llmcli.model.mixers.chunks import CHUNK, FEW
from llmcli.model.mixers.config import MambaConfig
from llmcli.model.mixers.convolution import causal_convolution
from llmcli.model.mixers.mamba import Mamba2, in_chunks, in_steps, scan
from llmcli.model.mlp import MLP, MoE
from llmcli.model.transformer import Transformer
from tests import tiny as cases
from tests.parity import CLOSE, WRONG, parity_error
from tests.tiny import TinyFactory

GROUPED, LIMITED, ALONE, ONE_EACH = "granitemoehybrid", "granitemoehybrid-rope", "mamba2", "nemotron_h"
BESIDE = "falcon_h1"
LENGTHS = [1, FEW, FEW + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


def inputs(length: int, *, slow: bool = False) -> list[Tensor]:
    """Read and write directions, what is written, log decays and a state; 2 texts, 3 heads."""
    generator = torch.Generator().manual_seed(length)

    def noise(*shape: int) -> Tensor:
        return torch.randn(2, 3, *shape, generator=generator)

    decay = -F.softplus(noise(length)) * (0.01 if slow else 1.0)
    return [noise(length, 8), noise(length, 8), noise(length, 6), decay, noise(6, 8)]


def by_definition(read: Tensor, write: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Every output as a sum over all earlier positions, in float64, instead of a recurrence."""
    read, write, v, log_decay, state = (x.double() for x in (read, write, v, log_decay, state))
    total = log_decay.cumsum(-1)
    out = torch.zeros_like(v)
    for i in range(v.shape[2]):
        out[:, :, i] = total[:, :, i, None].exp() * (state @ read[:, :, i].unsqueeze(-1)).squeeze(-1)
        for j in range(i + 1):
            match = (read[:, :, i] * write[:, :, j]).sum(-1) * (total[:, :, i] - total[:, :, j]).exp()
            out[:, :, i] += match.unsqueeze(-1) * v[:, :, j]
    after = total[:, :, -1, None, None].exp() * state
    for j in range(v.shape[2]):
        decay = (total[:, :, -1] - total[:, :, j]).exp()[..., None, None]
        after = after + decay * v[:, :, j].unsqueeze(-1) * write[:, :, j].unsqueeze(-2)
    return out, after


@pytest.mark.parametrize("slow", [False, True], ids=["fast decay", "slow decay"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_scan_is_the_papers_sum(length: int, slow: bool) -> None:
    expected = by_definition(*inputs(length, slow=slow))
    for form in (in_steps, in_chunks, scan):
        for ours, theirs in zip(form(*inputs(length, slow=slow)), expected, strict=True):
            assert float((ours.double() - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


# Mistakes that parity with transformers must detect.

Patch = Callable[[pytest.MonkeyPatch], None]


def with_inputs(**changed: Callable[[Tensor], Tensor]) -> Patch:
    """The scan with some of its inputs replaced."""
    names = ("read", "write", "v", "log_decay", "state")

    def changed_scan(*given: Tensor) -> tuple[Tensor, Tensor]:
        return scan(*(changed.get(name, lambda x: x)(x) for name, x in zip(names, given, strict=True)))

    return lambda monkeypatch: monkeypatch.setattr(mamba, "scan", changed_scan)


def read_before_writing(
    read: Tensor, write: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    outs = []
    read, write = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (read, write))
    for t in range(v.shape[2]):
        outs.append((state * log_decay[:, :, t, None, None].exp()) @ read[:, :, t].unsqueeze(-1))
        one = slice(t, t + 1)
        _, state = in_steps(read[:, :, one], write[:, :, one], v[:, :, one], log_decay[:, :, one], state)
    return torch.cat(outs, dim=-1).transpose(-1, -2), state


def groups_in_turn(self: Mamba2, x: Tensor) -> Tensor:
    """Head i belongs to group i modulo their number."""
    groups = x.view(*x.shape[:2], self.sizes.groups, -1).transpose(1, 2)
    return groups.repeat(1, self.sizes.heads // self.sizes.groups, 1, 1)


def convolved(change: Callable[..., tuple[Tensor, Tensor]]) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(mamba, "causal_convolution", change)


def norm_of_all_groups(self: Mamba2, x: Tensor) -> Tensor:
    assert self.norm is not None
    return F.rms_norm(x, (x.shape[-1],), None, self.norm.eps) * self.norm.weight


def norm_before_gate(self: Mamba2, x: Tensor) -> Tensor:
    """A norm whose statistics another position's gate has changed."""
    return NORMED(self, x.roll(1, dims=1))


NORMED = Mamba2._normed
CODE: dict[str, Patch] = {
    "no decay": with_inputs(log_decay=torch.zeros_like),
    "decays of other heads": with_inputs(log_decay=lambda decay: decay.roll(1, dims=1)),
    "read along other directions": with_inputs(read=lambda read: read.flip(-1)),
    "values of other heads": with_inputs(v=lambda v: v.roll(1, dims=1)),
    "read before writing": lambda monkeypatch: monkeypatch.setattr(mamba, "scan", read_before_writing),
    "groups in turn": lambda monkeypatch: monkeypatch.setattr(Mamba2, "_groups", groups_in_turn),
    "all groups normalized together": lambda monkeypatch: monkeypatch.setattr(Mamba2, "_normed", norm_of_all_groups),
    "norm of another position": lambda monkeypatch: monkeypatch.setattr(Mamba2, "_normed", norm_before_gate),
    "kernel reversed": convolved(lambda x, weight, bias, past: causal_convolution(x, weight.flip(1), bias, past)),
    "no bias of the convolution": convolved(lambda x, weight, bias, past: causal_convolution(x, weight, None, past)),
    "one position late": convolved(
        lambda x, weight, bias, past: causal_convolution(x.roll(1, dims=1), weight, bias, past)
    ),
}


@pytest.mark.parametrize("name", [GROUPED, ALONE, ONE_EACH, BESIDE])
@pytest.mark.parametrize("mistake", CODE)
def test_wrong_code_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: str, name: str) -> None:
    case = tiny(name)
    CODE[mistake](monkeypatch)
    assert parity_error(case.load(), case) > WRONG


def mixers(model: Transformer) -> list[Mamba2]:
    return [module for module in model.modules() if isinstance(module, Mamba2)]


def exchanged(*parts: str) -> Callable[[Mamba2], None]:
    """The rows of the inputs' matrix for two parts of the same size exchanged."""

    def change(mixer: Mamba2) -> None:
        sizes, shared = mixer.sizes, mixer.sizes.groups * mixer.sizes.state_size
        at = {"gate": 0, "x": sizes.width, "write": 2 * sizes.width, "read": 2 * sizes.width + shared}
        size = sizes.width if "gate" in parts else shared
        rows = list(range(len(mixer.inputs.weight)))
        first, second = (slice(at[part], at[part] + size) for part in parts)
        rows[first], rows[second] = rows[second], rows[first]
        mixer.inputs.weight.data = mixer.inputs.weight.data[rows]

    return change


def with_value(name: str, value: float) -> Callable[[Mamba2], None]:
    return lambda mixer: mixer.get_parameter(name).data.fill_(value)


WEIGHTS: dict[str, Callable[[Mamba2], None]] = {
    "gate and input exchanged": exchanged("gate", "x"),
    "read and write exchanged": exchanged("write", "read"),
    "no skip": with_value("skip", 0.0),
    "one rate": with_value("decay", 0.0),
    "no bias of the step": with_value("step_bias", 0.0),
}


@pytest.mark.parametrize("name", [GROUPED, ALONE, ONE_EACH, BESIDE])
@pytest.mark.parametrize("mistake", WEIGHTS)
def test_wrong_weights_show(tiny: TinyFactory, mistake: str, name: str) -> None:
    case = tiny(name)
    model = case.load()
    for mixer in mixers(model):
        WEIGHTS[mistake](mixer)
    assert parity_error(model, case) > WRONG


@pytest.mark.parametrize(
    ("name", "limits"), [(LIMITED, (0.0, 2.0)), (LIMITED, (0.1, 1e9)), (ONE_EACH, (0.0, 1e9)), (ONE_EACH, (0.1, 0.5))]
)
def test_limits_of_the_step_show(tiny: TinyFactory, name: str, limits: tuple[float, float]) -> None:
    case = tiny(name)
    model = case.load()
    for mixer in mixers(model):
        mixer.sizes = dataclasses.replace(mixer.sizes, step_limits=limits)
    assert parity_error(model, case) > WRONG


@pytest.mark.parametrize("name", [ALONE, ONE_EACH, BESIDE])
def test_another_activation_shows(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    model = case.load()
    for mixer in mixers(model):
        mixer.sizes = dataclasses.replace(mixer.sizes, activation="gelu")
    assert parity_error(model, case) > WRONG


# A mixer beside attention, and multipliers.


def rebuilt(model: Transformer, config: ModelConfig) -> Transformer:
    """A model with the same parameters, computed as another config says."""
    other = EngineTransformer(config)
    other.load_state_dict(model.state_dict(), strict=False)
    return other.eval()


def mixer_with(**changed: Any) -> Callable[[ModelConfig], ModelConfig]:
    def change(config: ModelConfig) -> ModelConfig:
        assert isinstance(config.mixer, MambaConfig)
        return dataclasses.replace(config, mixer=dataclasses.replace(config.mixer, **changed))

    return change


def without_scale(part: int) -> Callable[[ModelConfig], ModelConfig]:
    """One of the five parts of the inputs not multiplied."""

    def change(config: ModelConfig) -> ModelConfig:
        assert isinstance(config.mixer, MambaConfig)
        scales = config.mixer.part_scales
        return mixer_with(part_scales=(*scales[:part], 1.0, *scales[part + 1 :]))(config)

    return change


def with_field(**changed: Any) -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: dataclasses.replace(config, **changed)


CONFIGS: dict[str, Callable[[ModelConfig], ModelConfig]] = {
    **{f"no scale of {part}": without_scale(n) for n, part in enumerate(["the gate", "x", "B", "C", "the step"])},
    "no scale of the mixer's output": mixer_with(out_scale=1.0),
    "norm after the gate": mixer_with(norm="after gate"),
    "no norm": mixer_with(norm=None),
    "plain scores": with_field(attention_scale=None),
    "no scale of attention's output": with_field(attention_out_scale=1.0),
    "no scale of the gate": with_field(gate_scale=1.0),
    "no scale of the MLP's output": with_field(mlp_out_scale=1.0),
    "no scale of the embedding": with_field(embedding_scale=1.0),
    "no scale of the logits": with_field(logit_scale=1.0),
    "the mixer in attention's place": with_field(layer_types=("recurrent",) * 2),
}


@pytest.mark.parametrize("mistake", CONFIGS)
def test_wrong_configs_show(tiny: TinyFactory, mistake: str) -> None:
    case = tiny(BESIDE)
    model = case.load()
    assert parity_error(rebuilt(model, model.config), case) <= CLOSE
    assert parity_error(rebuilt(model, CONFIGS[mistake](model.config)), case) > WRONG


@pytest.mark.parametrize("changed", [{"mamba_rms_norm": False}, {"mamba_norm_before_gate": False}], ids=str)
def test_other_places_of_the_norm_match_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, Any]
) -> None:
    monkeypatch.setitem(cases.CONFIGS, "changed", FalconH1Config(**cases.CONFIGS[BESIDE].to_dict() | changed))
    case = cases.make("changed", tmp_path)
    assert parity_error(case.load(), case, [40]) <= CLOSE


FALCONS: list[tuple[dict[str, Any], str]] = [
    ({"ssm_multipliers": [1.0, 2.0]}, "ssm_multipliers is [1.0, 2.0], not 5 numbers"),
    ({"mlp_multipliers": [1.0, math.inf]}, "mlp_multipliers"),
    ({"key_multiplier": 0.0}, "key_multiplier is 0.0, not a number above 0"),
    ({"attention_bias": True, "attention_in_multiplier": 2.0}, "attention_in_multiplier"),
    ({"mamba_proj_bias": True}, "projectors_bias"),
    ({"mamba_proj_bias": True, "projectors_bias": True, "ssm_in_multiplier": 2.0}, "ssm_in_multiplier"),
    ({"attention_in_multiplier": 1e200}, "attention_scale must be above 0, not inf"),
    ({"head_dim": 0}, "head_dim must be a whole number from 1"),
    ({"head_dim": -4}, "head_dim must be a whole number from 1"),
    ({"mamba_d_head": 3}, "mamba_d_head is 3, not mamba_d_ssm / mamba_n_heads (1024 / 128)"),
]


@pytest.mark.parametrize(("changed", "message"), FALCONS)
def test_multipliers_that_are_not_understood_are_rejected(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcliError, match=re.escape(message)):
        FAMILIES["falcon_h1"].parse({"model_type": "falcon_h1"} | changed)


# Layers that have only one part.


def test_a_layer_has_what_its_kind_says(tiny: TinyFactory) -> None:
    model = tiny(ONE_EACH).load()
    parts = list(map(parts_of, model.blocks))
    assert parts == [{"attn_norm", "mixer"}, {"mlp_norm", "mlp"}, {"attn_norm", "attn"}, {"mlp_norm", "mlp"}]
    assert all(parts_of(block) == {"attn_norm", "mixer"} for block in tiny(ALONE).load().blocks)
    assert [type(block.mlp) for block in model.blocks] == [type(None), MoE, type(None), MLP]


def parts_of(block: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, _ in block.named_parameters()}


@pytest.mark.parametrize("layer", range(4))
def test_a_part_that_adds_nothing_shows(tiny: TinyFactory, layer: int) -> None:
    case = tiny(ONE_EACH)
    model = case.load()
    block = model.blocks[layer]
    for module in (block.mixer, block.attn, block.mlp):
        if module is not None:
            module.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    assert parity_error(model, case) > WRONG


def test_a_layer_without_parts_is_rejected(tiny: TinyFactory) -> None:
    config = tiny(ONE_EACH).load().config
    with pytest.raises(LlmcliError, match="layer 1 has neither attention nor an MLP"):
        dataclasses.replace(config, layers_without_mlp=frozenset({0, 1, 2}))


PATTERNS: list[tuple[dict[str, Any], str]] = [
    ({"hybrid_override_pattern": "M*X-"}, "hybrid_override_pattern is 'M*X-', not 1 to 512 of M and * and - and E"),
    ({"hybrid_override_pattern": ""}, "hybrid_override_pattern"),
    ({"hybrid_override_pattern": ["M"]}, "hybrid_override_pattern"),
    ({"hybrid_override_pattern": "M-" * 300}, "hybrid_override_pattern"),
    ({"layers_block_type": ["mamba", "conv"]}, "layers_block_type"),
    ({"layers_block_type": "mamba"}, "layers_block_type"),
    ({"hybrid_override_pattern": "M-*", "num_hidden_layers": 4}, "num_hidden_layers is 4, not 3"),
    ({"moe_latent_size": 8}, "latent experts"),
    ({"n_group": 3}, "8 experts cannot form 3 equal groups"),
    ({"time_step_min": -0.5}, "time_step_min"),
]


@pytest.mark.parametrize(("changed", "message"), PATTERNS)
def test_files_that_are_not_understood_are_rejected(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcliError, match=re.escape(message)):
        FAMILIES["nemotron_h"].parse({"model_type": "nemotron_h"} | changed)


def test_patterns_and_lists_of_layers_mean_the_same() -> None:
    parse = FAMILIES["nemotron_h"].parse
    pattern = parse({"hybrid_override_pattern": "M-*E"})
    for names in (["mamba", "mlp", "attention", "moe"], ["linear_attention", "mlp", "full_attention", "moe"]):
        assert parse({"layers_block_type": names}) == pattern
    assert pattern.layer_types == ("recurrent", "mlp", "full_attention", "mlp")
    assert [pattern.is_moe(layer) for layer in range(4)] == [False, False, False, True]
