"""`tour` for every family; positions against transformers' rope frequencies; and which words the tour chooses."""

from __future__ import annotations

import io
import math

import pytest
import torch

from llmcli.errors import LlmcliError
from llmcli.explain import position_encoding as module
from llmcli.explain.guided_tour import GENERATED, before_last_word, longest_word, tour
from llmcli.explain.position_encoding import position
from llmcli.model.positions import rotation
from llmcli.render.tour import TOUR_STOPS, print_tour
from tests.explain.reference import IDS, forget, loaded
from tests.parity import CLOSE
from tests.tiny import CASES, TinyFactory

SHORT = IDS[:12]
TEXT = " ".join(f"w{id}" for id in SHORT)


@pytest.mark.parametrize("name", CASES)
def test_every_stop_passes_its_check(tiny: TinyFactory, name: str) -> None:
    report = tour(loaded(tiny(name)), TEXT)
    assert report.check.ok
    assert report.attention.position == report.lens.position == report.step.context_ids.index(SHORT[-2]) == 10
    assert report.lens.target.id == report.step.candidates[0].id
    assert 1 <= len(report.loop) <= GENERATED
    assert report.loop[0].id == report.step.chosen.id
    plain = io.StringIO()
    print_tour(report, plain)
    text = plain.getvalue()
    assert all(f"{n}/{len(TOUR_STOPS)}  {title}" in text for n, (title, _) in enumerate(TOUR_STOPS, start=1))
    assert text.count("check: ok") >= 6


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-linear", "llama-llama3", "llama-yarn", "gpt_neox", "cohere"])
def test_turns_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    (frequencies,) = [buffer for name, buffer in case.reference.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    report = position(loaded(case), SHORT)
    assert [turn.pair for turn in report.turns] == sorted({0, len(frequencies) // 2, len(frequencies) - 1})
    for turn in report.turns:
        assert math.radians(turn.degrees) == pytest.approx(float(frequencies[turn.pair]), rel=1e-5)
        assert turn.degrees * turn.period == pytest.approx(360, rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_both_orders_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    for ids, start in ((SHORT, 0), ([1, *SHORT], 1)):  # 1 is the BOS token, which stays first
        report = position(loaded(case), ids)
        assert report.check.ok
        assert bool(report.turns) == (name != "gpt2")
        for answer, order in (
            (report.in_order, ids),
            (report.reversed, [*ids[:start], *reversed(ids[start:])]),
        ):
            forget(case)
            with torch.no_grad():
                probs = case.reference(torch.tensor([order])).logits[0, -1].double().softmax(-1)
            assert answer.piece.id == int(probs.argmax())
            assert abs(answer.p - float(probs.max())) <= CLOSE


def test_rotations_that_do_not_encode_distance_fail_the_check(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squared(frequencies: torch.Tensor, start: int, *rest: object) -> object:
        return rotation(frequencies, start * start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "rotation", squared)
    assert not position(loaded(tiny("llama")), SHORT).check.ok


def test_wrong_learned_positions_fail_the_check(tiny: TinyFactory) -> None:
    case = tiny("gpt2")
    model = case.load()
    right = model.embed
    model.embed = lambda ids, past: right(ids, past + 1)
    assert not position(loaded(case, model), SHORT).check.ok


@pytest.mark.parametrize(
    ("texts", "at"),
    [
        (["<s>", "The", " cat", " sat"], 2),
        (["<s>", "The", " cat", " sl", "eep", "s"], 2),
        (["The", " cat", " sl", "eep"], 1),
        (["The", "cat", "sat"], 1),
        (["<s>", " The", "cat", "sat"], 2),
    ],
)
def test_the_tour_stops_before_the_last_word(texts: list[str], at: int) -> None:
    assert before_last_word(texts) == at


def test_the_word_is_the_longest_one_of_letters(tiny: TinyFactory) -> None:
    opened = loaded(tiny("llama"))
    texts = ["<longest>", " cat", " 12345678", " tiger", " of"]
    opened.tokenizer.token_text = texts.__getitem__  # type: ignore[method-assign]
    try:
        assert longest_word(opened, range(len(texts))) == 3
    finally:
        del opened.tokenizer.token_text


def test_a_text_of_one_word_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="few words"):
        tour(loaded(tiny("llama")), "w5")
