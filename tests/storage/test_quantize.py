"""Quantized matrices against products in fp64, and quantized models against plain ones with dequantized weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.errors import EXIT_FAILURE, EXIT_USAGE, LlmcliError
from llmcli.generation.bench import read_bytes
from llmcli.model.layers import Embedding, Linear, Norm
from llmcli.model.transformer import Transformer
from llmcli.storage import quantize as module
from llmcli.storage.quantize import (
    FEW_TOKENS,
    ROW_BLOCK,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    Quantization,
    matrices,
    packed,
    quantize,
    quantized_module,
    stored_tensors,
    unpacked,
)
from tests.tiny import CASES, VOCAB, random_ids
from tests.wide import GROUP, raw_config, reference, wide_model

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Tolerance of a product, relative to the row's norm times the weights' norm, by the dtype of the result.
PRECISION = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(out: int, inner: int, *, bias: bool = False, seed: int = 0) -> Linear:
    """A matrix with an outlier, so that groups have different factors."""
    made = Linear(inner, out, bias=bias).requires_grad_(False)
    made.weight.copy_(noise(out, inner, seed=seed))
    made.weight[out // 2, inner // 2] = 9.0
    if made.bias is not None:
        made.bias.copy_(noise(out, seed=seed + 1))
    return made


def quantized_version(
    plain: Linear | Embedding, quantization: Quantization, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """The module that ``quantize`` replaces ``plain`` with."""
    return quantized_module(stored_tensors(plain, quantization, "name"), dtype, table=isinstance(plain, Embedding))


def dequantized_weights(plain: Linear | Embedding, quantization: Quantization) -> Tensor:
    """The weights that the stored tensors of ``plain`` represent, fp64, unpacked by hand."""
    tensors = stored_tensors(plain, quantization, "name")
    codes, scale = tensors["weight"], tensors["scale"].double().view(-1, 1)
    if "factors" not in tensors:
        return codes.double() * scale
    low, high = (codes & 15).int(), (codes >> 4).int()
    pairs = torch.stack((low, high), -1).flatten(1)
    signed = torch.where(pairs > 7, pairs - 16, pairs)
    return signed.double() * tensors["factors"].double().repeat_interleave(GROUP, 1) * scale


def rounded_to_int8(rows: Tensor) -> Tensor:
    """Each row rounded to multiples of its largest value / 127, fp64."""
    wide = rows.double()
    step = wide.abs().amax(-1, keepdim=True) / 127
    return (wide / step).round() * step


def assert_close(ours: Tensor, exact: Tensor, rows: Tensor, weights: Tensor) -> None:
    bound = rows.double().norm(dim=-1).unsqueeze(-1) * weights.norm(dim=-1)
    difference = (ours.double() - exact).abs()
    assert (difference <= PRECISION[ours.dtype] * bound).all(), float((difference / bound).max())


# Modules

SHAPES = [(1, 32), (7, 32), (64, 64), (65, 96), (130, 256), (200, 160)]
ODD = [(1, 1), (3, 5), (64, 33), (70, 48)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES + ODD)
def test_int8_multiplies_quantized_rows(shape: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    plain = linear(*shape, bias=bias).to(dtype)
    ours, weights = quantized_version(plain, "int8", dtype), dequantized_weights(plain, "int8")
    assert isinstance(ours, Int8Linear)
    for count in (1, 2, 80):
        rows = noise(count, shape[1], seed=2).to(dtype)
        exact = rounded_to_int8(rows) @ weights.t()
        y = ours(rows)
        assert y.dtype == dtype
        if plain.bias is not None:  # as if every row ended with a 1
            exact, weights = exact + plain.bias.double(), torch.cat((weights, plain.bias.double().unsqueeze(1)), 1)
            rows = torch.cat((rows, torch.ones(count, 1, dtype=dtype)), 1)
        assert_close(y, exact, rows, weights)
        weights = weights[:, : shape[1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_int4_multiplies_plain_rows_for_few_tokens_and_quantized_rows_for_many(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    plain = linear(*shape)
    ours, weights = quantized_version(plain, "int4", dtype), dequantized_weights(plain, "int4")
    assert isinstance(ours, Int4Linear)
    rows = noise(FEW_TOKENS + 6, shape[1], seed=2).to(dtype)
    for count in (1, 2, 5, FEW_TOKENS):
        assert ours(rows[:count]).dtype == dtype
        assert_close(ours(rows[:count]), rows[:count].double() @ weights.t(), rows[:count], weights)
    for count in (FEW_TOKENS + 1, FEW_TOKENS + 6):
        assert_close(ours(rows[:count]), rounded_to_int8(rows[:count]) @ weights.t(), rows[:count], weights)


@pytest.mark.parametrize("count", [1, 3, FEW_TOKENS + 1])
def test_int4_adds_its_bias(count: int) -> None:
    plain = linear(70, 64, bias=True)
    with_bias, without = quantized_version(plain, "int4"), linear(70, 64)
    rows = noise(count, 64, seed=2)
    assert plain.bias is not None
    assert torch.equal(plain.weight, without.weight)
    assert torch.allclose(with_bias(rows) - quantized_version(without, "int4")(rows), plain.bias, atol=1e-5)


@pytest.mark.parametrize("shape", ODD)
def test_rows_that_are_not_whole_groups_get_8_bits(shape: tuple[int, int]) -> None:
    plain = linear(*shape)
    four, eight = quantized_version(plain, "int4"), quantized_version(plain, "int8")
    assert isinstance(four, Int8Linear)
    assert torch.equal(four.weight, eight.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_embedding_has_8_bits_for_lookup_and_unembedding(quantization: Quantization, dtype: torch.dtype) -> None:
    plain = Embedding(71, 64).requires_grad_(False)
    plain.weight.copy_(noise(71, 64))
    ours, weights = quantized_version(plain, quantization, dtype), dequantized_weights(plain, "int8")
    assert isinstance(ours, Int8Embedding)
    ids = torch.tensor([[0, 70, 3], [5, 5, 1]])
    assert torch.equal(ours(ids), weights.float()[ids].to(dtype))
    rows = noise(2, 3, 64, seed=2).to(dtype)
    y = ours.unembed(rows)
    assert y.shape == (2, 3, 71)
    assert_close(y.flatten(0, 1), rounded_to_int8(rows.flatten(0, 1)) @ weights.t(), rows.flatten(0, 1), weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("module_type", [*QUANTIZATIONS, "table"])
def test_a_single_vector_gives_the_row_of_a_batch_and_is_not_changed(module_type: str, dtype: torch.dtype) -> None:
    product: Callable[[Tensor], Tensor]
    if module_type == "table":
        table = Embedding(71, 64).requires_grad_(False)
        table.weight.copy_(noise(71, 64))
        made = quantized_version(table, "int8", dtype)
        assert isinstance(made, Int8Embedding)
        product = made.unembed
    else:
        product = quantized_version(linear(71, 64), "int8" if module_type == "int8" else "int4", dtype)
    rows = noise(6, 64, seed=3).to(dtype)
    kept = rows.clone()
    batch = product(rows)
    for number, row in enumerate(rows):
        y = product(row)
        assert y.shape == (71,)
        assert y.dtype == dtype
        assert torch.allclose(y, batch[number], rtol=2 * PRECISION[dtype], atol=30 * PRECISION[dtype])
    assert torch.equal(rows, kept)
    assert not product(torch.zeros(64, dtype=dtype)).any()
    assert not product(torch.zeros(3, 64, dtype=dtype)).any()
    assert product(torch.full((64,), math.nan, dtype=dtype)).isnan().all()


@pytest.mark.parametrize("count", [3, FEW_TOKENS + 5])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_token_does_not_depend_on_the_others_in_the_batch(quantization: Quantization, count: int) -> None:
    ours = quantized_version(linear(70, 64), quantization)
    rows = noise(count, 64, seed=2)
    others = 1000 * noise(count, 64, seed=3)
    others[1] = rows[1]
    assert torch.equal(ours(rows)[1], ours(others)[1])
    assert torch.equal(ours(rows.view(1, count, 64))[0], ours(rows))


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from(QUANTIZATIONS),
    st.booleans(),
)
def test_shapes_are_kept(blocks: int, groups: int, batch: list[int], quantization: Quantization, bias: bool) -> None:
    out, inner = blocks * 37, groups * GROUP
    ours = quantized_version(linear(out, inner, bias=bias), quantization)
    assert ours(noise(*batch, inner)).shape == (*batch, out)


# The 4-bit kernel's layout


@pytest.mark.parametrize("shape", [(ROW_BLOCK, 32), (2 * ROW_BLOCK, 96), (5 * ROW_BLOCK, 256)])
def test_unpacked_inverts_packed(shape: tuple[int, int]) -> None:
    codes = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packs = packed(codes)
    assert packs.dtype == torch.uint8
    assert packs.shape == (shape[0], shape[1] // 2)
    if not module.knows_layout():
        pytest.skip("this processor has another layout")
    blocks = unpacked(packs)
    assert blocks.shape == (shape[0] // ROW_BLOCK, shape[1], ROW_BLOCK)
    assert torch.equal(blocks.transpose(1, 2).reshape(shape), codes)


ROW_SLICES = (slice(None), slice(70, 71), slice(63, 129), slice(-3, None), slice(5, 5))


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("part", ROW_SLICES, ids=str)
def test_dense_gives_the_matrix_that_is_multiplied(
    quantization: Quantization | None, known: bool, part: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each column is the product with a unit vector."""
    monkeypatch.setattr(module, "knows_layout", lambda: known)
    plain = linear(150, 2 * GROUP, bias=True)
    made = plain if quantization is None else quantized_version(plain, quantization)
    dense = made.dense(part)
    assert dense.dtype == torch.float32
    products = torch.stack([made(one) for one in torch.eye(2 * GROUP)], dim=-1) - plain.bias.unsqueeze(-1)
    torch.testing.assert_close(dense, products[part], rtol=1e-5, atol=1e-5)


