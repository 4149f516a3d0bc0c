"""A model as a whole, for the eye: its shape, its parameters, its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from llmcli.files.sizes import readable
from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, escape_controls

if TYPE_CHECKING:
    from llmcli.explain.architecture import Rope, Shape
    from llmcli.explain.inspection import InspectReport


def print_inspect(report: InspectReport, stream: TextIO) -> None:
    """The whole view."""
    print_line(f"{escape_controls(report.model)}: what is this model, and does it fit?", stream)
    facts = [(name, escape_controls(value)) for name, value in _facts(report)]
    print_table([Column("", right=False), Column("shape", right=False)], [[Cell(n), Cell(v)] for n, v in facts], stream)
    print_line("", stream)
    _print_parameters(report, stream)
    print_line("", stream)
    _print_memory(report, stream)
    print_line(_verdict(report), stream, "bold")
    print_line("Beside that, torch itself and what it computes in between take memory.", stream, "dim")
    print_check(report.check, stream)


def _facts(report: InspectReport) -> Iterator[tuple[str, str]]:
    shape = report.shape
    yield "family", shape.family
    yield "layers", f"{shape.layers}, each passing on {shape.hidden} numbers for a token"
    shared = "" if shape.heads == shape.kv_heads else f" that share {shape.kv_heads} for keys and values"
    yield "attention", f"{counted(shape.heads, 'head')} of {shape.head_dim}{shared}"
    if shape.experts is None:
        yield "MLP", f"{shape.intermediate} wide"
    else:
        yield "experts", f"{shape.experts} a layer, each {shape.intermediate} wide; {shape.experts_per_token} a token"
    yield "vocabulary", f"{shape.tokens} tokens" + ("" if shape.tokens == shape.rows else f", {shape.rows} rows")
    yield "head", "the embedding itself (tied, counted once)" if shape.tied else "a matrix of its own"
    yield "context", f"{shape.context} tokens" + _windows(shape)
    if shape.rope is not None:
        yield "positions", _rope(shape.rope, shape)
    if shape.local_rope is not None:
        yield "in windows", _rope(shape.local_rope, shape)
    if shape.particulars:
        yield "besides", "; ".join(shape.particulars)
    yield "files", _files(report)


def _windows(shape: Shape) -> str:
    return "" if shape.window is None else f"; {shape.windowed} layers see the last {shape.window} only"


def _rope(rope: Rope, shape: Shape) -> str:
    told = f"rotary (RoPE), theta {rope.theta:g}"
    if rope.features != shape.head_dim:
        told += f", {rope.features} of a head's {shape.head_dim} features"
    if rope.type == "default":
        return told
    beyond = f" beyond the {rope.original_context} of pre-training" if rope.original_context < shape.context else ""
    return f"{told}; stretched {rope.factor:g} times{beyond} ({rope.type})"


def _files(report: InspectReport) -> str:
    kinds = ", ".join(f"{part.dtype} {readable(part.bytes)}" for part in report.stored)
    return f"{readable(report.disk_bytes)} ({kinds})" + (f"; of no use: {report.others}" if report.others else "")


def _print_parameters(report: InspectReport, stream: TextIO) -> None:
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
    rows.append([Cell("all"), Cell(total, str(report.parameters)), Cell("", "1.0"), Cell(""), _size(everything)])
    print_table(columns, rows, stream)
    if report.active != report.parameters:
        print_line(f"One token passes {report.active:,} of them: of the experts, those chosen for it.", stream)


def _print_memory(report: InspectReport, stream: TextIO) -> None:
    columns = [
        Column("weights as", right=False),
        Column("weights", optional=1),
        Column("KV cache, at most", optional=2),
        Column("together"),
        Column("fits", right=False),
    ]
    fits = {True: "yes", False: "no", None: "?"}
    rows = [
        [
            Cell(need.weights + ("" if n else ", as opened")),
            _size(need.weight_bytes),
            _size(report.cache.most),
            _size(need.total),
            Cell(fits[need.fits], style="bold red" if need.fits is False else ""),
        ]
        for n, need in enumerate(report.needs)
    ]
    print_table(columns, rows, stream)
    cache = report.cache
    parts = [f"{readable(cache.per_token)} for each token of the text"] if cache.per_token else []
    if report.shape.window is not None:
        parts.append(f"{readable(cache.windowed)} in layers that keep the last {report.shape.window} tokens")
    print_line(f"KV cache: {', and '.join(parts)}.", stream)
    print_line(
        f"{counted(report.tokens, 'token')}: {readable(cache.needed)}; with room to grow, and a piece of the prompt",
        stream,
    )
    print_line(f"read at once, the buffers take at most {readable(cache.most)}.", stream)
    if report.measured is not None:
        found = report.measured
        print_line(
            f"Opened and measured: weights {readable(found.weight_bytes)}, KV cache {readable(found.cache_bytes)}.",
            stream,
        )


def _verdict(report: InspectReport) -> str:
    need, usable, text = report.needs[0], report.memory.usable, counted(report.tokens, "token")
    where = "this machine" if report.device in ("cpu", "mps") else "the GPU"
    if usable is None:
        return f"It needs {readable(need.total)} for {text}; {where} does not tell its memory."
    limited = report.memory.limit is not None and report.memory.limit == usable
    has = f"{readable(usable)} that {'its container may use' if limited else where + ' has'}"
    if need.fits:
        return f"It fits: {readable(need.total)} for {text}, of the {has}."
    smaller = [other for other in report.needs[1:] if other.fits]
    hint = f"--quantize {smaller[0].weights} would" if smaller else "a shorter --context may, or a smaller model"
    return f"It does not fit: {readable(need.total)} for {text}, more than the {has}; {hint}."


def _size(count: int) -> Cell:
    return Cell(readable(count), str(count))
