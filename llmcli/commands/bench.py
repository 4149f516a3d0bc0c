"""``llmcli bench``: how fast is it here?"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options.common import MOST_THREADS, device_option, offline_option, verbose_option
from llmcli.commands.options.model import DTYPES, QUANTIZATIONS, ModelChoice, several_models
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.generation.bench import Speed
    from llmcli.model.transformer import Transformer
    from llmcli.render.bench import BenchRow
    from llmcli.storage.quantize import Kind


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers between commas."""

    name = "numbers"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and self.least <= int(word) <= self.most for word in words):
            self.fail(f"{value!r} is not a list of numbers from {self.least} to {self.most}, such as 1,2", param, ctx)
        return tuple(int(word) for word in words)


@click.command(cls=Command)
@several_models("As for generate; several are compared.")
@click.option("--config", type=click.Path(path_type=Path), help="A config.json instead of a model; with --random.")
@click.option("--random", "random_weights", is_flag=True, help="Random weights of the shape that --config tells.")
@click.option("--prompt-tokens", "-p", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--output-tokens", "-n", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--depth", "-d", "depths", type=Numbers(0, 2**24), default="0", help="Tokens before the prompt: 0,1024.")
@click.option("--repeat", "-r", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each.")
@click.option("--dtype", "dtypes", default="auto", show_default=True, help="One or more of: " + ", ".join(DTYPES))
@click.option("--quantize", default="none", show_default=True, help="One or more of: none, " + ", ".join(QUANTIZATIONS))
@click.option("--threads", type=Numbers(1, MOST_THREADS), help="CPU threads, one or more counts: 1,2.")
@device_option
@offline_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
@click.option("--markdown", is_flag=True, help="A table for a README.")
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
    verbose: bool,
) -> None:
    """Measure prefill and decode in tokens a second, as `generate` runs them: median, lowest and highest.

    Share is the part of the memory bandwidth, measured on the spot, that reading the weights once a token takes.
    Above 100% the weights fit into the processor's cache. What else runs on the machine shows: look at the spread.

    \b
    Examples:
      llmcli bench
      llmcli bench -p 64 -n 32 -d 0,512 --dtype bfloat16,float32
      llmcli bench --config path/to/config.json --random --threads 1,2 --markdown
    """
    if (config is not None) != random_weights or (config is not None and models):
        raise usage_error("--config and --random belong together, without --model", "give both, or neither")
    if as_json and markdown:
        raise usage_error("--json and --markdown exclude each other", "give one of them")
    kinds = listed("--dtype", dtypes, DTYPES)
    roundings = listed("--quantize", quantize, ("none", *QUANTIZATIONS))

    import_torch()
    from llmcli.generation.bench import measure, read_bandwidth
    from llmcli.model.device import pick_device, use_threads
    from llmcli.render import bench as view
    from llmcli.render.terminal import note

    sources: tuple[str | None, ...] = (str(config),) if config is not None else models or (None,)

    def measured() -> Iterator[BenchRow]:
        for source in sources:
            for kind, rounding in itertools.product(kinds, roundings):
                began = time.perf_counter()
                quantization = None if rounding == "none" else rounding
                if config is None:
                    loaded = ModelChoice(source, None, offline, device, kind, quantization, threads=None).open()
                    name, model = loaded.name, loaded.model
                else:
                    name, model = random_model(config, device, kind, quantization)
                seconds = time.perf_counter() - began
                for count in threads or (None,):
                    use_threads(count)
                    for speed in measure(
                        model, prompt=prompt_tokens, output=output_tokens, depths=depths, repeat=repeat
                    ):
                        yield row_of(name, model, rounding, speed, seconds)

    rows = []
    for row in measured():
        note(view.bench_line(row), sys.stderr)
        rows.append(row)
    bandwidths = {}  # last, because it takes memory of its own
    for count in {row.threads for row in rows}:
        use_threads(count)
        bandwidths[count] = read_bandwidth(pick_device(device))
    rows = [replace(row, bandwidth=bandwidths[row.threads]) for row in rows]
    if as_json:
        view.write_bench_json(rows, sys.stdout)
    elif markdown:
        view.print_bench_markdown(rows, sys.stdout)
    else:
        view.print_bench(rows, sys.stdout)


def listed(option: str, words: str, known: Sequence[str]) -> list[Any]:
    """The words between commas. Errors: one that is not ``known``."""
    found = [word.strip() for word in words.split(",")]
    if not set(found) <= set(known):
        raise usage_error(f"{option} {words} is not a list of what it takes", "known: " + ", ".join(known))
    return found


def row_of(name: str, model: Transformer, rounding: str, speed: Speed, load_seconds: float) -> BenchRow:
    """A measurement together with what it was taken on."""
    import torch

    from llmcli.generation.bench import peak_memory
    from llmcli.render.bench import BenchRow

    return BenchRow(
        model=name,
        dtype=str(model.dtype).removeprefix("torch.") if rounding == "none" else rounding,
        device=str(model.device),
        threads=torch.get_num_threads(),
        speed=speed,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        load_seconds=load_seconds,
        peak_bytes=peak_memory(),
    )


def random_model(config: Path, device: str, dtype: str, quantization: Kind | None) -> tuple[str, Transformer]:
    """Random weights in the shape of a config.json."""
    import torch

    from llmcli.engine import random_weights
    from llmcli.files.json import read_json
    from llmcli.model.device import pick_device, pick_dtype
    from llmcli.model.families import family_of
    from llmcli.storage.quantize import quantize

    raw = read_json(config)
    where = pick_device(device)
    shape = family_of(raw).parse(raw)
    model = random_weights.random_model(shape, device=where, dtype=pick_dtype(dtype, where, torch.bfloat16))
    if quantization is not None:
        quantize(model, quantization)
    return f"random {config.parent.resolve().name}", model
