"""What chooses a token in the compiled engine, against the same in torch and numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmcli.engine.native import distribution as native
from llmcli.engine.native import variant
from llmcli.engine.native.library import library
from llmcli.generation.distribution import Softmax, argmax, draw, keep, leading, probabilities, rank, tempered
from llmcli.generation.filters import TopP

T = TypeVar("T")

pytestmark = pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")


@pytest.fixture(autouse=True, scope="module", params=[0, 1, 2])
def _variant(request: pytest.FixtureRequest) -> Iterator[None]:
    found = library()
    assert found is not None
    if found.engine_choose(request.param) is None:
        pytest.skip("this processor cannot run it, or there is none")
    yield
    next(best for best in range(3) if found.engine_choose(best))


def plain(compute: Callable[..., T], *arguments: object) -> T:
    """The result of torch and numpy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_compiled", lambda values: False)
        return compute(*arguments)


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    """Logits [V] of several magnitudes, some with ties, some with cut tokens."""
    size = draw(st.sampled_from([1, 2, 15, 16, 17, 127, 128, 129, 2000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(size, generator=generator) * draw(st.sampled_from([0.0, 0.1, 3.0, 30.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        logits[1:][torch.rand(size - 1, generator=generator) < draw(st.sampled_from([0.3, 0.99]))] = -math.inf
    return logits


@settings(max_examples=60)
@given(vectors(), st.floats(0, 1, exclude_max=True), st.data())
def test_compiled_passes_are_those_of_torch(logits: Tensor, u: float, data: st.DataObject) -> None:
    token, count = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.integers(0, len(logits)))
    probs = probabilities(logits)
    torch.testing.assert_close(probs, plain(probabilities, logits), rtol=1e-6, atol=1e-40)
    ours, theirs = Softmax(logits), plain(Softmax, logits)
    assert ours.prob(token) == float(probs[token])
    assert ours.entropy() == pytest.approx(theirs.entropy(), abs=2e-6)
    if math.isfinite(logits[token]):
        assert ours.logprob(token) == pytest.approx(theirs.logprob(token), abs=2e-6)
    assert draw(probs, u) == plain(draw, probs, u)
    for values in (logits, probs):
        assert rank(values, token) == plain(rank, values, token)
        assert argmax(values) == plain(argmax, values)
        assert torch.equal(leading(values, count), plain(leading, values, count))
        assert torch.equal(keep(logits, values, token), plain(keep, logits, values, token))


@pytest.mark.parametrize("temperature", [1e-310, 0.01, 0.8, 1.0, 5.0, 1e300])
@given(vectors())
def test_compiled_temperatures_are_those_of_torch(temperature: float, logits: Tensor) -> None:
    torch.testing.assert_close(tempered(logits, temperature), plain(tempered, logits, temperature), rtol=2e-7, atol=0)


def test_a_large_vocabulary_is_cut_and_drawn_from_as_by_torch() -> None:
    logits = 4 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for p in (0.01, 0.5, 0.95, 0.9999):
        kept = TopP(p)(logits)
        exact = logits.double().softmax(-1).sort(descending=True).values.cumsum(-1)
        assert int(kept.isfinite().sum()) == pytest.approx(1 + int((exact < p).sum()), abs=2)
        assert draw(probabilities(kept), p) == plain(draw, probabilities(kept), p)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(4, 2)[:, 0], torch.zeros(4, dtype=torch.float64), torch.zeros(4, requires_grad=True), torch.zeros(0)],
    ids=["strided", "float64", "with a gradient", "empty"],
)
def test_what_c_would_misread_goes_to_torch(logits: Tensor) -> None:
    assert not native.is_compiled(logits)
