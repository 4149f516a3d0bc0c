"""`lens` against transformers' own norm and head after every layer, for every kind of model; its own mistakes show."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.explain.forward_pass import ForwardPass, observe
from llmcli.explain.lenses import logit_lens as module
from llmcli.explain.lenses.logit_lens import LensReport, LensRow, lens
from llmcli.explain.residual_stream import freeze
from llmcli.generation.distribution import kl_divergence
from llmcli.model.layers import Norm
from llmcli.model.transformer import Transformer
from llmcli.render.views.lens import print_lens
from tests.explain.reference import IDS, LENGTH, loaded, stopped_after
from tests.parity import CLOSE, WRONG
from tests.render.test_terminal import Tty
from tests.tiny import KINDS, Tiny, TinyFactory

TARGET = 11


def report_of(case: Tiny, model: Transformer | None = None, position: int = LENGTH - 1) -> LensReport:
    return lens(loaded(case, model), IDS, position=position, token=TARGET)


def number(row: LensRow) -> int:
    return -1 if row.layer is None else row.layer


def error_of(report: LensReport, case: Tiny) -> float:
    """The largest difference from transformers of any probability, and of any entropy and divergence in bits."""
    final = stopped_after(case, IDS[: report.position + 1], len(report.rows) - 2)[-1].softmax(-1)
    errors = []
    for row in report.rows:
        p = stopped_after(case, IDS[: report.position + 1], number(row))[-1].softmax(-1)
        errors += [row.p - float(p[TARGET]), row.p_top - float(p.max())]
        errors.append(row.entropy - float(-(p * p.log2()).sum()))
        errors.append(row.kl - float((final * (final / p).log2()).sum()))
    return max(abs(error) for error in errors)


@pytest.mark.parametrize("name", KINDS)
def test_rows_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    report = report_of(case)
    assert report.check.ok
    assert error_of(report, case) <= CLOSE
    for row in report.rows:
        logits = stopped_after(case, IDS, number(row))[-1]
        assert row.top.id == int(logits.argmax())
        assert row.rank == int((logits > logits[TARGET]).sum())


@pytest.mark.parametrize("position", [0, 1, 30])
def test_every_position_matches_transformers(tiny: TinyFactory, position: int) -> None:
    case = tiny("gemma2")
    assert error_of(report_of(case, position=position), case) <= CLOSE


def test_the_last_row_is_the_models_prediction_and_the_default_target(tiny: TinyFactory) -> None:
    report = lens(loaded(tiny("qwen3")), IDS, layers=[2])
    assert [row.layer for row in report.rows] == [2]
    last = report.rows[-1]
    assert (last.kl, last.rank, last.p) == (0.0, 0, last.p_top)
    assert last.top == report.target


def test_a_probability_below_fp32_is_not_zero(tiny: TinyFactory) -> None:
    """Large logits, as Gemma's after the embedding: in fp32 most of these probabilities are exactly 0."""
    case = tiny("llama")
    model = case.load()
    with torch.no_grad():
        model.norm.weight *= 1000
    report = report_of(case, model)
    residual = observe(model, IDS).trace.residual
    for row in report.rows:
        logits = model.unembed(residual[number(row) + 1][0])[0].double()
        assert row.logprob == pytest.approx(float(logits.log_softmax(-1)[TARGET]), rel=1e-4)
    assert min(row.logprob for row in report.rows) < -800  # too small even for fp64
    shown = Tty()
    print_lens(report, shown)
    assert "0.0000" not in shown.getvalue()
    assert re.search(r"\b1e-[0-9]{3,}\b", shown.getvalue())


