"""Texts side by side are what each is alone: every family, in any company, whoever comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.engine.batch import POSITION_BLOCK, BatchedCache
from llmcli.errors import LlmcliError
from llmcli.generation import batch as many
from llmcli.generation.batch import Task, Written, write_many
from llmcli.generation.filters import RepetitionPenalty, Temperature, TopP
from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step, steps
from llmcli.generation.text import Generation
from llmcli.model import positions
from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantize
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer
from tests.tiny import CASES, CONTEXT, ROPE_ORIGINAL, Tiny, random_ids

Make = Callable[[str], Tiny]
LENGTHS = (3, 11, 1, 17, ROPE_ORIGINAL - 2, POSITION_BLOCK - 6, 11)
STOP = 7


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(["the cat sat on the mat, the cat sat there"], 270), "small")


def opened(model: Transformer, stop: Iterable[int] = (STOP,)) -> LoadedModel:
    return LoadedModel("tiny", Path(), model, tokenizer(), Defaults(tuple(stop), {}, {}))


def task(key: int, length: int, count: int = 14, **options: Any) -> Task:
    """Its prompt and its draws depend on nothing but its key."""
    filters = [RepetitionPenalty(1.1), Temperature(1.5), TopP(0.95)]
    ids: list[int] = random_ids(length, seed=key)[0].tolist()
    return Task(key, ids, Sampler(filters, key), min(count, CONTEXT - length), **options)


def tasks() -> list[Task]:
    return [task(key, length, count=8 + 3 * key % 7) for key, length in enumerate(LENGTHS)]


def steps_of(written: Iterable[Written]) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for one in written:
        assert one.step is not None
        found.setdefault(one.task.key, []).append(one.step)
    return found


def alone(loaded: LoadedModel, task: Task) -> list[Step]:
    options: Any = {"max_new_tokens": task.max_new_tokens, "stop_ids": loaded.stop_ids}
    return list(steps(loaded.model, task.prompt_ids, sampler=task.sampler, **options))


def told(steps: list[Step]) -> list[tuple[object, ...]]:
    return [(s.index, s.position, s.token, s.finish, s.choice.u, s.choice.rank) for s in steps]


def assert_as_alone(loaded: LoadedModel, size: int) -> None:
    found = steps_of(write_many(loaded, tasks(), size))
    for one in tasks():
        expected = alone(loaded, one)
        assert told(found[one.key]) == told(expected)
        for a, b in zip(found[one.key], expected, strict=True):
            torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_each_text_is_what_it_is_alone(tiny: Make, name: str) -> None:
    assert_as_alone(opened(tiny(name).load()), size=3)


def test_more_texts_than_one_block_of_rows(tiny: Make) -> None:
    loaded = opened(tiny("llama").load())
    crowd = [task(key, 1 + key % 13, 6) for key in range(21)]
    found = steps_of(write_many(loaded, crowd, 19))
    again = [task(key, 1 + key % 13, 6) for key in range(21)]
    assert {one.key: told(alone(loaded, one)) for one in again} == {key: told(s) for key, s in found.items()}


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_company_changes_not_one_bit(tiny: Make, kind: Any) -> None:
    model = tiny("llama").load().to(torch.bfloat16)
    if kind is not None:
        quantize(model, kind)
    loaded = opened(model)
    apart = {one.key: steps_of(write_many(loaded, [one], 2))[one.key] for one in tasks()}
    for size, order in ((2, 1), (3, -1), (7, 1), (16, -1)):
        found = steps_of(write_many(loaded, tasks()[::order], size))
        for key, expected in apart.items():
            assert told(found[key]) == told(expected)
            for a, b in zip(found[key], expected, strict=True):
                assert torch.equal(a.logits, b.logits)


def one_by_one(loaded: LoadedModel) -> None:
    """Assert that texts written one at a time are those of ``Generation``, bit for bit, and end alike."""
    stop = ("at",)
    shift = {"rolls": True}
    several = [*tasks(), task(50, 9, stop=stop), Task(51, [5] * (CONTEXT - 2), Sampler([], 1), 9, **shift)]
    found = list(write_many(loaded, several, 1))
    assert [one.task.key for one in found if one.done] == [one.key for one in several]
    for one in several:
        again = Sampler(one.sampler.filters, one.sampler.seed)
        options: Any = {"max_new_tokens": one.max_new_tokens, "stop": one.stop, "rolls": one.rolls}
        expected = Generation(loaded, one.prompt_ids, sampler=again, **options)
        mine = [w for w in found if w.task is one]
        total = 0.0
        for written, (step, text) in zip(mine, expected, strict=True):
            assert written.step is not None
            assert (written.step.token, written.text) == (step.token, text)
            assert torch.equal(written.step.logits, step.logits)
            total += float(step.logits.double().log_softmax(-1)[step.token])
        last = mine[-1]
        assert (last.writing.text, last.writing.finish) == (expected.text, expected.finish)
        assert last.mean_logprob == pytest.approx(total / len(mine), abs=1e-5)


def test_one_at_a_time_is_the_loop_for_one_text(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = opened(tiny("llama").load().to(torch.bfloat16))
    one_by_one(loaded)
    with monkeypatch.context() as patch:
        patch.setattr(BatchedCache, "step", None)  # whole blocks of rows are for several texts
        one_by_one(loaded)
    monkeypatch.setattr(many, "write_one", lambda loaded, task: write_many(loaded, [task], 2))
    with pytest.raises(AssertionError):
        one_by_one(loaded)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each prompt's forward pass had."""
    passes: list[int] = []
    hidden = Transformer.hidden

    def counted(self: Transformer, ids: Tensor, *rest: Any) -> Tensor:
        passes.append(ids.shape[1])
        return hidden(self, ids, *rest)

    monkeypatch.setattr(Transformer, "hidden", counted)
    return passes


