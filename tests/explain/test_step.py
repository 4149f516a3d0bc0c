"""`explain-step` and generated tokens: every number against brute force in fp64, and a check that can fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from torch import Tensor

from llmcli.explain.sampling_step import StepReport, generated_token_of, step_report
from llmcli.explain.tokens.tokenization import tokenize
from llmcli.generation.filters import Filter, Temperature, TopK, TopP, Vocabulary, filter_chain
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer

PADDED = 5  # rows of the embedding beyond the tokenizer's
NAMES = ["temperature", "top-k", "top-p", "min-p"]
VALUES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.05, 0.5, 1.0, 1.7, 40.0]),
        "top-k": st.sampled_from([0.0, 1.0, 2.0, 7.0, 50.0, 10_000.0]),
        "top-p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
        "min-p": st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0]),
    }
)
ORDERS = st.permutations(NAMES).flatmap(lambda names: st.integers(0, 4).map(lambda count: names[:count]))
SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([0.1, 1.0, 4.0, 15.0])


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(["the cat sat on the mat, the cat sat there"], 270), "small")


def logits_of(seed: int, scale: float = 3.0) -> Tensor:
    size = tokenizer().size + PADDED
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def step_of(logits: Tensor, sampler: Sampler, index: int = 0) -> Step:
    choice = sampler.choose(logits)
    return Step(index, 10 + index, choice.id, logits, choice, None, None)


def report_of(step: Step, sampler: Sampler, **options: Any) -> StepReport:
    return step_report(step, sampler, tokenizer(), prompt_ids=[0, 5], context_ids=[0, 5, 9], **({"top": 8} | options))


def softmax(logits: dict[int, float]) -> dict[int, float]:
    most = max(logits.values())
    powers = {id: math.exp(logit - most) for id, logit in logits.items()}
    total = math.fsum(powers.values())
    return {id: power / total for id, power in powers.items()}


def brute_force(logits: dict[int, float], name: str, value: float) -> dict[int, float]:
    """The tokens that one filter keeps, in fp64; rejects examples that rounding would decide."""
    best = sorted(logits, key=lambda id: (-logits[id], id))
    if name == "vocabulary":
        return {id: logits[id] for id in logits if id < value}
    if name == "top-k" or (name, value) == ("temperature", 0.0):
        return {id: logits[id] for id in best[: int(value) or 1]}
    if name == "temperature":
        return {id: logits[id] / value for id in logits}
    probs = softmax(logits)
    if name == "min-p":
        assume(all(abs(probs[id] / probs[best[0]] / value - 1) > 1e-4 for id in best[1:]))
        return {id: logits[id] for id in best if probs[id] >= value * probs[best[0]]}
    kept, reached = {}, 0.0
    for id in best:
        assume(abs(reached - value) > 1e-5)
        if reached < value:
            kept[id] = logits[id]
        reached += probs[id]
    return kept


def chain(order: Sequence[str], values: dict[str, float], padded: bool) -> list[Filter]:
    return [*([Vocabulary(tokenizer().size)] if padded else []), *filter_chain(order, values)]


# The step.


@settings(max_examples=150)
@given(SEEDS, SCALES, ORDERS, VALUES, st.booleans(), st.integers(0, 12))
def test_a_correct_report_passes_its_check(
    seed: int, scale: float, order: list[str], values: dict[str, float], padded: bool, top: int
) -> None:
    sampler = Sampler(chain(order, values, padded), seed)
    for index in range(3):
        step = step_of(logits_of(seed + index, scale), sampler, index)
        report = report_of(step, sampler, top=top)
        assert report.check.ok
        assert report.check.replayed_id == report.chosen.id == step.token
        assert report.check.sum_error < 1e-5
        (chosen,) = [row for row in report.candidates if row.id == step.token]
        assert chosen.cut is None
        if step.choice.u is not None:
            assert chosen.u_low is not None
            assert chosen.u_high is not None
            assert chosen.u_low <= step.choice.u < chosen.u_high


@settings(max_examples=100)
@given(SEEDS, SCALES, ORDERS, VALUES, st.booleans())
def test_every_number_matches_brute_force(
    seed: int, scale: float, order: list[str], values: dict[str, float], padded: bool
) -> None:
    logits = logits_of(seed, scale)
    size = len(logits)
    sampler = Sampler(chain(order, values, padded), seed)
    report = report_of(step_of(logits, sampler), sampler, top=size)

    alive = dict(enumerate(logits.double().tolist()))
    probs = softmax(alive)
    cut: dict[int, str] = {}
    for shown, filter in zip(report.sampler, sampler.filters, strict=True):
        before, reaching = set(alive), softmax(alive)
        alive = brute_force(alive, filter.name, filter.value)
        cut |= dict.fromkeys(before - set(alive), filter.name)
        assert (shown.name, shown.value, shown.kept) == (filter.name, filter.value, len(alive))
        assert shown.removed_mass == pytest.approx(sum(reaching[id] for id in before - set(alive)), abs=2e-6)
    final = softmax(alive)
    warm = values["temperature"] if "temperature" in order else 1.0
    tempered = softmax(brute_force(dict(enumerate(logits.double().tolist())), "temperature", warm))

    assert [row.rank for row in report.candidates] == list(range(size))
    assert [row.id for row in report.candidates] == sorted(probs, key=lambda id: (-probs[id], id))
    reached, low = 0.0, 0.0
    for row in report.candidates:
        assert row.logit == float(logits[row.id])
        assert abs(row.p - probs[row.id]) < 1e-6
        assert abs(row.p_temperature - tempered.get(row.id, 0.0)) < 1e-6
        assert abs(row.p_final - final.get(row.id, 0.0)) < 1e-6
        assert row.cut == cut.get(row.id)
        reached += final.get(row.id, 0.0)
        assert row.cumulative <= 1
        if row.p_final == 0:
            assert (row.u_low, row.u_high) == (None, None)
            assert abs(row.cumulative - 1) < 2e-6  # removed tokens come after all others
        else:
            assert row.u_low == low  # no gap, no overlap
            assert row.u_high is not None
            low = row.u_high
            assert abs(low - reached) < 2e-6
            assert abs(row.cumulative - reached) < 2e-6
    assert low == 1.0
    assert report.entropy == pytest.approx(-sum(p * math.log2(p) for p in probs.values() if p), abs=1e-4)
    assert report.chosen.p_final == pytest.approx(final[report.chosen.id], abs=1e-6)
    assert report.chosen.surprisal == pytest.approx(-math.log2(probs[report.chosen.id]), abs=1e-4)


def test_the_report_describes_the_run() -> None:
    sampler = Sampler([], 77)
    step = replace(step_of(logits_of(1), sampler), index=4)
    report = report_of(step, sampler)
    assert (report.step, report.seed, report.vocabulary) == (4, 77, tokenizer().size + PADDED)
    assert (report.prompt_ids, report.context_ids) == ((0, 5), (0, 5, 9))
    assert (report.sampler, report.columns) == ((), ())
    assert report.chosen.u == step.choice.u
    for shown in (*report.candidates, report.chosen):
        assert (shown.text, shown.bytes) == (tokenizer().token_text(shown.id), tokenizer().token_bytes(shown.id))


@pytest.mark.parametrize("top", [0, 1, 3])
def test_the_chosen_token_is_a_candidate_at_any_rank(top: int) -> None:
    logits = logits_of(2, 0.1)
    for seed in range(20):
        sampler = Sampler([], seed)
        step = step_of(logits, sampler)
        report = report_of(step, sampler, top=top)
        assert [row.rank for row in report.candidates] == sorted({*range(top), step.choice.rank})
        assert step.token in [row.id for row in report.candidates]
        assert report.check.ok


def test_a_row_without_a_token_is_labeled() -> None:
    logits = logits_of(3)
    logits[-1] = 50.0
    sampler = Sampler([Vocabulary(tokenizer().size)], 0)
    row = report_of(step_of(logits, sampler), sampler).candidates[0]
    assert (row.text, row.bytes, row.cut, row.p_final) == (f"<unused {len(logits) - 1}>", b"", "vocabulary", 0.0)


def test_equal_candidates_are_ordered_by_id() -> None:
    logits = torch.zeros(tokenizer().size)
    sampler = Sampler([TopK(4)], 0)
    report = report_of(step_of(logits, sampler), sampler, top=6)
    assert [row.id for row in report.candidates] == [0, 1, 2, 3, 4, 5]
    assert [row.cut for row in report.candidates] == [None, None, None, None, "top-k", "top-k"]
    assert [row.u_high for row in report.candidates] == [0.25, 0.5, 0.75, 1.0, None, None]


def test_a_certain_token_has_no_surprisal() -> None:
    logits = torch.full((tokenizer().size,), -1000.0)
    logits[40] = 1000.0
    sampler = Sampler([Temperature(0.8)], 0)
    report = report_of(step_of(logits, sampler), sampler)
    assert (report.chosen.id, report.chosen.surprisal, report.entropy) == (40, 0.0, 0.0)
    assert f"{report.chosen.surprisal:.2f} {report.entropy:.2f}" == "0.00 0.00"  # and not "-0.00"


# Mistakes that the check must catch.


@settings(max_examples=60)
@given(SEEDS, st.sampled_from([0.0, 0.8, 2.0]), st.integers(1, 200))
def test_another_token_fails_the_check(seed: int, temperature: float, shift: int) -> None:
    sampler = Sampler([Temperature(temperature)], seed)
    step = step_of(logits_of(seed), sampler)
    wrong = (step.token + shift) % tokenizer().size
    assume(wrong != step.token)
    for choice in (step.choice, replace(step.choice, id=wrong)):
        report = report_of(replace(step, token=wrong, choice=choice), sampler)
        assert not report.check.ok
        assert report.check.replayed_id != wrong


@settings(max_examples=60)
@given(SEEDS, st.floats(0.0, 1.0, exclude_max=True))
def test_another_u_fails_the_check(seed: int, u: float) -> None:
    sampler = Sampler([Temperature(1.5), TopP(0.9)], seed)
    step = step_of(logits_of(seed, 1.0), sampler)
    rows = {row.id: row for row in report_of(step, sampler, top=0).candidates}
    low, high = rows[step.token].u_low, rows[step.token].u_high
    assert low is not None
    assert high is not None
    report = report_of(replace(step, choice=replace(step.choice, u=u)), sampler)
    assert report.check.ok == (low <= u < high)


def test_a_draw_presented_as_greedy_fails_the_check() -> None:
    sampler = Sampler([], 4)
    step = step_of(logits_of(4, 0.5), sampler)
    assert step.choice.rank > 0
    assert not report_of(replace(step, choice=replace(step.choice, u=None)), sampler).check.ok


def test_another_sampler_fails_the_check() -> None:
    logits = logits_of(5, 0.5)
    step = step_of(logits, Sampler([], 5))
    assert step.choice.rank > 0
    assert not report_of(step, Sampler([TopK(step.choice.rank)], 5)).check.ok


# Other temperatures.

COLUMNS = [0.0, 0.3, 1.0, 1.5, 30.0]


@settings(max_examples=60)
@given(SEEDS, SCALES, ORDERS, VALUES, st.booleans(), st.integers(0, 3))
def test_columns_match_separate_runs(
    seed: int, scale: float, order: list[str], values: dict[str, float], padded: bool, index: int
) -> None:
    assume("temperature" in order and values["temperature"] > 0)
    rows = [logits_of(seed + n, scale) for n in range(index + 1)]
    sampler = Sampler(chain(order, values, padded), seed)
    step = [step_of(row, sampler) for row in rows][-1]
    report = report_of(step, sampler, temperatures=COLUMNS)
    own = values["temperature"]
    assert [column.temperature for column in report.columns] == sorted({*COLUMNS, own})
    assert [column.temperature for column in report.columns if column.used] == [own]
    for column in report.columns:
        alone = Temperature(column.temperature)(rows[-1]).double().softmax(-1)
        for id, prob in column.alone.items():
            assert prob == pytest.approx(float(alone[id]), abs=1e-6)
        assert column.choices_alone == pytest.approx(2 ** float(-alone.xlogy(alone).sum() / math.log(2)), rel=1e-3)
        other = Sampler(chain(order, values | {"temperature": column.temperature}, padded), seed)
        choice = [other.choose(row) for row in rows][-1]
        assert column.id == choice.id
        assert (column.text, column.bytes) == (tokenizer().token_text(choice.id), tokenizer().token_bytes(choice.id))
        assert list(column.probs) == [row.id for row in report.candidates]
        final = other.stages(rows[-1])[-1].logits.double().softmax(-1)
        for id, prob in column.probs.items():
            assert prob == pytest.approx(float(final[id]), abs=1e-6)
        bits = -math.fsum(p * math.log2(p) for p in final.tolist() if p > 0)
        assert column.entropy == pytest.approx(bits, abs=1e-4)
        assert column.choices == pytest.approx(2**bits, rel=1e-3)
        if column.used:
            assert column.id == step.token
            assert column.probs == {row.id: row.p_final for row in report.candidates}


@pytest.mark.parametrize("filters", [[], [TopK(7)], [Vocabulary(200), TopP(0.9)]])
def test_columns_for_a_sampler_without_temperature(filters: list[Filter]) -> None:
    logits = logits_of(8)
    sampler = Sampler(filters, 8)
    step = step_of(logits, sampler)
    report = report_of(step, sampler, temperatures=[1.0, 2.0])
    assert report.columns[0].id == step.token
    assert report.columns[0].probs == {row.id: row.p_final for row in report.candidates}
    assert report.columns[1].entropy > report.columns[0].entropy


def test_columns_never_draw_rows_without_a_token() -> None:
    logits = logits_of(9)
    logits[-1] = 50.0
    sampler = Sampler([Vocabulary(tokenizer().size), TopK(3)], 9)
    column, own = report_of(step_of(logits, sampler), sampler, temperatures=[0.0]).columns
    assert (own.temperature, own.used) == (1.0, True)
    assert column.id == int(logits[: tokenizer().size].argmax())
    assert column.entropy == 0.0


# Tokens.


@settings(max_examples=60)
@given(SEEDS, SCALES, st.integers(0, 12), st.sampled_from([0.0, 0.7, 1.5]))
def test_a_generated_token_matches_brute_force(seed: int, scale: float, alternatives: int, temperature: float) -> None:
    logits, sampler = logits_of(seed, scale), Sampler([Temperature(temperature), TopP(0.95)], seed)
    step = step_of(logits, sampler, 6)
    report = generated_token_of(step, tokenizer(), alternatives)
    probs = softmax(dict(enumerate(logits.double().tolist())))
    order = sorted(probs, key=lambda id: (-probs[id], id))
    assert (report.index, report.id, report.u) == (6, step.token, step.choice.u)
    assert (report.text, report.bytes) == (tokenizer().token_text(step.token), tokenizer().token_bytes(step.token))
    assert report.prob == pytest.approx(probs[step.token], abs=1e-6)
    assert report.logprob == pytest.approx(math.log(probs[step.token]), abs=1e-4)
    assert report.final_prob == step.choice.final_prob
    assert report.rank == order.index(step.token)
    assert report.entropy == pytest.approx(-sum(p * math.log2(p) for p in probs.values() if p), abs=1e-4)
    assert [rival.id for rival in report.top] == order[:alternatives]
    for rival in report.top:
        assert rival.prob == pytest.approx(probs[rival.id], abs=1e-6)
        assert (rival.text, rival.bytes) == (tokenizer().token_text(rival.id), tokenizer().token_bytes(rival.id))


@pytest.mark.parametrize("text", ["", "the cat", "🦊 e\u0301 日本\x00\n", "<|end_of_text|>"])
@pytest.mark.parametrize("parse_special", [False, True])
def test_a_tokenization_is_exact_if_nothing_is_lost(text: str, parse_special: bool) -> None:
    found = tokenize(tokenizer(), text, parse_special=parse_special)
    assert found.exact
    assert (found.model, found.text_bytes) == ("small", len(text.encode()))
    assert [token.id for token in found.tokens] == tokenizer().encode(text, parse_special=parse_special)


def test_bytes_per_token_ignores_added_tokens() -> None:
    found = tokenize(tokenizer(), "zzzz")
    assert len(found.tokens) == 5
    assert found.bytes_per_token == 1.0
    assert tokenize(tokenizer(), "").bytes_per_token == 0.0


def normalized(normalizer: Any) -> Tokenizer:
    fast = train_tokenizer(["the cat sat on the mat"], 258)
    fast.normalizer = normalizer
    return Tokenizer(fast, "normalized")


@pytest.mark.parametrize(
    ("normalizer", "text", "exact"),
    [
        (normalizers.Lowercase(), "The cat", False),
        (normalizers.Lowercase(), "the cat", True),
        (normalizers.NFC(), "cafe\u0301", False),
        (normalizers.NFC(), "café", True),
        (normalizers.Replace("cat", ""), "the cat", False),
        (normalizers.Replace("cat", "cats"), "the cat", False),
        (normalizers.Prepend(" "), "the cat", True),  # as SentencePiece does: adds a space
    ],
    ids=["case", "case, none", "NFC", "NFC, none", "cut", "added", "space in front"],
)
def test_a_tokenization_is_exact_only_if_the_bytes_are_the_texts(normalizer: Any, text: str, exact: bool) -> None:
    assert tokenize(normalized(normalizer), text).exact == exact
