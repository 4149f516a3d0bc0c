"""The same model on an accelerator: what it computes there is what it computes on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import llmcli
from llmcli.engine.cuda_graph import DecodeGraph
from llmcli.generation import steps as loop
from llmcli.generation.filters import Temperature
from llmcli.generation.sampling import Sampler
from llmcli.hub import default_model
from llmcli.model.cache import KVCache
from tests.tiny import CASES, Tiny, greedy, random_ids

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def test_logits_equal_the_cpu_s() -> None:
    here, there = (llmcli.load(default_model(), device=device, dtype="float32") for device in ("cpu", "cuda"))
    ids = torch.tensor([here.prompt_ids("Once upon a time there was a fox who")])
    with torch.inference_mode():
        assert torch.allclose(here.model(ids), there.model(ids.cuda()).cpu(), atol=2e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_seed_writes_the_same_text(temperature: float) -> None:
    written = []
    for device in ("cpu", "cuda"):
        loaded = llmcli.load(default_model(), device=device, dtype="float32")
        sampler = Sampler([Temperature(temperature)], seed=3)
        ids = loaded.prompt_ids("Once upon a time")
        written.append([s.token for s in llmcli.steps(loaded.model, ids, sampler=sampler, max_new_tokens=30)])
    assert written[0] == written[1]


def test_bfloat16_is_the_choice_and_stays_close() -> None:
    loaded = llmcli.load(default_model(), device="cuda")
    assert (loaded.model.device.type, loaded.model.dtype) == ("cuda", torch.bfloat16)
    exact = llmcli.load(default_model(), device="cpu", dtype="float32")
    ids = torch.tensor([exact.prompt_ids("Once upon a time")])
    with torch.inference_mode():
        difference = loaded.model(ids.cuda()).float().cpu() - exact.model(ids)
    assert float(difference.abs().max()) < 0.5


# The recorded step; what of it needs no GPU is in ``test_graph``.


@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_write_what_ordinary_ones_do(
    tiny: Callable[[str], Tiny], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over windows, stretched angles and several recordings, and where there can be none."""
    model, prompt = tiny(name).load().to("cuda"), random_ids(10, seed=0)[0].tolist()
    cache = KVCache(model.config, device=model.device, dtype=model.dtype, block=16)
    recorded: list[DecodeGraph] = []
    record = DecodeGraph._record
    monkeypatch.setattr(DecodeGraph, "_record", lambda graph: recorded.append(graph) or record(graph))
    replayed = greedy(model, prompt, 100, cache)
    assert (len(recorded) > 2) == (model.config.moe is None)
    monkeypatch.setattr(loop, "replays", lambda model: False)
    assert replayed == greedy(model, prompt, 100)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_logits_are_the_ordinary_ones(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = llmcli.load(default_model(), device="cuda", dtype=dtype)
    ids = loaded.prompt_ids("Once upon a time there was a fox who")

    def logits() -> list[torch.Tensor]:
        """Fed the same tokens whatever is chosen, and looked at only when all are there."""
        loop_ = loop.steps(loaded.model, ids, sampler=Sampler([Temperature(0.0)], seed=0), max_new_tokens=40)
        found = [next(loop_).logits]
        found += [loop_.send(token).logits for token in range(5, 44)]
        return [each.cpu() for each in found]

    replayed = logits()
    monkeypatch.setattr(loop, "replays", lambda model: False)
    for ours, right in zip(replayed, logits(), strict=True):
        assert torch.allclose(ours, right, atol=1e-3 if dtype == "float32" else 0.5)


def test_a_cache_in_use_records_once_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = llmcli.load(default_model(), device="cuda")
    recorded: list[DecodeGraph] = []
    record = DecodeGraph._record
    monkeypatch.setattr(DecodeGraph, "_record", lambda graph: recorded.append(graph) or record(graph))
    greedy(loaded.model, loaded.prompt_ids("Once upon a time"), 100)
    assert len(recorded) == 1
