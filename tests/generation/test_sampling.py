"""Filters and the draw: against transformers, against brute force, and at edge values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as hf

from llmcli.errors import EXIT_FAILURE, EXIT_USAGE, LlmcliError
from llmcli.generation.distribution import Softmax, draw, intervals, log_probabilities, probabilities
from llmcli.generation.filters import (
    FILTERS,
    MAX_CHANGE,
    Filter,
    FrequencyPenalty,
    LogitBias,
    MinP,
    Penalty,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    Vocabulary,
    filter_chain,
)
from llmcli.generation.sampling import Sampler

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(5, 2000)
SCALES = st.sampled_from([0.3, 1.0, 3.0, 10.0])
JUST_BELOW_1 = math.nextafter(1.0, 0.0)

OURS: dict[str, Callable[[float], Filter]] = {
    "temperature": Temperature,
    "top-k": TopK,
    "top-p": TopP,
    "min-p": MinP,
    "typical-p": TypicalP,
}
VALUES: dict[str, st.SearchStrategy[float]] = {
    "temperature": st.floats(0.05, 5.0),
    "top-k": st.integers(1, 300).map(float),
    "top-p": st.floats(0.01, 0.999),
    "min-p": st.floats(0.001, 0.999),
    "typical-p": st.floats(0.01, 0.999),
}


def logits_without_ties(seed: int, size: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator) * scale
    while len(logits.unique()) < size:
        logits = torch.randn(size, generator=generator) * scale
    return logits


def warped(name: str, value: float, logits: Tensor) -> Tensor:
    """The same filter in transformers."""
    warper: Any = {
        "temperature": lambda: hf.TemperatureLogitsWarper(value),
        "top-k": lambda: hf.TopKLogitsWarper(int(value)),
        "top-p": lambda: hf.TopPLogitsWarper(value),
        "min-p": lambda: hf.MinPLogitsWarper(value),
        "typical-p": lambda: hf.TypicalLogitsWarper(value),
    }[name]()
    return warper(None, logits[None])[0]


def survivors(logits: Tensor) -> set[int]:
    return set(torch.isfinite(logits).nonzero().flatten().tolist())


def on_the_border(name: str, value: float, logits: Tensor) -> set[int]:
    """Tokens so close to the limit (in fp64) that fp32 rounding decides."""
    probs = logits.double().softmax(-1)
    if name == "top-p":
        ordered = probs.sort(descending=True)
        distance = (ordered.values.cumsum(-1) - ordered.values - value).abs()
        return set(ordered.indices[distance < 2e-6].tolist())
    if name == "typical-p":
        entropy = -torch.special.xlogy(probs, probs).sum()
        distance = (-probs.log() - entropy).abs()
        ordered = distance.sort()
        before = probs[ordered.indices].cumsum(-1) - probs[ordered.indices]
        near = (before - value).abs() < 2e-6
        twins = ordered.values.diff(prepend=torch.tensor([-1.0])).abs() < 2e-5  # their order may differ
        return set(ordered.indices[near | twins | twins.roll(-1)].tolist())
    if name == "min-p":
        return set(((probs / probs.max() - value).abs() < 1e-5 * value).nonzero().flatten().tolist())
    return set()


# --- each filter equals that of transformers ---


@settings(max_examples=60)
@given(SEEDS, SIZES, SCALES, VALUES["temperature"])
def test_temperature_equals_transformers(seed: int, size: int, scale: float, value: float) -> None:
    logits = logits_without_ties(seed, size, scale)
    ours, theirs = Temperature(value)(logits), warped("temperature", value, logits)
    torch.testing.assert_close(ours - ours.max(), theirs - theirs.max(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(probabilities(ours), probabilities(theirs), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["top-k", "top-p", "min-p", "typical-p"])
@settings(max_examples=100)
@given(data=st.data(), seed=SEEDS, size=SIZES, scale=SCALES)
def test_filters_keep_what_transformers_keeps(
    name: str, data: st.DataObject, seed: int, size: int, scale: float
) -> None:
    logits, value = logits_without_ties(seed, size, scale), data.draw(VALUES[name])
    ours = OURS[name](value)(logits)
    kept = survivors(ours)
    assert kept ^ survivors(warped(name, value, logits)) <= on_the_border(name, value, logits)
    for id in kept:
        assert ours[id] == logits[id]
    assert all(ours[id] == -math.inf for id in range(size) if id not in kept)


@settings(max_examples=150)
@given(st.data(), SEEDS, SIZES, SCALES, st.permutations(sorted(OURS)))
def test_chains_in_any_order_equal_transformers(
    data: st.DataObject, seed: int, size: int, scale: float, order: list[str]
) -> None:
    logits = logits_without_ties(seed, size, scale)
    values = {name: data.draw(VALUES[name], label=name) for name in order}
    expected = logits
    for stage in Sampler(filter_chain(order, values), 0).stages(logits):
        border = on_the_border(stage.name, stage.value, expected)
        expected = warped(stage.name, stage.value, expected)
        difference = survivors(stage.logits) ^ survivors(expected)
        assert difference <= border
        if difference:
            return  # from here on, the inputs differ
    torch.testing.assert_close(probabilities(stage.logits), probabilities(expected), rtol=1e-4, atol=1e-7)


PENALTIES: dict[str, Callable[..., Penalty]] = {
    "repetition-penalty": RepetitionPenalty,
    "presence-penalty": PresencePenalty,
    "frequency-penalty": FrequencyPenalty,
}


def penalized(name: str, value: float, logits: Tensor, ids: list[int]) -> Tensor:
    """The same penalty in transformers or, if it has none, token by token in fp64."""
    if name == "repetition-penalty":
        warper: Any = hf.RepetitionPenaltyLogitsProcessor(value)
        return warper(torch.tensor([ids]), logits[None].clone())[0] if ids else logits
    expected = logits.double()
    for id in set(ids):
        expected[id] -= value * (ids.count(id) if name == "frequency-penalty" else 1)
    return expected.float()


@pytest.mark.parametrize("name", sorted(PENALTIES))
@settings(max_examples=60)
@given(
    data=st.data(),
    seed=SEEDS,
    size=st.integers(5, 300),
    value=st.floats(0.1, 3.0),
    window=st.one_of(st.none(), st.integers(0, 30)),
)
def test_penalties_lower_earlier_tokens(
    name: str, data: st.DataObject, seed: int, size: int, value: float, window: int | None
) -> None:
    logits = logits_without_ties(seed, size, 3.0)
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    counted = ids if window is None else ids[len(ids) - window :] if window < len(ids) else ids
    ours = PENALTIES[name](value, window)(logits, ids)
    torch.testing.assert_close(ours, penalized(name, value, logits, counted if window != 0 else []))


@settings(max_examples=60)
@given(st.data(), SEEDS, st.integers(5, 300))
def test_logit_bias_equals_transformers(data: st.DataObject, seed: int, size: int) -> None:
    logits = logits_without_ties(seed, size)
    bias = data.draw(st.dictionaries(st.integers(0, size - 1), st.floats(-50, 50), min_size=1, max_size=5))
    warper: Any = hf.SequenceBiasLogitsProcessor({(id,): float(amount) for id, amount in bias.items()})
    torch.testing.assert_close(LogitBias(bias)(logits), warper(torch.tensor([[0]]), logits[None].clone())[0])


def test_a_banned_token_is_cut_and_not_all_tokens_can_be_banned() -> None:
    logits = torch.tensor([5.0, 1.0, 0.0])
    assert survivors(LogitBias({0: -math.inf})(logits)) == {1, 2}
    with pytest.raises(LlmcliError, match="bans every possible token"):
        LogitBias({0: -math.inf, 1: -math.inf, 2: -math.inf})(logits)


def test_penalties_keep_cut_tokens_cut() -> None:
    logits = torch.tensor([1.0, -math.inf, -1.0])
    for penalty in PENALTIES.values():
        assert survivors(penalty(2.0)(logits, [0, 1, 2])) == {0, 2}


def test_every_filter_gets_the_earlier_tokens() -> None:
    sampler = Sampler([RepetitionPenalty(1e6), Temperature(0.0)], 0)
    ids: list[int] = []
    for _ in range(4):
        ids.append(sampler.choose(torch.tensor([4.0, 3.0, 2.0, 1.0]), ids).id)
    assert ids == [0, 1, 2, 3]


def test_order_matters() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    values = {"temperature": 4.0, "top-p": 0.75}
    kept = [
        len(survivors(Sampler(filter_chain(order, values), 0).stages(logits)[-1].logits))
        for order in (["temperature", "top-p"], ["top-p", "temperature"])
    ]
    assert kept == [3, 2]


# --- properties of every filter ---


@pytest.mark.parametrize("name", ["top-k", "top-p", "min-p", "typical-p"])
@settings(max_examples=60)
@given(data=st.data(), seed=SEEDS, size=st.integers(1, 300), scale=SCALES)
def test_stricter_filters_keep_a_subset(name: str, data: st.DataObject, seed: int, size: int, scale: float) -> None:
    logits = logits_without_ties(seed, size, scale)
    less, more = sorted(data.draw(st.tuples(VALUES[name], VALUES[name])))
    strict, loose = (more, less) if name == "min-p" else (less, more)
    assert survivors(OURS[name](strict)(logits)) <= survivors(OURS[name](loose)(logits))


ANY_VALUE: dict[str, st.SearchStrategy[float]] = {
    "temperature": st.floats(0.0, allow_infinity=False, allow_nan=False),
    "top-k": st.integers(0, 10**9).map(float),
    "top-p": st.floats(0.0, 1.0, exclude_min=True),
    "min-p": st.floats(0.0, 1.0),
}


@pytest.mark.parametrize("name", sorted(ANY_VALUE))  # typical-p may cut the best
@settings(max_examples=100)
@given(data=st.data(), seed=SEEDS, size=st.integers(1, 50), scale=st.sampled_from([0.0, 1e-6, 1.0, 100.0, 1e30]))
def test_the_best_is_always_kept(name: str, data: st.DataObject, seed: int, size: int, scale: float) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
    best = min(range(size), key=lambda id: (-float(logits[id]), id))
    out = OURS[name](data.draw(ANY_VALUE[name]))(logits)
    assert not out.isnan().any()
    assert best in survivors(out)
    assert out[best] == out.max()
    assert probabilities(out)[best] > 0


@pytest.mark.parametrize("value", [5e-324, 1e-46, 1e-45, 1e-39, 1e-6])
def test_the_smallest_values_keep_only_the_best(value: float) -> None:
    logits = torch.tensor([0.0, 3.0, -2.0, 2.0])
    for filter in (Temperature(value), TopP(value)):
        assert probabilities(filter(logits)).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert survivors(MinP(value)(logits)) == {0, 1, 2, 3}


@pytest.mark.parametrize("value", [1e6, 1e30, 1e39, 1e300])
def test_a_high_temperature_flattens(value: float) -> None:
    probs = probabilities(Temperature(value)(torch.tensor([0.0, 3.0, -2.0, 2.0])))
    torch.testing.assert_close(probs, torch.full((4,), 0.25))


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.5, 1.0, 2.0, 1e6])
def test_huge_logits(temperature: float) -> None:
    logits = torch.tensor([3.4e38, -3.4e38, 3.3e38, 0.0])
    choice = Sampler(filter_chain(["temperature"], {"temperature": temperature}), 0).choose(logits)
    assert (choice.id, choice.prob, choice.final_prob, choice.rank) == (0, 1.0, 1.0, 0)


def test_filters_do_not_change_their_input() -> None:
    logits = torch.tensor([0.0, 3.0, -2.0, 2.0])
    before = logits.clone()
    penalties = [penalty(1.5) for penalty in PENALTIES.values()]
    filters = (Vocabulary(2), Temperature(0.0), Temperature(0.5), TopK(1), TopP(0.1), MinP(0.9), TypicalP(0.5))
    for filter in (*filters, LogitBias({1: 2.0}), *penalties):
        filter(logits, [0, 1, 1])
        assert torch.equal(logits, before)


# --- ties ---


@settings(max_examples=100)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=40), st.integers(1, 45))
def test_ties_at_the_border_of_top_k_go_by_id(levels: list[int], k: int) -> None:
    by_hand = sorted(range(len(levels)), key=lambda id: (-levels[id], id))[:k]
    assert survivors(TopK(k)(torch.tensor(levels, dtype=torch.float32))) == set(by_hand)


@settings(max_examples=50)
@given(st.lists(st.integers(-1, 1), min_size=1, max_size=500))
def test_ties_of_the_best_at_temperature_0_go_to_the_lowest_id(levels: list[int]) -> None:
    choice = Sampler([Temperature(0.0)], 0).choose(torch.tensor(levels, dtype=torch.float32))
    assert choice.id == levels.index(max(levels))
    assert (choice.final_prob, choice.rank, choice.u) == (1.0, 0, None)


def test_ties_in_top_p_go_by_id_and_min_p_1_keeps_all() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]) * 50
    assert survivors(TopP(0.4)(logits)) == {1, 2}
    assert survivors(MinP(1.0)(logits)) == {1, 2, 3, 4}


# --- values that are off, or out of range ---


@pytest.mark.parametrize(
    "filter",
    [
        *(TopK(0), TopK(4), TopK(1000), TopP(1.0), MinP(0.0), TypicalP(1.0), Vocabulary(4), Vocabulary(9)),
        *(RepetitionPenalty(1.0), PresencePenalty(0.0), FrequencyPenalty(0.0), RepetitionPenalty(2.0, window=0)),
    ],
)
def test_values_that_turn_a_filter_off_change_nothing(filter: Filter) -> None:
    logits = torch.tensor([0.0, 3.0, -200.0, 2.0])
    assert torch.equal(filter(logits, [0, 1, 1]), logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, -5e-324, math.inf, -math.inf, math.nan)),
        *(("top-k", value) for value in (-1.0, math.inf, math.nan)),
        *(("top-p", value) for value in (-0.1, 1.0000001, 0.0, -0.0, math.inf, math.nan)),
        *(("min-p", value) for value in (-0.1, 1.1, math.inf, math.nan)),
        *(("typical-p", value) for value in (-0.1, 1.1, 0.0, math.inf, math.nan)),
        *(("repetition-penalty", value) for value in (-0.1, 0.0, 1e-300, 1e300, math.inf, math.nan)),
        *(("presence-penalty", value) for value in (1e300, -1e300, math.inf, -math.inf, math.nan)),
        *(("frequency-penalty", value) for value in (1e300, -1e300, math.inf, math.nan)),
    ],
)
def test_values_out_of_range_are_errors(name: str, value: float) -> None:
    with pytest.raises(LlmcliError, match=f"^{name}") as caught:
        FILTERS[name](value)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("amount", [1e300, -1e300, math.inf, math.nan])
def test_a_bias_out_of_range_is_an_error(amount: float) -> None:
    with pytest.raises(LlmcliError, match=r"^logit-bias must be") as caught:
        LogitBias({0: amount})
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    "filter",
    [
        *(
            RepetitionPenalty(1 / MAX_CHANGE),
            RepetitionPenalty(MAX_CHANGE),
            LogitBias({0: MAX_CHANGE}),
            LogitBias({0: -MAX_CHANGE}),
        ),
        *(penalty(amount) for penalty in (PresencePenalty, FrequencyPenalty) for amount in (MAX_CHANGE, -MAX_CHANGE)),
    ],
)
def test_the_largest_values_still_leave_probabilities(filter: Filter) -> None:
    logits = torch.tensor([300.0, 299.0, -300.0, -math.inf])
    choice = Sampler([filter, Temperature(1e-9), TopP(0.5), TypicalP(0.5)], 0).choose(logits, [0, 2] * 10_000)
    assert 0 < choice.final_prob <= 1


@pytest.mark.parametrize("name", ["top-p", "typical-p", "repetition-penalty"])
def test_a_zero_that_means_nothing_is_an_error_of_its_own_kind(name: str) -> None:
    with pytest.raises(LlmcliError, match=f"{name} must not be 0") as caught:
        FILTERS[name](0.0)
    assert caught.value.kind == f"{name}-zero"


GOOD = {"temperature": 0.7, "top-k": 40.0, "top-p": 0.9, "min-p": 0.1}


@pytest.mark.parametrize("order", [*list(itertools.permutations(GOOD))[::5], (), ("min-p",), ("top-k", "temperature")])
def test_a_chain_has_the_given_order(order: Sequence[str]) -> None:
    assert [(filter.name, filter.value) for filter in filter_chain(order, GOOD)] == [(n, GOOD[n]) for n in order]


def test_filters_that_are_off_are_not_in_the_chain() -> None:
    off = {"temperature": 1.0, "top-k": 0.0, "top-p": 1.0, "min-p": 0.0}
    assert [filter.name for filter in filter_chain(list(FILTERS), off)] == ["temperature"]


@pytest.mark.parametrize(
    ("order", "reason"), [(["top_k"], "top_k"), (["top-k", "min-p", "top-k"], "top-k is listed twice")]
)
def test_unknown_and_repeated_names_are_errors(order: list[str], reason: str) -> None:
    with pytest.raises(LlmcliError, match=reason) as caught:
        filter_chain(order, GOOD)
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.hint


def test_an_invalid_value_is_an_error_even_if_its_filter_does_not_run() -> None:
    with pytest.raises(LlmcliError, match="top-p"):
        filter_chain(["temperature"], GOOD | {"top-p": 2.0})


# --- the draw ---


def probs_of(seed: int, size: int, scale: float = 1.0) -> Tensor:
    return probabilities(logits_without_ties(seed, size, scale))


def by_hand(probs: Tensor, u: float) -> int:
    """Inverse CDF in plain Python."""
    order = sorted((id for id in range(len(probs)) if probs[id] > 0), key=lambda id: (-float(probs[id]), id))
    total, reached = math.fsum(probs.tolist()), 0.0
    for id in order:
        reached += float(probs[id])
        if u < reached / total:
            return id
    return order[-1]


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 300), SCALES)
def test_u_0_draws_the_most_probable(seed: int, size: int, scale: float) -> None:
    probs = probs_of(seed, size, scale)
    assert draw(probs, 0.0) == int(probs.argmax())


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 300))
def test_u_near_1_draws_the_least_probable(seed: int, size: int) -> None:
    probs = probs_of(seed, size, 4.0)
    cut = torch.where(probs < 1e-12, 0.0, probs)  # smaller probabilities vanish in the sum
    least = min((id for id in range(size) if cut[id] > 0), key=lambda id: float(cut[id]))
    assert draw(cut, JUST_BELOW_1) == least


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 2000), st.sampled_from([0.3, 1.0, 4.0]))
def test_intervals_are_proportional_to_probabilities(seed: int, size: int, scale: float) -> None:
    probs = probs_of(seed, size, scale)
    ids, ends = intervals(probs)
    assert sorted(ids.tolist()) == probs.nonzero().flatten().tolist()
    assert ends.dtype == torch.float64
    assert ends[-1] == 1.0
    widths = ends.diff(prepend=torch.zeros(1, dtype=torch.float64))
    assert (widths >= 0).all()
    expected = probs[ids].double() / probs.double().sum()
    torch.testing.assert_close(widths, expected, rtol=1e-6, atol=1e-14)
    assert (expected.diff() <= 0).all()


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 200), SCALES, st.floats(0.0, 1.0, exclude_max=True))
def test_draw_is_the_inverse_of_the_cumulative_sum(seed: int, size: int, scale: float, u: float) -> None:
    probs = probs_of(seed, size, scale)
    near = {by_hand(probs, min(max(u + shift, 0.0), JUST_BELOW_1)) for shift in (-1e-6, 0.0, 1e-6)}
    assert draw(probs, u) in near
    order = intervals(probs)[0].tolist()
    above = draw(probs, min(u + 0.1, JUST_BELOW_1))
    assert order.index(draw(probs, u)) <= order.index(above)


@settings(max_examples=60)
@given(SEEDS, st.sampled_from([1, 2, 50, 3000]), SCALES, st.floats(0.0, 1.0 - 1e-9), st.booleans())
def test_a_draw_is_the_token_whose_interval_contains_u(seed: int, size: int, scale: float, u: float, cut: bool) -> None:
    """``draw`` sorts only the tokens near u, ``intervals`` all of them."""
    probs = probs_of(seed, size, scale)
    if cut:
        probs = torch.where(probs < probs.max() / 2, 0.0, probs)
    ids, ends = intervals(probs)
    assert draw(probs, u) == int(ids[int((ends <= u).sum())])


def test_an_interval_includes_its_lower_end_but_not_its_upper() -> None:
    probs = torch.tensor([0.25, 0.0, 0.5, 0.25])
    ids, ends = intervals(probs)
    assert ids.tolist() == [2, 0, 3]  # ties by id
    assert ends.tolist() == [0.5, 0.75, 1.0]
    expected = {0.0: 2, math.nextafter(0.5, 0): 2, 0.5: 0, math.nextafter(0.75, 0): 0, 0.75: 3, JUST_BELOW_1: 3}
    assert {u: draw(probs, u) for u in expected} == expected


def test_every_u_draws_a_certain_token() -> None:
    probs = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert {draw(probs, u) for u in (0.0, 0.5, JUST_BELOW_1)} == {2}


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.05, 0.4, 0.2, 0.1, 0.25, 0.0])
    source, counts, n = random.Random(20240229), [0] * 6, 10_000
    for _ in range(n):
        counts[draw(probs, source.random())] += 1
    assert counts[5] == 0
    squared = sum((counts[id] - n * float(p)) ** 2 / (n * float(p)) for id, p in enumerate(probs) if p > 0)
    assert squared < 18.467  # the 99.9th percentile for 4 degrees of freedom


# --- the sampler ---


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 300), SCALES)
def test_a_choice_describes_itself(seed: int, size: int, scale: float) -> None:
    logits = logits_without_ties(seed, size, scale)
    filters = [Temperature(1.3), TopK(20), TopP(0.9)]
    choice = Sampler(filters, seed).choose(logits)
    exact = logits.double().softmax(-1)
    assert choice.u == random.Random(seed).random()
    assert choice.prob == pytest.approx(float(exact[choice.id]), abs=1e-6)
    assert choice.rank == sum(bool(other > logits[choice.id]) for other in logits)
    for filter in filters:
        logits = filter(logits)
    final = probabilities(logits)
    assert choice.final_prob == float(final[choice.id]) > 0
    assert choice.id == draw(final, choice.u)


def test_ranks_of_ties_go_by_id() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    ranks = {}
    for seed in range(100):
        choice = Sampler([], seed).choose(logits)
        ranks[choice.id] = choice.rank
    assert ranks == {1: 0, 3: 1, 0: 2, 2: 3, 4: 4}


def test_the_same_seed_makes_the_same_choices() -> None:
    rows = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    runs = []
    for seed in (7, 7, 8):
        sampler = Sampler([Temperature(1.5)], seed)
        runs.append([sampler.choose(row) for row in rows])
    assert runs[0] == runs[1]
    assert [choice.id for choice in runs[0]] != [choice.id for choice in runs[2]]


def test_every_choice_takes_one_u_whatever_the_filters() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2))
    source = random.Random(3)
    expected = [source.random() for _ in range(5)]
    for filters in ([], [TopK(1)], [Temperature(2.0), MinP(0.2)], [Vocabulary(5), TopP(0.1)]):
        sampler = Sampler(filters, 3)
        assert [sampler.choose(logits).u for _ in range(5)] == expected


@pytest.mark.parametrize("order", [["temperature", "top-k"], ["top-k", "temperature"]])
def test_greedy_draws_nothing(order: list[str]) -> None:
    sampler = Sampler(filter_chain(order, GOOD | {"temperature": 0.0}), 3)
    assert sampler.greedy
    rows = torch.randn(20, 40, generator=torch.Generator().manual_seed(4))
    choices = [sampler.choose(row) for row in rows]
    assert [choice.id for choice in choices] == rows.argmax(-1).tolist()
    assert {choice.u for choice in choices} == {None}
    assert sampler._random.random() == random.Random(3).random()


def test_unused_rows_are_never_chosen() -> None:
    logits = torch.tensor([0.0, 1.0, 0.5, 9.0, 9.0])
    for filters in ([Vocabulary(3), Temperature(0.0)], [Vocabulary(3), Temperature(5.0)], [Vocabulary(3)]):
        sampler = Sampler(filters, 5)
        choices = [sampler.choose(logits) for _ in range(50)]
        assert {choice.id for choice in choices} <= {0, 1, 2}
        assert all(choice.rank >= 2 and choice.prob < 0.01 for choice in choices)  # the model's own numbers
    assert survivors(Vocabulary(3)(logits)) == {0, 1, 2}


def test_without_filters_the_draw_is_from_the_model() -> None:
    choice = Sampler([], 1).choose(torch.tensor([0.0, 1.0, 2.0]))
    assert choice.prob == choice.final_prob


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("filters", [[], [Temperature(0.0)], [TopK(1)]], ids=["none", "greedy", "top-k"])
def test_logits_that_are_not_numbers_are_errors(bad: float, filters: list[Filter]) -> None:
    with pytest.raises(LlmcliError, match="contain NaN or infinity") as caught:
        Sampler(filters, 0).choose(torch.tensor([0.0, bad, 1.0]))
    assert caught.value.exit_code == EXIT_FAILURE
    assert caught.value.kind == "logits-not-finite"


def test_cutting_all_tokens_is_an_error() -> None:
    with pytest.raises(LlmcliError, match="contain NaN or infinity"):
        probabilities(torch.full((3,), -math.inf))


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 500), SCALES)
def test_probabilities_are_fp32_of_any_dtype(seed: int, size: int, scale: float) -> None:
    logits = logits_without_ties(seed, size, scale)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        probs = probabilities(logits.to(dtype))
        assert probs.dtype == torch.float32
        exact = logits.to(dtype).double().softmax(-1)
        torch.testing.assert_close(probs.double(), exact, rtol=1e-5, atol=1e-9)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 500), SCALES)
def test_entropy_is_in_bits(seed: int, size: int, scale: float) -> None:
    logits = logits_without_ties(seed, size, scale)
    exact = -math.fsum(p * math.log2(p) for p in logits.double().softmax(-1).tolist() if p > 0)
    assert Softmax(logits).entropy() == pytest.approx(exact, abs=2e-6)


def test_the_smallest_and_largest_entropy() -> None:
    assert Softmax(torch.full((8,), 0.125)).entropy() == pytest.approx(3.0)
    certain = Softmax(torch.tensor([-math.inf, 1.0])).entropy()
    assert certain == 0.0
    assert math.copysign(1.0, certain) == 1.0


def test_probabilities_over_a_large_vocabulary_are_as_exact_as_float32() -> None:
    """torch's own softmax is off by 3e-5 here: small terms are lost in a large sum."""
    logits = 2 * torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    logits[:3] = 20.0
    exact = logits.double().softmax(dim=-1)
    probs = probabilities(logits)
    assert (probs.double() / exact - 1).abs().max() < 2e-6
    assert float(probs.double().sum()) == pytest.approx(1, abs=1e-6)
    assert (log_probabilities(logits) - exact.log()).abs().max() < 3e-6
    assert Softmax(logits).logprob(1) == pytest.approx(float(exact[1].log()), abs=1e-6)
