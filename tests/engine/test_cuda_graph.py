"""The step that a GPU records gives what an ordinary one does.

Here its operations run on the CPU: one by one, and recorded and replayed as a GPU would. Only the
recording by CUDA itself is left to ``test_gpu``.
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
from llmcli.generation import steps as loop
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from tests.tiny import CASES, CONTEXT, CPU, ROPE_ORIGINAL, WINDOW, TinyFactory, greedy, random_ids

EXPERTS = ["mixtral", "qwen3_moe", "olmoe"]
LONG, DYNAMIC = "phi3-longrope", "llama-dynamic"  # angles that depend on the length
NAMES = [name for name in CASES if name not in EXPERTS]
FEW = ["llama", "gpt2", "mistral", "gemma2", "gemma3_text", LONG]
CLOSE = 1e-5  # of the largest logit: ordinary passes of one and of many tokens differ by nearly as much
PROMPT = 5


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without the kernels that only a CPU uses for a single token."""
    monkeypatch.setattr(engine, "as_vector", lambda x: x)
    with torch.inference_mode():
        yield


def gap(logits: Tensor, right: Tensor) -> float:
    """The largest difference, in units of the largest right logit."""
    assert logits.shape == right.shape
    return float((logits - right).abs().max() / right.abs().max())


def step(model: Transformer, ids: list[int], cache: KVCache) -> Tensor:
    """The logits behind ``ids`` by ``decode``; those before the last that are not in the cache are read first."""
    cache.truncate(min(cache.length, len(ids) - 1))
    cache.planned = len(ids)
    if model.stale(cache, len(ids) - cache.length):
        cache.truncate(0)
    if len(ids) - cache.length > 1:
        model(torch.tensor([ids[cache.length : -1]]), cache)
    return decode(model, ids[-1], cache)


def ordinary(model: Transformer, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]))[:, -1]


def behind_each(model: Transformer, ids: list[int]) -> list[Tensor]:
    """``ordinary`` for every beginning of ``ids``: one pass for all lengths that turn alike."""
    spans = [model.span(None, length) for length in range(1, len(ids) + 1)]
    logits = {span: model(torch.tensor([ids[: len(ids) - spans[::-1].index(span)]])) for span in set(spans)}
    return [logits[span][:, place] for place, span in enumerate(spans)]


def text(length: int, seed: int = 0) -> list[int]:
    return random_ids(length, seed=seed)[0].tolist()


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_every_family_is_the_ordinary_one(tiny: TinyFactory, name: str, block: int) -> None:
    model, ids = tiny(name).load(), text(CONTEXT)
    right = behind_each(model, ids)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32, block=block)
    sizes, spans, starts = set(), set(), set()
    for length in range(PROMPT, CONTEXT + 1):
        assert gap(step(model, ids[:length], cache), right[length - 1]) <= CLOSE
        assert cache.length == length
        sizes.add(cache.nbytes)
        spans.add(cache.span)
        starts.add(cache.room(windowed=True).start)
    assert len(sizes) > 2
    assert len(spans) == {LONG: 2, DYNAMIC: 1 + CONTEXT - ROPE_ORIGINAL}.get(name, 1)
    assert (len(starts) > 1) == ("sliding_attention" in model.config.layer_types)


