"""The KV cache changes no result: however a text is read, the logits are those of a fresh pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.model import cache as cache_module
from llmcli.model.cache import MAX_SNAPSHOTS, KVCache
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from tests.tiny import CONTEXT, CPU, VOCAB, WINDOW, TinyFactory, chunks, random_ids

NAMES = ["llama", "llama-llama3", "gpt2", "mistral", "gemma2", "gemma3_text", "qwen3_5_text"]
CLOSE = 1e-4
T = 40  # longer than a window

cut_lists = st.lists(st.integers(1, T - 1), max_size=6)
seeds = st.integers(0, 2**16)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tiny: TinyFactory) -> Transformer:
    return tiny(request.param).load()


@pytest.fixture(autouse=True)
def _no_grad_and_little_spare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """With few spare positions, windowed layers drop old ones often."""
    monkeypatch.setattr(cache_module, "SPARE", 2)
    with torch.no_grad():
        yield


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def read(model: Transformer, ids: Tensor, cache: KVCache, cuts: list[int] | None = None) -> Tensor:
    """The logits of all ``ids``, read in chunks cut before the positions ``cuts``."""
    return torch.cat([model(part, cache) for part in chunks(ids, cuts or [])], dim=1)


@given(seed=seeds, cuts=cut_lists)
@example(seed=0, cuts=list(range(1, T)))  # token by token
@example(seed=1, cuts=list(range(1, T)))
def test_reading_in_chunks_equals_one_pass(model: Transformer, seed: int, cuts: list[int]) -> None:
    ids = random_ids(T, seed=seed)
    cache = model.new_cache()
    assert max_difference(read(model, ids, cache, cuts), model(ids)) <= CLOSE
    assert cache.length == T


@given(seed=seeds, cuts=cut_lists, kept=st.integers(0, T), more=st.integers(1, T))
def test_truncating_and_continuing_equals_a_fresh_pass(
    model: Transformer, seed: int, cuts: list[int], kept: int, more: int
) -> None:
    first, second = random_ids(T, seed=seed), random_ids(more, seed=seed + 1)
    cache = model.new_cache()
    read(model, first, cache, cuts)
    cache.truncate(kept)
    assert cache.length == kept or model.config.sliding_window or model.config.mixer
    assert cache.length in (kept, 0) or (model.config.mixer and cache.length in cuts)
    again, whole = first[:, cache.length : kept], torch.cat((first[:, :kept], second), dim=1)
    assert (
        max_difference(read(model, torch.cat((again, second), dim=1), cache)[:, -more:], model(whole)[:, kept:])
        <= CLOSE
    )


@given(seed=seeds, changed=st.integers(1, T - 1), by=st.integers(1, VOCAB - 1))
def test_a_token_changes_no_earlier_logits(model: Transformer, seed: int, changed: int, by: int) -> None:
    ids = random_ids(T, seed=seed)
    other = ids.clone()
    other[0, changed] = (other[0, changed] + by) % VOCAB
    a, b = model(ids), model(other)
    assert torch.equal(a[:, :changed], b[:, :changed])
    assert max_difference(a[:, changed], b[:, changed]) > 1e-3


@given(seed=seeds, cuts=cut_lists, batch=st.integers(2, 4))
def test_a_row_of_a_batch_equals_the_row_alone(model: Transformer, seed: int, cuts: list[int], batch: int) -> None:
    ids = random_ids(T, seed=seed, batch=batch)
    batched = read(model, ids, model.new_cache(batch), cuts)
    for row in range(batch):
        alone = read(model, ids[row : row + 1], model.new_cache(), cuts)
        assert max_difference(batched[row : row + 1], alone) <= CLOSE


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 25)),  # tokens
        st.tuples(st.just("truncate"), st.floats(0.0, 1.0)),  # the fraction of the length to keep
    ),
    max_size=8,
)


@given(seed=seeds, script=operations)
def test_any_sequence_of_operations_keeps_the_cache_correct_and_small(
    model: Transformer, seed: int, script: list[tuple[str, Any]]
) -> None:
    ids, cache = random_ids(0, seed=seed), model.new_cache()
    config = model.config
    position = 2 * 4 * config.num_key_value_heads * config.head_dim  # bytes of a position in one layer, fp32
    windowed = sum(config.layer_type(layer) == "sliding_attention" for layer in range(config.num_hidden_layers))
    attending = len(cache.attending)
    shapes = () if config.mixer is None else config.mixer.state_shapes
    states = len(cache.recurrent) * 4 * sum(map(math.prod, shapes))  # bytes
    for step, (name, value) in enumerate(script):
        if name == "truncate":
            ids = ids[:, : round(ids.shape[1] * value)]
            cache.truncate(ids.shape[1])
            assert cache.length in (ids.shape[1], 0) or (states and cache.length < ids.shape[1])
            assert windowed or states or cache.length == ids.shape[1]
            ids = ids[:, : cache.length]
        else:
            more = random_ids(min(value, CONTEXT - ids.shape[1]), seed=seed + step)
            if more.shape[1]:
                model(more, cache)
                ids = torch.cat((ids, more), dim=1)
        assert cache.length == ids.shape[1]
        assert cache.nbytes <= 2 * cache.length * position * attending + (1 + MAX_SNAPSHOTS) * states
        assert cache.nbytes >= cache.length * position * (attending - windowed) + (states if cache.length else 0)
    last = torch.tensor([[5]])
    if ids.shape[1] < CONTEXT:
        assert max_difference(model(last, cache), model(torch.cat((ids, last), dim=1))[:, -1:]) <= CLOSE


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_windowed_layers_keep_little_more_than_their_window(tiny: TinyFactory, name: str) -> None:
    model, most = tiny(name).load(), 0
    config, cache = model.config, tiny(name).load().new_cache()
    for start in range(0, CONTEXT, 4):
        model(random_ids(4, seed=start), cache)
        most = max(most, cache.nbytes)
    position = 2 * 4 * config.num_key_value_heads * config.head_dim
    windowed = sum(config.layer_type(layer) == "sliding_attention" for layer in range(config.num_hidden_layers))
    held = windowed * (WINDOW - 1 + 2 + 4) + (config.num_hidden_layers - windowed) * CONTEXT
    assert windowed
    assert most <= 1.5 * held * position


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
@pytest.mark.parametrize("back", [1, 2, 3, 90])
def test_truncating_below_what_windowed_layers_hold_drops_everything(tiny: TinyFactory, name: str, back: int) -> None:
    model, ids = tiny(name).load(), random_ids(CONTEXT, seed=0)
    cache = model.new_cache()
    for position in range(CONTEXT):
        model(ids[:, position : position + 1], cache)
        if position > 90 and cache._first[0] == position - (WINDOW - 1 + 2):
            break  # the buffers have just been moved: the layer holds as little as possible
    cache.truncate(cache.length - back)
    kept = cache.length
    assert kept == (0 if back > 3 else position + 1 - back)
    assert max_difference(model(ids[:, kept:], cache), model(ids)[:, kept:]) <= CLOSE


def test_appending_is_cheap_on_average(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers grow by half, so that the positions copied stay a small multiple of the positions held."""
    copied: list[int] = []
    resize = KVCache._resize

    def counting(cache: KVCache, layer: int, kept: int, capacity: int) -> None:
        copied.append(kept)
        resize(cache, layer, kept, capacity)

    monkeypatch.setattr(KVCache, "_resize", counting)
    cache = KVCache(model.config, device=CPU, dtype=torch.float32)
    one = torch.zeros(1, model.config.num_key_value_heads, 1, model.config.head_dim)
    for _ in range(1000):
        for layer in cache.attending:
            cache.append(layer, one, one)
        cache.advance(1)
    assert copied
    assert sum(copied) <= 3 * 1000 * model.config.num_hidden_layers


