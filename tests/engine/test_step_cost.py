"""The operations of a decoding step: only matrix-vector products, few in number, and the same at any depth."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmcli.generation.steps import next_logits
from llmcli.model import attention
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantize
from tests.tiny import CASES, TinyFactory

# Limits of tensor operations per layer, views included: the current numbers and a small margin.
MAX_OPERATIONS = {"llama": 45, "qwen3": 56, "gemma2": 90, "gpt2": 40}


class Count(TorchDispatchMode):
    """Counts operations by name, and records the number of elements of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        views = ("view", "t", "transpose", "narrow", "slice", "as_strided", "select", "detach", "_unsafe_view")
        if isinstance(result, torch.Tensor) and func.overloadpacket.__name__ not in views:
            self.largest = max(self.largest, result.numel())
        return result


def counted(model: Transformer, past: int) -> Count:
    """The operations of a step after ``past`` tokens; an earlier step fills the caches of rotary angles."""
    cache = model.new_cache()
    next_logits(model, [1 + n % 50 for n in range(past - 1)], cache)
    next_logits(model, [3], cache)
    cache.truncate(past)
    with Count() as count:
        next_logits(model, [5], cache)
    return count


def bf16(tiny: TinyFactory, name: str) -> Transformer:
    return tiny(name).load().to(torch.bfloat16)


@pytest.mark.parametrize("name", MAX_OPERATIONS)
def test_a_step_has_few_operations_and_no_matrix_matrix_product(tiny: TinyFactory, name: str) -> None:
    model = bf16(tiny, name)
    count = counted(model, 8)
    layers = model.config.num_hidden_layers
    assert count.calls["mv"] == 4 * layers + 1
    if model.config.attention_softcap is None:  # a softcap needs the scores, which are such a product
        assert not set(count.calls) & {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul"}
    assert not set(count.calls) & {"tril", "triu", "masked_fill"} or model.config.attention_softcap is not None
    assert count.calls.total() <= MAX_OPERATIONS[name] * layers, count.calls


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_step_has_the_same_operations_at_any_depth(tiny: TinyFactory, name: str) -> None:
    model = bf16(tiny, name)
    near, far = counted(model, 6), counted(model, 20)
    assert near.calls == far.calls


@pytest.mark.parametrize(("quantization", "kernel"), [("int8", "_int_mm"), ("int4", "_weight_int4pack_mm_for_cpu")])
def test_a_step_never_unpacks_quantized_weights(tiny: TinyFactory, quantization: Any, kernel: str) -> None:
    model = bf16(tiny, "llama")
    quantize(model, quantization)
    count = counted(model, 8)
    weights = min(parameter.numel() for name, parameter in model.named_parameters() if name.endswith("qkv.weight"))
    assert count.calls[kernel] or quantization == "int4"
    assert count.calls["_int_mm"] + count.calls["_weight_int4pack_mm_for_cpu"] == 4 * model.config.num_hidden_layers + 1
    assert count.largest < weights


@pytest.mark.parametrize("name", CASES)
def test_without_a_trace_nothing_is_recorded(tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither prefill nor decoding copies anything or computes attention weights, even after a traced pass."""

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was recorded")

    model = tiny(name).load()
    before = counted(model, 8)
    next_logits(model, [1, 2, 3], model.new_cache(), Trace())
    monkeypatch.setattr(Trace, "keep", called)
    monkeypatch.setattr(attention, "keep", called)
    if model.config.attention_softcap is None:
        monkeypatch.setattr(attention, "attention_weights", called)
    assert counted(model, 8).calls == before.calls
    with pytest.raises(AssertionError):
        next_logits(model, [1, 2, 3], model.new_cache(), Trace())