def test_an_unknown_layout_is_detected_and_still_gives_correct_products(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = linear(70, 64)
    ours, weights = quantized_version(plain, "int4"), dequantized_weights(plain, "int4")
    rows = noise(FEW_TOKENS + 20, 64, seed=2)
    monkeypatch.setattr(module, "unpacked", lambda packs: unpacked(packs.flip(0)))
    module.knows_layout.cache_clear()
    try:
        assert not module.knows_layout()
        assert_close(
            ours(rows), rows.double() @ weights.t(), rows, weights
        )  # rows are not quantized: the kernel for few tokens is used
    finally:
        module.knows_layout.cache_clear()


@pytest.mark.parametrize("pieces", [1, 64 * 64, 3 * 64 * 64])
def test_the_size_of_pieces_changes_no_bit(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    plain, rows = linear(300, 64, bias=True), noise(FEW_TOKENS + 3, 64, seed=2)
    whole = {
        quantization: (stored_tensors(plain, quantization, "name"), quantized_version(plain, quantization)(rows))
        for quantization in QUANTIZATIONS
    }
    monkeypatch.setattr(module, "CHUNK", pieces)
    for quantization, (tensors, y) in whole.items():
        again = stored_tensors(plain, quantization, "name")
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[part], tensors[part]) for part in tensors)
        assert torch.equal(quantized_version(plain, quantization)(rows), y)


