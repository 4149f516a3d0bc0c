"""The decoding step that a GPU records gives the logits of an ordinary forward pass.

Here its operations run on the CPU, one by one, or recorded and replayed as on a GPU. ``test_gpu`` covers the recording
by CUDA itself.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmcli.engine import transformer as engine
from llmcli.engine.cuda_graph import DecodeGraph, decode, replays
from llmcli.engine.transformer import GPU_CACHE_BLOCK
from llmcli.errors import LlmcliError
from llmcli.generation import reading
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from tests.tiny import CONTEXT, CPU, KINDS, RECURRENT, ROPE_ORIGINAL, WINDOW, TinyFactory, greedy, random_ids

EXPERTS = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "qwen2_moe", "deepseek_v3", "gemma4_text-moe", "llama4_text"]
LONG, DYNAMIC = "phi3-longrope", "llama-dynamic"  # angles that depend on the length
NAMES = [name for name in KINDS if name not in (*EXPERTS, *RECURRENT)]
FEW = ["llama", "gpt2", "mistral", "gemma2", "gemma3_text", LONG]
CLOSE = 1e-5  # relative to the largest logit; ordinary passes over one and over many tokens differ by nearly as much
PROMPT = 5


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without the compiled engine, which only a CPU has."""
    monkeypatch.setattr(engine, "native_step", lambda model: None)
    monkeypatch.setattr(engine, "native_products", lambda model: None)
    with torch.inference_mode():
        yield


def difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected logit."""
    assert logits.shape == expected.shape
    return float((logits - expected).abs().max() / expected.abs().max())


def step(model: Transformer, ids: list[int], cache: KVCache) -> Tensor:
    """The logits after ``ids`` by ``decode``. Ids before the last one that the cache does not hold are read first."""
    cache.truncate(min(cache.length, len(ids) - 1))
    cache.planned = len(ids)
    if model.stale(cache, len(ids) - cache.length):
        cache.truncate(0)
    if len(ids) - cache.length > 1:
        model(torch.tensor([ids[cache.length : -1]]), cache)
    return decode(model, ids[-1], cache)


def ordinary(model: Transformer, ids: list[int]) -> Tensor:
    """The logits after ``ids`` by one forward pass."""
    return model(torch.tensor([ids]))[:, -1]


def ordinary_prefixes(model: Transformer, ids: list[int]) -> list[Tensor]:
    """``ordinary`` for every prefix of ``ids``, with one pass for all prefixes that have the same rotary angles."""
    spans = [model.span(None, length) for length in range(1, len(ids) + 1)]
    logits = {span: model(torch.tensor([ids[: len(ids) - spans[::-1].index(span)]])) for span in set(spans)}
    return [logits[span][:, position] for position, span in enumerate(spans)]


def text(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return random_ids(length, seed=seed)[0].tolist()


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_matches_an_ordinary_pass(tiny: TinyFactory, name: str, block: int) -> None:
    model, ids = tiny(name).load(), text(CONTEXT)
    expected = ordinary_prefixes(model, ids)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32, block=block)
    sizes, spans, starts = set(), set(), set()
    for length in range(PROMPT, CONTEXT + 1):
        assert difference(step(model, ids[:length], cache), expected[length - 1]) <= CLOSE
        assert cache.length == length
        sizes.add(cache.nbytes)
        spans.add(cache.span)
        starts.add(cache.room(windowed=True).start)
    assert len(sizes) > 2
    assert len(spans) == {LONG: 2, DYNAMIC: 1 + CONTEXT - ROPE_ORIGINAL}.get(name, 1)
    assert (len(starts) > 1) == ("sliding_attention" in model.config.layer_types)


scripts = st.lists(
    st.one_of(
        st.tuples(st.just("decode"), st.integers(1, 12)),  # tokens
        st.tuples(st.just("prefill"), st.integers(1, 25)),  # tokens
        st.tuples(st.just("truncate"), st.floats(0.0, 1.0)),  # the fraction of the length to keep
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", FEW)
@given(seed=st.integers(0, 2**16), script=scripts, block=st.sampled_from([1, 8]))
def test_a_step_is_correct_after_any_sequence_of_operations(
    tiny: TinyFactory, name: str, seed: int, script: list[tuple[str, Any]], block: int
) -> None:
    model, ids = tiny(name).load(), text(1, seed)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32, block=block)
    for number, (operation, value) in enumerate(script):
        if operation == "truncate":
            cache.truncate(round(cache.length * value))
            ids = ids[: cache.length + 1]
            continue
        more = text(min(value, CONTEXT - len(ids)), seed + number)
        for count in range(1 if operation == "decode" else len(more), len(more) + 1):
            step(model, ids + more[:count], cache)
        ids += more
    assert difference(step(model, ids, cache), ordinary(model, ids)) <= CLOSE


def test_unwritten_positions_are_ignored(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """New buffers have arbitrary content: here, NaN."""
    model, ids = tiny("gemma2").load(), text(CONTEXT)
    expected = ordinary_prefixes(model, ids)
    cache, new_empty = model.new_cache(), Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda t, *a, **k: new_empty(t, *a, **k).fill_(float("nan")))
    for length in range(2, CONTEXT):
        assert difference(step(model, ids[:length], cache), expected[length - 1]) <= CLOSE


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "gpt2"])
def test_bfloat16_steps_are_as_accurate_as_ordinary_ones(tiny: TinyFactory, name: str) -> None:
    case, ids = tiny(name), text(40)
    exact = case.load()
    model = case.load().to(torch.bfloat16)
    cache, plain = model.new_cache(), model.new_cache()
    for length in range(2, 40):
        expected = ordinary(exact, ids[:length])
        logits = step(model, ids[:length], cache)
        assert logits.dtype == torch.float32
        # An ordinary pass on a GPU: on a CPU, the engine does not round what enters a product.
        x = Transformer.hidden(model, torch.tensor([ids[plain.length : length]]), plain)
        ordinary_error = difference(model.unembed(x[:, -1]), expected)
        assert difference(logits, expected) <= 2 * ordinary_error + 0.02


# Recording and replaying.


class Recorded(TorchDispatchMode):
    """A CUDA graph in miniature, on the CPU: records a step's operations, to replay them over the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        assert func is not torch.ops.aten.nonzero.default, "the host waits for a shape"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():  # not a view
                    old.copy_(new)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_is_correct_for_every_token_and_position(tiny: TinyFactory, name: str) -> None:
    model, first = tiny(name).load(), 10
    ids = text(ROPE_ORIGINAL if name in (LONG, DYNAMIC) else 2 * WINDOW)
    expected = ordinary_prefixes(model, ids)
    cache, recorded = KVCache(model.config, device=CPU, dtype=torch.float32, block=len(ids)), Recorded()
    step(model, ids[:first], cache)
    graph = cache.prepared
    assert isinstance(graph, DecodeGraph)
    with recorded:
        graph._recorded = recorded, graph._step()
    results = []
    for length in range(first + 1, len(ids) + 1):
        results.append(step(model, ids[:length], cache))
        assert difference(results[-1], expected[length - 1]) <= CLOSE
    assert cache.prepared is graph
    assert difference(results[0], expected[first]) <= CLOSE, "the next step overwrote the logits"


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_cannot_be_recorded(tiny: TinyFactory, name: str) -> None:
    model = tiny(name).load()
    assert model.config.moe is not None
    with pytest.raises(AssertionError, match="experts"):
        decode(model, 1, model.new_cache())


