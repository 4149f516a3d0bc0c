"""`why` against transformers' own heads, norms and matrices, recomputed in fp64; sums; and mistakes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.explain import residual_stream as module
from llmcli.explain.attention.layer_heads import Heads
from llmcli.explain.attention.weights import attend
from llmcli.explain.attribution import WhyReport, why
from llmcli.explain.forward_pass import ForwardPass, observe
from llmcli.explain.models.architecture import architecture_of
from llmcli.explain.residual_stream import Attribution, FrozenNorm, attribute, freeze
from llmcli.model.layers import Norm
from llmcli.model.transformer import Transformer
from llmcli.render.views.why import print_why
from llmcli.storage.quantize import Quantization, quantize
from tests.explain.reference import IDS, Recording, attention_blocks, attention_out, blocks, loaded, record_pass
from tests.parity import CLOSE, WRONG
from tests.tiny import KINDS, Tiny, TinyFactory

TOKENS = (5, 11)
# Families with a norm after attention.
POST_NORMED = ("gemma2", "gemma3_text", "gemma4_text", "olmo2", "olmo3", "exaone4", "glm4")


def split_of(case: Tiny, model: Transformer | None = None) -> tuple[Attribution, ForwardPass]:
    model = model or case.load()
    observed = observe(model, IDS)
    return attribute(model, observed, TOKENS), observed


def capped(model: Transformer, logits: Tensor) -> Tensor:
    cap = model.config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


# transformers' side: each norm is a linear map once its scale is fixed.


def frozen(norm: nn.Module, x: Tensor, part: Tensor) -> Tensor:
    """``part`` [..., C] after the norm with the scale that it has for ``x`` [C], without the bias."""
    kind = type(norm).__name__
    weight = norm.weight.detach().double() if hasattr(norm, "weight") else torch.ones(len(x)).double()
    adds_one = kind.startswith(("Gemma", "Qwen3_5", "Qwen3Next")) and not kind.startswith("Gemma4")
    gain = weight + (1 if adds_one else 0)
    eps = next((getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name)), 1e-5)  # OLMo's
    if "RMS" in kind:
        return part * gain / (x.square().mean() + eps).sqrt()
    centered = x - x.mean()
    return (part - part.mean(-1, keepdim=True)) * gain / (centered.square().mean() + eps).sqrt()


def final_norm(case: Tiny) -> nn.Module:
    """The norm whose output the head reads."""
    outputs: list[tuple[nn.Module, Any]] = []
    hooks = [m.register_forward_hook(lambda m, _, out: outputs.append((m, out))) for m in case.reference.modules()]
    inputs: list[Any] = []
    head = case.reference.get_output_embeddings()
    hooks.append(head.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
    with torch.no_grad():
        case.reference(torch.tensor([[3, 4]]))
    for hook in hooks:
        hook.remove()
    return next(module for module, out in outputs if "Norm" in type(module).__name__ and torch.equal(out, inputs[0]))


def scales(case: Tiny) -> tuple[float, float]:
    """The factors of each layer's output and of the logits."""
    config = case.reference.config
    if config.model_type == "falcon_h1":
        return config.attention_out_multiplier, config.lm_head_multiplier
    if config.model_type.startswith("granite"):
        return config.residual_multiplier, 1 / config.logits_scaling
    return 1.0, getattr(config, "logit_scale", 1.0) if config.model_type.startswith("cohere") else 1.0