# Models


def quantized(model: Transformer, quantization: Quantization) -> Transformer:
    other = copy.deepcopy(model)
    quantize(other, quantization)
    return other


def mean_difference(ours: Tensor, theirs: Tensor) -> float:
    """The mean difference of logits, relative to their standard deviation; infinite for NaN."""
    return float((ours - theirs).abs().nan_to_num(nan=math.inf).mean() / theirs.std())


# A sum in another order occasionally rounds an activation to the next integer, which changes everything after it.
# The tolerance is half of the total effect of quantizing activations; most cases agree to the last bits.
FLIPPED = 0.015


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_quantized_model_matches_one_with_dequantized_weights(name: str, quantization: Quantization) -> None:
    model = wide_model(raw_config(name))
    ours, theirs = quantized(model, quantization), reference(model, quantization)
    with torch.inference_mode():
        for count in (FEW_TOKENS - 20, FEW_TOKENS + 8):
            ids = random_ids(count, seed=5)
            logits, expected = ours(ids), theirs(ids)
            assert mean_difference(logits, expected) <= FLIPPED
            assert 0.01 < mean_difference(logits, model(ids)) < 0.4, (
                "quantization should change the logits, but not much"
            )


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", CASES)
def test_cached_logits_equal_uncached_ones(name: str, quantization: Quantization) -> None:
    model = quantized(wide_model(raw_config(name)), quantization)
    ids = random_ids(40, seed=5)
    cache = model.new_cache()
    cache.planned = 40
    with torch.inference_mode():
        cuts = [ids[:, :30], ids[:, 30:33], *ids[:, 33:].split(1, dim=1)]
        cached = torch.cat([model(part, cache) for part in cuts], dim=1)
        assert mean_difference(cached, model(ids)) <= FLIPPED


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "qwen3_moe", "llama-biases", "llama-tied"])
def test_only_matrices_and_tables_are_quantized(name: str, quantization: Quantization) -> None:
    model = wide_model(raw_config(name), dtype=torch.bfloat16)
    ours = quantized(model, quantization)
    assert ours.dtype == torch.bfloat16
    kept = dict(ours.named_parameters())
    for key, parameter in model.named_parameters():
        owner = model.get_submodule(key.rpartition(".")[0])
        unchanged = isinstance(owner, Norm) or key.endswith((".bias", ".router.weight")) or key == "positions.weight"
        if unchanged:
            assert torch.equal(kept[key], parameter), key
        else:
            assert isinstance(owner, (Linear, Embedding)), key
            assert isinstance(ours.get_submodule(key.rpartition(".")[0]), (Int8Linear, Int4Linear, Int8Embedding)), key
    assert not list(matrices(ours))
    assert isinstance(ours.embedding, Int8Embedding)
    assert (ours.head is None) == (model.head is None)


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.53), ("int4", 0.4)])
def test_weights_take_half_or_a_third_of_the_bytes(quantization: Quantization, most: float) -> None:
    model = wide_model(raw_config("llama") | {"hidden_size": 512, "intermediate_size": 768}, dtype=torch.bfloat16)
    ours = quantized(model, quantization)
    before, after = (sum(p.nbytes for p in m.parameters()) for m in (model, ours))
    assert after < most * before
    assert read_bytes(ours) < most * read_bytes(model)


