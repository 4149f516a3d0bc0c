"""Compare the throughput of many prompts: llmcli one at a time, llmcli in batches, and transformers in batches.

    python tests/bench/many.py --shape 135M --threads 2

All run the same random weights, transformers in bfloat16 where llmcli's are quantized. Prompts and texts have unequal
lengths, as in practice. transformers gets the prompts in batches, padded on the left, and a batch takes as long as its
longest text; only requested tokens count. All sample at temperature 0.8 and top-p 0.95, and take turns in each round.
Ratios are computed within a round; the table gives median and range.
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
from typing import Any, get_args

import torch

from llmcli.generation.batch import Request, generate_batch
from llmcli.generation.filters import Temperature, TopP
from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.storage.quantize import Quantization, quantize
from tests.bench.peers import SHAPES, write_models
from tests.tiny import load

FILTERS = [Temperature(0.8), TopP(0.95)]


@dataclass(frozen=True)
class Job:
    """A prompt, and the number of tokens to generate."""

    ids: list[int]
    output: int


class NoText:
    """Stands in for a tokenizer, since decoding is not measured."""

    special_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""


def random_jobs(count: int, vocab: int) -> list[Job]:
    rng = random.Random(0)
    return [Job([rng.randrange(vocab) for _ in range(rng.randint(16, 128))], rng.randint(32, 96)) for _ in range(count)]


def one_at_a_time(loaded: LoadedModel, jobs: list[Job]) -> None:
    for seed, job in enumerate(jobs):
        for _ in steps(loaded.model, job.ids, sampler=Sampler(FILTERS, seed), max_new_tokens=job.output):
            pass


def batched(loaded: LoadedModel, jobs: list[Job], size: int) -> None:
    requests = [Request(seed, job.ids, Sampler(FILTERS, seed), job.output) for seed, job in enumerate(jobs)]
    generated = sum(1 for _ in generate_batch(loaded, requests, size))
    assert generated == sum(job.output for job in jobs)


@torch.inference_mode()
def transformers_batched(model: Any, jobs: list[Job], size: int) -> None:
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        longest, output = max(len(job.ids) for job in batch), max(job.output for job in batch)
        ids = torch.tensor([[0] * (longest - len(job.ids)) + job.ids for job in batch])
        mask = torch.tensor([[0] * (longest - len(job.ids)) + [1] * len(job.ids) for job in batch])
        model.generate(
            ids, attention_mask=mask, max_new_tokens=output, min_new_tokens=output, do_sample=True, temperature=0.8,
            top_p=0.95, top_k=0, pad_token_id=0,
        )  # fmt: skip


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M", choices=list(SHAPES), help="size of the model")
    parser.add_argument(
        "--weights", default="bfloat16", choices=["float32", "bfloat16", "int8", "int4"], help="llmcli's weights"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--prompts", type=int, default=64, help="number of prompts")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), SHAPES[options.shape], [])
        quantization = options.weights if options.weights in get_args(Quantization) else None
        dtype = torch.bfloat16 if quantization else getattr(torch, options.weights)
        model = load(Path(folder) / "hf", device=torch.device("cpu"), dtype=dtype)
        if quantization:
            quantize(model, quantization)
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=dtype).eval()
    no_text: Any = NoText()
    loaded = LoadedModel("random", Path(folder), model, no_text, Defaults((), {}, {}))
    jobs = random_jobs(options.prompts, model.config.vocab_size)
    total = sum(job.output for job in jobs)
    methods: dict[str, Callable[[], None]] = {"llmcli, one at a time": lambda: one_at_a_time(loaded, jobs)}
    for size in (8, 32):
        methods[f"llmcli, batch of {size}"] = lambda size=size: batched(loaded, jobs, size)
        methods[f"transformers, batch of {size}"] = lambda size=size: transformers_batched(theirs, jobs, size)
    for method in methods.values():
        method()
    rounds = [{name: total / seconds(method) for name, method in methods.items()} for _ in range(options.rounds)]
    print(f"{options.shape} {options.weights}, {options.threads} threads, {options.prompts} prompts, {total} tokens\n")
    for name in methods:
        rates = [speeds[name] for speeds in rounds]
        print(f"{name:<28} {statistics.median(rates):8.1f} tokens/s ({min(rates):.1f}-{max(rates):.1f})")
    for size in (8, 32):
        for other in ("llmcli, one at a time", f"transformers, batch of {size}"):
            ratios = [speeds[f"llmcli, batch of {size}"] / speeds[other] for speeds in rounds]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"batch of {size} / {other}: {spread}")


if __name__ == "__main__":
    main()