scripts = st.lists(
    st.one_of(
        st.tuples(st.just("decode"), st.integers(1, 12)),
        st.tuples(st.just("read"), st.integers(1, 25)),
        st.tuples(st.just("keep"), st.floats(0.0, 1.0)),
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", FEW)
@given(seed=st.integers(0, 2**16), script=scripts, block=st.sampled_from([1, 8]))
def test_whatever_happened_to_the_cache_the_next_step_is_right(
    tiny: TinyFactory, name: str, seed: int, script: list[tuple[str, Any]], block: int
) -> None:
    model, ids = tiny(name).load(), text(1, seed)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32, block=block)
    for turn, (what, value) in enumerate(script):
        if what == "keep":
            cache.truncate(round(cache.length * value))
            ids = ids[: cache.length + 1]
            continue
        more = text(min(value, CONTEXT - len(ids)), seed + turn)
        for count in range(1 if what == "decode" else len(more), len(more) + 1):
            step(model, ids + more[:count], cache)
        ids += more
    assert gap(step(model, ids, cache), ordinary(model, ids)) <= CLOSE


def test_what_was_never_written_takes_no_part(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory may hold anything: here all of it is NaN."""
    model, ids = tiny("gemma2").load(), text(CONTEXT)
    right = behind_each(model, ids)
    cache, new_empty = model.new_cache(), Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda t, *a, **k: new_empty(t, *a, **k).fill_(float("nan")))
    for length in range(2, CONTEXT):
        assert gap(step(model, ids[:length], cache), right[length - 1]) <= CLOSE


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "gpt2"])
def test_bfloat16_is_as_close_as_an_ordinary_step(tiny: TinyFactory, name: str) -> None:
    case, ids = tiny(name), text(40)
    exact = case.load()
    model = case.load().to(torch.bfloat16)
    cache, plain = model.new_cache(), model.new_cache()
    for length in range(2, 40):
        right = ordinary(exact, ids[:length])
        logits = step(model, ids[:length], cache)
        assert logits.dtype == torch.float32
        by_chance = gap(model(torch.tensor([ids[plain.length : length]]), plain)[:, -1].float(), right)
        assert gap(logits, right) <= 2 * by_chance + 0.02


# As a GPU does it.


class Recorded(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the operations of a step, to be repeated over the same memory."""

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
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():  # no view
                    old.copy_(new)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_serves_every_token_and_position(tiny: TinyFactory, name: str) -> None:
    model, first = tiny(name).load(), 10
    ids = text(ROPE_ORIGINAL if name in (LONG, DYNAMIC) else 2 * WINDOW)
    right = behind_each(model, ids)
    cache, recorded = KVCache(model.config, device=CPU, dtype=torch.float32, block=len(ids)), Recorded()
    step(model, ids[:first], cache)
    graph = cache.graph
    assert isinstance(graph, DecodeGraph)
    with recorded:
        graph._recorded = recorded, graph._step()
    kept = []
    for length in range(first + 1, len(ids) + 1):
        kept.append(step(model, ids[:length], cache))
        assert gap(kept[-1], right[length - 1]) <= CLOSE
    assert cache.graph is graph
    assert gap(kept[0], right[first]) <= CLOSE, "what was handed out changes with the next step"


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_cannot_be_recorded(tiny: TinyFactory, name: str) -> None:
    model = tiny(name).load()
    assert model.config.moe is not None
    with pytest.raises(AssertionError, match="experts"):
        decode(model, 1, model.new_cache())


def test_on_a_cpu_steps_are_ordinary(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").load()
    assert not replays(model)
    monkeypatch.setattr(loop, "decode", None)
    assert len(greedy(model, text(5), 5)) == 5


def test_where_steps_are_replayed_the_loop_takes_all_but_the_first_so(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = tiny("gemma3_text").load(), text(9)
    expected, calls = greedy(model, prompt, 40), []
    monkeypatch.setattr(loop, "replays", lambda model: True)
    monkeypatch.setattr(loop, "decode", lambda *args: calls.append(args) or decode(*args))
    assert greedy(model, prompt, 40) == expected
    assert len(calls) == 39


# How long a recorded step lasts.


def test_a_step_is_kept_until_the_cache_moves(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    prepare = DecodeGraph.__init__
    monkeypatch.setattr(
        DecodeGraph,
        "__init__",
        lambda graph, model, cache: made.append(cache.length) or prepare(graph, model, cache),
    )
    model, ids = tiny("llama").load(), text(60)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32, block=32)
    for length in range(10, 33):
        step(model, ids[:length], cache)
        cache.truncate(length)
    assert (made, cache.room(windowed=False)) == ([9], range(32))
    step(model, ids[:33], cache)
    assert (made, cache.room(windowed=False)) == ([9, 32], range(64))
    cache.truncate(17)
    step(model, ids[:18], cache)
    assert (made, cache.room(windowed=False)) == ([9, 32], range(64))
    cache.truncate(16)
    step(model, ids[:17], cache)
    assert (made, cache.room(windowed=False)) == ([9, 32, 16], range(32))


def test_a_kept_step_does_not_keep_the_cache(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    cache = model.new_cache()
    step(model, text(5), cache)
    alive = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("held", [1, 12, 50, 120])
@pytest.mark.parametrize("count", [1, 7])
def test_reserved_room_is_there_in_every_layer(tiny: TinyFactory, name: str, held: int, count: int) -> None:
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
def test_after_an_interrupted_pass_layers_may_differ_in_room(tiny: TinyFactory, block: int, count: int) -> None:
    model, ids = tiny("gemma3_text").load(), text(CONTEXT)
    cache = model.new_cache()
    for length in range(1, 21):
        step(model, ids[:length], cache)
    hook = model.blocks[block].attn.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.tensor([ids[:count]]), cache)
    hook.remove()
    right = behind_each(model, ids)
    for length in range(21, CONTEXT):
        assert gap(step(model, ids[:length], cache), right[length - 1]) <= CLOSE


def test_an_interrupted_step_leaves_the_cache_as_it_was(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny("gemma3_text").load(), text(40)
    cache = model.new_cache()
    step(model, ids[:39], cache)
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "unembed", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode(model, (ids[39] + 1) % 7, cache)
    assert cache.length == 39
    assert gap(step(model, ids, cache), ordinary(model, ids)) <= CLOSE


def test_a_step_prepared_for_other_angles_is_not_used(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted first step stays, but holds no position to angles: the next text may be planned longer."""
    model, ids = tiny(LONG).load(), text(5)
    cache, plain = KVCache(model.config, device=CPU, dtype=torch.float32, block=16), model.new_cache()
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "unembed", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode(model, ids[0], cache)
    assert (cache.length, cache.graph is not None) == (0, True)
    cache.planned = plain.planned = ROPE_ORIGINAL + 1
    found = [decode(model, token, cache) for token in ids]
    assert gap(found[-1], model(torch.tensor([ids]), plain)[:, -1]) <= CLOSE


def test_learned_positions_end_with_the_context(tiny: TinyFactory) -> None:
    model = tiny("gpt2").load()
    cache = model.new_cache()
    step(model, text(CONTEXT), cache)
    with pytest.raises(LlmcliError, match=str(CONTEXT)):
        decode(model, 1, cache)
    assert cache.length == CONTEXT


def test_keys_turned_by_other_angles_are_refused(tiny: TinyFactory) -> None:
    model = tiny(LONG).load()
    cache = model.new_cache()
    step(model, text(ROPE_ORIGINAL), cache)
    with pytest.raises(AssertionError, match="angles"):
        decode(model, 1, cache)


def test_a_gpu_s_block_suits_its_kernels() -> None:
    assert GPU_CACHE_BLOCK % 16 == 0
