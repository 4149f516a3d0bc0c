"""Each text of a batch is the same as alone, for every kind of model, whatever other texts join or leave the batch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.engine.batch import POSITION_BLOCK, BatchedCache, SeparateCaches, batch_cache
from llmcli.engine.native import variant
from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError
from llmcli.generation import batch
from llmcli.generation.batch import BatchStep, Request, generate_batch
from llmcli.generation.filters import RepetitionPenalty, Temperature, TopP
from llmcli.generation.generate import Generation
from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step, steps
from llmcli.model import positions
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantize
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer
from tests.tiny import CONTEXT, KINDS, ROPE_ORIGINAL, TinyFactory, random_ids

native_only = pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")
LENGTHS = (3, 11, 1, 17, ROPE_ORIGINAL - 2, POSITION_BLOCK - 6, 11)
STOP = 7


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(["the cat sat on the mat, the cat sat there"], 270), "small")


def opened(model: Transformer, stop: Iterable[int] = (STOP,)) -> LoadedModel:
    return LoadedModel("tiny", Path(), model, tokenizer(), Defaults(tuple(stop), {}, {}))


def request(key: int, length: int, count: int = 14, **options: Any) -> Request:
    """A request whose prompt and draws depend only on its key."""
    filters = [RepetitionPenalty(1.1), Temperature(1.5), TopP(0.95)]
    ids: list[int] = random_ids(length, seed=key)[0].tolist()
    return Request(key, ids, Sampler(filters, key), min(count, CONTEXT - length), **options)


def requests() -> list[Request]:
    return [request(key, length, count=8 + 3 * key % 7) for key, length in enumerate(LENGTHS)]


def steps_of(steps: Iterable[BatchStep]) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for one in steps:
        assert one.step is not None
        found.setdefault(one.request.key, []).append(one.step)
    return found


def alone(loaded: LoadedModel, request: Request) -> list[Step]:
    options: Any = {"max_new_tokens": request.max_new_tokens, "stop_ids": loaded.stop_ids}
    return list(steps(loaded.model, request.prompt_ids, sampler=request.sampler, **options))


def summary(steps: list[Step]) -> list[tuple[object, ...]]:
    return [(s.index, s.position, s.token, s.finish, s.choice.u, s.choice.rank) for s in steps]


def assert_as_alone(loaded: LoadedModel, size: int) -> None:
    found = steps_of(generate_batch(loaded, requests(), size))
    for one in requests():
        expected = alone(loaded, one)
        assert summary(found[one.key]) == summary(expected)
        for a, b in zip(found[one.key], expected, strict=True):
            torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode without the compiled engine, as on a GPU."""
    monkeypatch.setattr(EngineTransformer, "native", None)
    monkeypatch.setattr(EngineTransformer, "products", None)


@pytest.mark.parametrize("name", KINDS)
def test_each_text_is_what_it_is_alone(tiny: TinyFactory, name: str) -> None:
    assert_as_alone(opened(tiny(name).load()), size=3)


@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("name", KINDS)
def test_each_text_is_what_it_is_alone_in_torch(tiny: TinyFactory, name: str) -> None:
    loaded = opened(tiny(name).load())
    assert isinstance(batch_cache(loaded.model), BatchedCache)
    assert_as_alone(loaded, size=3)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_more_texts_than_one_block_of_rows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    if engine == "torch":
        monkeypatch.setattr(EngineTransformer, "native", None)
        monkeypatch.setattr(EngineTransformer, "products", None)
    loaded = opened(tiny("llama").load())
    crowd = [request(key, 1 + key % 13, 6) for key in range(21)]
    found = steps_of(generate_batch(loaded, crowd, 19))
    again = [request(key, 1 + key % 13, 6) for key in range(21)]
    assert {one.key: summary(alone(loaded, one)) for one in again} == {key: summary(s) for key, s in found.items()}


def assert_no_bit_changes(loaded: LoadedModel, apart: dict[int, list[Step]]) -> None:
    """Assert that the texts of batches are those of ``apart``, whatever else is in the batch."""
    for size, order in ((2, 1), (3, -1), (7, 1), (16, -1)):
        found = steps_of(generate_batch(loaded, requests()[::order], size))
        for key, expected in apart.items():
            assert summary(found[key]) == summary(expected)
            for a, b in zip(found[key], expected, strict=True):
                assert torch.equal(a.logits, b.logits)


