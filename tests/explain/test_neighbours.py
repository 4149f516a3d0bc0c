"""`neighbours`: cosines by brute force in fp64 over transformers' embedding; sums of words; invalid words."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain import embeddings as module
from llmcli.explain.embeddings import neighbours, parse_expression
from llmcli.storage.quantize import Quantization, quantize
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer
from tests.explain.reference import loaded, tokenizer
from tests.tiny import VOCAB, TinyFactory


def cosines(table: Tensor, vector: Tensor) -> Tensor:
    return torch.stack([row @ vector / (row.norm() * vector.norm()) for row in table])


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "cohere"])
@pytest.mark.parametrize("at_once", [1, 48 * 20, 2**22])
def test_neighbours_match_brute_force(
    tiny: TinyFactory, name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_NUMBERS", at_once)
    case = tiny(name)
    table = case.reference.get_input_embeddings().weight.detach().double()
    vector = table[5] - table[7] + table[11]
    raw, centred = cosines(table, vector), cosines(table - table.mean(0), vector - table.mean(0))
    alone = cosines(table - table.mean(0), table[5] - table.mean(0))
    for inputs, listed in ((True, range(VOCAB)), (False, [id for id in range(VOCAB) if id not in (5, 7, 11)])):
        report = neighbours(loaded(case), "w5 - w7 + w11", top=10, inputs=inputs)
        assert report.check.ok
        assert [row.piece.id for row in report.neighbours] == sorted(listed, key=lambda id: -float(centred[id]))[:10]
        ranking = sorted((id for id in range(VOCAB) if id not in (5, 7, 11)), key=lambda id: -float(alone[id]))
        assert report.baseline is not None
        assert (report.baseline.id, [piece.id for piece in report.alone]) == (5, ranking[:10])
        for row in report.neighbours:
            id = row.piece.id
            assert row.cosine == pytest.approx(float(raw[id]), abs=1e-6)
            assert row.centred == pytest.approx(float(centred[id]), abs=1e-6)
            assert row.given == (id in (5, 7, 11))
            assert row.alone == (None if row.given else pytest.approx(float(alone[id]), abs=1e-6))
            assert row.alone_rank == (None if row.given else ranking.index(id))
    assert report.vector == pytest.approx(vector[:8].tolist(), abs=1e-6)
    assert (report.size, report.length) == (table.shape[1], pytest.approx(float(vector.norm())))


@pytest.mark.parametrize("signs", [[1], [-1], [1, -1], [1, 1], [1, -1, -1], [1, 1, 1, -1]])
def test_every_term_of_a_sum_is_centered(tiny: TinyFactory, signs: list[int]) -> None:
    """The mean of all embeddings cancels out in "a - b" and is counted twice in "a + b"."""
    case, ids = tiny("llama"), [5, 7, 11, 13]
    table = case.reference.get_input_embeddings().weight.detach().double()
    own = table - table.mean(0)
    vector = torch.stack([sign * own[id] for sign, id in zip(signs, ids, strict=False)]).sum(0)
    text = " ".join(f"{'+' if sign > 0 else '-'} w{id}" for sign, id in zip(signs, ids, strict=False))
    report = neighbours(loaded(case), text, top=10, inputs=False)
    expected = cosines(own, vector)
    assert report.check.ok
    others = [id for id in range(VOCAB) if id not in ids[: len(signs)]]
    assert [row.piece.id for row in report.neighbours] == sorted(others, key=lambda id: -float(expected[id]))[:10]
    for row in report.neighbours:
        assert row.centred == pytest.approx(float(expected[row.piece.id]), abs=1e-9)


def test_a_single_word_has_no_baseline_and_is_not_listed(tiny: TinyFactory) -> None:
    for inputs in (True, False):
        report = neighbours(loaded(tiny("llama")), "w5", inputs=inputs)
        assert (report.baseline, report.alone) == (None, ())
        assert all((row.given, row.alone, row.alone_rank) == (False, None, None) for row in report.neighbours)


def test_rows_without_a_token_are_ignored(tiny: TinyFactory) -> None:
    """Rows beyond the tokenizer's size or in gaps of its ids are neither listed nor part of the mean."""
    case, known = tiny("llama"), [id for id in range(60) if id % 7]
    few = Tokenizer(FastTokenizer(WordLevel({f"w{id}": id for id in known}, unk_token="w1")), "few")
    report = neighbours(dataclasses.replace(loaded(case), tokenizer=few), "w5", top=1000)
    own = case.reference.get_input_embeddings().weight.detach().double()
    own = own - own[known].mean(0)
    expected = cosines(own, own[5])
    assert report.check.ok
    assert [row.piece.id for row in report.neighbours] == sorted(
        [id for id in known if id != 5], key=lambda id: -float(expected[id])
    )


