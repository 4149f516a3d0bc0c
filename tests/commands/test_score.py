"""``llmcli score``: the table, the colors and the totals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.errors import EXIT_USAGE
from llmcli.render.marks import PROBABILITY_BANDS, surprisal_band
from llmcli.render.text import escape_controls
from llmcli.text.tokenizer import load_tokenizer
from tests.commands.conftest import colored, records
from tests.commands.test_views import ESCAPE, HOSTILE, on_terminal

Run = Callable[..., Result]
TEXT = "The old fox met a hen by the moon"
DIM = "\x1b[2m"


def scored(run: Run, model: Path, text: str = TEXT, *more: str) -> dict[str, Any]:
    (record,) = records(run("score", text, "-m", model, "--json", *more))
    return record


def table(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]


def test_the_table_in_a_file_is_complete_and_without_the_text(model: Path, run: Run) -> None:
    result, record = run("score", TEXT, "-m", model), scored(run, model)
    head, *rows = table(result)
    assert head == ["#", "id", "token", "surprisal, bits", "rank", "sign", "entropy, bits", "top token", "its p"]
    assert len(rows) == len(record["tokens"])
    for row, token in zip(rows, record["tokens"], strict=True):
        assert (int(row[0]), int(row[1]), int(row[4])) == (token["position"], token["piece"]["id"], token["rank"])
        assert [float(row[n]) for n in (3, 6, 8)] == [token["surprisal"], token["entropy"], token["p_favourite"]]
        assert row[5] == surprisal_band(token["surprisal"])[1]
    assert TEXT not in result.stdout
    assert "most surprising of" not in result.stdout


@pytest.mark.parametrize("top", [0, 1, 3, 1000])
def test_the_most_surprising_tokens_are_in_the_order_of_the_text(model: Path, run: Run, top: int) -> None:
    record = scored(run, model)
    result = run("score", TEXT, "-m", model, "--top", top)
    _, *rows = table(result)
    most = sorted(record["tokens"], key=lambda token: token["surprisal"])[-top:]
    assert [int(row[0]) for row in rows] == sorted(token["position"] for token in most)
    title = f"the {top} most surprising of {len(record['tokens'])} tokens"
    assert (title in result.stdout) == (0 < top < len(record["tokens"]))
    assert scored(run, model, TEXT, "--top", str(top)) == record


def test_totals_count_only_scored_tokens(model: Path, run: Run) -> None:
    record = scored(run, model)
    bits = sum(token["surprisal"] for token in record["tokens"])
    assert record["bits"] == pytest.approx(bits, rel=1e-5)
    assert record["bytes"] == len(TEXT)
    assert record["bits_per_byte"] == pytest.approx(bits / len(TEXT), rel=1e-5)
    assert record["perplexity"] == pytest.approx(
        math.exp(-sum(token["logprob"] for token in record["tokens"]) / len(record["tokens"])), rel=2e-5
    )
    output = run("score", TEXT, "-m", model).stdout
    assert f"{len(record['tokens'])} tokens, {bits:.1f} bits" in output
    assert f"The first token, {record['first']['text']}, is not scored" in output


def test_a_terminal_colors_the_text_by_surprisal(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A color starts with its token; unscored tokens are dim; the legend uses the same colors."""
    record = scored(run, model, text := "The old fox met a zebra!")
    shown = on_terminal(["score", text, "-m", str(model)], 200, monkeypatch)
    line, legend = shown.splitlines()[1:3]
    assert ESCAPE.sub("", line) == record["first"]["text"] + text
    assert line.startswith(DIM)
    colors = {
        sign: code
        for code, part in colored(legend)
        for *_, sign in PROBABILITY_BANDS
        if part.rstrip().endswith(f" {sign}")
    }
    assert len(colors) == len(PROBABILITY_BANDS)
    expected = [colors[surprisal_band(token["surprisal"])[1]] for token in record["tokens"] for _ in token["chunk"]]
    assert len(set(expected)) > 1, "else nothing is tested"
    found = [code for code, part in colored(line) for _ in part]
    assert found == [DIM] * len(record["first"]["text"]) + expected


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_text_keeps_its_lines_and_control_characters_are_escaped(
    model: Path, run: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every character is shown, except tabs and the spaces at line breaks."""
    shown = ESCAPE.sub("", on_terminal(["score", HOSTILE[kind], "-m", str(model)], 200, monkeypatch))
    text = shown[: shown.index("surprisal, bits: up to 1 +++")].split("\n", 1)[1]
    first = scored(run, model)["first"]["text"]
    expected = first + escape_controls(HOSTILE[kind])
    assert re.sub("[ \t]+", " ", text).rstrip() == re.sub("[ \t]+", " ", expected).rstrip()


def test_a_text_longer_than_the_context_says_how_it_was_read(model: Path, run: Run) -> None:
    """The context has 64 tokens: 65 tokens are 64 predictions, which fit."""
    ids = load_tokenizer(model).encode(TEXT * 30)
    for length, windows in ((65, None), (66, 2), (97, 2), (98, 3)):
        text = load_tokenizer(model).decode(ids[:length])
        assert len(load_tokenizer(model).encode(text)) == length
        said = [line for line in run("score", text, "-m", model).stdout.splitlines() if "windows" in line]
        assert scored(run, model, text)["windows"] == (windows and {"count": windows, "size": 64, "overlap": 32})
        assert len(said) == (windows is not None)
        assert windows is None or f"{windows} windows that overlap by 32" in said[0]
    same = run("compare", text, "-m", model, "-m", model).stdout
    assert said[0] in same.splitlines()


def test_one_token_is_enough_after_bos(model: Path, run: Run) -> None:
    result = run("score", "a", "-m", model)
    assert result.exit_code == 0
    assert "1 token, " in result.stdout


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_text_is_an_error(model: Path, run: Run, text: str) -> None:
    results = {"too short": run("score", "", "-m", model), "stdin is empty": run("score", "-m", model, input=text)}
    for message, result in results.items():
        assert result.exit_code == EXIT_USAGE
        assert message in result.stderr
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1
