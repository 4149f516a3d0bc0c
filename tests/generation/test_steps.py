"""The loop: what it computes, why it ends, and that each step has the logits of a fresh forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmcli.errors import EXIT_USAGE, LlmcliError
from llmcli.generation import reading
from llmcli.generation.filters import Temperature, TopK
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step, steps
from llmcli.model.transformer import Transformer
from llmcli.train.recipe import Shape

VOCAB, CONTEXT, LAYERS, HEADS = 300, 64, 2, 4
PROMPT = [0, 17, 250, 3, 99]


@cache
def model() -> Transformer:
    shape = Shape(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    transformer = Transformer(shape.model_config(VOCAB, CONTEXT))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in transformer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)
    return transformer.eval()


def greedy() -> Sampler:
    return Sampler([Temperature(0.0)], 0)


def warm(seed: int = 0) -> Sampler:
    return Sampler([Temperature(2.0), TopK(50)], seed)


def run(prompt: Sequence[int] = PROMPT, count: int = 6, sampler: Sampler | None = None, **options: Any) -> list[Step]:
    return list(steps(model(), prompt, sampler=sampler or greedy(), max_new_tokens=count, **options))


def fresh(ids: Sequence[int]) -> Tensor:
    """The logits after ``ids``, from one pass without a cache."""
    with torch.no_grad():
        return model()(torch.tensor([list(ids)]))[0, -1]


# --- what is computed ---


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("prompt", [PROMPT, [], [1] * 500])
def test_zero_tokens_compute_nothing(forwards: list[int], count: int, prompt: list[int]) -> None:
    assert run(prompt, count) == []
    assert forwards == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_one_pass_per_token_and_none_after_the_last(forwards: list[int], count: int) -> None:
    assert len(run(count=count)) == count
    assert forwards == [len(PROMPT), *[1] * (count - 1)]


def test_no_pass_after_a_stop_token(forwards: list[int]) -> None:
    tokens = [step.token for step in run(sampler=warm(), count=8)]
    forwards.clear()
    end = next(n for n in range(1, 8) if tokens[n] not in tokens[:n])
    assert [step.token for step in run(sampler=warm(), count=8, stop_ids={tokens[end]})] == tokens[: end + 1]
    assert forwards == [len(PROMPT), *[1] * end]


def test_nothing_is_computed_in_advance(forwards: list[int]) -> None:
    stepping = steps(model(), PROMPT, sampler=greedy(), max_new_tokens=5)
    assert forwards == []
    next(stepping)
    assert forwards == [len(PROMPT)]
    next(stepping)
    assert forwards == [len(PROMPT), 1]
    stepping.close()
    assert forwards == [len(PROMPT), 1]


@pytest.mark.parametrize(
    ("length", "chunks"), [(1, [1]), (7, [7]), (8, [8]), (9, [8, 1]), (16, [8, 8]), (21, [8, 8, 5])]
)
def test_prefill_goes_in_chunks(
    forwards: list[int], monkeypatch: pytest.MonkeyPatch, length: int, chunks: list[int]
) -> None:
    prompt = torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    whole = fresh(prompt)
    forwards.clear()
    monkeypatch.setattr(reading, "chunk_of", lambda model: 8)
    first, _ = run(prompt, 2)
    assert forwards == [*chunks, 1]
    torch.testing.assert_close(first.logits, whole, rtol=1e-4, atol=1e-4)


def test_only_the_last_position_is_unembedded(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    unembed = Transformer.unembed

    def seen(self: Transformer, x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return unembed(self, x)

    monkeypatch.setattr(Transformer, "unembed", seen)
    run(count=2)
    assert shapes == [(1, 32), (1, 32)]


# --- why it ends ---


def test_it_ends_at_the_length() -> None:
    assert [step.finish for step in run(count=3)] == [None, None, "length"]


def test_a_stop_token_ends_it_and_is_the_last_step() -> None:
    tokens = [step.token for step in run(sampler=warm(), count=5)]
    first = run(sampler=warm(), count=5, stop_ids=[tokens[0]])
    assert [(step.token, step.finish) for step in first] == [(tokens[0], "stop_token")]
    # Also if the length would have ended the text at the same token.
    assert run(sampler=warm(), count=1, stop_ids={tokens[0]})[-1].finish == "stop_token"
    assert run(sampler=warm(), count=5, stop_ids={VOCAB - 1} - set(tokens))[-1].finish == "length"


@pytest.mark.parametrize("length", [CONTEXT - 4, CONTEXT - 1])
def test_the_context_ends_it(forwards: list[int], length: int) -> None:
    found = run([1] * length, 100, warm())
    room = CONTEXT - length
    assert [step.finish for step in found] == [*[None] * (room - 1), "context"]
    assert found[-1].position == CONTEXT - 1
    assert sum(forwards) == CONTEXT - 1
    assert run([1] * length, room, warm())[-1].finish == "length"


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 20])
def test_a_prompt_without_room_is_an_error(forwards: list[int], length: int) -> None:
    with pytest.raises(LlmcliError, match=rf"\b{length} tokens.*\b{CONTEXT}\b") as caught:
        run([1] * length)
    assert caught.value.exit_code == EXIT_USAGE
    assert f"at most {CONTEXT - 1}" in caught.value.message
    assert forwards == []


def test_cached_tokens_count_towards_the_context() -> None:
    cache = model().new_cache()
    run([1] * 40, 1, cache=cache)
    with pytest.raises(LlmcliError, match=r"\b70 tokens"):
        run([1] * 70, cache=cache)
    assert cache.length == 40
    assert run([1] * 63, 9, cache=cache)[-1].finish == "context"


def test_an_empty_prompt_is_an_error(forwards: list[int]) -> None:
    with pytest.raises(LlmcliError, match="empty") as caught:
        run([])
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.hint
    assert forwards == []


# --- what a step is ---


@settings(max_examples=10)
@given(st.sampled_from([1, 6, 19]), st.integers(0, 2**31))
def test_every_step_has_the_logits_of_a_fresh_pass(length: int, seed: int) -> None:
    prompt = torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    found = run(prompt, 6, warm(seed))
    with torch.no_grad():
        whole = model()(torch.tensor([[*prompt, *(step.token for step in found)]]))[0]
    for index, step in enumerate(found):
        assert (step.index, step.position) == (index, length + index)
        assert step.logits.shape == (VOCAB,)
        assert step.logits.dtype == torch.float32
        torch.testing.assert_close(step.logits, whole[step.position - 1], rtol=1e-4, atol=1e-4)
        assert step.token == step.choice.id


def test_choices_are_the_samplers_own() -> None:
    found, sampler = run(sampler=warm(3), count=8), warm(3)
    assert [step.choice for step in found] == [sampler.choose(step.logits) for step in found]
    assert len({step.token for step in found}) > 1
    assert [step.token for step in run(count=4)] == [int(step.logits.argmax()) for step in run(count=4)]


def test_the_same_seed_gives_the_same_tokens() -> None:
    runs = [[step.token for step in run(sampler=warm(seed), count=12)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = run(sampler=warm(), count=3), run(sampler=warm(), count=9)
    assert [step.token for step in short] == [step.token for step in long][:3]
    assert torch.equal(short[2].logits, long[2].logits)


def test_a_step_is_frozen_and_free_of_gradients() -> None:
    step = run(count=1)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.token = 3  # type: ignore[misc]
    assert not step.logits.requires_grad
    assert not torch.is_inference_mode_enabled()


def test_send_replaces_the_chosen_token() -> None:
    stepping = steps(model(), PROMPT, sampler=warm(), max_new_tokens=4)
    first = next(stepping)
    other = (first.token + 1) % VOCAB
    second = stepping.send(other)
    torch.testing.assert_close(second.logits, fresh([*PROMPT, other]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(second.logits, fresh([*PROMPT, first.token]), rtol=1e-4, atol=1e-4)
    assert (second.index, second.position) == (1, len(PROMPT) + 1)
    third = stepping.send(0)  # token 0 is a token too, not "nothing sent"
    torch.testing.assert_close(third.logits, fresh([*PROMPT, other, 0]), rtol=1e-4, atol=1e-4)
    fourth = next(stepping)
    torch.testing.assert_close(fourth.logits, fresh([*PROMPT, other, 0, third.token]), rtol=1e-4, atol=1e-4)
    assert fourth.finish == "length"
    with pytest.raises(StopIteration):
        stepping.send(5)


# --- the cache ---


def test_the_cache_holds_all_but_the_last_token(forwards: list[int]) -> None:
    cache = model().new_cache()
    found = run(count=4, cache=cache)
    assert cache.length == len(PROMPT) + 3
    # So only the last token is read when the text continues.
    ids = [*PROMPT, *(step.token for step in found)]
    forwards.clear()
    (step,) = run(ids, 1, cache=cache)
    assert forwards == [1]
    assert step.position == len(ids)
    torch.testing.assert_close(step.logits, fresh(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [1, 3, 4])
def test_a_cached_prefix_is_not_computed_again(forwards: list[int], shared: int) -> None:
    whole = run(count=5, sampler=warm())
    cache = model().new_cache()
    run(PROMPT[:shared], 1, cache=cache)
    forwards.clear()
    found = run(PROMPT, 5, warm(), cache=cache)
    assert forwards == [len(PROMPT) - shared, 1, 1, 1, 1]
    assert [(step.token, step.position) for step in found] == [(step.token, step.position) for step in whole]
    for ours, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)


def test_a_truncated_cache_can_continue_differently() -> None:
    cache = model().new_cache()
    run(sampler=warm(), count=6, cache=cache)
    cache.truncate(3)
    (step,) = run([*PROMPT[:3], 7, 8], 1, cache=cache)
    torch.testing.assert_close(step.logits, fresh([*PROMPT[:3], 7, 8]), rtol=1e-4, atol=1e-4)


# --- observing ---


@pytest.mark.parametrize("observe", [[0], [2], {1, 3}, range(9), []])
def test_only_observed_steps_are_traced_and_nothing_changes(observe: Any) -> None:
    plain, observed = run(sampler=warm(), count=4), run(sampler=warm(), count=4, observe=observe)
    assert [step.index for step in observed if step.trace is not None] == [n for n in range(4) if n in observe]
    for ours, theirs in zip(observed, plain, strict=True):
        assert torch.equal(ours.logits, theirs.logits)
        assert ours.choice == theirs.choice


def test_a_trace_is_that_of_the_pass_with_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "chunk_of", lambda model: 3)  # two chunks, of which the second is traced
    for step in run(count=3, sampler=warm(), observe=range(3)):
        assert step.trace is not None
        assert [len(step.trace.residual), len(step.trace.attn_out), len(step.trace.mlp_out)] == [
            LAYERS + 1,
            LAYERS,
            LAYERS,
        ]
        for weights in step.trace.attention.values():
            assert weights.shape == (1, HEADS, 1, step.position)
            torch.testing.assert_close(weights.sum(-1), torch.ones(1, HEADS, 1))
        with torch.no_grad():
            torch.testing.assert_close(model().unembed(step.trace.residual[-1][0, -1]), step.logits)