@given(seed=seeds, cuts=cut_lists, rows=st.sampled_from([None, slice(-1, None), slice(0, 2)]))
def test_tracing_changes_no_bit(model: Transformer, seed: int, cuts: list[int], rows: slice | None) -> None:
    ids = random_ids(T, seed=seed)
    plain, traced = model.new_cache(), model.new_cache()
    for part in chunks(ids, cuts):
        assert torch.equal(model(part, plain), model(part, traced, Trace(rows)))


@given(seed=seeds, cuts=cut_lists)
def test_traced_attention_is_a_distribution_over_the_past(model: Transformer, seed: int, cuts: list[int]) -> None:
    ids = random_ids(T, seed=seed)
    cache = model.new_cache()
    for part in chunks(ids, cuts):
        past, trace = cache.length, Trace()
        model(part, cache, trace)
        assert list(trace.attention) == list(cache.attending)
        distance = torch.arange(past, cache.length)[:, None] - torch.arange(cache.length)
        for layer, weights in trace.attention.items():
            seen = distance >= 0
            if model.config.layer_type(layer) == "sliding_attention":
                seen &= distance < WINDOW
            assert weights.shape == (1, model.config.num_attention_heads, part.shape[1], cache.length)
            assert (weights[:, :, ~seen] == 0).all()
            assert (weights[:, :, seen] > 0).all()
            assert max_difference(weights.sum(-1), torch.ones(weights.shape[:-1])) <= 1e-5


