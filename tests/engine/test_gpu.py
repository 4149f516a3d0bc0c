"""A model computes the same on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

import llmcli
from llmcli.engine.cuda_graph import DecodeGraph
from llmcli.generation import steps as loop
from llmcli.generation.filters import Temperature
from llmcli.generation.sampling import Sampler
from llmcli.hub import default_model
from llmcli.model.cache import KVCache
from tests.tiny import CASES, TinyFactory, greedy, random_ids

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def test_logits_match_the_cpu() -> None:
    on_cpu, on_gpu = (llmcli.load(default_model(), device=device, dtype="float32") for device in ("cpu", "cuda"))
    ids = torch.tensor([on_cpu.prompt_ids("Once upon a time there was a fox who")])
    with torch.inference_mode():
        assert torch.allclose(on_cpu.model(ids), on_gpu.model(ids.cuda()).cpu(), atol=2e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_seed_generates_the_same_text(temperature: float) -> None:
    texts = []
    for device in ("cpu", "cuda"):
        loaded = llmcli.load(default_model(), device=device, dtype="float32")
        sampler = Sampler([Temperature(temperature)], seed=3)
        ids = loaded.prompt_ids("Once upon a time")
        texts.append([s.token for s in llmcli.steps(loaded.model, ids, sampler=sampler, max_new_tokens=30)])
    assert texts[0] == texts[1]


def test_the_default_on_a_gpu_is_bfloat16_and_close_to_fp32() -> None:
    loaded = llmcli.load(default_model(), device="cuda")
    assert (loaded.model.device.type, loaded.model.dtype) == ("cuda", torch.bfloat16)
    exact = llmcli.load(default_model(), device="cpu", dtype="float32")
    ids = torch.tensor([exact.prompt_ids("Once upon a time")])
    with torch.inference_mode():
        difference = loaded.model(ids.cuda()).float().cpu() - exact.model(ids)
    assert float(difference.abs().max()) < 0.5


# The recorded step; ``test_cuda_graph`` has the tests that need no GPU.


@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_generate_the_same_text_as_ordinary_ones(
    tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across windows, scaled rotary angles and several recordings; a mixture of experts is not recorded."""
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
def test_recorded_logits_match_ordinary_ones(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = llmcli.load(default_model(), device="cuda", dtype=dtype)
    ids = loaded.prompt_ids("Once upon a time there was a fox who")

    def logits() -> list[torch.Tensor]:
        """The logits of 40 steps over fixed tokens, copied to the CPU after the last step."""
        steps = loop.steps(loaded.model, ids, sampler=Sampler([Temperature(0.0)], seed=0), max_new_tokens=40)
        found = [next(steps).logits]
        found += [steps.send(token).logits for token in range(5, 44)]
        return [each.cpu() for each in found]

    replayed = logits()
    monkeypatch.setattr(loop, "replays", lambda model: False)
    for ours, expected in zip(replayed, logits(), strict=True):
        assert torch.allclose(ours, expected, atol=1e-3 if dtype == "float32" else 0.5)


def test_a_step_is_recorded_once_per_block_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = llmcli.load(default_model(), device="cuda")
    recorded: list[DecodeGraph] = []
    record = DecodeGraph._record
    monkeypatch.setattr(DecodeGraph, "_record", lambda graph: recorded.append(graph) or record(graph))
    greedy(loaded.model, loaded.prompt_ids("Once upon a time"), 100)
    assert len(recorded) == 1
