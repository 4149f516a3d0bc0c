"""``llmcli neighbours``: its table and errors. test_views covers what all views have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.errors import EXIT_USAGE
from tests.commands.conftest import records

Run = Callable[..., Result]
TOKENS = 316  # in the tokenizer; the model's embedding is padded to 320 rows


def test_the_table_in_a_file_equals_the_json(model: Path, run: Run) -> None:
    plain = run("neighbours", "fox + hen", "--top", "7", "-m", model).stdout
    (report,) = records(run("neighbours", "fox + hen", "--top", "7", "-m", model, "--json"))
    lines = [line.split("\t") for line in plain.splitlines() if "\t" in line]
    assert lines[0] == ["id", "token", "centered", "", "cosine"]
    assert len(lines) == 8
    for (id, _, centred, _, cosine), row in zip(lines[1:], report["neighbours"], strict=True):
        assert (int(id), float(centred), float(cosine)) == (row["piece"]["id"], row["centred"], row["cosine"])
    values = [row["centred"] for row in report["neighbours"]]
    assert values == sorted(values, reverse=True)
    assert "·fox + ·hen" in plain
    assert (report["size"], len(report["vector"])) == (32, 8)


@pytest.mark.parametrize(
    ("word", "left"), [("fox", "the word itself is not listed."), ("fox - hen", "the words themselves are not listed.")]
)
def test_excluded_tokens_are_reported(model: Path, run: Run, word: str, left: str) -> None:
    (report,) = records(run("neighbours", word, "--top", "1000", "-m", model, "--json"))
    ids = {term["piece"]["id"] for term in report["terms"]}
    assert len(report["neighbours"]) + len(ids) == TOKENS
    assert not ids & {row["piece"]["id"] for row in report["neighbours"]}
    plain = run("neighbours", word, "-m", model).stdout
    assert left in plain
    assert "sorted by" in plain


@pytest.mark.parametrize(
    ("word", "message"),
    [("zebra", "'z', 'e', 'b'"), ("fox - fox", "is 0"), ("", "neither a word"), ("316", "ids are from 0 to 315")],
)
def test_a_word_without_an_embedding_is_an_error(model: Path, run: Run, word: str, message: str) -> None:
    result = run("neighbours", word, "-m", model)
    assert result.exit_code == EXIT_USAGE
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_number_is_a_token_id(model: Path, run: Run) -> None:
    (report,) = records(run("neighbours", "300", "-m", model, "--json"))
    assert [term["piece"]["id"] for term in report["terms"]] == [300]
