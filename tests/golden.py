"""The exact tokens that the shipped model generates; run ``python -m tests.golden`` after changing its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llmcli
from llmcli.explain.sampling_step import generated_token_of
from llmcli.generation.filters import Temperature, TopP
from llmcli.generation.sampling import Sampler
from llmcli.hub import default_model

FILE = Path(__file__).parent / "golden.json"
PROMPT = "Once upon a time"


def record() -> dict[str, Any]:
    """Return greedy ids, and a seeded sample with its log probabilities, in float32 on the CPU."""
    loaded = llmcli.load(default_model(), device="cpu", dtype="float32")
    prompt = loaded.prompt_ids(PROMPT)

    def steps(sampler: Sampler, count: int) -> Any:
        return llmcli.steps(loaded.model, prompt, sampler=sampler, max_new_tokens=count, stop_ids=loaded.stop_ids)

    sampled = [
        generated_token_of(s, loaded.tokenizer, 1) for s in steps(Sampler([Temperature(0.8), TopP(0.95)], 1), 40)
    ]
    return {
        "model": loaded.name,
        "prompt_ids": prompt,
        "greedy_ids": [step.token for step in steps(Sampler([Temperature(0.0)], 0), 60)],
        "sampled_ids": [token.id for token in sampled],
        "sampled_logprobs": [token.logprob for token in sampled],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
