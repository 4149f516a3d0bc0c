"""The compiled engine against the reference, for every family and dtype, and against itself, bit for bit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from llmcli.engine.native import MAX_ROWS, NativeStep, variant
from llmcli.engine.native.library import library
from llmcli.engine.transformer import EngineTransformer, engine_of
from llmcli.errors import LlmcliError
from llmcli.files.gguf import BLOCKS
from llmcli.generation.reading import NATIVE_PROMPT, last_logits
from llmcli.model.activations import Activation
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.ggml import MULTIPLIED, from_blocks, row_bytes
from llmcli.storage.quantize import QuantizedMatrix, matrices, quantize
from tests.tiny import CASES, CONTEXT, CPU, LATENT, RECURRENT, TinyFactory, random_ids

pytestmark = pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")

IDS = random_ids(CONTEXT, seed=0)[0].tolist()
# Cases with layers that C does not compute.
IN_TORCH = (*RECURRENT, *LATENT, "gemma4_text", "gemma4_text-moe", "llama4_text", "bloom")
CLOSE = 1e-5  # in fp32, relative to the largest logit
HALF = 5e-3  # keys and values in float16 or bfloat16
WRONG = 1e-3


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def load(tiny: TinyFactory, name: str, dtype: torch.dtype = torch.float32) -> EngineTransformer:
    model = Checkpoint.read(tiny(name).folder).load(device=CPU, dtype=dtype, build=EngineTransformer)
    assert isinstance(model, EngineTransformer)
    return model


def reference_logits(model: Transformer) -> Tensor:
    """The logits of the plain transformer with the model's weights, in fp32: [CONTEXT, V]."""
    plain = Transformer(model.config).eval()
    for (name, parameter), ours in zip(plain.named_parameters(), dense_parameters(model), strict=True):
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, torch.nn.Parameter(ours.view(parameter.shape)))
    cache = plain.new_cache()
    cache.planned = CONTEXT
    return plain(torch.tensor([IDS]), cache)[0]


def dense_parameters(model: Transformer) -> Iterator[Tensor]:
    """The model's parameters in fp32, restored where they are quantized."""
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, QuantizedMatrix) and name.endswith("weight"):
            yield module.dense(slice(None))
        else:
            yield parameter.detach().float()


def native_of(model: EngineTransformer) -> NativeStep:
    assert model.native is not None
    return model.native


def native_logits(model: EngineTransformer, *sizes: int, step: NativeStep | None = None) -> Tensor:
    """The logits after every token of IDS, fed in chunks of ``sizes``, repeated."""
    step, cache, parts, start = step or native_of(model), model.new_cache(), [], 0
    cache.planned = CONTEXT
    while start < CONTEXT:
        chunk = IDS[start : start + sizes[len(parts) % len(sizes)]]
        parts.append(step.feed(chunk, cache, len(chunk)))
        start += len(chunk)
    return torch.cat(parts)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().nan_to_num(nan=torch.inf).max() / theirs.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_fp32_steps_are_the_references(tiny: TinyFactory, name: str) -> None:
    """Where C does not compute all that the config describes, torch runs the model."""
    model = load(tiny, name)
    if name in IN_TORCH:
        assert model.native is None
        assert engine_of(model).startswith("torch, with products of the native engine")
        return
    assert difference(native_logits(model, 1), reference_logits(model)) <= CLOSE


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3_moe", "smollm3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_dtypes_round_only_keys_and_values(tiny: TinyFactory, name: str, dtype: torch.dtype) -> None:
    model = load(tiny, name, dtype)
    assert difference(native_logits(model, 1), reference_logits(model)) <= HALF