@given(seed=seeds, cuts=cut_lists)
def test_traces_of_chunks_are_parts_of_the_trace_of_one_pass(model: Transformer, seed: int, cuts: list[int]) -> None:
    ids = random_ids(T, seed=seed)
    whole, cache = Trace(), model.new_cache()
    model(ids, trace=whole)
    for part in chunks(ids, cuts):
        past, trace = cache.length, Trace()
        model(part, cache, trace)
        here = slice(past, cache.length)
        for a, b in zip(trace.residual, whole.residual, strict=True):
            assert max_difference(a, b[:, here]) <= CLOSE
        for a, b in zip(trace.attn_out + trace.mlp_out, whole.attn_out + whole.mlp_out, strict=True):
            assert max_difference(a, b[:, here]) <= CLOSE
        for layer, weights in trace.attention.items():
            assert max_difference(weights, whole.attention[layer][:, :, here, : cache.length]) <= CLOSE


@pytest.mark.parametrize("rows", [slice(-1, None), slice(3, 7), slice(0, 1)])
def test_traced_rows_are_those_of_a_full_trace(model: Transformer, rows: slice) -> None:
    ids = random_ids(T, seed=0)
    partial, full = Trace(rows), Trace()
    model(ids, trace=partial)
    model(ids, trace=full)
    for layer, weights in partial.attention.items():
        assert max_difference(weights, full.attention[layer][:, :, rows]) <= 1e-6
    for part in ("residual", "attn_out", "mlp_out"):
        for a, b in zip(getattr(partial, part), getattr(full, part), strict=True):
            assert torch.equal(a, b[:, rows])


@given(seed=seeds, cuts=cut_lists)
def test_traced_weights_times_traced_values_give_the_attention_output(
    model: Transformer, seed: int, cuts: list[int]
) -> None:
    ids, cache = random_ids(T, seed=seed), model.new_cache()
    for part in chunks(ids, cuts):
        trace = Trace()
        model(part, cache, trace)
        for layer, weights in trace.attention.items():
            block, values = model.blocks[layer], trace.values[layer]
            heads = weights @ values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)  # [1, H, T, D]
            heads = heads * trace.gates.get(layer, 1)
            out = block.attn.out(heads.transpose(1, 2).flatten(2))
            out = out if block.attn_post_norm is None else block.attn_post_norm(out)
            assert max_difference(out * block.scale, trace.attn_out[layer]) <= CLOSE


def test_traced_contributions_add_up_and_share_no_memory(model: Transformer) -> None:
    trace = Trace()
    logits = model(random_ids(T, seed=0), trace=trace)
    for layer in range(model.config.num_hidden_layers):
        added = trace.residual[layer] + trace.attn_out[layer] + trace.mlp_out[layer]
        assert max_difference(trace.residual[layer + 1], added) <= CLOSE
    assert max_difference(model.unembed(trace.residual[-1]), logits) <= CLOSE
    kept = [*trace.residual, *trace.attn_out, *trace.mlp_out, *trace.attention.values()]
    assert len({tensor.data_ptr() for tensor in kept}) == len(kept)
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_operations_cannot_change_a_trace(dtype: torch.dtype) -> None:
    trace = Trace()
    kept = trace.residual
    for shape in ((3,), (1, 2, 3)):  # a single vector is one position of one text
        x = torch.ones(shape, dtype=dtype)
        trace.keep(kept, x)
        x.add_(1)
    assert [copy.dtype for copy in kept] == [torch.float32] * 2
    assert torch.equal(kept[0], torch.ones(1, 1, 3))
    assert torch.equal(kept[1], torch.ones(1, 2, 3))


