"""Angles that depend on a text's length: cached keys are recomputed when they must be, and only then.

"longrope" has one set of factors up to the original context and another beyond it. "dynamic" angles are
those of the length that the text is planned to reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.generation import reading
from llmcli.generation.filters import Temperature, TopK
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step, steps
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from tests.parity import CLOSE
from tests.tiny import CONTEXT, ROPE_ORIGINAL, Tiny, TinyFactory, random_ids

LONG, DYNAMIC = "phi3-longrope", "llama-dynamic"


def ids_of(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = random_ids(count, seed=seed)[0].tolist()
    return ids


def run(model: Transformer, prompt: Sequence[int], count: int, cache: KVCache | None = None) -> list[Step]:
    """Sampled steps: greedy texts of random models soon repeat themselves."""
    sampler = Sampler([Temperature(1.5), TopK(40)], seed=7)
    return list(steps(model, prompt, sampler=sampler, max_new_tokens=count, cache=cache))


def reference_logits(case: Tiny, prompt: list[int], found: list[Step]) -> list[Tensor]:
    """The logits of transformers for each step, without a cache."""
    ids = [*prompt, *(step.token for step in found)]
    with torch.no_grad():
        if case.name == DYNAMIC:
            case.reference(torch.tensor([[0]]))  # it keeps the angles of a longer text until it reads a short one
            # One pass over the whole text, whose length is the planned one.
            whole = case.reference(torch.tensor([ids])).logits[0]
            return [whole[step.position - 1] for step in found]
        return [case.reference(torch.tensor([ids[: step.position]])).logits[0, -1] for step in found]


def assert_right(case: Tiny, prompt: list[int], found: list[Step]) -> None:
    for step, expected in zip(found, reference_logits(case, prompt, found), strict=True):
        assert (step.logits - expected).abs().max() <= CLOSE, step.position


@pytest.mark.parametrize("name", [LONG, DYNAMIC])
@pytest.mark.parametrize(
    ("length", "count"), [(5, 20), (16, 64), (31, 3), (32, 3), (33, 3), (50, 10), (1, 32), (1, 33)]
)
def test_every_step_has_the_logits_of_transformers(tiny: TinyFactory, name: str, length: int, count: int) -> None:
    case, prompt = tiny(name), ids_of(length)
    assert_right(case, prompt, run(case.load(), prompt, count))


@pytest.mark.parametrize("name", [LONG, DYNAMIC])
@pytest.mark.parametrize("length", [20, 33, 50, 100])
def test_a_prefill_in_chunks_has_the_logits_of_one_pass(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, forwards: list[int], name: str, length: int
) -> None:
    monkeypatch.setattr(reading, "chunk_of", lambda model: 8)
    case, prompt = tiny(name), ids_of(length)
    found = run(case.load(), prompt, 5)
    assert sum(forwards) == length + 4, "no position is read twice"
    assert_right(case, prompt, found)


def test_longrope_reads_the_text_again_once_beyond_the_original_context(tiny: TinyFactory, forwards: list[int]) -> None:
    run(tiny(LONG).load(), ids_of(30), 10)
    assert sum(forwards) == 30 + 9 + ROPE_ORIGINAL


@pytest.mark.parametrize("length", [30, 40])
def test_dynamic_angles_are_planned_so_that_nothing_is_read_twice(
    tiny: TinyFactory, forwards: list[int], length: int
) -> None:
    run(tiny(DYNAMIC).load(), ids_of(length), 10)
    assert sum(forwards) == length + 9


@pytest.mark.parametrize("name", [LONG, DYNAMIC])
@pytest.mark.parametrize("kept", [0, 3, 25, 32, 33, 40])
@pytest.mark.parametrize("more", [2, 12, 50])
def test_a_truncated_cache_continues_correctly(tiny: TinyFactory, name: str, kept: int, more: int) -> None:
    """From beyond the original context back into it, and beyond it again."""
    case, prompt = tiny(name), ids_of(45)
    model = case.load()
    cache = model.new_cache()
    run(model, prompt, 3, cache)
    cache.truncate(kept)
    other = prompt[:kept] + ids_of(more, seed=1)
    assert_right(case, other, run(model, other, 4, cache))


@pytest.mark.parametrize("name", [LONG, DYNAMIC])
def test_the_next_prompt_may_cross_the_original_context(tiny: TinyFactory, name: str) -> None:
    case, text = tiny(name), ids_of(12)
    model = case.load()
    cache = model.new_cache()
    for turn in range(4):
        found = run(model, text, 5, cache)
        assert_right(case, text, found)
        text = [*text, *(step.token for step in found), *ids_of(7, seed=turn)]
    assert cache.length > ROPE_ORIGINAL


@pytest.mark.parametrize("name", [LONG, DYNAMIC])
def test_within_the_original_context_a_cached_prompt_is_not_read_again(
    tiny: TinyFactory, forwards: list[int], name: str
) -> None:
    model, prompt = tiny(name).load(), ids_of(20)
    cache = model.new_cache()
    run(model, prompt[:12], 1, cache)
    forwards.clear()
    run(model, prompt, 3, cache)
    assert forwards == [8, 1, 1]


turns = st.lists(
    st.tuples(st.floats(0.0, 1.0), st.integers(1, 45), st.integers(1, 12)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", [LONG, DYNAMIC])
@given(script=turns)
def test_after_any_history_of_a_cache_the_next_logits_are_right(
    tiny: TinyFactory, name: str, script: list[tuple[float, int, int]]
) -> None:
    """Each turn truncates the cache, adds a prompt, and generates."""
    case = tiny(name)
    model = case.load()
    cache, text = model.new_cache(), ids_of(0)
    for turn, (share, more, count) in enumerate(script):
        kept = round(cache.length * share)
        cache.truncate(kept)
        prompt = text[:kept] + ids_of(more, seed=turn)
        if len(prompt) >= CONTEXT:
            return
        found = run(model, prompt, count, cache)
        assert_right(case, prompt, found)
        text = [*prompt, *(step.token for step in found)]


def test_a_model_rejects_keys_with_other_angles(tiny: TinyFactory) -> None:
    model = tiny(LONG).load()
    cache = model.new_cache()
    with torch.no_grad():
        model(random_ids(ROPE_ORIGINAL, seed=0), cache)
        assert model.stale(cache, 1)
        with pytest.raises(AssertionError, match="angles"):
            model(random_ids(1, seed=1), cache)
    assert cache.length == ROPE_ORIGINAL