def test_few_embeddings_are_in_memory_at_a_time(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding has 4,656 numbers; apart from the parts, a row or two are in memory."""
    opened = loaded(tiny("llama"))
    size = opened.model.config.hidden_size
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = []
    right = module.embeddings

    def counted(*arguments: object) -> Tensor:
        found: Tensor = right(*arguments)  # type: ignore[arg-type]
        alive.add(found)
        most.append(sum(held.numel() for held in alive))
        return found

    monkeypatch.setattr(module, "MAX_NUMBERS", 10 * size)
    monkeypatch.setattr(module, "embeddings", counted)
    assert neighbours(opened, "w5 - w7 + w11", top=10).check.ok
    assert len(most) > 3 * VOCAB // 10
    assert max(most) <= 2 * 10 * size + 3 * size


def test_all_tokens_can_be_listed(tiny: TinyFactory) -> None:
    report = neighbours(loaded(tiny("llama")), "w5", top=1000)
    assert sorted(row.piece.id for row in report.neighbours) == [id for id in range(VOCAB) if id != 5]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_embeddings_have_neighbours(tiny: TinyFactory, kind: Quantization) -> None:
    case = tiny("llama-tied")
    model = case.load()
    plain = neighbours(loaded(case, case.load()), "w5", top=3)
    quantize(model, kind)
    report = neighbours(loaded(case, model), "w5", top=3)
    assert report.check.ok
    assert report.neighbours[0].centred == pytest.approx(plain.neighbours[0].centred, abs=0.02)


def test_bfloat16_embeddings_have_neighbours(tiny: TinyFactory) -> None:
    case = tiny("gpt2")
    report = neighbours(loaded(case, case.load().to(torch.bfloat16)), "w5 - w7", top=20)
    table = case.reference.get_input_embeddings().weight.detach().bfloat16().double()
    raw = cosines(table, table[5] - table[7])
    assert report.check.ok
    for row in report.neighbours:
        assert row.cosine == pytest.approx(float(raw[row.piece.id]), abs=1e-9)


def terms(text: str, known: Tokenizer) -> list[tuple[int, str]]:
    return [(term.sign, term.piece.text) for term in parse_expression(text, known, known.size)]


def test_sums_are_parsed() -> None:
    known = Tokenizer(train_tokenizer(["a king and a queen, a king-man, a + b - c"] * 20, 300), "small")
    assert terms("king", known) == [(1, " king")]
    assert terms("  king  ", known) == [(1, " king")]
    assert terms("king - queen + and", known) == [(1, " king"), (-1, " queen"), (1, " and")]
    assert terms("- king", known) == [(-1, " king")]
    assert terms("-", known)[0][1].strip() == "-"
    assert terms(str(known.id_of(" king")), known) == [(1, " king")]
    for wrong in ("", " ", "king +", "king - - queen", "king queen", "xyzzy", "king-queen", "99999"):
        with pytest.raises(LlmcliError) as caught:
            terms(wrong, known)
        assert ("neither a word nor a sum" in caught.value.message) == (wrong.strip() in ("", "king +"))
        assert ("put spaces around" in caught.value.hint) == (wrong == "king-queen")


def test_a_number_is_an_id() -> None:
    known = Tokenizer(train_tokenizer(["only 7 of 7 and 7 more"] * 20, 300), "small")
    assert known.id_of(" 7") not in (None, 7)
    assert parse_expression("7", known, known.size)[0].piece.id == 7


def test_a_sum_of_zero_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="is 0"):
        neighbours(loaded(tiny("llama")), "w5 - w5", top=3)


def test_a_word_without_an_embedding_is_an_error(tiny: TinyFactory) -> None:
    many = Tokenizer(FastTokenizer(WordLevel({f"w{id}": id for id in range(VOCAB + 5)}, unk_token="w0")), "many")
    opened = dataclasses.replace(loaded(tiny("llama")), tokenizer=many)
    assert neighbours(opened, "w5", top=3).check.ok
    for word in (f"w{VOCAB}", str(VOCAB)):
        with pytest.raises(LlmcliError, match=str(VOCAB)):
            neighbours(opened, word, top=3)


def test_a_word_of_several_tokens_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="not one token"):
        neighbours(loaded(tiny("llama")), "nothing", top=3)
    assert tokenizer().size == VOCAB


# Mistakes that the check must catch.


MISTAKES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]] = {
    "another mean": lambda table, vector, mean, shared: (table, vector, 0.9 * mean, 0.9 * shared),
    "not centered": lambda table, vector, mean, shared: (table, vector, 0 * mean, 0 * shared),
    "only rows centered": lambda table, vector, mean, shared: (table, vector, mean, 0 * shared),
    "the sum's mean taken once": lambda table, vector, mean, shared: (table, vector, mean, mean),
    "rows in another order": lambda table, vector, mean, shared: (table.roll(1, 0), vector, mean, shared),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_the_check(tiny: TinyFactory, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._cosines
    monkeypatch.setattr(module, "_cosines", lambda *all: right(*MISTAKES[mistake](*all)))
    assert not neighbours(loaded(tiny("llama")), "w5 + w7", top=5).check.ok


def test_a_damaged_embedding_is_an_error(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    with torch.no_grad():
        model.embedding.weight[9] = float("nan")
    with pytest.raises(LlmcliError, match="embeddings contain NaN or infinity"):
        neighbours(loaded(tiny("llama"), model), "w5", top=5)