@pytest.mark.parametrize("ranks", [[30000, 5000, 400, 30, 2, 0], [7, 7, 7], [0, 0, 5], [9, 40, 3]])
def test_the_sparkline_is_higher_where_the_rank_is_better(tiny: TinyFactory, ranks: list[int]) -> None:
    """Every tenfold better rank rises, however small the probabilities are."""
    report = lens(loaded(tiny("llama")), IDS)
    rows = tuple(dataclasses.replace(report.rows[0], rank=rank, p=1e-13, logprob=-30.0) for rank in ranks)
    stream = io.StringIO()
    print_lens(dataclasses.replace(report, rows=rows), stream)
    line = re.search(r"log scale: (\S+) \(from (\d+) to (\d+)\)", stream.getvalue())
    assert line is not None
    assert (int(line[2]), int(line[3])) == (max(ranks), min(ranks))
    order = sorted(range(len(ranks)), key=lambda n: -ranks[n])
    heights = [ord(line[1][n]) for n in order]
    assert heights == sorted(heights)
    assert len(set(heights)) == len(set(ranks))


class Instead(nn.Module):
    """Replaces a norm."""

    def __init__(self, norm: Norm, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.act = norm.weight, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma2", "gpt_neox"])
def test_a_missing_final_norm_is_wrong(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    model = case.load()
    model.norm = Instead(model.norm, lambda x: x)
    assert error_of(report_of(case, model), case) > WRONG


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma2", "gpt_neox"])
def test_a_frozen_norm_is_wrong_before_the_last_layer(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    model = case.load()
    norm = freeze(model.norm, observe(model, IDS).trace.residual[-1][0, -1])
    model = case.load()  # one that no step has been computed with: the native engine runs no other module's norm
    model.norm = Instead(model.norm, lambda x: norm.input_direction(x.double()).float())
    if norm.bias is not None:
        bias = norm.bias.float()
        model.norm.act = lambda x: (x - x.mean(-1, keepdim=True)) * norm.gain.float() + bias
    report = report_of(case, model)
    assert report.check.ok  # the last layer is correct
    assert error_of(report, case) > WRONG


def test_a_missing_softcap_is_wrong(tiny: TinyFactory) -> None:
    case = tiny("gemma2")
    model = case.load()
    model.config = dataclasses.replace(model.config, logit_softcap=None)
    assert error_of(report_of(case, model), case) > WRONG


def test_another_last_layer_fails_the_check(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def observe_wrongly(*args: object) -> ForwardPass:
        observed = observe(*args)  # type: ignore[arg-type]
        observed.trace.residual[-1] = observed.trace.residual[-1] * 1.001
        observed.trace.residual[-1][..., 0] = 9.0
        return observed

    monkeypatch.setattr(module, "observe", observe_wrongly)
    report = report_of(tiny("llama"))
    assert not report.check.ok


def test_a_text_that_is_empty_or_too_long_is_an_error(tiny: TinyFactory) -> None:
    opened = loaded(tiny("llama"))
    assert lens(opened, []).at.id == opened.model.config.bos_token_id
    opened.model.config = dataclasses.replace(opened.model.config, bos_token_id=None)
    with pytest.raises(LlmcliError, match="empty"):
        lens(opened, [])
    long = IDS * 10
    with pytest.raises(LlmcliError, match="128") as error:
        lens(opened, long)
    assert error.value.kind == "position-beyond-context"


def test_kl_divergence_matches_torch_and_handles_impossible_tokens() -> None:
    a, b = torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(1)).unbind()
    logs = [logits.double().log_softmax(-1) for logits in (b, a)]
    expected = torch.nn.functional.kl_div(*logs, reduction="none", log_target=True).sum(-1) / math.log(2)
    torch.testing.assert_close(kl_divergence(a, b), expected)
    assert (kl_divergence(a, a) == 0).all()
    barred = a.masked_fill(torch.arange(50) == 3, -math.inf)
    assert kl_divergence(barred, a).isfinite().all()
    assert kl_divergence(a, barred).isposinf().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_last_row_is_exact_in_every_dtype(tiny: TinyFactory, dtype: torch.dtype) -> None:
    case = tiny("llama")
    assert report_of(case, case.load().to(dtype)).check.ok
