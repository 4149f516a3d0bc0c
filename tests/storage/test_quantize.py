"""Quantized matrices against products in fp64, and quantized models against plain ones with restored weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from llmcli.errors import EXIT_FAILURE, EXIT_USAGE, LlmcliError
from llmcli.generation.bench import read_bytes
from llmcli.model.layers import Embedding, Linear, Norm
from llmcli.model.transformer import Transformer
from llmcli.storage import quantize as module
from llmcli.storage.ggml import from_blocks
from llmcli.storage.quantize import (
    Quantization,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedMatrix,
    matrices,
    quantize,
    quantized_module,
    quantized_weight,
)
from tests.tiny import KINDS, VOCAB, random_ids
from tests.wide import raw_config, wide_model

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4")
# Tolerance of a product, relative to the row's norm times the weights' norm, by the dtype it is computed in.
PRECISION = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(out: int, inner: int, *, bias: bool = False) -> Linear:
    made = Linear(inner, out, bias=bias).requires_grad_(False)
    made.weight.copy_(noise(out, inner))
    if made.bias is not None:
        made.bias.copy_(noise(out, seed=1))
    return made


def quantized_version(plain: Linear | Embedding, quantization: Quantization, dtype: torch.dtype) -> QuantizedMatrix:
    """The module that ``quantize`` replaces ``plain`` with."""
    blocks = quantized_weight("name", plain, quantization)
    return quantized_module("name", plain, blocks, getattr(plain, "bias", None), quantization, dtype)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(("out", "inner", "bias"), [(1, 32, False), (65, 96, True), (3, 5, True), (70, 48, False)])
def test_products_of_restored_weights(
    out: int, inner: int, bias: bool, quantization: Quantization, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices that are not whole blocks, and that are restored in several parts, too."""
    monkeypatch.setattr(module, "CHUNK", 20 * inner)
    plain = linear(out, inner, bias=bias)
    ours = quantized_version(plain, quantization, dtype)
    assert isinstance(ours, QuantizedLinear)
    weights = from_blocks(ours.weight, ours.format, inner).double()
    x = noise(2, 3, inner, seed=2)
    expected = x.double() @ weights.t() + (0 if plain.bias is None else plain.bias.double())
    y = ours(x)
    assert y.shape == (2, 3, out)
    bound = x.double().norm(dim=-1, keepdim=True) * weights.norm(dim=-1) + 4
    assert ((y.double() - expected).abs() <= PRECISION[dtype] * bound).all()
    torch.testing.assert_close(ours.dense(slice(1, out)), weights[1:].float())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_table_restores_rows_and_is_a_head_with_exact_sums(quantization: Quantization) -> None:
    plain = Embedding(71, 64).requires_grad_(False)
    plain.weight.copy_(noise(71, 64))
    ours = quantized_version(plain, quantization, torch.bfloat16)
    assert isinstance(ours, QuantizedEmbedding)
    weights = from_blocks(ours.weight, ours.format, 64)
    ids = torch.tensor([[0, 70, 3], [5, 5, 1]])
    assert torch.equal(ours(ids), weights[ids])
    x = noise(2, 3, 64, seed=2)
    torch.testing.assert_close(ours.unembed(x), (x.double() @ weights.double().t()).float())


# Models


def quantized(model: Transformer, quantization: Quantization) -> Transformer:
    other = copy.deepcopy(model)
    quantize(other, quantization)
    return other


def mean_difference(ours: Tensor, theirs: Tensor) -> float:
    """The mean difference of logits, relative to their standard deviation; infinite for NaN."""
    return float((ours - theirs).abs().nan_to_num(nan=math.inf).mean() / theirs.std())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_a_quantized_model_is_one_with_restored_weights(name: str, quantization: Quantization) -> None:
    model = wide_model(raw_config(name))
    ours, theirs = quantized(model, quantization), copy.deepcopy(model)
    for key, parameter in theirs.named_parameters():
        owner = ours.get_submodule(key.rpartition(".")[0])
        if isinstance(owner, QuantizedMatrix) and key.endswith("weight"):
            parameter.copy_(owner.dense(slice(None)))
    ids = random_ids(40, seed=5)
    with torch.inference_mode():
        logits = ours(ids)
        assert mean_difference(logits, theirs(ids)) <= 1e-5
        assert 1e-3 < mean_difference(logits, model(ids)) < 0.45, "quantization should change the logits, but not much"


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
            assert isinstance(ours.get_submodule(key.rpartition(".")[0]), QuantizedMatrix), key
    assert not list(matrices(ours))
    assert isinstance(ours.embedding, QuantizedEmbedding)
    assert (ours.head is None) == (model.head is None)


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.54), ("int4", 0.4)])
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
        assert ours.unembed(x).any()
        ours.embedding.weight.zero_()
        assert not ours.unembed(x).any()


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
