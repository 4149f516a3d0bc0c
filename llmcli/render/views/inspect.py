"""``inspect``: a model's architecture, its parameters, and whether it fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from llmcli import explain
from llmcli.files.sizes import readable
from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, escape_controls


def print_inspect(report: explain.InspectReport, stream: TextIO) -> None:
    """Print the whole view."""
    print_line(f"inspect {escape_controls(report.model)}: what is in this model, and does it fit in memory?", stream)
    facts = [(name, escape_controls(value)) for name, value in _facts(report)]
    print_table(
        [Column("", right=False, plain="part"), Column("architecture", right=False)],
        [[Cell(n), Cell(v)] for n, v in facts],
        stream,
    )
    print_line("", stream)
    _print_parameters(report, stream)
    print_line("", stream)
    _print_memory(report, stream)
    print_line(_verdict(report), stream, "bold")
    print_line("PyTorch itself and intermediate results take additional memory.", stream, "dim")
    print_check(report.check, stream)


def _facts(report: explain.InspectReport) -> Iterator[tuple[str, str]]:
    shape = report.shape
    yield "family", shape.family
    yield "layers", f"{shape.layers}, with a hidden size of {shape.hidden}"
    shared = "" if shape.heads == shape.kv_heads else f", {counted(shape.kv_heads, 'KV head')}"
    if shape.attending:
        yield (
            "attention",
            f"{counted(shape.heads, 'head')} of size {shape.head_dim}{shared}{_some(shape.attending, shape)}",
        )
    if shape.mixer is not None:
        yield "recurrent layers", f"{shape.recurrent}: {shape.mixer}"
    if shape.experts is None and shape.dense:
        yield "MLP", f"intermediate size {shape.intermediate}{_some(shape.dense, shape)}"
    elif shape.experts is not None:
        yield (
            "experts",
            f"{shape.experts} per layer, {shape.experts_per_token} per token; intermediate size {shape.intermediate}"
            + _some(shape.routed, shape),
        )
    yield (
        "vocabulary",
        f"{shape.tokens} tokens" + ("" if shape.tokens == shape.rows else f", {shape.rows} embedding rows"),
    )
    yield "head", "tied to the embedding (counted once)" if shape.tied else "untied"
    yield "context", f"{shape.context} tokens" + _windows(shape)
    if shape.rope is not None:
        yield "positions", _rope(shape.rope, shape)
    if shape.local_rope is not None:
        yield "in local layers", _rope(shape.local_rope, shape)
    if shape.particulars:
        yield "details", "; ".join(shape.particulars)
    yield "files", _files(report)


def _some(count: int, shape: explain.Architecture) -> str:
    """The number of layers that have something, if not all have it."""
    return "" if count == shape.layers else f", in {counted(count, 'layer')}"


def _windows(shape: explain.Architecture) -> str:
    return "" if shape.window is None else f"; {counted(shape.windowed, 'layer')} with a window of {shape.window}"


def _rope(rope: explain.Rotary, shape: explain.Architecture) -> str:
    text = f"rotary (RoPE), theta {rope.theta:g}"
    if rope.features != rope.head_dim:
        text += f", on {rope.features} of a head's {rope.head_dim} dimensions"
    if rope.type in ("default", "proportional"):
        return text
    original = f" from {rope.original_context} tokens" if rope.original_context < shape.context else ""
    return f"{text}; {rope.type} scaling, extended {rope.factor:g} times{original}"


def _files(report: explain.InspectReport) -> str:
    kinds = ", ".join(f"{part.dtype} {readable(part.bytes)}" for part in report.stored)
    return f"{readable(report.disk_bytes)} ({kinds})" + (f"; ignored: {report.others}" if report.others else "")


def _print_parameters(report: explain.InspectReport, stream: TextIO) -> None:
    columns = [
        Column("parameters", right=False),
        Column("count"),
        Column("share", optional=1),
        Column("", right=False, optional=2, plain="bar"),
        Column(f"as {report.needs[0].weights}"),
    ]
    rows = [
        [
            Cell(group.name),
            Cell(f"{group.parameters:,}", str(group.parameters)),
            Cell(f"{group.share:.1%}" if group.share >= 0.0005 else "<0.1%", repr(group.share)),
            bar_cell(group.share, 1.0),
            _size(group.bytes),
        ]
        for group in report.groups
    ]
    total = f"{report.parameters:,}"
    everything = sum(group.bytes for group in report.groups)
    rows.append([Cell("total"), Cell(total, str(report.parameters)), Cell("", "1.0"), Cell(""), _size(everything)])
    print_table(columns, rows, stream)
    if report.active != report.parameters:
        print_line(f"Each token uses {report.active:,} of them: of the experts, only those chosen for it.", stream)


def _print_memory(report: explain.InspectReport, stream: TextIO) -> None:
    columns = [
        Column("weights as", right=False),
        Column("weights", optional=1),
        Column("KV cache (max)", optional=2),
        Column("total"),
        Column("fits", right=False),
    ]
    fits = {True: "yes", False: "no", None: "?"}
    rows = [
        [
            Cell(need.weights + ("" if n else " (as loaded)"), need.weights),
            _size(need.weight_bytes),
            _size(report.cache.most),
            _size(need.total),
            Cell(fits[need.fits], style="bold red" if need.fits is False else ""),
        ]
        for n, need in enumerate(report.needs)
    ]
    print_table(columns, rows, stream)
    cache = report.cache
    parts = [f"{readable(cache.per_token)} per token"] if cache.per_token else []
    if report.shape.window is not None:
        parts.append(f"{readable(cache.windowed)} in layers with a window of {report.shape.window}")
    if cache.states:
        parts.append(f"{readable(cache.states)} of states in recurrent layers, for any number of tokens")
    print_line(f"KV cache: {' and '.join(parts)}.", stream)
    needed = f"{counted(report.tokens, 'token')}: {readable(cache.needed)}"
    print_line(f"{needed}; the buffers grow in steps, to {readable(cache.most)} at most.", stream)
    if report.measured is not None:
        found = report.measured
        print_line(
            f"Measured after loading: weights {readable(found.weight_bytes)}, KV cache {readable(found.cache_bytes)}.",
            stream,
        )


def _verdict(report: explain.InspectReport) -> str:
    need, usable, text = report.needs[0], report.memory.usable, counted(report.tokens, "token")
    machine = "this machine" if report.device in ("cpu", "mps") else "the GPU"
    if usable is None:
        return f"It needs {readable(need.total)} for {text}; the memory of {machine} is unknown."
    limited = report.memory.limit is not None and report.memory.limit == usable
    where = "in this container" if limited else f"on {machine}"
    if need.fits:
        return f"It fits: {readable(need.total)} for {text}, of {readable(usable)} {where}."
    smaller = [other for other in report.needs[1:] if other.fits]
    remedy = (
        f"it fits with --quantize {smaller[0].weights}" if smaller else "try a shorter --context or a smaller model"
    )
    return f"It does not fit: {readable(need.total)} for {text}, but {readable(usable)} {where}; {remedy}."


def _size(count: int) -> Cell:
    return Cell(readable(count), str(count))
