"""``models``: the models on disk as a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TextIO

from llmcli.files.sizes import readable
from llmcli.hub.cache import COMPLETE, LocalModel
from llmcli.render.json_forms import iso_time
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.text import one_line


def print_models(models: Sequence[LocalModel], stream: TextIO) -> None:
    """Print a row for each model."""
    columns = [
        Column("name", right=False),
        Column("family", right=False, optional=5),
        Column("format", right=False, optional=3),
        Column("size", optional=2),
        Column("last used", optional=4),
        Column("where", right=False, optional=1, plain=("where", "state")),
    ]
    rows = [
        [
            Cell(one_line(model.name)),
            Cell(one_line(model.family or "")),
            Cell(one_line(model.format)),
            Cell(readable(model.bytes), str(model.bytes)),
            _time_cell(model.last_use),
            Cell(model.where + ("" if model.state == COMPLETE else f", {model.state}"), (model.where, model.state)),
        ]
        for model in models
    ]
    print_table(columns, rows, stream)


def _time_cell(moment: float | None) -> Cell:
    if moment is None:
        return Cell("")
    return Cell(datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M"), iso_time(moment))