@native_only
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8"), (torch.bfloat16, "int4")],
    ids=["float32", "bfloat16", "int8", "int4"],
)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral"])
def test_each_text_has_the_bits_that_it_has_alone(tiny: TinyFactory, name: str, dtype: torch.dtype, kind: Any) -> None:
    model = tiny(name).load().to(dtype)
    if kind is not None:
        quantize(model, kind)
    loaded = opened(model)
    assert_no_bit_changes(loaded, {one.key: alone(loaded, one) for one in requests()})


@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_the_rest_of_the_batch_changes_no_bit_in_torch(tiny: TinyFactory, kind: Any) -> None:
    model = tiny("llama").load().to(torch.bfloat16)
    if kind is not None:
        quantize(model, kind)
    loaded = opened(model)
    assert_no_bit_changes(loaded, {one.key: steps_of(generate_batch(loaded, [one], 2))[one.key] for one in requests()})


def one_by_one(loaded: LoadedModel) -> None:
    """Assert that texts generated one at a time are those of ``Generation``, bit for bit, and end the same way."""
    stop = ("at",)
    shift = {"rolls": True}
    several = [*requests(), request(50, 9, stop=stop), Request(51, [5] * (CONTEXT - 2), Sampler([], 1), 9, **shift)]
    found = list(generate_batch(loaded, several, 1))
    assert [one.request.key for one in found if one.done] == [one.key for one in several]
    for one in several:
        again = Sampler(one.sampler.filters, one.sampler.seed)
        options: Any = {"max_new_tokens": one.max_new_tokens, "stop": one.stop, "rolls": one.rolls}
        expected = Generation(loaded, one.prompt_ids, sampler=again, **options)
        mine = [w for w in found if w.request is one]
        total = 0.0
        for own, (step, text) in zip(mine, expected, strict=True):
            assert own.step is not None
            assert (own.step.token, own.chunk) == (step.token, text)
            assert torch.equal(own.step.logits, step.logits)
            total += float(step.logits.double().log_softmax(-1)[step.token])
        last = mine[-1]
        assert (last.text.text, last.text.finish) == (expected.text, expected.finish)
        assert last.mean_logprob == pytest.approx(total / len(mine), abs=1e-5)


