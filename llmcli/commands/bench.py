"""``llmcli bench``: measure the speed of models on this machine."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli import generation, render, storage
from llmcli.commands.options.common import MOST_PARALLEL, device_option, offline_option, verbose_option
from llmcli.commands.options.model import DTYPE_ALIASES, DTYPES, QUANTIZATIONS, ModelChoice, models_option
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.hints import describe
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.model.transformer import Transformer


class Integers(click.ParamType[tuple[int, ...]]):
    """Integers from ``least`` to ``most``, separated by commas."""

    name = "numbers"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and self.least <= int(word) <= self.most for word in words):
            self.fail(f"{value!r} is not a list of integers from {self.least} to {self.most}, such as 1,2", param, ctx)
        return tuple(int(word) for word in words)


@click.command(cls=Command)
@models_option("As for generate. Repeatable, to compare models.")
@click.option("--config", type=click.Path(path_type=Path), help="A config.json instead of a model; needs --random.")
@click.option("--random", "random_weights", is_flag=True, help="Random weights in the shape of --config.")
@click.option(
    "--prompt-tokens", "-p", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens to prefill."
)
@click.option(
    "--output-tokens", "-n", type=click.IntRange(min=2), default=128, show_default=True, help="Tokens to decode."
)
@click.option(
    "--depth",
    "-d",
    "depths",
    type=Integers(0, 2**24),
    default="0",
    help="Tokens in the cache before the prompt, such as 0,1024.",
)
@click.option(
    "--repeat", "-r", type=click.IntRange(1, 1000), default=5, show_default=True, help="Runs per measurement."
)
@click.option("--dtype", "dtypes", default="auto", show_default=True, help="One or more of: " + ", ".join(DTYPES))
@click.option("--quantize", default="none", show_default=True, help="One or more of: none, " + ", ".join(QUANTIZATIONS))
@click.option("--threads", type=Integers(1, MOST_PARALLEL), help="CPU threads, one or more counts, such as 1,2.")
@device_option
@offline_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@verbose_option
def bench(
    models: tuple[str, ...],
    config: Path | None,
    random_weights: bool,
    prompt_tokens: int,
    output_tokens: int,
    depths: tuple[int, ...],
    repeat: int,
    dtypes: str,
    quantize: str,
    threads: tuple[int, ...] | None,
    device: str,
    offline: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """How fast does a model run here? Measure prefill and decode in tokens per second: median and range.

    The share of bandwidth is how much of the memory bandwidth, measured at the end, decoding uses to read the
    weights once per token. It exceeds 100% if the weights fit into the CPU cache. Other processes distort the
    results; check the range. A combination that cannot run is reported after the table, and the exit code is 1.

    \b
    Examples:
      llmcli bench
      llmcli bench -p 64 -n 32 -d 0,512 --dtype bfloat16,float32
      llmcli bench --config path/to/config.json --random --threads 1,2 --markdown
    """
    if (config is not None) != random_weights or (config is not None and models):
        raise usage_error("--config and --random go together, without --model", "give both, or neither")
    if as_json and markdown:
        raise usage_error("--json and --markdown cannot be combined", "give one of them")
    choices = [
        ModelChoice(model, None, offline, device, dtype, None if kind == "none" else kind, threads=None)
        for model, dtype, kind in itertools.product(
            models or (None,),
            parse_list("--dtype", dtypes.lower(), (*DTYPES, *DTYPE_ALIASES)),
            parse_list("--quantize", quantize, ("none", *QUANTIZATIONS)),
        )
    ]
    import_torch()
    from llmcli.model.device import pick_device, use_threads

    lengths = Lengths(prompt_tokens, output_tokens, depths, repeat)
    rows: list[render.BenchRow] = []
    failures: dict[str, LlmcliError] = {}  # by message
    for choice in choices:
        try:
            for row in measure(choice, config, threads or (None,), lengths):
                render.note(render.bench_line(row), sys.stderr)
                rows.append(row)
        except LlmcliError as error:  # the others can still be measured
            failures[error.message] = error
    if rows:
        bandwidths = {}  # measured last, because the measurement itself needs memory
        for count in {row.threads for row in rows}:
            use_threads(count)
            bandwidths[count] = generation.read_bandwidth(pick_device(device))
        show([replace(row, bandwidth=bandwidths[row.threads]) for row in rows], as_json, markdown)
    if failures:
        *others, last = failures.values()
        for other in others:
            render.note(render.one_line(f"llmcli: {describe(other)}"), sys.stderr)
        raise last


def show(rows: Sequence[render.BenchRow], as_json: bool, markdown: bool) -> None:
    """Print the rows in the chosen format."""
    if as_json:
        render.write_bench_json(rows, sys.stdout)
    elif markdown:
        render.print_bench_markdown(rows, sys.stdout)
    else:
        render.print_bench(rows, sys.stdout)


@dataclass(frozen=True)
class Lengths:
    """What to measure with each model: these numbers of tokens, ``repeat`` times."""

    prompt: int
    output: int
    depths: Sequence[int]
    repeat: int


def measure(
    choice: ModelChoice, config: Path | None, threads: Sequence[int | None], lengths: Lengths
) -> Iterator[render.BenchRow]:
    """Open one model, or one with random weights in the shape of ``config``, and measure it with each thread count."""
    from llmcli.model.device import use_threads

    began = time.perf_counter()
    if config is None:
        loaded = choice.open()
        name, model = loaded.name, loaded.model
    else:
        name = f"random {config.parent.resolve().name}"
        model = generation.random_model_of(config, choice.device, choice.dtype, choice.quantization)
    seconds = time.perf_counter() - began
    dtype = storage.quantization_of(model) or model.dtype_name
    for count in threads:
        use_threads(count)
        for speed in generation.measure(
            model, prompt=lengths.prompt, output=lengths.output, depths=lengths.depths, repeat=lengths.repeat
        ):
            yield row_of(name, dtype, model, speed, seconds)


def row_of(name: str, dtype: str, model: Transformer, speed: generation.Speed, load_seconds: float) -> render.BenchRow:
    """A measurement and its conditions."""
    import torch

    return render.BenchRow(
        model=name,
        dtype=dtype,
        device=str(model.device),
        threads=torch.get_num_threads(),
        speed=speed,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        load_seconds=load_seconds,
        peak_bytes=generation.peak_memory(),
    )


def parse_list(option: str, text: str, known: Sequence[str]) -> list[Any]:
    """Parse words separated by commas. Raises LlmcliError for a word that is not ``known``."""
    found = [word.strip() for word in text.split(",")]
    for word in found:
        if word not in known:
            raise usage_error(f"{option}: unknown value {word!r}", "known: " + ", ".join(known))
    return found
