"""The loss curve, in characters and as SVG, shows the numbers it was given."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import pytest

from llmcli.render.training import TrainingProgress, smooth, svg_curve, terminal_curve
from llmcli.train.metrics import Metrics
from tests.render.test_terminal import Tty


def seconds_left(line: str) -> int:
    (hours, minutes, seconds) = re.findall(r"(\d+):(\d\d):(\d\d) left", line)[0]
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def test_the_time_left_does_not_swing() -> None:
    """Steps of 1 s, the first of 30 s, and every 40th of 20 s: as for torch's first step, and validations."""
    now, stream = 0.0, io.StringIO()
    ends = []
    with TrainingProgress(stream, "nats per token", clock=lambda: now) as progress:
        for step in range(1, 1001):
            seconds = 30.0 if step == 1 else 20.0 if step % 40 == 0 else 1.0
            now += seconds
            ends.append(now)
            speed = 128 / seconds
            progress.show(Metrics(step, 1000, 128 * step, 1.0, 0.1, speed))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step ")]
    assert "left" not in lines[0]  # nothing to estimate from
    for line in lines[1:]:
        step = int(line.split("/")[0].removeprefix("step "))
        expected = ends[-1] - ends[step - 1]
        assert seconds_left(line) == pytest.approx(expected, rel=0.15, abs=30)


def test_a_bar_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    now, stream = 0.0, Tty()
    with TrainingProgress(stream, "nats per token", clock=lambda: now) as progress:
        for step in range(1, 11):
            now += 2.0
            progress.show(Metrics(step, 100, 128 * step, 1.0, 0.1, 64.0))
    assert "0:03:00 left" in stream.getvalue()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [(False, "  | Once there was a fox.\n  | It ran…\n"), (True, "  | > Once there w\n  | as a fox.\n  | It ran…\n")],
)
def test_a_sample_begins_with_its_prompt(reply: bool, expected: str) -> None:
    stream = io.StringIO()
    TrainingProgress(stream, "nats per token").sample("Once there w", "as a fox.\nIt ran…", reply=reply)
    assert stream.getvalue() == expected


def test_the_terminal_curve_falls_where_the_loss_falls() -> None:
    points = [(float(n), 8.0 - n * 0.05) for n in range(1, 101)]
    lines = terminal_curve(points, width=20, height=4).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("   7.950 ┤")
    assert lines[-1].startswith("   3.000 ┤")
    widths = [len(line) for line in lines]
    assert widths == sorted(widths)  # each row reaches at least as far right as the one above
    assert widths[0] < widths[-1]


def test_a_flat_loss_and_a_single_step_can_be_drawn() -> None:
    assert "┤" in terminal_curve([(1.0, 2.0)])
    assert "┤" in terminal_curve([(1.0, 2.0), (2.0, 2.0)])
    ElementTree.fromstring(svg_curve("t", [("a", "red", [(1.0, 2.0)])], x_label="x", y_label="y"))


def test_smoothing_starts_at_the_first_value_and_stays_within_the_values() -> None:
    points = [(float(n), float(n % 2)) for n in range(200)]
    smoothed = smooth(points)
    assert smoothed[0] == points[0]
    assert smoothed[-1][1] == pytest.approx(0.5, abs=0.2)
    assert [x for x, _ in smoothed] == [x for x, _ in points]


def test_the_picture_places_points_correctly() -> None:
    svg = svg_curve(
        "Loss <1>", [("a & b", "#123456", [(0.0, 4.0), (50.0, 2.0), (100.0, 1.0)])], x_label="x", y_label="y"
    )
    root = ElementTree.fromstring(svg)
    (line,) = [node for node in root if node.tag.endswith("polyline")]
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y1 - y0) == pytest.approx(2 * (y2 - y1), abs=0.3)
    texts = [node.text for node in root if node.tag.endswith("text")]
    assert "Loss <1>" in texts
    assert "a & b" in texts
