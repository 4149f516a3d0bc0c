"""``llmcli branch``: its table and tree. test_views covers what all views have in common."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.errors import EXIT_USAGE
from llmcli.render.generation import ENDINGS
from tests.commands.conftest import records
from tests.commands.test_views import ESCAPE, PROMPT, on_terminal

Run = Callable[..., Result]


def nodes(children: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for child in children for node in (child, *nodes(child["children"]))]


def test_the_table_in_a_file_has_a_row_per_node(model: Path, run: Run) -> None:
    arguments = ["branch", PROMPT, "--width", "2", "--depth", "3", "-m", model]
    plain = run(*arguments).stdout
    (report,) = records(run(*arguments, "--json"))
    lines = [line.split("\t") for line in plain.splitlines() if "\t" in line]
    assert lines[0] == ["token", "end", "path", "p", "sign", "p of path", "p of others", "text"]
    all_nodes = nodes(report["children"])
    assert len(all_nodes) == len(lines) - 1 == 2 + 4 + 8
    for (_, _, path, p, _, along, others, _), node in zip(lines[1:], all_nodes, strict=True):
        assert path.split("/") == [str(id) for id in node["path"]]
        assert float(p) == node["p"]
        assert float(along) == pytest.approx(math.exp(node["logprob"]), rel=5e-5)
        assert others == ("" if node["others"] is None else repr(node["others"]))
    assert not set("├└│") & set(plain)


def test_a_terminal_shows_the_tree(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["branch", PROMPT, "--width", "2", "--depth", "2", "-m", str(model)]
    shown = ESCAPE.sub("", on_terminal(arguments, 100, monkeypatch)).splitlines()
    rows = [line for line in shown if line[:1] in "├└│" or line.startswith(("  ├", "  └"))]
    assert [row[:3] if row[:1] in "│ " else row[0] for row in rows] == ["├", "│ ├", "│ └", "└", "  ├", "  └"]


def test_a_tree_of_width_1_is_a_list(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["branch", PROMPT, "--width", "1", "--depth", "20", "-m", str(model)]
    shown = ESCAPE.sub("", on_terminal(arguments, 80, monkeypatch))
    assert not set("├└│") & set(shown)


def test_a_picture_keeps_the_indentation(model: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "tree.svg"
    run("branch", PROMPT, "--width", "2", "--depth", "2", "-m", model, "--save", path)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert root.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"
    lines = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len([line for line in lines if line.startswith(("\xa0\xa0├", "\xa0\xa0└"))]) == 2


def test_an_incomplete_character_is_completed_not_repeated(model: Path, run: Run) -> None:
    """A text that ends in the middle of a character decodes differently from its continuation."""
    text = "The old fox met a hen by the river \U0001f643"
    (tokens,) = records(run("tokenize", text, "-m", model, "--json"))
    last = tokens["tokens"][-1]
    assert last["text"] == "\ufffd"
    arguments = ["--at", "-2", "--width", "320", "--depth", "1", "-m", model, "--json"]
    (report,) = records(run("branch", text, *arguments))
    assert {child["text"] for child in report["children"] if child["piece"]["id"] == last["id"]} == {"\U0001f643"}
    assert not [child["text"] for child in report["children"] if "fox met" in child["text"]]


def test_the_end_of_a_text_is_shown(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["branch", PROMPT, "--width", "316", "--depth", "1", "-m", str(model)]
    (report,) = records(run(*arguments, "--json"))
    assert [child["end"] for child in report["children"] if child["end"]] == ["stop_token"]
    for shown in (run(*arguments).stdout, ESCAPE.sub("", on_terminal(arguments, 120, monkeypatch))):
        assert shown.count(ENDINGS["stop_token"]) == 1


@pytest.mark.parametrize("words", [["--width", "0"], ["--depth", "101"], ["--depth", "9" * 30], ["--width", "9" * 30]])
def test_sizes_out_of_range_are_one_line(model: Path, run: Run, words: list[str]) -> None:
    result = run("branch", PROMPT, *words, "-m", model)
    assert result.exit_code == EXIT_USAGE
    assert len(result.stderr.strip().splitlines()) == 1
