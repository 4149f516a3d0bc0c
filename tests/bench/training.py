"""Training steps: llmcli's, a plain PyTorch loop around transformers' model, and transformers' Trainer, side by side.

    pip install accelerate
    python tests/bench/training.py --threads 2

All train the same Llama on the same random ids, in bfloat16 autocast, with AdamW and the gradient's norm clipped to 1
(llmcli with Muon too, which is what it uses). They take turns, round after round; a ratio to Trainer is taken within a
round, and the table gives median and range. Model FLOPs utilisation is by the count of the PaLM paper (Chowdhery et al.
2022, appendix B), 6 N + 12 L C T operations a token, over what a large bfloat16 matrix product reaches here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from llmcli.model.families import llama
from llmcli.model.transformer import Transformer
from llmcli.train.batches import Batches
from llmcli.train.loop import train
from llmcli.train.objective import NextToken
from llmcli.train.optimizer import initialise
from llmcli.train.recipe import Recipe, Shape
from llmcli.train.run import Run

SHAPE = Shape(vocab_size=8192, hidden_size=384, intermediate_size=992)
WARM = 3  # steps of each turn that do not count; where it is compiled, the first one takes a minute
Turn = Callable[[], Iterator[float]]  # seconds of each step, for ever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="that count, of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = Recipe(shape=SHAPE, context=options.context, batch_size=options.batch_size, tokens=2**40, weight_decay=0.0)
    rows = torch.randint(SHAPE.vocab_size, (256, options.context + 1), generator=torch.Generator().manual_seed(0))
    turns: dict[str, Iterator[float]] = {
        "Trainer": trainer(recipe, rows, device),
        "plain loop": plain(recipe, rows, device, compiled=False),
        "plain loop, compiled": plain(recipe, rows, device, compiled=True),
        "llmcli, AdamW": ours(recipe, rows, device, "adamw", compiled=False),
        "llmcli, AdamW, compiled": ours(recipe, rows, device, "adamw", compiled=True),
        "llmcli, Muon, compiled": ours(recipe, rows, device, "muon", compiled=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name, turn in turns.items():
            taken = [next(turn) for _ in range(WARM + options.steps)][WARM:]
            speeds[name].append(recipe.tokens_per_step / statistics.median(taken))
    report(speeds, recipe, device)


def report(speeds: dict[str, list[float]], recipe: Recipe, device: torch.device) -> None:
    """The table."""
    work, peak = operations(recipe), peak_operations(device)
    print(f"{peak / 1e9:.0f} GFLOP/s at the most; {work / 1e6:.0f} MFLOP a token\n")
    print("| | tokens/s | over Trainer | utilisation |\n|---|---|---|---|")
    for name, found in speeds.items():
        ratios = sorted(one / other for one, other in zip(found, speeds["Trainer"], strict=True))
        middle = statistics.median(found)
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"| {name} | {middle:.0f} | {ratio} | {middle * work / peak:.0%} |")


def ours(recipe: Recipe, rows: Tensor, device: torch.device, optimizer: Any, *, compiled: bool) -> Iterator[float]:
    """Our own loop."""
    from dataclasses import replace

    recipe = replace(recipe, optimizer=optimizer)
    model = Transformer(SHAPE.model_config(SHAPE.vocab_size, recipe.context))
    initialise(model, 0)
    batches = Batches(rows, torch.ones_like(rows, dtype=torch.bool), batch_size=recipe.batch_size, seed=0)
    encoder: Any = None  # for samples, of which there are none
    run = Run(recipe, model.to(device), encoder, NextToken(batches, [], 0), llama.describe(model.config))
    with tempfile.TemporaryDirectory() as out:
        for metrics in train(run, Path(out), compiled=compiled, checkpoint_seconds=1e9, validate_every=2**40):
            yield recipe.tokens_per_step / metrics.tokens_per_second


def theirs(recipe: Recipe, device: torch.device) -> LlamaForCausalLM:
    """transformers' model of the same shape."""
    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.hidden_size,
        intermediate_size=SHAPE.intermediate_size,
        num_hidden_layers=SHAPE.num_hidden_layers,
        num_attention_heads=SHAPE.num_attention_heads,
        num_key_value_heads=SHAPE.num_key_value_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device)


def plain(recipe: Recipe, rows: Tensor, device: torch.device, *, compiled: bool) -> Iterator[float]:
    """What one would write by hand."""
    model: nn.Module = theirs(recipe, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    called = torch.compile(model) if compiled else model
    start = 0
    while True:
        began = time.monotonic()
        ids = rows[start : start + recipe.batch_size, :-1].to(device)
        start = (start + recipe.batch_size) % (len(rows) - recipe.batch_size)
        with torch.autocast(device.type, torch.bfloat16):
            loss = called(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield time.monotonic() - began


def trainer(recipe: Recipe, rows: Tensor, device: torch.device) -> Iterator[float]:
    """transformers' own, a few steps at a time; what a call of it takes before its first step does not count."""
    model = theirs(recipe, device)
    steps = 16
    while True:
        times: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, times: list[float] = times, **__: Any) -> None:
                times.append(time.monotonic())

        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out,
                max_steps=steps,
                per_device_train_batch_size=recipe.batch_size,
                bf16=True,
                use_cpu=device.type == "cpu",
                max_grad_norm=1.0,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
            Trainer(model, arguments, train_dataset=data, callbacks=[Clock()]).train()
        yield from (after - before for before, after in pairwise(times))


def operations(recipe: Recipe) -> float:
    """Floating point operations of a training step, a token."""
    with torch.device("meta"):
        model = Transformer(SHAPE.model_config(SHAPE.vocab_size, recipe.context))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 6 * parameters + 12 * SHAPE.num_hidden_layers * SHAPE.hidden_size * recipe.context


def peak_operations(device: torch.device, size: int = 2048) -> float:
    """Of a bfloat16 matrix product, a second: the best of several."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.monotonic()
        (a @ b).sum().item()
        best = min(best, time.monotonic() - began)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
