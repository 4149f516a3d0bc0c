"""Texts longer than the context: how prompts are cut, and how a context rolls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import llmcli
from llmcli.engine.native import variant
from llmcli.errors import LlmcliError
from llmcli.generation import context as rolling
from llmcli.generation import reading
from llmcli.generation.batch import Request, generate_batch
from llmcli.generation.context import SINKS, check_text, shorten
from llmcli.generation.filters import Filter, LogitBias, Temperature
from llmcli.generation.loaded import encode_prompt
from llmcli.generation.sampling import Sampler
from llmcli.generation.speculative import PromptLookup
from llmcli.generation.steps import Step, steps
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantize
from tests.generation.helpers import speculative_steps
from tests.generation.test_batch import opened
from tests.tiny import CONTEXT, TinyFactory, random_ids

FAMILIES = ["llama", "mistral", "gpt2", "gemma3_text", "phi3-longrope", "llama-dynamic", "mixtral"]
PROMPT: list[int] = random_ids(CONTEXT - 5, seed=3)[0].tolist()
COUNT = CONTEXT
FILTERS: list[Filter] = [LogitBias({2: -math.inf, 3: -math.inf}), Temperature(1.2)]  # stop tokens


def run(model: Transformer, seed: int = 1, **options: Any) -> list[Step]:
    sampler = Sampler(FILTERS, seed)
    proposer = options.pop("proposer", None)
    return list(
        speculative_steps(model, PROMPT, proposer, sampler=sampler, max_new_tokens=COUNT, rolls=True, **options)
    )


def contexts(tokens: Sequence[int]) -> list[list[int]]:
    """The context before each token, by the rule: a full context keeps its first few tokens and its newer half."""
    before, found = list(PROMPT), []
    for token in tokens:
        if len(before) == CONTEXT:
            before = before[:SINKS] + before[CONTEXT // 2 :]
        found.append(list(before))
        before.append(token)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_steps_of_a_rolling_context_follow_its_ids(tiny: TinyFactory, name: str) -> None:
    model = tiny(name).load()
    found = run(model)
    assert [step.finish for step in found] == [None] * (COUNT - 1) + ["length"]
    before = contexts([step.token for step in found])
    assert [step.position for step in found] == [len(ids) for ids in before]
    assert [step.index for step in found] == list(range(COUNT))
    for step, ids in list(zip(found, before, strict=True))[::9]:
        cache = model.new_cache()
        cache.planned = CONTEXT  # the angles are those of the longest text so far
        logits = reading.next_logits(model, ids, cache)
        torch.testing.assert_close(step.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_and_speculative_decoding_roll_the_same(tiny: TinyFactory, name: str) -> None:
    loaded = opened(tiny(name).load(), stop=())
    alone = [run(loaded.model, seed) for seed in (1, 2)]
    requests = [Request(seed, PROMPT, Sampler(FILTERS, seed), COUNT, rolls=True) for seed in (1, 2)]
    found: dict[int, list[int]] = {1: [], 2: []}
    for step in generate_batch(loaded, requests, 2):
        found[step.request.key].append(step.step.token)
    assert [found[1], found[2]] == [[step.token for step in steps] for steps in alone]
    speculative = run(loaded.model, proposer=PromptLookup())
    assert [step.token for step in speculative] == found[1]


@pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")
@pytest.mark.parametrize("kind", [None, "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3-longrope"])
def test_in_bfloat16_no_bit_depends_on_how_a_rolling_text_is_decoded(tiny: TinyFactory, name: str, kind: Any) -> None:
    """Alone, in a batch, and with proposals."""
    model = tiny(name).load().to(torch.bfloat16)
    if kind is not None:
        quantize(model, kind)
    alone = {seed: run(model, seed) for seed in (1, 2)}
    requests = [Request(seed, PROMPT, Sampler(FILTERS, seed), COUNT, rolls=True) for seed in alone]
    together: dict[int, list[Step]] = {1: [], 2: []}
    for one in generate_batch(opened(model, stop=()), requests, 2):
        assert one.step is not None
        together[one.request.key].append(one.step)
    for found, expected in (
        (together[1], alone[1]),
        (together[2], alone[2]),
        (run(model, proposer=PromptLookup()), alone[1]),
    ):
        assert [step.token for step in found] == [step.token for step in expected]
        assert all(torch.equal(a.logits, b.logits) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("limit", [2, 3, 4, 5])
def test_the_smallest_contexts_roll(tiny: TinyFactory, limit: int) -> None:
    model = tiny("llama").load()
    model.config = replace(model.config, max_position_embeddings=limit)
    alone = [step.token for step in steps(model, [5], sampler=Sampler(FILTERS, 1), max_new_tokens=9, rolls=True)]
    request = Request(1, [5], Sampler(FILTERS, 1), 9, rolls=True)
    assert [step.step.token for step in generate_batch(opened(model, stop=()), [request], 2)] == alone
    assert len(alone) == 9


def test_a_context_that_does_not_roll_ends_the_text(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    found = list(steps(model, PROMPT, sampler=Sampler(FILTERS, 1), max_new_tokens=COUNT))
    assert [step.finish for step in found] == [None] * 4 + ["context"]
    assert [step.token for step in found] == [step.token for step in run(model)][:5]


def test_sabotage_is_seen(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of dropped tokens stay in the cache."""
    model = tiny("llama").load()
    right = KVCache.truncate
    monkeypatch.setattr(KVCache, "truncate", lambda cache, length: right(cache, length or SINKS + 3))
    found = run(model)
    monkeypatch.undo()
    before = contexts([step.token for step in found])
    assert (found[-1].logits - reading.next_logits(model, before[-1], model.new_cache())).abs().max() > 1e-2


