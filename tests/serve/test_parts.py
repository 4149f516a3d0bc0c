"""The parts of the server by themselves: prefixes of prompts, the queue, the guard."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from starlette.datastructures import Headers
from torch import Tensor

from llmcli.endpoint.address import ApiKey
from llmcli.engine.native import variant
from llmcli.generation import LoadedModel, reading
from llmcli.generation.batch import Request
from llmcli.generation.generate import sampler_of
from llmcli.generation.reading import Span
from llmcli.model.cache import KVCache
from llmcli.serve.errors import ApiError
from llmcli.serve.guard import Guard
from llmcli.serve.model_thread import ModelThread
from llmcli.serve.prefixes import Prefixes
from llmcli.serve.scheduler import Call, Event, Progress, Scheduler, Task
from tests.tiny import TinyFactory


def read(prefixes: Prefixes, ids: list[int], cache: KVCache, generated: Sequence[Span] = ()) -> Tensor:
    """Read the rest of a prompt as the scheduler does; returns the logits after it."""
    passes = reading.read(prefixes.model, ids[cache.length :], cache, generated=generated)
    while True:
        try:
            next(passes)
        except StopIteration as end:
            logits: Tensor = end.value[0]
            prefixes.keep(ids, cache, generated)
            return logits
        prefixes.keep(ids, cache, generated)


@pytest.mark.parametrize("kind", ["llama", "llama-dynamic", "gemma3_text", "nemotron_h", "deepseek_v3"])
def test_a_prefix_changes_no_bit(tiny: TinyFactory, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CPU_CHUNK", 8)
    monkeypatch.setattr(reading, "NATIVE_PROMPT", 3)
    model = tiny(kind).load()
    draw = random.Random(1)
    common = [draw.randrange(5, 40) for _ in range(20)]
    prompts = [common + [draw.randrange(5, 40) for _ in range(n)] for n in (1, 6, 9)] + [common[:12]]
    prefixes = Prefixes(model, 2**24)
    reused = []
    for ids in [*prompts, *prompts]:
        cache = prefixes.find(ids, len(ids))
        reused.append(cache.length)
        logits = read(prefixes, ids, cache)
        assert torch.equal(logits, reading.next_logits(model, ids, model.new_cache()))
    assert max(reused) == 24
    if kind != "llama-dynamic":  # its angles depend on the length
        assert min(reused[len(prompts) :]) >= 8
    assert 0 < prefixes.nbytes <= prefixes.limit


@pytest.mark.parametrize("kind", ["llama", "nemotron_h"])
def test_prefixes_share_their_beginnings_in_bounded_memory(
    tiny: TinyFactory, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CPU_CHUNK", 8)
    model = tiny(kind).load()
    draw = random.Random(2)
    system = [draw.randrange(5, 40) for _ in range(16)]
    first, second, other = (start + [draw.randrange(5, 40) for _ in range(9)] for start in (system, system, []))

    def cached(prefixes: Prefixes, ids: list[int]) -> int:
        cache = prefixes.find(ids, len(ids))
        found = cache.length
        assert torch.equal(read(prefixes, ids, cache), reading.next_logits(model, ids, model.new_cache()))
        return found

    prefixes = Prefixes(model, 2**24)
    assert [cached(prefixes, ids) for ids in (first, second, first)] == [0, 16, 24]
    chunk = prefixes.nbytes // 4
    assert chunk * 4 == prefixes.nbytes, "three chunks each, two of them shared"
    prefixes = Prefixes(model, 4 * chunk)
    assert [cached(prefixes, ids) for ids in (first, second, first, other)] == [0, 16, 24, 0]
    assert prefixes.nbytes <= prefixes.limit
    assert prefixes.find(first, 25).length == 24
    assert prefixes.find(second, 25).length == 16, "its own chunk was used least recently"
    small = Prefixes(model, chunk)
    assert [cached(small, ids) for ids in (first, first, other, other)][1:] != [0, 0, 0]
    assert 0 < small.nbytes <= chunk


def test_the_queue_is_bounded_and_fair(loaded: LoadedModel) -> None:
    """Clients take turns, a task that is given up never runs, and what fails fails alone."""
    thread = ModelThread()
    scheduler = Scheduler(loaded, thread, parallel=2, most_waiting=7, prefix_bytes=0)
    order: list[str] = []
    events: list[Event] = []
    gone = Call("a", lambda: order.append("gone"))
    scheduler.submit([Call("a", lambda n=n: order.append(f"a{n}")) for n in range(3)])  # type: ignore[misc]
    scheduler.submit([Call("b", lambda: order.append("b")), gone])
    too_long = Request(0, [5] * 10_000, sampler_of(loaded, 1), 4)
    scheduler.submit([Task("c", [too_long], events.append)])
    scheduler.submit([Task("c", [Request(1, [5, 6], sampler_of(loaded, 1), 4)], events.append)])
    with pytest.raises(ApiError) as full:
        scheduler.submit([Call("d", lambda: None)])
    assert (full.value.status, full.value.headers["Retry-After"]) == (429, "3")
    scheduler.withdraw([gone])
    assert scheduler.waiting == 6
    thread.start()
    thread.stop()
    assert order == ["a0", "b", "a1", "a2"]
    failed, *steps_of_other = events
    assert isinstance(failed, ApiError)
    assert failed.code == "context_length_exceeded"
    assert [getattr(step, "finish", None) for step in steps_of_other][-1] is not None
    assert (scheduler.running, scheduler.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("headers", "local", "status"),
    [
        ({"host": "localhost:8000"}, True, 401),
        ({"host": "localhost:8000", "authorization": "Bearer secret-key"}, True, None),
        ({"host": "127.0.0.1", "authorization": "bearer secret-key"}, True, None),
        ({"host": "[::1]:8000", "authorization": "Bearer secret-kez"}, True, 401),
        ({"host": "localhost", "authorization": "Bearer schlüssel"}, True, 401),
        ({"host": "localhost", "authorization": "Basic secret-key"}, True, 401),
        ({"host": "evil.example", "authorization": "Bearer secret-key"}, True, 403),
        ({"host": "127.0.0.1.evil.example", "authorization": "Bearer secret-key"}, True, 403),
        ({"host": "[", "authorization": "Bearer secret-key"}, True, 403),
        ({"authorization": "Bearer secret-key"}, True, 403),
        ({"host": "me.example", "authorization": "Bearer secret-key"}, False, None),
        ({"host": "localhost", "origin": "http://evil.example", "authorization": "Bearer secret-key"}, True, 403),
        ({"host": "localhost", "origin": "http://[", "authorization": "Bearer secret-key"}, True, 403),
        ({"host": "localhost", "origin": "null", "authorization": "Bearer secret-key"}, True, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1", "authorization": "Bearer secret-key"}, True, None),
    ],
)
def test_who_is_served(headers: dict[str, str], local: bool, status: int | None) -> None:
    async def app(*_: object) -> None:
        raise AssertionError

    guard = Guard(app, ApiKey("secret-key"), local=local)
    refusal = guard.refusal(Headers(headers), "/v1/models")
    assert (None if refusal is None else refusal.status) == status
    assert guard.refusal(Headers({"host": "localhost"}), "/health") is None


def test_more_texts_than_fit_let_other_clients_in(loaded: LoadedModel) -> None:
    thread = ModelThread()
    scheduler = Scheduler(loaded, thread, parallel=2, most_waiting=9, prefix_bytes=0)
    order: list[tuple[str, int]] = []

    def task(client: str, prompt: list[int], count: int) -> Task:
        def note(event: Event) -> None:
            assert isinstance(event, Progress)
            order.append((client, event.key))

        return Task(client, [Request(n, prompt, sampler_of(loaded, n), 6) for n in range(count)], note)

    given_up = task("c", [9], 5)
    scheduler.submit([task("a", [5, 6, 7], 5), task("b", [8], 1), given_up])
    given_up.deliver = lambda event: scheduler.withdraw([given_up])
    thread.start()
    thread.stop()
    first = {text: order.index(text) for text in order}
    assert len(first) == 6, "every text begins"
    assert first["a", 1] < first["b", 0] < first["a", 2]
    assert (scheduler.running, scheduler.waiting) == (0, 0)


@pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_oss"])
def test_a_next_turn_reads_only_what_is_new(tiny: TinyFactory, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was generated is found again, as far as the text is the same, and has the bits of decoding."""
    monkeypatch.setattr(reading, "CPU_CHUNK", 8)
    monkeypatch.setattr(reading, "NATIVE_PROMPT", 3)
    model = tiny(kind).load()
    draw = random.Random(3)

    def some(count: int) -> list[int]:
        return [draw.randrange(5, 40) for _ in range(count)]

    def decoded(ids: list[int], start: int, end: int) -> Tensor:
        """The logits after a text that was generated from ``start`` to ``end``, without anything of the server's."""
        cache = model.new_cache()
        reading.next_logits(model, ids[:start], cache)
        for token in ids[start:end]:
            reading.next_logits(model, [token], cache)
        return reading.next_logits(model, ids[end:], cache)

    for before, length in ((5, 2), (8, 30), (21, 11), (3, 70)):
        prefixes = Prefixes(model, 2**24)
        first, reply = some(before), some(length)
        spans = [(before, before + length)]
        cache = prefixes.find(first, 200)
        read(prefixes, first, cache)
        for token in reply[:-1]:
            reading.next_logits(model, [token], cache)
        prefixes.keep([*first, *reply], cache, spans)
        for same in (length, length // 2):
            ids = [*first, *reply[:same], *some(length - same), *some(9)]
            cache = prefixes.find(ids, 200, spans)
            if same == length or kind == "llama":  # a window may have moved on
                assert cache.length == before + min(same, length - 1)
            assert torch.equal(read(prefixes, ids, cache, spans), decoded(ids, *spans[0]))
            assert prefixes.find(ids, 200).length <= before, "a text of others has other bits"