def expected_heads(case: Tiny, recorded: Recording) -> Tensor:
    """What each head adds to the logits of TOKENS by attended position, [N, L, H, S], computed in another way."""
    rows = case.reference.get_output_embeddings().weight.detach().double()[list(TOKENS)]
    norm, (residual_scale, logit_scale) = final_norm(case), scales(case)
    layers = {}
    for number, (layer, block) in enumerate(attention_blocks(case)):
        out = attention_out(block)
        matrix = out.weight.detach().double()
        matrix = matrix.T if type(out).__name__ == "Conv1D" else matrix  # [C, H D]
        gated = matrix * recorded.gate(number)
        weights, values = recorded.attention[number][:, -1], recorded.values[number]
        groups = len(weights) // len(values)
        size = values.shape[-1]
        raw = matrix @ recorded.mixed[number][-1] + (0 if out.bias is None else out.bias.detach().double())
        heads = []
        for head in range(len(weights)):
            taken = weights[head, :, None] * values[head // groups]  # [S, D]
            added = taken @ gated[:, head * size : (head + 1) * size].T  # [S, C]
            if case.reference.config.model_type in POST_NORMED:
                post = (
                    "post_self_attn_layernorm" if hasattr(block, "post_mlp_layernorm") else "post_attention_layernorm"
                )
                added = frozen(getattr(block, post), raw, added)
            added = added * residual_scale
            for later in blocks(case)[layer:]:
                added = added * getattr(later, "layer_scalar", 1)
            heads.append(frozen(norm, recorded.residual[-1][-1], added) @ rows.T * logit_scale)
        layers[layer] = torch.stack(heads)  # [H, S, N]
    without = torch.zeros_like(next(iter(layers.values())))
    return torch.stack([layers.get(layer, without) for layer in range(len(blocks(case)))]).permute(3, 0, 1, 2)


def error_of(case: Tiny, split: Attribution) -> float:
    expected = expected_heads(case, record_pass(case, IDS))
    return float((split.heads - expected).abs().max())


@pytest.mark.parametrize("name", KINDS)
def test_heads_and_sources_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    assert error_of(case, split_of(case)[0]) <= CLOSE


@pytest.mark.parametrize("name", KINDS)
def test_parts_sum_to_transformers_logits(tiny: TinyFactory, name: str) -> None:
    """The error is relative to the logit, or absolute if the logit is near 0."""
    case = tiny(name)
    model = case.load()
    split, reading = split_of(case, model)
    theirs = record_pass(case, IDS).logits[-1, list(TOKENS)]
    for logits in (theirs, reading.logits[list(TOKENS)].double(), capped(model, split.stream)):
        error = (capped(model, split.total) - logits).abs() / logits.abs().clamp_min(0.1)
        assert float(error.max()) <= CLOSE
    added = split.heads.sum(dim=(-1, -2)) + split.attention_bias + split.mixers
    assert float((added - split.attention).abs().max()) <= CLOSE


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2", "gemma4_text", "qwen2", "llama-biases", "gptj"])
def test_only_parts_that_a_family_lacks_are_zero(tiny: TinyFactory, name: str) -> None:
    split, _ = split_of(tiny(name))
    assert bool(split.position.any()) == (name == "gpt2")
    assert bool(split.norm_bias.any()) == name.startswith("gpt")
    assert bool(split.attention_bias.any()) == (name in ("gpt2", "gpt_neox", "llama-biases"))
    assert bool(split.head_bias.any()) == (name == "gptj")
    assert bool(split.inputs.any()) == (name == "gemma4_text")
    assert split.embedding.any()
    assert split.mlps.any()


# The report.


def report_of(case: Tiny, model: Transformer | None = None, **options: Any) -> WhyReport:
    return why(loaded(case, model), IDS, **options)


@pytest.mark.parametrize("name", KINDS)
def test_the_report_adds_up_at_every_level(tiny: TinyFactory, name: str) -> None:
    report = report_of(tiny(name))
    assert report.check.ok
    assert sum(part.difference for part in report.parts) == pytest.approx(report.total.difference, abs=1e-9)
    assert report.total.difference == pytest.approx(report.total.token - report.total.other, abs=1e-9)
    by_heads = sum(part.difference for part in report.parts if ".H" in part.name)
    assert sum(source.difference for source in report.sources) == pytest.approx(by_heads, abs=1e-9)
    if report.softcap is None:
        assert (report.total.token, report.total.other) == pytest.approx(report.logits, abs=1e-6)


def test_one_head_is_split_by_source(tiny: TinyFactory) -> None:
    report = report_of(tiny("qwen3"), head=(1, 2))
    (part,) = [part for part in report.parts if part.name == "L1.H2"]
    assert sum(source.difference for source in report.sources) == pytest.approx(part.difference, abs=1e-9)
    assert {(source.layer, source.head) for source in report.sources} == {(1, 2)}


def test_the_default_pair_is_the_two_most_probable_tokens(tiny: TinyFactory) -> None:
    case = tiny("llama")
    best, second, third = record_pass(case, IDS).logits[-1].topk(3).indices.tolist()

    def pair(**options: Any) -> tuple[int, int]:
        report = report_of(case, **options)
        return report.token.id, report.other.id

    assert pair() == (best, second)
    assert pair(token=third) == (third, best)
    assert pair(token=best) == (best, second)
    assert pair(other=best) == (second, best)
    assert pair(other=third) == (best, third)
    assert pair(token=third, other=second) == (third, second)
    with pytest.raises(LlmcliError, match="same"):
        report_of(case, token=7, other=7)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_are_split(tiny: TinyFactory, kind: Quantization) -> None:
    case = tiny("qwen3")
    model = case.load().to(torch.bfloat16)
    quantize(model, kind)
    report = report_of(case, model)
    assert report.check.ok
    assert abs(sum(part.difference for part in report.parts) - report.total.difference) < 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2"])
def test_bfloat16_is_split(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    assert report_of(case, case.load().to(torch.bfloat16)).check.ok


# Mistakes in the view: the check must catch them, or the reference if the sums do not show them.


def wrong_scale(norm: Norm, x: Tensor) -> FrozenNorm:
    return freeze(norm, x * 1.1)


def without_offset(norm: Norm, x: Tensor) -> FrozenNorm:
    made = freeze(norm, x)
    return FrozenNorm(made.gain * 0.5, made.bias, made.centered)


def uncentered(norm: Norm, x: Tensor) -> FrozenNorm:
    made = freeze(norm, x)
    return FrozenNorm(made.gain, made.bias, not made.centered)


def without_bias(norm: Norm, x: Tensor) -> FrozenNorm:
    made = freeze(norm, x)
    return FrozenNorm(made.gain, None, made.centered)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        *((name, wrong_scale) for name in ("llama", "gpt2", "qwen3", "gemma2", "gpt_neox")),
        *((name, without_offset) for name in ("llama", "gemma2")),
        *((name, uncentered) for name in ("llama", "gpt2", "gpt_neox")),
        *((name, without_bias) for name in ("gpt2", "gpt_neox")),
    ],
)
def test_a_wrong_norm_fails_the_check(
    tiny: TinyFactory, name: str, mistake: Callable[[Norm, Tensor], FrozenNorm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "freeze", mistake)
    assert not report_of(tiny(name)).check.ok


def other_groups(heads: Heads) -> Heads:
    return replace(heads, values=heads.values.flip(0))


def other_weights(heads: Heads) -> Heads:
    return replace(heads, weights=heads.weights.flip(-1))


def heads_between(heads: Heads) -> Heads:
    matrix = heads.matrix
    wrong = matrix.flatten(1).view(len(matrix), *matrix.shape[1:3][::-1], matrix.shape[-1]).transpose(1, 2)
    return replace(heads, matrix=wrong)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("mistake", [other_groups, other_weights, heads_between])
def test_wrong_heads_fail_the_check(
    tiny: TinyFactory, name: str, mistake: Callable[[Heads], Heads], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.heads_of
    monkeypatch.setattr(module, "heads_of", lambda *args: mistake(right(*args)))
    report = report_of(tiny(name))
    assert not report.check.ok
    assert [claim.holds for claim in report.check.claims] == [False, False]


def test_shifted_sources_fail_the_reference(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that changes no sum."""
    right = module.heads_of

    def shifted(*args: Any) -> Heads:
        heads = right(*args)
        return replace(heads, weights=heads.weights.roll(1, -1), values=heads.values.roll(1, 1))

    monkeypatch.setattr(module, "heads_of", shifted)
    case = tiny("llama")
    assert report_of(case).check.ok
    assert error_of(case, split_of(case)[0]) > WRONG


def test_a_model_without_attention_has_only_its_mixers(tiny: TinyFactory) -> None:
    case = tiny("mamba2")
    report = report_of(case)
    assert report.check.ok
    assert [part.name for part in report.parts] == ["embedding", "L0 mixer", "L1 mixer", "rounding"]
    assert (report.sources, report.strongest_head) == ((), None)
    stream = io.StringIO()
    print_why(report, stream)
    assert ": the most for " in stream.getvalue()
    assert "source token" not in stream.getvalue()
    for view in (lambda: attend(loaded(case), IDS), lambda: why(loaded(case), IDS, head="0.0")):
        with pytest.raises(LlmcliError, match="no attention") as caught:
            view()
        assert caught.value.hint == "no layer of this model has it"
    shape = architecture_of(case.load().config, 5)
    assert (shape.attending, shape.recurrent, shape.dense, shape.routed) == (0, 2, 0, 0)


def test_a_mixer_beside_attention_is_a_part(tiny: TinyFactory) -> None:
    case = tiny("falcon_h1")
    report = report_of(case)
    assert report.check.ok
    assert {"L0.H0", "L0 mixer", "L1.H5", "L1 mixer", "L1 MLP"} <= {part.name for part in report.parts}
    assert attend(loaded(case), IDS).check.ok
    split, observed = split_of(case)
    assert error_of(case, split) <= CLOSE
    observed.trace.mixer_out[0] = observed.trace.mixer_out[0] + 1.0
    wrong = attribute(case.load(), observed, TOKENS)
    assert float((wrong.total - split.total).abs().max()) > WRONG


def test_layers_without_an_mlp_have_none(tiny: TinyFactory) -> None:
    case = tiny("nemotron_h")
    names = [part.name for part in report_of(case).parts]
    heads = [f"L2.H{head}" for head in range(6)]
    assert names == ["embedding", "L0 mixer", "L1 MLP", *heads, "L3 MLP", "rounding"]
    shape = architecture_of(case.load().config, 5)
    assert (shape.attending, shape.recurrent, shape.dense, shape.routed) == (1, 1, 1, 1)