@pytest.mark.parametrize("length", [2 * MAX_ROWS, NATIVE_PROMPT + 1, CONTEXT])
def test_prompts_round_only_keys_and_values(tiny: TinyFactory, length: int) -> None:
    for name in ("llama", "gemma3_text", "mixtral"):
        model = load(tiny, name, torch.bfloat16)
        logits = last_logits(model, IDS[:length], model.new_cache(), 20)
        assert difference(logits, reference_logits(model)[length - 20 : length]) <= HALF


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "mixtral", "llama-biases"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_steps_are_those_of_the_restored_weights(tiny: TinyFactory, name: str, quantization: str) -> None:
    model = load(tiny, name)
    quantize(model, quantization)  # type: ignore[arg-type]
    assert not list(matrices(model))
    assert difference(native_logits(model, 1), reference_logits(model)) <= CLOSE


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "olmo2", "gpt_neox", "gpt_oss", "qwen2_moe"])
def test_bits_do_not_depend_on_chunks_or_threads(tiny: TinyFactory, name: str, quantization: str | None) -> None:
    model = load(tiny, name, torch.bfloat16)
    if quantization is not None:
        quantize(model, quantization)  # type: ignore[arg-type]
    alone = native_logits(model, 1)
    assert torch.equal(native_logits(model, 5, 1, MAX_ROWS, 3), alone)
    for threads in (1, 3):
        assert torch.equal(native_logits(model, 2, 7, step=NativeStep(model, threads)), alone)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "phi3-longrope"])
def test_texts_do_not_depend_on_each_other(tiny: TinyFactory, name: str) -> None:
    """More texts than fit into one step, of different lengths."""
    model = load(tiny, name, torch.bfloat16)
    step, alone = native_of(model), native_logits(model, 1)
    caches: list[KVCache] = []
    for length in range(1, MAX_ROWS + 4):
        caches.append(model.new_cache())
        caches[-1].planned = CONTEXT
        for token in IDS[:length]:
            step.feed([token], caches[-1], 1)
    logits = step.feed_each([IDS[cache.length] for cache in caches], caches)
    assert torch.equal(logits, torch.stack([alone[cache.length - 1] for cache in caches]))


def test_contexts_longer_than_a_chunk_of_keys(tiny: TinyFactory) -> None:
    """The weights of different chunks are put together by their maxima."""
    model = load(tiny, "llama")
    ids = [IDS[number % CONTEXT] for number in range(600)]
    ours, theirs = model.new_cache(), model.new_cache()
    step = native_of(model)
    logits = torch.cat([step.feed(ids[start : start + MAX_ROWS], ours, 1) for start in range(0, 600, MAX_ROWS)])
    expected = Transformer.unembed(model, model.hidden(torch.tensor([ids]), theirs)[0, MAX_ROWS - 1 :: MAX_ROWS])
    assert difference(logits[:-1], expected) <= CLOSE


