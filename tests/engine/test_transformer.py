"""torch's passes of the engine give the logits of the reference, in fp32 and with small weights, for any chunks.

The compiled engine, which computes all other passes, is in ``test_native``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llmcli.engine import attention
from llmcli.engine import transformer as engine
from llmcli.engine.batch import BatchedCache
from llmcli.engine.cuda_graph import decode
from llmcli.engine.transformer import EngineTransformer, FastAttention, FastLatentAttention
from llmcli.model.attention import Attention
from llmcli.model.latent_attention import LatentAttention
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from tests.parity import IDS, logits_of
from tests.tiny import CASES, CONTEXT, CPU, Tiny, TinyFactory, load

CUTS = [60, 61, 62, 63, CONTEXT - 1]  # long chunks, the second after others, and single tokens, all beyond a window
TOLERANCE = 1e-5  # relative to the largest logit, in fp32
WRONG = 1e-3  # a mistake must exceed this in fp32
BF16 = 0.08  # the same for bfloat16 weights


@pytest.fixture(autouse=True)
def _torch_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine, "native_step", lambda model: None)
    monkeypatch.setattr(engine, "native_products", lambda model: None)
    with torch.inference_mode():
        yield


def reference(case: Tiny, dtype: torch.dtype = torch.float32) -> Transformer:
    """The case's model as plain ``Transformer``; weights are rounded to ``dtype``, but computed with in fp32."""
    model = Checkpoint.read(case.folder).load(device=CPU, dtype=dtype).float()
    assert type(model) is Transformer
    return model


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between two sets of fp32 logits, relative to the largest logit of b."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.float32
    return float((a - b).abs().nan_to_num(nan=torch.inf).max() / b.abs().max())


def engine_difference(case: Tiny, dtype: torch.dtype = torch.float32, cuts: list[int] | None = CUTS) -> float:
    """``difference`` between the engine's logits, read in chunks, and the reference's."""
    engine = load(case.folder, device=CPU, dtype=dtype)
    return difference(logits_of(engine, IDS, cuts), logits_of(reference(case, dtype), IDS))


@pytest.mark.parametrize("name", CASES)
def test_fp32_logits_are_those_of_the_reference(tiny: TinyFactory, name: str) -> None:
    assert engine_difference(tiny(name)) <= TOLERANCE


def bfloat16_tolerance(case: Tiny) -> float:
    """How far transformers' logits in bfloat16 are from exact ones, up to the error of a correct computation."""
    theirs = copy.deepcopy(case.reference).to(torch.bfloat16)(IDS).logits
    return min(difference(theirs.float(), logits_of(reference(case, torch.bfloat16), IDS)), BF16)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "gpt2", "cohere-normed", "smollm3"])
def test_bfloat16_logits_are_closer_to_exact_ones_than_transformers_are(tiny: TinyFactory, name: str) -> None:
    """No mixture of experts is among them, because rounding can change a router's choice."""
    assert engine_difference(tiny(name), torch.bfloat16) <= bfloat16_tolerance(tiny(name))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 instructions")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "cohere"])
def test_attention_in_blocks_is_as_close(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Prompts of real models are long enough for ``attend_in_blocks``; here a lower threshold makes it run."""
    case, calls = tiny(name), []
    attend_in_blocks = attention.attend_in_blocks
    monkeypatch.setattr(attention, "MIN_QUERIES", 1)
    monkeypatch.setattr(
        attention, "attend_in_blocks", lambda *args: calls.append(args[0].shape[2]) or attend_in_blocks(*args)
    )
    assert engine_difference(case, torch.bfloat16, cuts=None) <= bfloat16_tolerance(case)
    assert calls == [CONTEXT] * case.load().config.num_hidden_layers


@pytest.mark.parametrize("name", CASES)
def test_the_engine_has_fast_attention_and_the_same_parameters(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    plain, fast = reference(case), load(case.folder, device=CPU, dtype=torch.float32)
    assert type(fast) is EngineTransformer
    for (path, module), (fast_path, fast_module) in zip(plain.named_modules(), fast.named_modules(), strict=True):
        assert path == fast_path
        if path:
            fast_types = {Attention: FastAttention, LatentAttention: FastLatentAttention}
            assert type(fast_module) is fast_types.get(type(module), type(module)), path
    for (path, parameter), (fast_path, fast_parameter) in zip(
        plain.named_parameters(), fast.named_parameters(), strict=True
    ):
        assert path == fast_path
        assert torch.equal(parameter, fast_parameter), path


def test_scores_of_single_queries_without_their_scale_show(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    single = attention.attend_single

    def unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return single(q, k, v, mask, q.shape[-1] ** -0.5)

    monkeypatch.setattr(attention, "attend_single", unscaled)
    assert engine_difference(tiny("granite"), cuts=None) <= TOLERANCE
    assert engine_difference(tiny("granite")) > WRONG


def test_numbers_beyond_float16_stay_finite_in_every_cache(tiny: TinyFactory) -> None:
    model = load(tiny("llama").folder, device=CPU, dtype=torch.bfloat16)
    model.blocks[0].attn.qkv.weight.mul_(1e6)
    cache, batched = model.new_cache(), BatchedCache(model)
    assert cache.dtype == torch.float16
    assert model(IDS[:1, :9], cache).isfinite().all()
    batched.add(cache)
    assert batched.step([5]).isfinite().all()
    assert batched.step([6]).isfinite().all()
    assert decode(model, 5, cache).isfinite().all()
    assert decode(model, 6, cache).isfinite().all()