def test_a_repeated_prompt_is_read_once(tiny: Make, forwards: list[int]) -> None:
    loaded = opened(tiny("gemma3_text").load())
    prompt = tuple(random_ids(9, seed=1)[0].tolist())
    samples = [Task(seed, prompt, Sampler([Temperature(2.0)], seed), 7) for seed in range(5)]
    found = steps_of(write_many(loaded, samples, 3))
    assert forwards == [9]
    for one in samples:
        fresh = Task(one.key, prompt, Sampler([Temperature(2.0)], one.key), 7)
        assert told(found[one.key]) == told(alone(loaded, fresh))
    assert len({tuple(step.token for step in steps) for steps in found.values()}) > 1


def test_a_task_begins_when_there_is_room(tiny: Make) -> None:
    loaded, begun = opened(tiny("llama").load(), stop=()), []

    def coming() -> Iterable[Task]:
        for key, count in enumerate((4, 2, 3, 0, 5)):
            begun.append(key)
            yield task(key, 3, count)

    seen = []
    for one in write_many(loaded, coming(), 2):
        assert len(begun) <= len([w for w in seen if w[1]]) + 4  # two in the batch, one that asks for nothing, one next
        seen.append((one.task.key, one.done))
    assert sorted(key for key, done in seen if done) == [0, 1, 2, 3, 4]
    assert next(key for key, done in seen if done) == 1


def test_texts_end_as_alone(tiny: Make) -> None:
    loaded = opened(tiny("gpt2").load())
    plain = Generation(loaded, task(0, 4).prompt_ids, sampler=task(0, 4).sampler, max_new_tokens=14)
    for _ in plain:
        pass
    stop = plain.text[5:8]
    for options in ({}, {"stop": (stop,)}):
        single = Generation(loaded, task(0, 4).prompt_ids, sampler=task(0, 4).sampler, max_new_tokens=14, **options)
        for _ in single:
            pass
        others = [task(key, 5) for key in (1, 2)]
        (last,) = [w for w in write_many(loaded, [*others, task(0, 4, **options)], 3) if w.done and not w.task.key]
        assert (last.writing.text, last.writing.tokens, last.writing.finish) == (
            single.text,
            single.tokens,
            single.finish,
        )
    assert last.writing.finish == "stop_string"


def test_the_context_ends_a_text(tiny: Make) -> None:
    loaded = opened(tiny("llama").load(), stop=())
    long = Task(0, random_ids(CONTEXT - 3, seed=0)[0].tolist(), Sampler([], 0), 100)
    found = steps_of(write_many(loaded, [task(1, 4), long], 2))
    assert [step.finish for step in found[0]] == [None, None, "context"]


@pytest.mark.parametrize("prompt", [[], [1] * CONTEXT])
def test_a_prompt_that_cannot_be_continued(tiny: Make, prompt: list[int]) -> None:
    with pytest.raises(LlmcliError, match="prompt is"):
        list(write_many(opened(tiny("llama").load()), [Task(0, prompt, Sampler([], 0), 3)], 2))


# --- sabotage ---

FIT, MASK = BatchedCache._fit, positions._kernel_mask


def unmoved(self: BatchedCache, row: int) -> None:
    """Counts the last text into the row that another leaves, and does not move its keys."""
    for numbers in (self.lengths, self._spans, self._planned):
        numbers[row] = numbers[-1]
        numbers.pop()


def without_the_first(config: ModelConfig, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Hides position 0 from every query that sees others."""
    seen = seen.clone()
    seen[..., 0] &= ~seen[..., 1]
    return MASK(config, seen, dtype)


def emptied(self: BatchedCache) -> None:
    """Makes room, and forgets what was there."""
    before = self._keys[0].shape
    FIT(self)
    if self._keys[0].shape != before:
        for buffer in (*self._keys, *self._values):
            buffer.zero_()


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "family"),
    [
        (BatchedCache, "remove", unmoved, "llama"),
        (positions, "_kernel_mask", without_the_first, "llama"),
        (BatchedCache, "stale", lambda self, row: False, "phi3-longrope"),
        (BatchedCache, "_fit", emptied, "llama"),
    ],
)
def test_sabotage_is_seen(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrong: Any, family: str
) -> None:
    loaded = opened(tiny(family).load())
    assert_as_alone(loaded, size=3)
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        assert_as_alone(loaded, size=3)
