"""``patch``: a map of effects by position and layer, and the heads and MLPs with the largest effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llmcli import explain
from llmcli.render.marks import shade, signed_bar_cell
from llmcli.render.numbers import full
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import console, drawn, print_check, print_line
from llmcli.render.text import token_label

CELL = 4  # width of an effect in percent
MAP_PARTS = {"residual": "the residual stream after each layer", "attn": "attention", "mlp": "the MLP"}
SMALL = 0.005  # an effect that is shown as 0


def print_patch(report: explain.PatchReport, stream: TextIO, *, top: int = 10) -> None:
    """Print the whole view; of heads and MLPs the ``top`` with the largest effects (0: all)."""
    token, other = token_label(report.token), token_label(report.other)
    print_line("patch: which parts carry the difference between the two texts?", stream)
    clean, corrupt = report.differences
    print_line(
        f"logit of {token} minus that of {other}: clean {clean:.2f}, corrupt {corrupt:.2f}. An effect of 1 restores "
        "the clean value in the corrupt text.",
        stream,
    )
    print_line(f"effect of {MAP_PARTS[report.part]}, by position:", stream)
    if drawn(stream):
        _print_map(report, stream)
    else:
        _print_effects(report, stream)
    print_line("", stream)
    _print_parts(report, stream, top)
    if report.path is not None:
        path = report.path
        print_line(f"path {path.sender} -> {path.receiver}: effect {path.effect:.4f}", stream)
    print_line(
        "effect: at all positions together. direct: what the part itself adds at the last position; all direct effects "
        f"sum to {report.direct_total:.2f}.",
        stream,
        "dim",
    )
    print_line(_finding(report), stream)
    print_check(report.check, stream)


def _names(report: explain.PatchReport) -> list[str]:
    """Return the names of the map's positions: the clean token, and the corrupt one if they differ."""
    names = []
    for position in range(report.first, len(report.clean)):
        clean, corrupt = token_label(report.clean[position]), token_label(report.corrupt[position])
        names.append(f"{position} {clean}" + (f" for {corrupt}" if clean != corrupt else ""))
    return names


def _columns(report: explain.PatchReport) -> list[str]:
    return ["emb" if row.layer is None else str(row.layer) for row in report.rows]


def _print_map(report: explain.PatchReport, stream: TextIO) -> None:
    """Print percentages, a row for each position and a column for each layer, or for some of many layers."""
    target, names = console(stream), _names(report)
    width = min(max(map(cell_len, names)), 24, target.width // 3) + 1
    room = max((target.width - width) // CELL, 2)
    shown = _spread(len(report.rows), room)
    headings = _columns(report)
    heading = "".join(f"{headings[n]:>{CELL}}" for n in shown)
    target.print(Text(set_cell_size("layer", width) + heading, style="bold"), soft_wrap=True)
    for index, name in enumerate(names):
        line = Text(set_cell_size(name, width))
        for n in shown:
            effect = report.rows[n].effects[index]
            line.append(f"{effect * 100:>{CELL}.0f}", _style(effect))
        target.print(line, soft_wrap=True)
    hidden = "" if len(shown) == len(report.rows) else f" {len(shown)} of {len(report.rows)} columns; --json has all."
    print_line(f"In percent.{hidden}", stream, "dim")


def _style(effect: float) -> str:
    if abs(effect) < SMALL:
        return "dim"
    return "red" if effect < 0 else shade(min(effect, 1.0))


def _spread(count: int, room: int) -> list[int]:
    """Return up to ``room`` of ``count`` indices at even distances, the first and the last among them."""
    if count <= room:
        return list(range(count))
    return sorted({round(n * (count - 1) / (room - 1)) for n in range(room)})


def _print_effects(report: explain.PatchReport, stream: TextIO) -> None:
    columns = [Column("#"), Column("clean"), Column("corrupt"), *map(Column, _columns(report))]
    rows = []
    for index, position in enumerate(range(report.first, len(report.clean))):
        texts = [Cell(token_label(text[position])) for text in (report.clean, report.corrupt)]
        rows.append([Cell(str(position)), *texts, *(Cell(full(row.effects[index])) for row in report.rows)])
    print_table(columns, rows, stream)


def _print_parts(report: explain.PatchReport, stream: TextIO, top: int) -> None:
    ranked = sorted(report.parts, key=lambda part: -max(abs(part.effect), abs(part.direct)))
    shown = ranked[: top or None]
    longest = max((abs(part.effect) for part in shown), default=0.0)
    columns = [
        Column("part", right=False),
        Column("effect"),
        Column("", right=False, optional=1, plain="bar"),
        Column("direct"),
    ]
    print_table(columns, [_part_cells(part, longest) for part in shown], stream)
    if len(shown) < len(ranked):
        print_line(f"the {len(shown)} largest of {len(ranked)} parts; --top 0 shows all", stream, "dim")


def _part_cells(part: explain.PatchedPart, longest: float) -> list[Cell]:
    return [
        Cell(part.name),
        number_cell(part.effect, 3),
        signed_bar_cell(part.effect, longest),
        number_cell(part.direct, 3),
    ]


def _finding(report: explain.PatchReport) -> str:
    """Return the sentence that says where the difference is, and which part moves it most."""
    found = _moves(report.rows, report) if report.part == "residual" else ""
    part = max(report.parts, key=lambda part: part.direct, default=None)
    if part is None:
        return found
    added = f"{part.name} adds most of it to the logits directly ({part.direct:.2f})"
    return f"{found}{added}; its effect is {part.effect:.2f}."


def _moves(rows: Sequence[explain.PatchedLayer], report: explain.PatchReport) -> str:
    """Return the layer from which on the difference is at the last position."""
    last = token_label(report.clean[-1])
    for row in rows:
        if row.effects[-1] >= 0.5:
            where = "the embedding" if row.layer is None else f"layer {row.layer}"
            if row.layer is None:
                return f"The difference is in the last token, {last}, itself. "
            return f"After {where}, more than half of the difference has arrived at the last token, {last}. "
    return ""