def test_prefill_by_torch_and_steps_share_the_cache(tiny: TinyFactory) -> None:
    model = load(tiny, "gemma3_text")
    expected = reference_logits(model)
    cache = model.new_cache()
    model.hidden(torch.tensor([IDS[:50]]), cache)
    step = native_of(model)
    assert difference(step.feed(IDS[50:60], cache, 10), expected[50:60]) <= CLOSE
    x = model.hidden(torch.tensor([IDS[60:80]]), cache)
    assert difference(model.unembed(x)[0], expected[60:80]) <= CLOSE
    cache.truncate(70)
    assert difference(step.feed(IDS[70:71], cache, 1), expected[70:71]) <= CLOSE


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_variant_that_runs_here_is_exact(tiny: TinyFactory, number: int) -> None:
    found = library()
    assert found is not None
    if found.engine_choose(number) is None:
        pytest.skip("this processor cannot run it, or there is none")
    try:
        for dtype, quantization in ((torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8")):
            model = load(tiny, "llama", dtype)
            if quantization:
                quantize(model, "int8")
            tolerance = CLOSE if dtype == torch.float32 else HALF
            assert difference(native_logits(model, 3), reference_logits(model)) <= tolerance
    finally:
        next(best for best in range(3) if found.engine_choose(best))


def test_nan_and_infinity_reach_the_logits(tiny: TinyFactory) -> None:
    for value in (torch.nan, torch.inf):
        model = load(tiny, "llama")
        model.get_parameter("blocks.1.attn.qkv.weight").data[3, 5] = value
        assert not native_logits(model, 1)[-1].isfinite().any()


@pytest.mark.parametrize("format", MULTIPLIED)
def test_restored_weights_are_those_of_the_blocks(tiny: TinyFactory, format: str) -> None:
    native, random = native_of(load(tiny, "llama")), torch.Generator().manual_seed(0)
    for columns in (5, 48, 3 * 256) if format in ("Q8_0", "Q4_0") else (2 * BLOCKS[format][0], 3 * 256):
        shape = 50, row_bytes(columns, format)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            restored, expected = (
                native.restore(blocks, format, columns, dtype),
                from_blocks(blocks, format, columns, dtype),
            )
            finite = from_blocks(blocks, format, columns).abs() < 1e30  # random scales are infinite or NaN, too
            assert finite.float().mean() > 0.5
            assert torch.equal(restored[finite], expected[finite])


def test_values_too_large_for_float16_become_its_largest(tiny: TinyFactory) -> None:
    model = load(tiny, "llama-biases", torch.bfloat16)
    model.get_parameter("blocks.0.attn.qkv.bias").data[-1] = 1e6
    assert native_logits(model, 1).isfinite().all()


def test_threads_may_share_a_model(tiny: TinyFactory) -> None:
    model = load(tiny, "llama")
    alone = native_logits(model, 1)
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(native_logits, model, size) for size in (1, 2, 3, 1)]
    assert all(torch.equal(logits.result(), alone) for logits in together)


def test_what_c_would_misread_is_refused(tiny: TinyFactory) -> None:
    def refused(name: str, wrong: Callable[[Tensor], Tensor]) -> bool:
        model = load(tiny, "llama-biases")
        module, _, last = name.rpartition(".")
        right = model.get_parameter(name).detach()
        setattr(model.get_submodule(module), last, torch.nn.Parameter(wrong(right), requires_grad=False))
        try:
            NativeStep(model, 1)
        except (AssertionError, KeyError):
            return True
        return False

    assert not refused("embedding.weight", torch.clone)
    for name in ("embedding.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.down.weight"):
        assert refused(name, lambda x: x[1:])
        assert refused(name, lambda x: x[:, 1:])
        assert refused(name, lambda x: x.t().contiguous().t())
        assert refused(name, lambda x: x[:1].expand_as(x))
        assert refused(name, torch.Tensor.double)
    for name in ("blocks.0.attn.qkv.bias", "blocks.0.attn_norm.weight", "norm.weight"):
        assert refused(name, lambda x: x[1:])


@pytest.mark.parametrize("changes", [{"dtype": torch.float16}, {"batch": 2}, {"heads": 1}, {"layers": 1}])
def test_caches_of_other_models_are_refused(tiny: TinyFactory, changes: dict[str, Any]) -> None:
    model = load(tiny, "llama")
    config = dataclasses.replace(
        model.config,
        num_key_value_heads=changes.pop("heads", model.config.num_key_value_heads),
        num_hidden_layers=changes.pop("layers", model.config.num_hidden_layers),
    )
    cache = KVCache(config, device=CPU, **{"dtype": torch.float32, **changes})
    with pytest.raises(AssertionError):
        native_of(model).feed([1], cache, 1)


def test_tokens_that_the_model_does_not_know_are_refused(tiny: TinyFactory) -> None:
    model = load(tiny, "llama")
    for token in (-1, model.config.vocab_size):
        with pytest.raises(AssertionError, match="do not fit"):
            native_of(model).feed([token], model.new_cache(), 1)


def test_weights_quantized_after_a_step_are_decoded_with(tiny: TinyFactory) -> None:
    model, fresh = load(tiny, "llama"), load(tiny, "llama")
    before = native_logits(model, 1)
    for each in (model, fresh):
        quantize(each, "int8")
    assert not torch.equal(native_logits(model, 1), before)
    assert torch.equal(native_logits(model, 1), native_logits(fresh, 1))


def test_parameters_that_move_are_found_again(tiny: TinyFactory) -> None:
    model = load(tiny, "llama")
    before = native_logits(model, 1)
    model.to(torch.bfloat16)
    assert 0 < difference(native_logits(model, 1), before) < 0.1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_refused(tiny: TinyFactory) -> None:
    model = load(tiny, "llama")
    step = native_of(model)
    process = os.fork()
    if process == 0:
        try:
            step.feed([1], model.new_cache(), 1)
        except LlmcliError:
            os._exit(17)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 17


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("granite", "attention_scale", 0.3),
        ("granite", "residual_scale", 1.0),
        ("granite", "embedding_scale", 1.0),
        ("gemma2", "attention_cap", 0.0),
        ("gemma2", "logit_cap", 0.0),
        ("llama", "norm_eps", 0.0),
        ("llama", "activation", 2),
        ("gpt_neox", "parallel", 0),
        ("qwen3_moe", "norm_experts", 0),
        ("olmo2", "qk_norm_full", 0),
        ("olmo", "qkv_limit", 0.0),
        ("gpt_oss", "gate_limit", 0.0),
        ("gpt_oss", "up_offset", 0.0),
        ("ministral3", "query_growth", 0.0),
        ("ministral3", "query_context", 2),
        ("hunyuan_v1_dense", "norm_after_rope", 0),
    ],
)
def test_every_wrong_choice_shows(tiny: TinyFactory, name: str, field: str, value: float) -> None:
    model = load(tiny, name)
    expected = reference_logits(model)
    step = native_of(model)
    description = step._description.model
    assert getattr(description, field) != value
    setattr(description, field, value)
    wrong = NativeStep.__new__(NativeStep)
    wrong.__dict__.update(step.__dict__)
    wrong.engine = step.library.engine_create(description, 1)
    assert difference(native_logits(model, 1, step=wrong), expected) > WRONG


