"""Cosines by brute force in fp64 over transformers' own table; sums of words; what is no word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain import neighbours as module
from llmcli.explain.neighbours import neighbours_report, parse
from llmcli.model.quantize import Kind, quantize
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer
from tests.explain.reference import loaded, tokenizer
from tests.tiny import CASES, VOCAB, Tiny

Make = Callable[[str], Tiny]


def cosines(table: Tensor, vector: Tensor) -> Tensor:
    return torch.stack([row @ vector / (row.norm() * vector.norm()) for row in table])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at_once", [1, 48 * 20, 2**22])
def test_they_are_those_of_brute_force(tiny: Make, name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    case = tiny(name)
    table = case.reference.get_input_embeddings().weight.detach().double()
    report = neighbours_report(loaded(case), "w5 - w7 + w11", 10)
    vector = table[5] - table[7] + table[11]
    raw, centred = cosines(table, vector), cosines(table - table.mean(0), vector - table.mean(0))
    others = [id for id in range(VOCAB) if id not in (5, 7, 11)]
    assert report.check.ok
    assert [row.piece.id for row in report.neighbours] == sorted(others, key=lambda id: -float(centred[id]))[:10]
    for row in report.neighbours:
        assert row.cosine == pytest.approx(float(raw[row.piece.id]), abs=1e-6)
        assert row.centred == pytest.approx(float(centred[row.piece.id]), abs=1e-6)
    assert report.vector == pytest.approx(vector[:8].tolist(), abs=1e-6)
    assert (report.size, report.length) == (table.shape[1], pytest.approx(float(vector.norm())))


def test_all_can_be_asked_for(tiny: Make) -> None:
    report = neighbours_report(loaded(tiny("llama")), "w5", 1000)
    assert sorted(row.piece.id for row in report.neighbours) == [id for id in range(VOCAB) if id != 5]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounded_tables_have_neighbours(tiny: Make, kind: Kind) -> None:
    case = tiny("llama-tied")
    model = case.load()
    plain = neighbours_report(loaded(case, case.load()), "w5", 3)
    quantize(model, kind)
    report = neighbours_report(loaded(case, model), "w5", 3)
    assert report.check.ok
    assert report.neighbours[0].centred == pytest.approx(plain.neighbours[0].centred, abs=0.02)


def terms(text: str, known: Tokenizer) -> list[tuple[int, str]]:
    return [(term.sign, term.piece.text) for term in parse(text, known, known.size)]


def test_sums_are_read_as_written() -> None:
    known = Tokenizer(train_tokenizer(["a king and a queen, a king-man, a + b - c"] * 20, 300), "small")
    assert terms("king", known) == [(1, " king")]
    assert terms("  king  ", known) == [(1, " king")]
    assert terms("king - queen + and", known) == [(1, " king"), (-1, " queen"), (1, " and")]
    assert terms("- king", known) == [(-1, " king")]
    assert terms("-", known)[0][1].strip() == "-"
    assert terms(str(known.id_of(" king")), known) == [(1, " king")]
    for wrong in ("", " ", "king +", "king - - queen", "king queen", "xyzzy", "king-queen", "99999"):
        with pytest.raises(LlmcliError):
            terms(wrong, known)


def test_a_word_of_several_tokens_is_told_apart(tiny: Make) -> None:
    with pytest.raises(LlmcliError, match="not one token"):
        neighbours_report(loaded(tiny("llama")), "nothing", 3)
    assert tokenizer().size == VOCAB


# Mistakes.


def test_a_mean_that_is_not_the_tables_fails_the_check(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._cosines
    monkeypatch.setattr(module, "_cosines", lambda model, count, vector, mean: right(model, count, vector, mean * 0.9))
    assert not neighbours_report(loaded(tiny("llama")), "w5", 5).check.ok


def test_rows_in_the_wrong_order_fail_the_check(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.cosine
    monkeypatch.setattr(module, "cosine", lambda a, b: right(a, b).roll(1))
    assert not neighbours_report(loaded(tiny("llama")), "w5", 5).check.ok
