"""The same model on an accelerator: what it computes there is what it computes on the CPU."""

from __future__ import annotations

import pytest
import torch

import llmcli
from llmcli.generate.sampling import Sampler, Temperature
from llmcli.hub import default_model

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
