"""`attend` against transformers' eager attention, for every kind of model; and mistakes that its check must catch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmcli.explain.attention.layer_heads import heads_of
from llmcli.explain.attention.weights import AttendReport, attend, attention_pattern
from llmcli.explain.forward_pass import observe
from llmcli.model import attention
from llmcli.model.transformer import Transformer
from tests.explain.reference import IDS, LENGTH, Recording, attention_blocks, attention_out, loaded, record_pass
from tests.parity import CLOSE, WRONG
from tests.tiny import KINDS, WINDOW, Tiny, TinyFactory

ROWS = 12


def report_of(case: Tiny, model: Transformer | None = None, layers: list[int] | None = None) -> AttendReport:
    return attend(loaded(case, model), IDS, layers=layers)


def expected_norms(case: Tiny, recorded: Recording) -> Tensor:
    """The norm |alpha v W_O| of every head and position, [L, H, S], computed vector by vector."""
    layers = []
    for number, (_, block) in enumerate(attention_blocks(case)):
        out = attention_out(block)
        matrix = out.weight.detach().double()
        matrix = (matrix.T if type(out).__name__ == "Conv1D" else matrix) * recorded.gate(number)
        weights, values = recorded.attention[number][:, -1], recorded.values[number]
        groups, size = len(weights) // len(values), values.shape[-1]
        layers.append(
            torch.stack(
                [
                    (weights[h, :, None] * values[h // groups] @ matrix[:, h * size : (h + 1) * size].T).norm(dim=-1)
                    for h in range(len(weights))
                ]
            )
        )
    return torch.stack(layers)


@pytest.mark.parametrize("name", KINDS)
def test_rows_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    report, recorded = report_of(case), record_pass(case, IDS)
    assert report.check.ok
    weights = torch.stack(recorded.attention)[:, :, -1]  # [L, H, S]
    moved = expected_norms(case, recorded)
    numbers = [number for number, _ in attention_blocks(case)]
    assert len(report.sources) == LENGTH
    for source in report.sources:
        here = weights[:, :, source.position]
        assert abs(source.weight - float(here.max())) <= CLOSE
        assert abs(float(here[numbers.index(source.layer), source.head]) - source.weight) <= CLOSE
        assert abs(source.mean - float(here.mean())) <= CLOSE
        assert abs(source.moved - float(moved[:, :, source.position].mean())) <= CLOSE
        assert source.piece.id == IDS[source.position]
    sink = report.sink or 0.0
    assert (report.sink is not None) == case.load().config.attention_sinks
    assert sum(source.mean for source in report.sources) + sink == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma2", "gpt_neox", "smollm3-windows", "gpt_oss"])
def test_the_pattern_of_a_head_matches_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    recorded = record_pass(case, IDS)
    for layer in range(len(recorded.attention)):
        report = attention_pattern(loaded(case), IDS, (layer, 1), rows=ROWS)
        assert report.check.ok
        assert [row.position for row in report.rows] == list(range(LENGTH - ROWS, LENGTH))
        for row in report.rows:
            expected = recorded.attention[layer][1, row.position, : row.position + 1]
            assert float((torch.tensor(row.weights) - expected).abs().max()) <= CLOSE
            assert (row.sink or 0.0) == pytest.approx(1 - float(expected.sum()), abs=CLOSE)
    assert [piece.id for piece in report.pieces] == IDS


def test_only_the_selected_layers_count(tiny: TinyFactory) -> None:
    case = tiny("llama")
    recorded = record_pass(case, IDS)
    for source in report_of(case, layers=[1]).sources:
        assert source.layer == 1
        assert abs(source.mean - float(recorded.attention[1][:, -1, source.position].mean())) <= CLOSE


def test_positions_outside_all_windows_get_no_attention(tiny: TinyFactory) -> None:
    report = report_of(tiny("mistral"))
    hidden = [source for source in report.sources if source.position < LENGTH - WINDOW]
    assert hidden
    assert all(source.mean == source.moved == 0 for source in hidden)
    assert all(source.mean > 0 for source in report.sources[LENGTH - WINDOW :])


def test_a_short_text_has_a_small_pattern(tiny: TinyFactory) -> None:
    report = attention_pattern(loaded(tiny("llama")), IDS, (0, 0), position=2, rows=ROWS)
    assert [len(row.weights) for row in report.rows] == [1, 2, 3]
    assert report.rows[0].weights == (1.0,)


# Mistakes that the check must catch.


def test_a_missing_mask_fails_the_check(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_mask(past: int, count: int, device: torch.device, window: int | None = None) -> Tensor:
        return torch.ones(count, past + count, dtype=torch.bool, device=device)

    monkeypatch.setattr(attention, "causal_mask", no_mask)
    report = attention_pattern(loaded(tiny("llama")), IDS, (0, 0), rows=ROWS)
    failed = [claim.what for claim in report.check.claims if not claim.holds]
    assert "later tokens get a weight of 0" in failed


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gpt_neox"])
def test_other_weights_than_the_layer_used_fail_the_check(
    tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded weights sum to 1 but have the wrong scale; what attention adds is correct."""
    right = attention.attention_weights

    def sharper(*args: object, scale: float, **others: object) -> Tensor:
        return right(*args, scale=scale * 2, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attention_weights", sharper)
    report = report_of(tiny(name))
    assert [claim.what for claim in report.check.claims if not claim.holds] == [
        "weights times values equal what attention added"
    ]


def test_norms_need_the_right_output_matrix(tiny: TinyFactory) -> None:
    case = tiny("llama")
    model, recorded = case.load(), record_pass(case, IDS)
    reading = observe(model, IDS)
    heads = heads_of(model, reading, 0)
    assert float((heads.value_norms - expected_norms(case, recorded)[0]).abs().max()) <= CLOSE
    wrong = heads_of(model, reading, 1)
    assert float((wrong.value_norms - expected_norms(case, recorded)[0]).abs().max()) > WRONG


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_pass_the_check(tiny: TinyFactory, dtype: torch.dtype) -> None:
    for name in ("llama", "gemma2", "gpt2"):
        case = tiny(name)
        assert report_of(case, case.load().to(dtype)).check.ok
