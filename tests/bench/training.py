"""Training steps: llmcli's, a plain PyTorch loop around transformers' model, and transformers' Trainer, side by side.

    pip install accelerate
    python tests/bench/training.py --threads 2

All train a Llama of the same shape on the same random ids, in bfloat16 autocast, with AdamW (each library's own kind:
Trainer's is fused) and the gradient's norm clipped to 1; llmcli with Muon too, which is what it uses. They take turns,
round after round; a ratio to Trainer is taken within a round, and the table gives median and range. The first steps of
a turn do not count, nor what Trainer does before and after its steps. Model FLOPs utilisation is by the count of the
PaLM paper (Chowdhery et al. 2022, appendix B), 6 N + 12 L C T operations a token (N parameters, L layers C wide,
context T), over what a large bfloat16 matrix product reaches on the same threads or GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from llmcli.model.families import llama
from llmcli.model.transformer import Transformer
from llmcli.train.batches import Batches
from llmcli.train.loop import train
from llmcli.train.objective import NextToken
from llmcli.train.optimizer import initialize
from llmcli.train.recipe import Recipe, Shape
from llmcli.train.run import TrainingRun

SHAPE = Shape(vocab_size=8192, hidden_size=384, intermediate_size=992)
WARM = 2  # steps of each turn that do not count; where it is compiled, the very first takes a minute


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
    counted = WARM + options.steps
    turns = {
        "Trainer": trainer(recipe, rows, device, counted, compiled=False),
        "Trainer, compiled": trainer(recipe, rows, device, counted, compiled=True),
        "plain loop": plain(recipe, rows, device, compiled=False),
        "plain loop, compiled": plain(recipe, rows, device, compiled=True),
        "llmcli, AdamW": ours(recipe, rows, device, "adamw", compiled=False),
        "llmcli, AdamW, compiled": ours(recipe, rows, device, "adamw", compiled=True),
        "llmcli, Muon": ours(recipe, rows, device, "muon", compiled=False),
        "llmcli, Muon, compiled": ours(recipe, rows, device, "muon", compiled=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(peak_operations(device))
        for name, turn in turns.items():
            taken = list(islice(turn, counted))[WARM:]
            speeds[name].append(recipe.tokens_per_step / statistics.median(taken))
    report(speeds, recipe, max(peaks))


def report(speeds: dict[str, list[float]], recipe: Recipe, peak: float) -> None:
    """The table."""
    work = operations(recipe)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", end="; ")
    print(f"{recipe.batch_size} x {recipe.context} tokens a step, {work / 1e6:.0f} MFLOP a token", end="; ")
    print(f"{peak / 1e9:.0f} GFLOP/s at the most\n")
    print("| | tokens/s | over Trainer | over Trainer, compiled | utilisation |\n|---|---|---|---|---|")
    for name, found in speeds.items():
        middle = statistics.median(found)
        over = " | ".join(ratio(found, speeds[other]) for other in ("Trainer", "Trainer, compiled"))
        print(f"| {name} | {middle:.0f} | {over} | {middle * work / peak:.0%} |")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median and range over the rounds."""
    found = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"


def clock(device: torch.device) -> float:
    """Seconds, once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def ours(recipe: Recipe, rows: Tensor, device: torch.device, optimizer: Any, *, compiled: bool) -> Iterator[float]:
    """Our own loop."""
    recipe = replace(recipe, optimizer=optimizer)
    model = Transformer(SHAPE.model_config(SHAPE.vocab_size, recipe.context))
    initialize(model, 0)
    batches = Batches(rows, torch.ones_like(rows, dtype=torch.bool), batch_size=recipe.batch_size, seed=0)
    encoder: Any = None  # for samples, of which there are none
    run = TrainingRun(recipe, model.to(device), encoder, NextToken(batches, [], 0), llama.describe(model.config), "")
    with tempfile.TemporaryDirectory() as out:
        began = clock(device)
        for _ in train(run, Path(out), compiled=compiled, checkpoint_seconds=1e9, validate_every=2**40):
            yield clock(device) - began
            began = clock(device)


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
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    called = torch.compile(model) if compiled else model
    start = 0
    while True:
        began = clock(device)
        ids = rows[start : start + recipe.batch_size, :-1].to(device)
        start = (start + recipe.batch_size) % (len(rows) - recipe.batch_size)
        with torch.autocast(device.type, torch.bfloat16):
            loss = called(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield clock(device) - began


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.times = device, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(clock(self._device))


def trainer(recipe: Recipe, rows: Tensor, device: torch.device, steps: int, *, compiled: bool) -> Iterator[float]:
    """transformers' own, ``steps`` at a time; what a call of it takes before its first step does not count."""
    model = theirs(recipe, device)
    data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
    while True:
        watch = Clock(device)
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out,
                max_steps=steps + 1,
                per_device_train_batch_size=recipe.batch_size,
                learning_rate=1e-3,
                adam_beta2=0.95,
                bf16=True,
                torch_compile=compiled,
                use_cpu=device.type == "cpu",
                max_grad_norm=1.0,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            training = Trainer(model, arguments, train_dataset=data, callbacks=[watch])
            training.remove_callback(PrinterCallback)  # it writes to stdout, where the table goes
            training.train()
        yield from (after - before for before, after in pairwise(watch.times))


def operations(recipe: Recipe) -> float:
    """Floating point operations of a training step, a token."""
    with torch.device("meta"):
        model = Transformer(SHAPE.model_config(SHAPE.vocab_size, recipe.context))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 6 * parameters + 12 * SHAPE.num_hidden_layers * SHAPE.hidden_size * recipe.context


def peak_operations(device: torch.device) -> float:
    """Of a bfloat16 matrix product, a second: the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = clock(device)
        torch.mm(a, b)
        best = min(best, clock(device) - began)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
