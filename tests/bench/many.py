"""Many prompts: llmcli one at a time, llmcli's batch, and transformers' batched generate on the same random weights.

    python tests/bench/many.py --shape 135M --threads 2

Prompts and texts have unequal lengths, as in use. transformers takes the prompts in chunks, padded on the left, and a
chunk lasts as long as its longest text; only tokens that were asked for count. All sample at temperature 0.8, top-p
0.95, and take turns, round after round. A ratio is taken within a round; the table gives median and range.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmcli.generation.batch import Request, generate_batch
from llmcli.generation.filters import Temperature, TopP
from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from tests.bench.peers import SHAPES, write_models
from tests.tiny import load

FILTERS = [Temperature(0.8), TopP(0.95)]


@dataclass(frozen=True)
class Wish:
    """A prompt, and how many tokens are to follow."""

    ids: list[int]
    output: int


class NoText:
    """In place of a tokenizer: what is measured is tokens."""

    special_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""


def wishes(count: int, vocab: int) -> list[Wish]:
    rng = random.Random(0)
    return [
        Wish([rng.randrange(vocab) for _ in range(rng.randint(16, 128))], rng.randint(32, 96)) for _ in range(count)
    ]


def one_at_a_time(loaded: LoadedModel, asked: list[Wish]) -> None:
    for seed, wish in enumerate(asked):
        for _ in steps(loaded.model, wish.ids, sampler=Sampler(FILTERS, seed), max_new_tokens=wish.output):
            pass


def batched(loaded: LoadedModel, asked: list[Wish], size: int) -> None:
    requests = [Request(seed, wish.ids, Sampler(FILTERS, seed), wish.output) for seed, wish in enumerate(asked)]
    written = sum(1 for _ in generate_batch(loaded, requests, size))
    assert written == sum(wish.output for wish in asked)


@torch.inference_mode()
def transformers_batched(model: Any, asked: list[Wish], size: int) -> None:
    for start in range(0, len(asked), size):
        chunk = asked[start : start + size]
        longest, output = max(len(wish.ids) for wish in chunk), max(wish.output for wish in chunk)
        ids = torch.tensor([[0] * (longest - len(wish.ids)) + wish.ids for wish in chunk])
        mask = torch.tensor([[0] * (longest - len(wish.ids)) + [1] * len(wish.ids) for wish in chunk])
        model.generate(
            ids, attention_mask=mask, max_new_tokens=output, min_new_tokens=output, do_sample=True, temperature=0.8,
            top_p=0.95, top_k=0, pad_token_id=0,
        )  # fmt: skip


def seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="135M", choices=list(SHAPES))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), SHAPES[options.shape], [])
        dtype = getattr(torch, options.dtype)
        model = load(Path(folder) / "hf", device=torch.device("cpu"), dtype=dtype)
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=dtype).eval()
    no_text: Any = NoText()
    loaded = LoadedModel("random", Path(folder), model, no_text, Defaults((), {}, {}))
    asked = wishes(options.prompts, model.config.vocab_size)
    total = sum(wish.output for wish in asked)
    ways: dict[str, Callable[[], None]] = {"llmcli, one at a time": lambda: one_at_a_time(loaded, asked)}
    for size in (8, 32):
        ways[f"llmcli, batch of {size}"] = lambda size=size: batched(loaded, asked, size)
        ways[f"transformers, batch of {size}"] = lambda size=size: transformers_batched(theirs, asked, size)
    for way in ways.values():
        way()
    rounds = [{name: total / seconds(way) for name, way in ways.items()} for _ in range(options.rounds)]
    print(f"{options.shape} {options.dtype}, {options.threads} threads, {options.prompts} prompts, {total} tokens\n")
    for name in ways:
        rates = [one[name] for one in rounds]
        print(f"{name:<28} {statistics.median(rates):8.1f} tokens/s ({min(rates):.1f}-{max(rates):.1f})")
    for size in (8, 32):
        for other in ("llmcli, one at a time", f"transformers, batch of {size}"):
            ratios = [one[f"llmcli, batch of {size}"] / one[other] for one in rounds]
            told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"batch of {size} / {other}: {told}")


if __name__ == "__main__":
    main()