def test_a_tied_table_is_also_the_head() -> None:
    ours = quantized(wide_model(raw_config("llama-tied")), "int8")
    x = noise(1, 2, 96)
    with torch.inference_mode():
        before = ours.unembed(x)
        ours.embedding.weight.mul_(-1)
        assert torch.equal(ours.unembed(x), -before)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_progress_counts_quantized_weights(quantization: Quantization) -> None:
    model = wide_model(raw_config("mixtral"))
    total = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".router." not in name)
    seen: list[tuple[int, int]] = []
    quantize(model, quantization, lambda done, all_: seen.append((done, all_)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {all_ for _, all_ in seen} == {total}
    assert seen[-1][0] == total


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantizing_twice_is_rejected(quantization: Quantization) -> None:
    model = quantized(wide_model(raw_config("llama")), quantization)
    for again in QUANTIZATIONS:
        with pytest.raises(LlmcliError, match="already") as caught:
            quantize(model, again)
        assert caught.value.exit_code == EXIT_USAGE
        assert caught.value.kind == "already-quantized"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["embedding", "blocks.1.mlp.down"])
def test_nan_and_infinite_weights_are_named(quantization: Quantization, value: float, name: str) -> None:
    model = wide_model(raw_config("llama"))
    weight = model.get_parameter(f"{name}.weight")
    weight[-1, -1] = value
    with pytest.raises(LlmcliError, match=rf"{name}\.weight") as caught:
        quantize(model, quantization)
    assert caught.value.exit_code == EXIT_FAILURE
    assert caught.value.hint


def test_models_on_other_devices_are_rejected() -> None:
    model = wide_model(raw_config("llama")).to("meta")
    with pytest.raises(LlmcliError, match="not on meta") as caught:
        quantize(model, "int8")
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.kind == "quantized-needs-cpu"
    assert len(list(matrices(model))) > 5, "the model must not change"


def test_only_the_chosen_experts_run() -> None:
    """For a single token they get one row, which the kernel for few tokens multiplies."""
    ours = quantized(wide_model(raw_config("qwen3_moe")), "int4")
    called: list[int] = []
    moe = ours.blocks[1].mlp
    for number, expert in enumerate(moe.experts):
        expert.register_forward_hook(lambda *_, number=number: called.append(number))
    with torch.inference_mode():
        assert ours(random_ids(1, seed=0)).isfinite().all()
    assert len(called) == 2
    assert len(moe.experts) == 6
    assert ours(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, VOCAB)
