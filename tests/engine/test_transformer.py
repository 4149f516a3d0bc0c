"""The engine gives the same logits as the reference, for every case, prefilled and decoded, in fp32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from llmcli.engine import attention
from llmcli.engine.transformer import FAST, FastLinear, FastNorm
from llmcli.model.attention import Attention
from llmcli.model.layers import Embedding, Linear, Norm
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from tests.parity import DECODED, logits_of
from tests.tiny import CASES, CONTEXT, CPU, Tiny, TinyFactory, load, random_ids

IDS = random_ids(CONTEXT, seed=0)  # one text: the kernels for single vectors only run without a batch
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # relative to the largest logit
WRONG = 1e-3  # a mistake must exceed this in fp32
CUTS = [pytest.param(None, id="prefilled"), pytest.param(DECODED, id="decoded")]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """The kernels for single vectors do not run under autograd."""
    with torch.inference_mode():
        yield


def reference(case: Tiny, dtype: torch.dtype = torch.float32) -> Transformer:
    """The case's model as plain ``Transformer``."""
    model = Checkpoint.read(case.folder).load(device=CPU, dtype=dtype)
    assert type(model) is Transformer
    return model


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between two sets of logits, relative to the largest logit of b."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float((a - b).abs().nan_to_num(nan=torch.inf).max() / b.abs().max())


def engine_difference(case: Tiny, cuts: list[int] | None, dtype: torch.dtype = torch.float32) -> float:
    """``difference`` between the engine's logits and the reference's, both read in the same chunks."""
    engine = load(case.folder, device=CPU, dtype=dtype)
    return difference(logits_of(engine, IDS, cuts), logits_of(reference(case, dtype), IDS, cuts))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_fp32_logits_are_those_of_the_reference(tiny: TinyFactory, name: str, cuts: list[int] | None) -> None:
    assert engine_difference(tiny(name), cuts) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "gpt2", "cohere-normed", "smollm3"])
def test_bfloat16_logits_are_close_to_the_reference(tiny: TinyFactory, name: str, cuts: list[int] | None) -> None:
    """No mixture of experts is among them, because rounding can change a router's choice."""
    assert engine_difference(tiny(name), cuts, torch.bfloat16) <= TOLERANCE[torch.bfloat16]


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 instructions")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "cohere"])
def test_attention_in_blocks_is_close_to_the_reference(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Prompts of real models are long enough for ``attend_in_blocks``; here a lower threshold makes it run."""
    calls: list[int] = []
    attend_in_blocks = attention.attend_in_blocks
    monkeypatch.setattr(attention, "MIN_QUERIES", 1)
    monkeypatch.setattr(
        attention, "attend_in_blocks", lambda *args: calls.append(args[0].shape[2]) or attend_in_blocks(*args)
    )
    assert engine_difference(tiny(name), None, torch.bfloat16) <= TOLERANCE[torch.bfloat16]
    assert calls == [CONTEXT] * tiny(name).load().config.num_hidden_layers


@pytest.mark.parametrize("name", CASES)
def test_the_engine_has_the_fast_modules_and_the_same_parameters(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    plain, fast = reference(case), load(case.folder, device=CPU, dtype=torch.float32)
    for (path, module), (fast_path, fast_module) in zip(plain.named_modules(), fast.named_modules(), strict=True):
        assert path == fast_path
        if path:
            assert type(fast_module) is FAST.get(type(module), type(module)), path
    for (path, parameter), (fast_path, fast_parameter) in zip(
        plain.named_parameters(), fast.named_parameters(), strict=True
    ):
        assert path == fast_path
        assert torch.equal(parameter, fast_parameter), path


def test_every_module_with_a_fast_kernel_is_replaced() -> None:
    assert set(FAST) == {Linear, Embedding, Norm, Attention}
    assert all(issubclass(fast, plain) for plain, fast in FAST.items())


# Sabotage: mistakes in the kernels for single vectors show in decoded logits, and only there.


def norm_without(attribute: str) -> Callable[[FastNorm, Tensor], Tensor]:
    """``FastNorm._single`` that ignores ``eps`` or ``offset``."""
    single = FastNorm._single

    def sabotaged(norm: FastNorm, x: Tensor) -> Tensor:
        right = getattr(norm, attribute)
        setattr(norm, attribute, 0.0)
        try:
            return single(norm, x)
        finally:
            setattr(norm, attribute, right)

    return sabotaged


def linear_without_bias(linear: FastLinear, x: Tensor) -> Tensor:
    """``FastLinear.forward`` that forgets the bias of a single vector."""
    return nn.functional.linear(x, linear.weight, None if x.dim() == 1 else linear.bias)


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "sabotaged"),
    [
        ("llama", FastNorm, "_single", norm_without("eps")),
        ("gemma3_text", FastNorm, "_single", norm_without("eps")),
        ("gemma3_text", FastNorm, "_single", norm_without("offset")),
        ("llama-biases", FastLinear, "forward", linear_without_bias),
    ],
    ids=["no eps", "no eps, with offset", "no offset", "no bias"],
)
def test_a_wrong_kernel_for_single_vectors_shows(
    tiny: TinyFactory,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    owner: type[nn.Module],
    attribute: str,
    sabotaged: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr(owner, attribute, sabotaged)
    assert engine_difference(tiny(name), None) <= TOLERANCE[torch.float32]
    assert engine_difference(tiny(name), DECODED) > WRONG


def test_scores_without_their_scale_show(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    single = attention.attend_single
    monkeypatch.setattr(
        attention, "attend_single", lambda q, k, v, mask, scale: single(q, k, v, mask, q.shape[-1] ** -0.5)
    )
    assert engine_difference(tiny("granite"), None) <= TOLERANCE[torch.float32]
    assert engine_difference(tiny("granite"), DECODED) > WRONG
