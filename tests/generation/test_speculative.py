"""Speculative decoding changes nothing but the number of passes: the same steps, whatever is proposed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from llmcli.engine.random_weights import random_model
from llmcli.generation.filters import Filter, RepetitionPenalty, Temperature, TopP
from llmcli.generation.sampling import Sampler
from llmcli.generation.speculative import DraftModel, PromptLookup
from llmcli.generation.steps import MAX_PROPOSED, Proposer, Step
from llmcli.model.transformer import Transformer
from tests.generation.helpers import speculative_steps
from tests.tiny import CPU, TinyFactory

FAMILIES = ["llama", "gpt2", "gemma3_text", "phi3-longrope", "mixtral"]
PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7]
WARM: list[Filter] = [RepetitionPenalty(1.2, window=9), Temperature(0.7), TopP(0.9)]
GREEDY: list[Filter] = [Temperature(0.0)]


class Fixed:
    """Proposes what a function returns."""

    def __init__(self, function: Callable[[Sequence[int], int], list[int]]) -> None:
        self.proposed = self.accepted = 0
        self._function = function

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        return self._function(ids, count)


def run(
    model: Transformer, filters: list[Filter], proposer: Proposer | None, seed: int = 0, count: int = 40
) -> list[Step]:
    sampler = Sampler(filters, seed)
    return list(speculative_steps(model, PROMPT, proposer, sampler=sampler, max_new_tokens=count, stop_ids=[96]))


def assert_same(ours: list[Step], plain: list[Step]) -> None:
    both = [[(s.index, s.position, s.token, s.finish, s.choice.u, s.choice.rank) for s in run] for run in (ours, plain)]
    assert both[0] == both[1]
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)


def proposers(model: Transformer, plain: list[Step]) -> dict[str, Proposer]:
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
def test_the_steps_are_the_same(tiny: TinyFactory, name: str, filters: list[Filter]) -> None:
    model = tiny(name).load()
    for seed in range(1 if filters is GREEDY else 4):
        plain = run(model, filters, None, seed)
        for proposer in proposers(model, plain).values():
            assert_same(run(model, filters, proposer, seed), plain)


def test_correct_proposals_are_accepted_and_counted(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    plain = run(model, WARM, None)
    by = proposers(model, plain)
    for proposer in by.values():
        run(model, WARM, proposer)
    for name in ("right", "itself"):
        assert by[name].proposed == by[name].accepted > 0.7 * len(plain), name
    assert by["wrong"].accepted == 0 < by["wrong"].proposed
    assert 0 < by["half right"].accepted < by["half right"].proposed
    assert by["silent"].proposed == 0


def test_accepted_proposals_save_passes(tiny: TinyFactory, forwards: list[int]) -> None:
    """The prompt is read as without proposals; later passes check as many as allowed."""
    model = tiny("llama").load()
    plain = run(model, GREEDY, None, count=40)
    forwards.clear()
    run(model, GREEDY, proposers(model, plain)["right"], count=40)
    checks, rest = divmod(len(plain) - 1, 1 + MAX_PROPOSED)
    assert forwards == [len(PROMPT), *[1 + MAX_PROPOSED] * checks, *[rest][: bool(rest)]]


def test_lookup_finds_what_followed() -> None:
    lookup, sampler = PromptLookup(), Sampler(GREEDY, 0)
    assert lookup.propose([1, 2, 3, 4, 1, 2], 4, sampler) == [3, 4, 1, 2]
    assert lookup.propose([1, 2, 3, 4, 1, 2], 8, sampler) == [3, 4, 1, 2, 3, 4, 1, 2]  # a loop continues
    assert lookup.propose([5, 5, 5], 4, sampler) == [5, 5, 5, 5]
    assert lookup.propose([1, 2, 3, 4, 1, 2, 9], 8, sampler) == []
    assert lookup.propose([1, 2, 3, 4, 1, 2, 9, 1, 2], 2, sampler) == [9, 1]  # the last occurrence counts
    assert lookup.propose([7, 2, 3, 8, 5, 2, 3, 6, 7, 2, 3], 1, sampler) == [8]  # the longest match first
    assert lookup.propose([1, 5, 1], 3, sampler) == []  # one token predicts too little
    assert lookup.propose([1], 3, sampler) == []
    assert lookup.propose([], 3, sampler) == []


def test_lookup_pauses_after_rejected_proposals() -> None:
    lookup, sampler, ids = PromptLookup(), Sampler(GREEDY, 0), [1, 2, 3, 1, 2]
    made = []
    for _ in range(60):
        made.append(bool(lookup.propose(ids, 4, sampler)))
        lookup.proposed += 4 * made[-1]
    passes = [number for number, proposed in enumerate(made) if proposed]
    assert [b - a - 1 for a, b in itertools.pairwise(passes)] == [1, 3, 7, 15, 16]
    while not lookup.propose(ids, 4, sampler):
        pass
    lookup.proposed, lookup.accepted = lookup.proposed + 4, lookup.accepted + 1  # one of them was accepted
    assert [bool(lookup.propose(ids, 4, sampler)) for _ in range(3)] == [True, True, True]


def test_proposals_never_exceed_the_requested_tokens_or_the_context(tiny: TinyFactory) -> None:
    model = tiny("gpt2").load()
    requests: list[tuple[int, int]] = []

    def propose(ids: Sequence[int], count: int) -> list[int]:
        requests.append((len(ids), count))
        return [1] * count

    plain = run(model, WARM, None, count=12)
    assert_same(run(model, WARM, Fixed(propose), count=12), plain)
    assert all(length + count < len(PROMPT) + 12 for length, count in requests)
    requests.clear()
    whole = run(model, WARM, None, count=500)
    assert_same(run(model, WARM, Fixed(propose), count=500), whole)
    assert all(length + count < model.config.max_position_embeddings for length, count in requests)


def test_no_proposal_skips_an_observed_step(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    plain = run(model, GREEDY, None, count=20)
    right = proposers(model, plain)["right"]
    sampler = Sampler(GREEDY, 0)
    seen = list(speculative_steps(model, PROMPT, right, sampler=sampler, max_new_tokens=20, observe=[7, 8]))
    assert [s.token for s in seen] == [s.token for s in plain]
    assert [s.index for s in seen if s.trace is not None] == [7, 8]


@pytest.mark.parametrize("stop_at", [0, 1, 4, 9, 10])
def test_the_cache_holds_the_generated_tokens(tiny: TinyFactory, stop_at: int) -> None:
    """Even if the caller stops in the middle of the tokens that one pass has checked."""
    model = tiny("llama").load()
    plain = run(model, GREEDY, None)
    cache = model.new_cache()
    right = proposers(model, plain)["right"]
    stepping = speculative_steps(model, PROMPT, right, sampler=Sampler(GREEDY, 0), max_new_tokens=40, cache=cache)
    for step in stepping:
        if step.index == stop_at:
            stepping.close()
    assert cache.length == len(PROMPT) + stop_at
    text = PROMPT + [step.token for step in plain]
    with torch.inference_mode():
        after = model(torch.tensor([text[cache.length : cache.length + 1]]), cache)
        fresh = model(torch.tensor([text[: cache.length]]))
    torch.testing.assert_close(after[0, -1], fresh[0, -1], rtol=1e-4, atol=1e-4)


def test_a_replaced_token_ends_the_proposal(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    plain = run(model, GREEDY, None)

    def by_hand(proposer: Proposer | None) -> list[int]:
        stepping = speculative_steps(model, PROMPT, proposer, sampler=Sampler(GREEDY, 0), max_new_tokens=12)
        step, found = next(stepping), []
        while True:
            found.append(7 if step.index == 2 else step.token)
            try:
                step = stepping.send(found[-1])
            except StopIteration:
                return found

    assert by_hand(proposers(model, plain)["right"]) == by_hand(None)
