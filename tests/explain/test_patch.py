"""`patch` against the same patches made by hooks on transformers' modules; properties; mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain.interventions import patching as module
from llmcli.explain.interventions.patching import PatchReport, patch
from llmcli.model.hooks import Change
from tests.explain.reference import IDS, loaded
from tests.explain.test_ablate import edited, head_slice, recorded, within
from tests.parity import CLOSE, WRONG
from tests.tiny import KINDS, Tiny, TinyFactory

FAMILIES = ("llama", "gpt2", "gemma3_text", "gpt_neox", "deepseek_v3", "qwen3_5_text")
CLEAN = IDS[:12]
CORRUPT = [*IDS[:4], 7, 8, *IDS[6:12]]
FIRST, TOKEN, OTHER = 4, 5, 11


def report_of(case: Tiny, **options: Any) -> PatchReport:
    return patch(loaded(case), CLEAN, CORRUPT, token=TOKEN, other=OTHER, **options)


def difference(logits: Tensor) -> float:
    return float(logits[-1, TOKEN].double() - logits[-1, OTHER].double())


class Reference:
    """Effects as transformers computes them."""

    def __init__(self, case: Tiny) -> None:
        self.case = case
        self.whole = [difference(edited(case, [], ids)) for ids in (CLEAN, CORRUPT)]

    def effect(self, part: str, layer: int, where: slice, features: slice = slice(None)) -> float:
        value = recorded(self.case, part, layer, CLEAN)[:, features]
        found = difference(edited(self.case, [(part, layer, within(where, features, value))], CORRUPT))
        return (found - self.whole[1]) / (self.whole[0] - self.whole[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_effects_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    theirs = Reference(case)
    reports = {part: report_of(case, part=part) for part in ("attn", "mlp")}
    first_report = reports["attn"]
    assert first_report.check.ok, first_report.check
    assert first_report.differences == pytest.approx(theirs.whole, abs=CLOSE)
    size = abs(theirs.whole[0] - theirs.whole[1])
    assert size > 0.1
    for part, report in reports.items():
        for row in report.rows:
            assert row.layer is not None
            for position in (FIRST, 11):
                expected = theirs.effect(part, row.layer, slice(position, position + 1))
                assert row.effects[position - FIRST] == pytest.approx(expected, abs=CLOSE / size)
    for each in first_report.parts[:: max(len(first_report.parts) // 4, 1)]:
        features = slice(None) if each.head is None else head_slice(case, each.layer, each.head)
        kind = "heads" if each.head is not None else "mlp" if "MLP" in each.name else "attn"
        expected = theirs.effect(kind, each.layer, slice(None), features)
        assert each.effect == pytest.approx(expected, abs=CLOSE / size), each.name


@pytest.mark.parametrize("name", KINDS)
def test_the_checks_hold_and_all_positions_before_the_difference_are_absent(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    report = report_of(case)
    assert report.check.ok, report.check
    assert report.first == FIRST
    assert len(report.rows[0].effects) == len(CLEAN) - FIRST
    assert report.rows[-1].layer == case.reference.config.num_hidden_layers - 1
    assert report.rows[-1].effects[-1] == pytest.approx(1, abs=1e-3)  # the last position's stream gives the logits
    assert report.rows[-1].effects[:-1] == pytest.approx([0] * (len(CLEAN) - FIRST - 1), abs=1e-3)
    assert report.direct_total == pytest.approx(1, abs=1e-2)


def test_a_text_patched_with_itself_keeps_its_answer(tiny: TinyFactory) -> None:
    """Where the two texts are swapped, the same patches take the answer away."""
    case = tiny("llama")
    there, back = report_of(case), patch(loaded(case), CORRUPT, CLEAN, token=TOKEN, other=OTHER)
    assert back.differences == there.differences[::-1]
    assert back.rows[-1].effects[-1] == pytest.approx(1, abs=1e-3)


def test_a_path_is_what_the_receiver_makes_of_the_sender(tiny: TinyFactory) -> None:
    """Brute force with transformers: the receiver's result, given the changed input; and then only that result."""
    case = tiny("llama")
    theirs = Reference(case)
    sender, receiver = head_slice(case, 0, 1), head_slice(case, 1, 2)
    value = recorded(case, "heads", 0, CLEAN)[:, sender]
    before = recorded(case, "attn", 0, CORRUPT)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x[0])
        return x

    edited(case, [("heads", 0, within(slice(None), sender, value)), ("attn", 0, keep)], CORRUPT)
    moved = kept[0] - before
    block = case.reference.model.layers[1]
    normed = block.input_layernorm

    def read_moved(args: tuple[Any, ...]) -> Any:
        return (args[0] + moved,)

    hook = normed.register_forward_pre_hook(lambda _, args: read_moved(args))
    received = recorded(case, "heads", 1, CORRUPT)[:, receiver]
    hook.remove()
    found = difference(edited(case, [("heads", 1, within(slice(None), receiver, received))], CORRUPT))
    expected = (found - theirs.whole[1]) / (theirs.whole[0] - theirs.whole[1])
    report = report_of(case, path=("0.1", "1.2"))
    assert report.path is not None
    assert report.path.effect == pytest.approx(expected, abs=1e-3)
    assert abs(expected) > WRONG