@given(st.integers(1, 300), st.integers(2, 64), st.sampled_from(["truncate-start", "shift"]), st.integers(0, 1))
def test_how_a_prompt_is_cut(length: int, limit: int, overflow: Any, first: int) -> None:
    ids = list(range(length))
    left = shorten(ids, limit, overflow, first=first)
    if length < limit:
        assert left == ids
        return
    assert limit // 2 <= len(left) < limit
    assert left[-1] == ids[-1]
    breaks = [n for n in range(1, len(left)) if left[n] != left[n - 1] + 1]
    assert len(breaks) <= 1
    if overflow == "truncate-start":
        assert len(left) == limit - max(limit // 4, 1)
        assert left[0] == 0 or not (first and len(left) > 1)
        assert not breaks or breaks == [1]


@pytest.mark.parametrize("overflow", ["error", "truncate-start", "shift"])
def test_a_context_of_one_token_has_no_room(overflow: Any) -> None:
    with pytest.raises(LlmcliError, match="no room for a prompt"):
        shorten([1], 1, overflow, first=1)


def test_a_prompt_that_is_too_long_is_an_error_with_both_counts() -> None:
    with pytest.raises(LlmcliError, match="70 tokens, but the model's context of 64 has room for at most 63") as caught:
        shorten([1] * 70, 64, "error", first=1)
    assert caught.value.kind == "prompt-too-long"


def test_a_text_that_is_far_too_long_is_not_encoded_whole(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "LONG", 1000)
    loaded, lengths = opened(tiny("llama").load()), []
    encode = loaded.tokenizer.encode
    monkeypatch.setattr(loaded.tokenizer, "encode", lambda text, **more: lengths.append(len(text)) or encode(text))
    with pytest.raises(LlmcliError, match=f"the prompt has more than {2 * CONTEXT} tokens") as caught:
        llmcli.generate(loaded, "word " * 100_000)
    assert caught.value.kind == "prompt-too-long"
    with pytest.raises(LlmcliError, match=f"the text has more than {2 * CONTEXT} tokens"):
        llmcli.explain.lens(loaded, "word " * 100_000)
    assert max(lengths) < 10_000
    monkeypatch.setattr(loaded.tokenizer, "encode", lambda text, **more: [len(text) % 50])
    assert encode_prompt(loaded, "word " * 2001, "truncate-start") == [5]  # a prompt that will be cut is encoded


def test_a_long_text_of_long_tokens_is_encoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "LONG", 1000)
    lengths: list[int] = []

    def encode(text: str) -> range:
        lengths.append(len(text))
        return range(len(text) // 100)

    check_text("x" * 900, encode, 50, "it", "")
    assert lengths == []
    check_text("x" * 8001, encode, 50, "it", "")
    assert lengths == [1000, 2000, 4000, 8000]
    with pytest.raises(LlmcliError, match="it has more than 100 tokens"):
        check_text("x" * 90_000, encode, 50, "it", "")
    assert lengths[-1] == 16_000
