"""Guessing ahead changes nothing but the number of passes: the same steps, whoever guesses and however badly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from llmcli.engine.random_weights import random_model
from llmcli.generation.filters import Filter, RepetitionPenalty, Temperature, TopP
from llmcli.generation.sampling import Sampler
from llmcli.generation.speculative import DraftModel, PromptLookup
from llmcli.generation.steps import MOST_GUESSES, Guesser, Step, steps
from llmcli.model.transformer import Transformer
from tests.tiny import CPU, Tiny

Make = Callable[[str], Tiny]
FAMILIES = ["llama", "gpt2", "gemma3_text", "phi3-longrope", "mixtral"]
PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7]
WARM: list[Filter] = [RepetitionPenalty(1.2, window=9), Temperature(0.7), TopP(0.9)]
GREEDY: list[Filter] = [Temperature(0.0)]


class Fixed:
    """Guesses what it is told to."""

    def __init__(self, guess: Callable[[Sequence[int], int], list[int]]) -> None:
        self.guessed = self.kept = 0
        self._guess = guess

    def guess(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        return self._guess(ids, count)


def run(
    model: Transformer, filters: list[Filter], guesser: Guesser | None, seed: int = 0, count: int = 40
) -> list[Step]:
    sampler = Sampler(filters, seed)
    return list(steps(model, PROMPT, sampler=sampler, max_new_tokens=count, stop_ids=[96], guesser=guesser))


def assert_same(ours: list[Step], plain: list[Step]) -> None:
    told = [[(s.index, s.position, s.token, s.finish, s.choice.u, s.choice.rank) for s in run] for run in (ours, plain)]
    assert told[0] == told[1]
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)


def guessers(model: Transformer, plain: list[Step]) -> dict[str, Guesser]:
    text = PROMPT + [step.token for step in plain]
    other = random_model(model.config, device=CPU, dtype=torch.float32)
    return {
        "lookup": PromptLookup(),
        "itself": DraftModel(model),
        "other": DraftModel(other),
        "right": Fixed(lambda ids, count: text[len(ids) : len(ids) + count]),
        "wrong": Fixed(lambda ids, count: [(text[len(ids)] + 1) % 97] * count if len(ids) < len(text) else []),
        "half right": Fixed(lambda ids, count: [*text[len(ids) : len(ids) + count // 2], 3, 4][:count]),
        "silent": Fixed(lambda ids, count: []),
    }


@pytest.mark.parametrize("filters", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_steps_are_the_same(tiny: Make, name: str, filters: list[Filter]) -> None:
    model = tiny(name).load()
    for seed in range(1 if filters is GREEDY else 4):
        plain = run(model, filters, None, seed)
        for guesser in guessers(model, plain).values():
            assert_same(run(model, filters, guesser, seed), plain)


def test_what_is_right_is_kept_and_counted(tiny: Make) -> None:
    model = tiny("llama").load()
    plain = run(model, WARM, None)
    by = guessers(model, plain)
    for guesser in by.values():
        run(model, WARM, guesser)
    for name in ("right", "itself"):
        assert by[name].guessed == by[name].kept > 0.7 * len(plain), name
    assert by["wrong"].kept == 0 < by["wrong"].guessed
    assert 0 < by["half right"].kept < by["half right"].guessed
    assert by["silent"].guessed == 0


def test_right_guesses_save_passes(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").load()
    plain = run(model, GREEDY, None, count=40)
    lengths: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: lengths.append(ids.shape[1]) or hidden(ids, *rest))
    run(model, GREEDY, guessers(model, plain)["right"], count=40)
    assert len(lengths) == -(-len(plain) // (1 + MOST_GUESSES))
    assert max(lengths[1:]) == 1 + MOST_GUESSES


def test_lookup_finds_what_followed() -> None:
    lookup, sampler = PromptLookup(), Sampler(GREEDY, 0)
    assert lookup.guess([1, 2, 3, 4, 1, 2], 4, sampler) == [3, 4, 1, 2]
    assert lookup.guess([1, 2, 3, 4, 1, 2], 8, sampler) == [3, 4, 1, 2, 3, 4, 1, 2]  # a loop goes on
    assert lookup.guess([5, 5, 5], 4, sampler) == [5, 5, 5, 5]
    assert lookup.guess([1, 2, 3, 4, 1, 2, 9], 8, sampler) == []
    assert lookup.guess([1, 2, 3, 4, 1, 2, 9, 1, 2], 2, sampler) == [9, 1]  # the last time counts
    assert lookup.guess([7, 2, 3, 8, 5, 2, 3, 6, 7, 2, 3], 1, sampler) == [8]  # the longest match first
    assert lookup.guess([1, 5, 1], 3, sampler) == []  # one token says too little
    assert lookup.guess([1], 3, sampler) == []
    assert lookup.guess([], 3, sampler) == []


def test_lookup_rests_after_guesses_of_which_nothing_was_right() -> None:
    lookup, sampler, ids = PromptLookup(), Sampler(GREEDY, 0), [1, 2, 3, 1, 2]
    made = []
    for _ in range(60):
        made.append(bool(lookup.guess(ids, 4, sampler)))
        lookup.guessed += 4 * made[-1]
    places = [place for place, was in enumerate(made) if was]
    assert [b - a - 1 for a, b in itertools.pairwise(places)] == [1, 3, 7, 15, 16]
    while not lookup.guess(ids, 4, sampler):
        pass
    lookup.guessed, lookup.kept = lookup.guessed + 4, lookup.kept + 1  # one of them was right
    assert [bool(lookup.guess(ids, 4, sampler)) for _ in range(3)] == [True, True, True]


def test_never_beyond_what_was_asked_for_or_fits(tiny: Make) -> None:
    model = tiny("gpt2").load()
    asked: list[tuple[int, int]] = []

    def guess(ids: Sequence[int], count: int) -> list[int]:
        asked.append((len(ids), count))
        return [1] * count

    plain = run(model, WARM, None, count=12)
    assert_same(run(model, WARM, Fixed(guess), count=12), plain)
    assert all(length + count < len(PROMPT) + 12 for length, count in asked)
    asked.clear()
    whole = run(model, WARM, None, count=500)
    assert_same(run(model, WARM, Fixed(guess), count=500), whole)
    assert all(length + count < model.config.max_position_embeddings for length, count in asked)


def test_observed_steps_are_not_guessed_over(tiny: Make) -> None:
    model = tiny("llama").load()
    plain = run(model, GREEDY, None, count=20)
    right = guessers(model, plain)["right"]
    sampler = Sampler(GREEDY, 0)
    seen = list(steps(model, PROMPT, sampler=sampler, max_new_tokens=20, observe=[7, 8], guesser=right))
    assert [s.token for s in seen] == [s.token for s in plain]
    assert [s.index for s in seen if s.trace is not None] == [7, 8]


@pytest.mark.parametrize("stop_at", [0, 1, 4, 9, 10])
def test_the_cache_holds_what_was_written(tiny: Make, stop_at: int) -> None:
    """Also when whoever iterates leaves in the middle of what one pass has checked."""
    model = tiny("llama").load()
    plain = run(model, GREEDY, None)
    cache = model.new_cache()
    stepping = steps(
        model,
        PROMPT,
        sampler=Sampler(GREEDY, 0),
        max_new_tokens=40,
        cache=cache,
        guesser=guessers(model, plain)["right"],
    )
    for step in stepping:
        if step.index == stop_at:
            stepping.close()
    assert cache.length == len(PROMPT) + stop_at
    text = PROMPT + [step.token for step in plain]
    with torch.inference_mode():
        after = model(torch.tensor([text[cache.length : cache.length + 1]]), cache)
        fresh = model(torch.tensor([text[: cache.length]]))
    torch.testing.assert_close(after[0, -1], fresh[0, -1], rtol=1e-4, atol=1e-4)


def test_a_token_put_in_by_hand_ends_the_guess(tiny: Make) -> None:
    model = tiny("llama").load()
    plain = run(model, GREEDY, None)

    def by_hand(guesser: Guesser | None) -> list[int]:
        stepping = steps(model, PROMPT, sampler=Sampler(GREEDY, 0), max_new_tokens=12, guesser=guesser)
        step, found = next(stepping), []
        while True:
            found.append(7 if step.index == 2 else step.token)
            try:
                step = stepping.send(found[-1])
            except StopIteration:
                return found

    assert by_hand(guessers(model, plain)["right"]) == by_hand(None)
