"""What a decoding step costs: one call of the compiled engine, whatever the model, its weights and the depth."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmcli.engine.native import variant
from llmcli.engine.transformer import EngineTransformer
from llmcli.generation.reading import NATIVE_PROMPT, next_logits
from llmcli.model import attention
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantize
from tests.tiny import KINDS, VOCAB, TinyFactory

PROMPT = [1 + n % 50 for n in range(2 * NATIVE_PROMPT)]  # long enough for torch to read it
MAX_OPERATIONS = 8  # of torch in a step, whatever the number of layers: buffers for the logits, and views of them


class Count(TorchDispatchMode):
    """Counts torch's operations by name, and records the number of elements of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def counted(model: Transformer, past: int) -> Count:
    """torch's operations in a step after ``past`` tokens; an earlier step makes the engine and its tables of angles."""
    cache = model.new_cache()
    next_logits(model, PROMPT[: past - 1], cache)
    next_logits(model, [3], cache)
    cache.truncate(past)
    cache.reserve(1)  # growing is rare
    with Count() as count:
        next_logits(model, [5], cache)
    return count


@pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "qwen3_moe", "phi3-longrope"])
def test_a_step_is_one_call_and_no_work_of_torchs(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, quantization: Any
) -> None:
    """So nothing is restored from quantized weights, either: no result of torch's is larger than the logits."""
    model = tiny(name).load().to(torch.bfloat16)
    if quantization is not None:
        quantize(model, quantization)
    assert isinstance(model, EngineTransformer)
    assert model.native is not None
    library, calls = model.native.library, []
    engine_step = library.engine_step
    monkeypatch.setattr(library, "engine_step", lambda *args: calls.append(args) or engine_step(*args))
    near, before = counted(model, 6), len(calls)
    far = counted(model, 2 * NATIVE_PROMPT)
    assert (before, len(calls)) == (3, 5)  # the last step of each is counted; torch reads the longer text
    for count in (near, far):
        assert count.calls.total() <= MAX_OPERATIONS, count.calls
        assert count.largest <= VOCAB
    assert near.calls == far.calls


@pytest.mark.parametrize("name", KINDS)
def test_without_a_trace_nothing_is_recorded(tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither prefill nor decoding copies anything or computes attention weights, even after a traced pass."""

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was recorded")

    model = tiny(name).load()
    next_logits(model, PROMPT, model.new_cache(), Trace())
    monkeypatch.setattr(Trace, "keep", called)
    monkeypatch.setattr(attention, "kept", called)
    if model.config.attention_softcap is None and model.config.alibi is None:
        monkeypatch.setattr(attention, "attention_weights", called)
    cache = model.new_cache()
    cache.planned = len(PROMPT) + 1
    for ids in (PROMPT, [5]):
        next_logits(model, ids, cache)
        with pytest.raises(AssertionError):
            next_logits(model, ids, model.new_cache(), Trace())
