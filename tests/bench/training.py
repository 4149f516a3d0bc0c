"""Compare training steps of llmcli, of a plain PyTorch loop with transformers' model, and of transformers' Trainer.

    pip install accelerate
    python tests/bench/training.py --threads 2

All train a Llama of the same shape on the same random ids, in bfloat16 autocast, with AdamW (Trainer's is fused) and
the gradient norm clipped to 1; llmcli also with Muon, its default. They take turns in each round. Ratios to Trainer
are computed within a round; the table gives median and range. The first steps of a turn do not count, nor does the
time Trainer needs before and after its steps. Model FLOPs utilization counts operations as the PaLM paper does
(Chowdhery et al. 2022, appendix B), 6 N + 12 L C T per token (N parameters, L layers of width C, context T), relative
to the speed of a large bfloat16 matrix product on the same threads or GPU.
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
WARM_UP_STEPS = 2  # steps of each turn that do not count; compiling makes the very first take a minute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--context", type=int, default=512, help="tokens per row")
    parser.add_argument("--batch-size", type=int, default=4, help="rows per step")
    parser.add_argument("--steps", type=int, default=8, help="measured steps per turn")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = Recipe(shape=SHAPE, context=options.context, batch_size=options.batch_size, tokens=2**40, weight_decay=0.0)
    rows = torch.randint(SHAPE.vocab_size, (256, options.context + 1), generator=torch.Generator().manual_seed(0))
    steps = WARM_UP_STEPS + options.steps
    turns = {
        "Trainer": trainer(recipe, rows, device, steps, compiled=False),
        "Trainer, compiled": trainer(recipe, rows, device, steps, compiled=True),
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
            seconds = list(islice(turn, steps))[WARM_UP_STEPS:]
            speeds[name].append(recipe.tokens_per_step / statistics.median(seconds))
    report(speeds, recipe, max(peaks))


def report(speeds: dict[str, list[float]], recipe: Recipe, peak: float) -> None:
    """Print the table."""
    flops = operations(recipe)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", end="; ")
    print(f"{recipe.batch_size} x {recipe.context} tokens per step, {flops / 1e6:.0f} MFLOP per token", end="; ")
    print(f"{peak / 1e9:.0f} GFLOP/s peak\n")
    print("| | tokens/s | over Trainer | over Trainer, compiled | utilization |\n|---|---|---|---|---|")
    for name, rates in speeds.items():
        median = statistics.median(rates)
        ratios = " | ".join(ratio(rates, speeds[other]) for other in ("Trainer", "Trainer, compiled"))
        print(f"| {name} | {median:.0f} | {ratios} | {median * flops / peak:.0%} |")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median and the range of the ratios over the rounds."""
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def clock(device: torch.device) -> float:
    """Wait for the device to finish, and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def ours(recipe: Recipe, rows: Tensor, device: torch.device, optimizer: Any, *, compiled: bool) -> Iterator[float]:
    """Yield the seconds of each step of llmcli's training loop."""
    recipe = replace(recipe, optimizer=optimizer)
    model = Transformer(SHAPE.model_config(SHAPE.vocab_size, recipe.context))
    initialize(model, 0)
    batches = Batches(rows, torch.ones_like(rows, dtype=torch.bool), batch_size=recipe.batch_size, seed=0)
    encoder: Any = None  # only used for samples, which are disabled
    run = TrainingRun(recipe, model.to(device), encoder, NextToken(batches, [], 0), llama.describe(model.config), "")
    with tempfile.TemporaryDirectory() as out:
        start = clock(device)
        for _ in train(run, Path(out), compiled=compiled, checkpoint_seconds=1e9, validate_every=2**40):
            yield clock(device) - start
            start = clock(device)


def theirs(recipe: Recipe, device: torch.device) -> LlamaForCausalLM:
    """Return transformers' model of the same shape."""
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
    """Yield the seconds of each step of a hand-written PyTorch loop."""
    model: nn.Module = theirs(recipe, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    forward = torch.compile(model) if compiled else model
    row = 0
    while True:
        start = clock(device)
        ids = rows[row : row + recipe.batch_size, :-1].to(device)
        row = (row + recipe.batch_size) % (len(rows) - recipe.batch_size)
        with torch.autocast(device.type, torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield clock(device) - start


class StepTimes(TrainerCallback):
    """Records the time at the end of each step."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.times = device, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(clock(self._device))


def trainer(recipe: Recipe, rows: Tensor, device: torch.device, steps: int, *, compiled: bool) -> Iterator[float]:
    """Yield the seconds of each step of transformers' Trainer, which runs ``steps`` steps at a time.

    The time Trainer needs before its first step does not count.
    """
    model = theirs(recipe, device)
    data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
    while True:
        step_times = StepTimes(device)
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
            training = Trainer(model, arguments, train_dataset=data, callbacks=[step_times])
            training.remove_callback(PrinterCallback)  # it writes to stdout, where the table goes
            training.train()
        yield from (after - before for before, after in pairwise(step_times.times))


def operations(recipe: Recipe) -> float:
    """Return the floating-point operations per token of a training step."""
    with torch.device("meta"):
        model = Transformer(SHAPE.model_config(SHAPE.vocab_size, recipe.context))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 6 * parameters + 12 * SHAPE.num_hidden_layers * SHAPE.hidden_size * recipe.context


def peak_operations(device: torch.device) -> float:
    """Return the floating-point operations per second of a bfloat16 matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = clock(device)
        torch.mm(a, b)
        best = min(best, clock(device) - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