def test_the_cpu_does_not_record_steps(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").load()
    assert not replays(model)
    monkeypatch.setattr(reading, "decode", None)
    assert len(greedy(model, text(5), 5)) == 5


def test_generation_replays_all_steps_but_the_first(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny("gemma3_text").load(), text(9)
    expected, calls = greedy(model, prompt, 40), []
    monkeypatch.setattr(reading, "replays", lambda model: True)
    monkeypatch.setattr(reading, "decode", lambda *args: calls.append(args) or decode(*args))
    assert greedy(model, prompt, 40) == expected
    assert len(calls) == 39


# When a step is recorded again.


def test_a_step_is_kept_until_the_buffers_are_replaced(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []  # of the cache whenever a step was prepared
    prepare = DecodeGraph.__init__
    monkeypatch.setattr(
        DecodeGraph,
        "__init__",
        lambda graph, model, cache: lengths.append(cache.length) or prepare(graph, model, cache),
    )
    model, ids = tiny("llama").load(), text(60)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32, block=32)
    for length in range(10, 33):
        step(model, ids[:length], cache)
        cache.truncate(length)
    assert (lengths, cache.room(windowed=False)) == ([9], range(32))
    step(model, ids[:33], cache)
    assert (lengths, cache.room(windowed=False)) == ([9, 32], range(64))
    cache.truncate(17)
    step(model, ids[:18], cache)
    assert (lengths, cache.room(windowed=False)) == ([9, 32], range(64))
    cache.truncate(16)
    step(model, ids[:17], cache)
    assert (lengths, cache.room(windowed=False)) == ([9, 32, 16], range(32))


def test_a_step_does_not_keep_its_cache_alive(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    cache = model.new_cache()
    step(model, text(5), cache)
    reference = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("held", [1, 12, 50, 120])
@pytest.mark.parametrize("count", [1, 7])
def test_reserve_makes_room_in_every_layer(tiny: TinyFactory, name: str, held: int, count: int) -> None:
    model = tiny(name).load()
    cache = model.new_cache()
    model(torch.tensor([text(held)]), cache)
    cache.reserve(count)
    size = cache.nbytes
    for windowed in (False, True):
        room = cache.room(windowed=windowed)
        assert room.stop >= held + count or len(room) == 0
        assert room.start <= max(0, held + 1 - WINDOW)
    model(torch.tensor([text(count)]), cache)
    assert cache.nbytes == size


@pytest.mark.parametrize("count", [1, 30, 80])
@pytest.mark.parametrize("block", [1, 2])
def test_steps_are_correct_although_an_interrupted_pass_grew_only_some_layers(
    tiny: TinyFactory, block: int, count: int
) -> None:
    model, ids = tiny("gemma3_text").load(), text(CONTEXT)
    cache = model.new_cache()
    for length in range(1, 21):
        step(model, ids[:length], cache)
    hook = model.blocks[block].attn.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.tensor([ids[:count]]), cache)
    hook.remove()
    expected = ordinary_prefixes(model, ids)
    for length in range(21, CONTEXT):
        assert difference(step(model, ids[:length], cache), expected[length - 1]) <= CLOSE


def test_an_interrupted_step_leaves_the_cache_as_it_was(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny("gemma3_text").load(), text(40)
    cache = model.new_cache()
    step(model, ids[:39], cache)
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "unembed", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode(model, (ids[39] + 1) % 7, cache)
    assert cache.length == 39
    assert difference(step(model, ids, cache), ordinary(model, ids)) <= CLOSE


def test_a_step_prepared_for_other_angles_is_not_used(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of an interrupted first token remains, but the next text may be planned longer and so rotated
    differently."""
    model, ids = tiny(LONG).load(), text(5)
    cache, plain = KVCache(model.config, device=CPU, dtype=torch.float32, block=16), model.new_cache()
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "unembed", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode(model, ids[0], cache)
    assert (cache.length, cache.prepared is not None) == (0, True)
    cache.planned = plain.planned = ROPE_ORIGINAL + 1
    results = [decode(model, token, cache) for token in ids]
    assert difference(results[-1], model(torch.tensor([ids]), plain)[:, -1]) <= CLOSE


def test_learned_positions_end_with_the_context(tiny: TinyFactory) -> None:
    model = tiny("gpt2").load()
    cache = model.new_cache()
    step(model, text(CONTEXT), cache)
    with pytest.raises(LlmcliError, match=str(CONTEXT)):
        decode(model, 1, cache)
    assert cache.length == CONTEXT


def test_keys_rotated_by_other_angles_are_rejected(tiny: TinyFactory) -> None:
    model = tiny(LONG).load()
    cache = model.new_cache()
    step(model, text(ROPE_ORIGINAL), cache)
    with pytest.raises(AssertionError, match="angles"):
        decode(model, 1, cache)


def test_the_block_of_a_gpu_cache_is_a_multiple_of_16() -> None:
    assert GPU_CACHE_BLOCK % 16 == 0