def test_paths_through_every_kind_of_part(tiny: TinyFactory) -> None:
    """All that a layer's parts add, read by the next layer alone, and what nobody reads."""
    case = tiny("llama")
    for path in (("attn.0", "mlp.0"), ("mlp.0", "attn.1"), ("mlp.0.3", "1.1"), ("0.1", "mlp.1")):
        report = report_of(case, path=path)
        assert report.path is not None
        assert abs(report.path.effect) > 1e-6
    wrong = (("1.1", "0.1"), ("mlp.0", "attn.0"), ("layer.0", "1.1"), ("mlp.1", "mlp.1"), ("0.1@1", "1.1"))
    for path in (*wrong, ("attn.0-1", "1.1")):
        with pytest.raises(LlmcliError):
            report_of(case, path=path)
    with pytest.raises(LlmcliError, match="does not come later"):
        report_of(tiny("gpt_neox"), path=("attn.0", "mlp.0"))  # they read the same


def test_texts_that_cannot_be_compared(tiny: TinyFactory) -> None:
    ours = loaded(tiny("llama"))
    with pytest.raises(LlmcliError, match="3 and 2 tokens"):
        patch(ours, [1, 2, 3], [1, 2])
    with pytest.raises(LlmcliError, match="the same"):
        patch(ours, [1, 2, 3], [1, 2, 3])
    with pytest.raises(LlmcliError, match="answer to both"):
        patch(ours, [1, 2, 3], [1, 2, 4], token=9, other=9)


def _another_position(change: Change, x: Tensor, positions: Tensor) -> Tensor:
    moved = change if change.mask is None else replace(change, mask=change.mask.roll(1, dims=1))
    return _apply(moved, x, positions)


_apply = Change.apply


def test_a_patch_at_another_position_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny("llama")
    right = report_of(case)
    monkeypatch.setattr(Change, "apply", _another_position)
    wrong = report_of(case)
    assert abs(right.rows[-1].effects[-1] - wrong.rows[-1].effects[-1]) > 0.5


@pytest.mark.parametrize("mistake", ["whole", "nothing", "direct"])
def test_the_check_notices_mistakes(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    case = tiny("llama")
    if mistake == "direct":
        monkeypatch.setattr(module, "ROUNDING", "L1 MLP")
    else:  # every patch is a little too strong
        monkeypatch.setattr(
            Change, "apply", lambda change, x, positions: x + 1.01 * (_apply(change, x, positions) - x) + 1e-3
        )
    assert not report_of(case).check.ok