class Interrupted(Exception):
    """Simulates an interruption in the middle of a forward pass."""


def interrupt(module: nn.Module, args: Any) -> None:
    raise Interrupted


@given(seed=seeds, before=st.integers(0, 20), count=st.integers(1, 20), block=st.integers(0, 2))
def test_an_interrupted_pass_leaves_the_cache_as_it_was(
    model: Transformer, seed: int, before: int, count: int, block: int
) -> None:
    ids = random_ids(before + count, seed=seed)
    cache = model.new_cache()
    if before:
        model(ids[:, :before], cache)
    hook = model.blocks[block].mlp.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(Interrupted):
            model(random_ids(count + 5, seed=seed + 1), cache)
    finally:
        hook.remove()
    assert cache.length == before
    assert max_difference(model(ids[:, before:], cache), model(ids)[:, before:]) <= CLOSE
    assert cache.length == before + count


def test_truncating_frees_the_memory_of_an_interrupted_pass(model: Transformer) -> None:
    cache, fresh = model.new_cache(), model.new_cache()
    model(random_ids(10, seed=0), cache)
    model(random_ids(10, seed=0), fresh)
    hook = model.blocks[1].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        model(random_ids(100, seed=0), cache)
    hook.remove()
    cache.truncate(cache.length)
    assert cache.nbytes <= fresh.nbytes


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_running_out_of_memory_while_growing_leaves_the_cache_usable(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    ids = random_ids(30, seed=0)
    cache = model.new_cache()
    model(ids[:, :10], cache)
    calls = iter(range(100))
    new_empty = Tensor.new_empty

    def failing(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if next(calls) == call:
            raise torch.OutOfMemoryError
        return new_empty(tensor, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_empty", failing)
        with pytest.raises(torch.OutOfMemoryError):
            model(random_ids(80, seed=1), cache)
    assert cache.length == 10
    assert max_difference(model(ids[:, 10:], cache), model(ids)[:, 10:]) <= CLOSE


@pytest.mark.parametrize("past", [1, 10, 100])
def test_a_step_computes_one_position_at_any_depth(model: Transformer, past: int) -> None:
    cache = model.new_cache()
    model(random_ids(past, seed=0), cache)
    seen: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel() // args[0].shape[-1]))
        for block in model.blocks
        for module in (
            block,
            *((block.attn.qkv, block.attn.out) if block.attn else (block.mixer.inputs, block.mixer.out)),
            block.mlp,
        )
    ]
    model(random_ids(1, seed=1), cache)
    for hook in hooks:
        hook.remove()
    assert seen == [1] * (4 * model.config.num_hidden_layers)


@pytest.mark.parametrize(("past", "count"), [(0, CONTEXT + 1), (CONTEXT - 1, 2), (CONTEXT, 1), (CONTEXT - 5, 20)])
def test_learned_positions_end_with_the_context(tiny: TinyFactory, past: int, count: int) -> None:
    model = tiny("gpt2").load()
    cache = model.new_cache()
    if past:
        model(random_ids(past, seed=0), cache)
    with pytest.raises(LlmcliError, match=str(CONTEXT)):
        model(random_ids(count, seed=1), cache)
    assert cache.length == past


def test_a_new_cache_is_empty(model: Transformer) -> None:
    cache = model.new_cache(batch=3)
    assert (cache.length, cache.nbytes) == (0, 0)
    k = torch.ones(3, model.config.num_key_value_heads, 2, model.config.head_dim)
    keys, values = cache.append(cache.attending[0], k, 2 * k)
    assert torch.equal(keys, k)
    assert torch.equal(values, 2 * k)
    assert cache.length == 0
