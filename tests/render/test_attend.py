"""The views of attention in models whose heads have a learned sink."""

from __future__ import annotations

import io
import re

import pytest

from llmcli.explain.attention.weights import attend, attention_pattern
from llmcli.render.text import ranges
from llmcli.render.views.attend import print_attend, print_attention_pattern
from tests.explain.reference import IDS, loaded
from tests.render.test_terminal import Tty
from tests.tiny import TinyFactory

STYLE = re.compile(r"\x1b\[[0-9;]*m")


def test_the_sink_is_a_row_of_the_table(tiny: TinyFactory) -> None:
    report, stream = attend(loaded(tiny("gpt_oss")), IDS[:8]), io.StringIO()
    print_attend(report, stream)
    rows = [line.split("\t") for line in stream.getvalue().splitlines() if "\t" in line]
    (sink,) = [row for row in rows if row[1] == "sink"]
    assert float(sink[rows[0].index("mean weight")]) == report.sink
    assert {len(row) for row in rows} == {len(rows[0])}
    means = [float(row[rows[0].index("mean weight")]) for row in rows[1:]]
    assert abs(sum(means) - 1) < 1e-6
    without = io.StringIO()
    print_attend(attend(loaded(tiny("llama")), IDS[:8]), without)
    assert "\tsink\t" not in without.getvalue()
    assert "Layers without attention" not in without.getvalue()


@pytest.mark.parametrize(("layers", "named"), [(None, "0, 2"), ("0-1", "0")])
def test_layers_without_attention_are_named(tiny: TinyFactory, layers: str | None, named: str) -> None:
    report, stream = attend(loaded(tiny("qwen3_5_text")), IDS[:8], layers=layers), io.StringIO()
    assert {source.layer for source in report.sources} <= {1, 3}
    print_attend(report, stream)
    assert f"\nLayers without attention: {named}.\n" in stream.getvalue()


def test_three_layers_in_a_row_are_a_range() -> None:
    assert ranges([0, 1, 2, 4, 5, 7, 8, 9, 10]) == "0-2, 4, 5, 7-10"


def test_the_sink_is_the_last_column_of_a_pattern(tiny: TinyFactory) -> None:
    report, plain, drawn = attention_pattern(loaded(tiny("gpt_oss")), IDS[:8], (0, 1)), io.StringIO(), Tty()
    print_attention_pattern(report, plain)
    table = [line.split("\t") for line in plain.getvalue().splitlines() if "\t" in line]
    assert table[0][-1] == "sink"
    for row, cells in zip(report.rows, table[1:], strict=True):
        assert float(cells[-1]) == row.sink
        assert abs(sum(float(cell) for cell in cells[2:] if cell) - 1) < 1e-5
    print_attention_pattern(report, drawn)
    heading, *lines = STYLE.sub("", drawn.getvalue()).splitlines()[1:]
    assert heading.endswith("sink")
    for row, line in zip(report.rows, lines, strict=False):
        assert len(line.rstrip()) == len(heading) - 1  # as the other columns, one place before the end
        assert int(line.split()[-1]) == round(100 * (row.sink or 0))