def test_one_at_a_time_is_the_loop_for_one_text(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = opened(tiny("llama").load().to(torch.bfloat16))
    one_by_one(loaded)
    monkeypatch.setattr(EngineTransformer, "native", None)
    monkeypatch.setattr(EngineTransformer, "products", None)
    with monkeypatch.context() as patch:
        patch.setattr(BatchedCache, "step", None)  # whole blocks of rows are for several texts
        one_by_one(loaded)
    monkeypatch.setattr(batch, "generate_alone", lambda loaded, request: generate_batch(loaded, [request], 2))
    with pytest.raises(AssertionError):
        one_by_one(loaded)


def repeat_a_prompt(loaded: LoadedModel) -> list[list[Step]]:
    """Assert that samples of one prompt are those of fresh runs; return them."""
    prompt = tuple(random_ids(9, seed=1)[0].tolist())
    samples = [Request(seed, prompt, Sampler([Temperature(2.0)], seed), 7) for seed in range(5)]
    found = steps_of(generate_batch(loaded, samples, 3))
    for one in samples:
        fresh = Request(one.key, prompt, Sampler([Temperature(2.0)], one.key), 7)
        assert summary(found[one.key]) == summary(alone(loaded, fresh))
    return list(found.values())


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_repeated_prompt_is_read_once(
    tiny: TinyFactory, forwards: list[int], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    if engine == "torch":
        monkeypatch.setattr(EngineTransformer, "native", None)
        monkeypatch.setattr(EngineTransformer, "products", None)
    loaded = opened(tiny("gemma3_text").load())
    found = repeat_a_prompt(loaded)
    assert forwards[: forwards.index(9, 1)] == [9]  # then the fresh runs begin
    assert len({tuple(step.token for step in steps) for steps in found}) > 1


def test_a_request_starts_when_there_is_room(tiny: TinyFactory) -> None:
    loaded, started = opened(tiny("llama").load(), stop=()), []

    def waiting() -> Iterable[Request]:
        for key, count in enumerate((4, 2, 3, 0, 5)):
            started.append(key)
            yield request(key, 3, count)

    seen = []
    for one in generate_batch(loaded, waiting(), 2):
        assert len(started) <= len([w for w in seen if w[1]]) + 4  # two in the batch, one for no tokens, the next one
        seen.append((one.request.key, one.done))
    assert sorted(key for key, done in seen if done) == [0, 1, 2, 3, 4]
    assert next(key for key, done in seen if done) == 1


def test_texts_end_as_they_do_alone(tiny: TinyFactory) -> None:
    loaded = opened(tiny("gpt2").load())
    plain = Generation(loaded, request(0, 4).prompt_ids, sampler=request(0, 4).sampler, max_new_tokens=14)
    for _ in plain:
        pass
    stop = plain.text[5:8]
    for options in ({}, {"stop": (stop,)}):
        single = Generation(
            loaded, request(0, 4).prompt_ids, sampler=request(0, 4).sampler, max_new_tokens=14, **options
        )
        for _ in single:
            pass
        others = [request(key, 5) for key in (1, 2)]
        (last,) = [
            w for w in generate_batch(loaded, [*others, request(0, 4, **options)], 3) if w.done and not w.request.key
        ]
        assert (last.text.text, last.text.tokens, last.text.finish) == (
            single.text,
            single.tokens,
            single.finish,
        )
    assert last.text.finish == "stop_string"


def test_the_context_ends_a_text(tiny: TinyFactory) -> None:
    loaded = opened(tiny("llama").load(), stop=())
    long = Request(0, random_ids(CONTEXT - 3, seed=0)[0].tolist(), Sampler([], 0), 100)
    found = steps_of(generate_batch(loaded, [request(1, 4), long], 2))
    assert [step.finish for step in found[0]] == [None, None, "context"]


@pytest.mark.parametrize("prompt", [[], [1] * CONTEXT])
def test_a_prompt_that_cannot_be_continued(tiny: TinyFactory, prompt: list[int]) -> None:
    with pytest.raises(LlmcliError, match=r"the prompt (is empty|has)"):
        list(generate_batch(opened(tiny("llama").load()), [Request(0, prompt, Sampler([], 0), 3)], 2))


# --- sabotage ---

FIT, MASK = BatchedCache._fit, positions._kernel_mask


def unmoved(self: BatchedCache, row: int) -> None:
    """Moves the last text's numbers into the row that another leaves, but not its keys."""
    for numbers in (self.lengths, self._spans, self._planned):
        numbers[row] = numbers[-1]
        numbers.pop()


def without_the_first(config: ModelConfig, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Hides position 0 from every query that sees others."""
    seen = seen.clone()
    seen[..., 0] &= ~seen[..., 1]
    return MASK(config, seen, dtype)


def emptied(self: BatchedCache) -> None:
    """Makes room, but forgets the old content."""
    before = self.capacity
    FIT(self)
    if self.capacity != before:
        for buffer in (*self._keys.values(), *self._values.values()):
            buffer.zero_()


def moved_too_late(self: SeparateCaches, row: int) -> None:
    """Drops the last text in place of another."""
    self._caches.pop()


@native_only
def test_texts_that_share_a_cache_are_seen(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one prompt, all written into the cache that the prompt was read with."""
    loaded = opened(tiny("llama").load())
    repeat_a_prompt(loaded)
    monkeypatch.setattr(KVCache, "copy", lambda cache: cache)
    with pytest.raises((AssertionError, RuntimeError)):
        repeat_a_prompt(loaded)


def assert_sabotage_is_seen(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrong: Any
) -> None:
    assert_as_alone(loaded, size=3)
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        assert_as_alone(loaded, size=3)


@native_only
@pytest.mark.parametrize(
    ("name", "wrong", "family"),
    [
        ("remove", moved_too_late, "llama"),
        ("stale", lambda self, row: False, "phi3-longrope"),
    ],
)
def test_sabotage_of_the_compiled_engines_batches_is_seen(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, family: str
) -> None:
    assert_sabotage_is_seen(opened(tiny(family).load()), monkeypatch, SeparateCaches, name, wrong)


@pytest.mark.usefixtures("torch_only")
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
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrong: Any, family: str
) -> None:
    assert_sabotage_is_seen(opened(tiny(family).load()), monkeypatch, owner, name, wrong)