@pytest.mark.parametrize("activation", [name for name in get_args(Activation) if name != "xielu"])
def test_every_activation_is_the_references(tiny: TinyFactory, activation: Activation) -> None:
    folder = tiny("llama").folder
    config = dataclasses.replace(Checkpoint.read(folder).config, activation=activation)
    loaded = dataclasses.replace(Checkpoint.read(folder), config=config)
    model = loaded.load(device=CPU, build=EngineTransformer)
    assert isinstance(model, EngineTransformer)
    assert difference(native_logits(model, 1), reference_logits(model)) <= CLOSE


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2-biases"])
def test_models_that_torch_runs_have_exact_products(tiny: TinyFactory, name: str, quantization: str | None) -> None:
    """With few tokens; each token's logits are those of the restored weights, in fp32, but for keys and values."""
    model = load(tiny, name, torch.bfloat16)
    if quantization is not None:
        quantize(model, quantization)  # type: ignore[arg-type]
    assert model.native is None
    assert model.products is not None
    few, rest, cache = IDS[: MAX_ROWS + 3], IDS[MAX_ROWS + 3 : 60], model.new_cache()
    logits = torch.cat(
        [last_logits(model, [id], cache, 1) for id in few] + [last_logits(model, rest, cache, len(rest))]
    )
    assert difference(logits, reference_logits(model)[:60]) <= HALF
    matrix = model.blocks[0].mlp.up
    x = torch.randn(MAX_ROWS, model.config.hidden_size)
    together = model.products.product(matrix, x)
    assert all(torch.equal(model.products.product(matrix, row), y) for row, y in zip(x, together, strict=True))
    expected = x.double() @ matrix.dense(slice(None)).double().T
    assert difference(together.double(), expected) <= CLOSE
