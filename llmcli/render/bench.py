"""``bench``: measured speeds as a table, as JSON, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from llmcli import generation
from llmcli.files.ndjson import write_line
from llmcli.files.sizes import readable
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.text import counted, one_line, rate


@dataclass(frozen=True)
class BenchRow:
    """One measurement and its conditions. ``peak_bytes`` is the process's peak memory so far."""

    model: str
    dtype: str
    device: str
    threads: int
    speed: generation.Speed
    weight_bytes: int
    load_seconds: float
    peak_bytes: int | None
    bandwidth: float = math.nan  # bytes per second


def print_bench(rows: Sequence[BenchRow], stream: TextIO) -> None:
    """Print tokens per second (median and range), the share of the memory bandwidth, and memory."""
    columns = [
        Column("model", right=False),
        Column("dtype", right=False),
        Column("threads", optional=3),
        Column("depth"),
        Column("prefill t/s"),
        Column("min-max", optional=5, plain=("prefill min", "prefill max")),
        Column("decode t/s"),
        Column("min-max", optional=1, plain=("decode min", "decode max")),
        Column("bandwidth used"),
        Column("weights", optional=4),
        Column("KV cache", optional=7),
        Column("peak memory", optional=6),
        Column("load s", optional=8),
    ]
    print_table(columns, [_cells(row) for row in rows], stream)


def _cells(row: BenchRow) -> list[Cell]:
    speed = row.speed
    return [
        Cell(row.model),
        Cell(row.dtype),
        Cell(str(row.threads)),
        Cell(str(speed.depth)),
        Cell(rate(speed.prefill.median), repr(speed.prefill.median)),
        Cell(
            f"{rate(speed.prefill.low)}-{rate(speed.prefill.high)}", (repr(speed.prefill.low), repr(speed.prefill.high))
        ),
        number_cell(speed.decode.median, 1),
        Cell(f"{speed.decode.low:.1f}-{speed.decode.high:.1f}", (repr(speed.decode.low), repr(speed.decode.high))),
        Cell(f"{speed.share(row.bandwidth):.0%}", repr(speed.share(row.bandwidth))),
        Cell(readable(row.weight_bytes), str(row.weight_bytes)),
        Cell(readable(speed.cache_bytes), str(speed.cache_bytes)),
        Cell("", "") if row.peak_bytes is None else Cell(readable(row.peak_bytes), str(row.peak_bytes)),
        number_cell(row.load_seconds, 2),
    ]


def bench_line(row: BenchRow) -> str:
    """Return the line that reports a measurement as soon as it is made."""
    speed = row.speed
    return (
        f"{row.model} {row.dtype}, {counted(row.threads, 'thread')}, depth {speed.depth}: "
        f"prefill {rate(speed.prefill.median)}, decode {speed.decode.median:.1f} tokens/s"
    )


def write_bench_json(rows: Sequence[BenchRow], stream: TextIO) -> None:
    """Write one JSON object per row, with the speed of every run."""
    for row in rows:
        speed = row.speed
        record: dict[str, Any] = {
            "model": row.model,
            "dtype": row.dtype,
            "device": row.device,
            "threads": row.threads,
            "depth": speed.depth,
            "prompt_tokens": speed.prompt,
            "output_tokens": speed.output,
            "prefill": list(speed.prefill.runs),
            "decode": list(speed.decode.runs),
            "bandwidth": row.bandwidth,
            "share": speed.share(row.bandwidth),
            "weight_bytes": row.weight_bytes,
            "cache_bytes": speed.cache_bytes,
            "peak_bytes": row.peak_bytes,
            "load_seconds": row.load_seconds,
        }
        write_line(record, stream)


def print_bench_markdown(rows: Sequence[BenchRow], stream: TextIO) -> None:
    """Write a Markdown table of medians and ranges."""
    stream.write("| model | dtype | threads | depth | prefill tokens/s | decode tokens/s | share of bandwidth |\n")
    stream.write("|---|---|---|---|---|---|---|\n")
    for row in rows:
        speed = row.speed
        prefill = f"{rate(speed.prefill.median)} ({rate(speed.prefill.low)}-{rate(speed.prefill.high)})"
        decode = f"{speed.decode.median:.1f} ({speed.decode.low:.1f}-{speed.decode.high:.1f})"
        share = f"{speed.share(row.bandwidth):.0%}"
        cells = [row.model, row.dtype, row.threads, speed.depth, prefill, decode, share]
        stream.write("| " + " | ".join(one_line(str(cell)) for cell in cells) + " |\n")
