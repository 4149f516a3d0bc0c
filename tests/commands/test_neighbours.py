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
    compared = ["with ·fox alone", "rank alone"]
    assert lines[0] == ["id", "token", "centered cosine", "bar", "raw cosine", *compared]
    assert len(lines) == 8
    for (id, _, centred, _, cosine, alone, rank), row in zip(lines[1:], report["neighbours"], strict=True):
        assert (int(id), float(centred), float(cosine)) == (row["piece"]["id"], row["centred"], row["cosine"])
        assert (alone, rank) == tuple("" if row[key] is None else str(row[key]) for key in ("alone", "alone_rank"))
    values = [row["centred"] for row in report["neighbours"]]
    assert values == sorted(values, reverse=True)
    assert "·fox + ·hen" in plain
    assert (report["size"], len(report["vector"])) == (32, 8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fox"], "The word itself is not listed."),
        (["fox - hen", "--no-inputs"], "The words of the sum are not listed."),
        (["fox - hen"], "The words of the sum are listed, too; --no-inputs omits them."),
    ],
)
def test_it_says_whether_the_words_given_are_ranked(model: Path, run: Run, words: list[str], sentence: str) -> None:
    (report,) = records(run("neighbours", *words, "--top", "1000", "-m", model, "--json"))
    ids = {term["piece"]["id"] for term in report["terms"]}
    listed = {row["piece"]["id"] for row in report["neighbours"]}
    assert len(listed) == len(report["neighbours"])
    assert (listed & ids, len(listed | ids)) == (ids if "too" in sentence else set(), TOKENS)
    lines = run("neighbours", *words, "-m", model).stdout.splitlines()
    (explained,) = [n for n, line in enumerate(lines) if sentence in line]
    assert lines[explained].startswith("Sorted by centered cosine")
    assert lines[explained + 1].split("\t")[2] == "centered cosine"  # explained above the table


@pytest.mark.parametrize("options", [[], ["--no-inputs"]], ids=["all", "no inputs"])
@pytest.mark.parametrize("sum", ["fox - hen + crow", "hen + fox", "fox + fox"])
def test_a_sum_is_compared_with_its_first_word(model: Path, run: Run, sum: str, options: list[str]) -> None:
    """The sentence is true of separate runs: what the first word alone gives, and what the arithmetic changes."""
    call = ("neighbours", sum, "--top", 6, "-m", model, *options)
    (report,) = records(run(*call, "--json"))
    (alone,) = records(run("neighbours", sum.split()[0], "--top", 1000, "-m", model, "--json"))
    given = {term["piece"]["id"] for term in report["terms"]}
    before = [row for row in alone["neighbours"] if row["piece"]["id"] not in given]
    names = {row["piece"]["id"]: row["piece"]["text"].replace(" ", "·") for row in before}
    rows = [row for row in report["neighbours"] if row["piece"]["id"] not in given]
    after = [row["piece"]["id"] for row in rows]
    (sentence,) = [line for line in run(*call).stdout.splitlines() if " alone gives " in line]
    first, best = before[0]["piece"]["id"], after[0]
    if first == best:
        assert f"alone gives {names[first]} first, too" in sentence
        assert f"changes its cosine from {before[0]['centred']:.4f} to {rows[0]['centred']:.4f}." in sentence
    else:
        rank = next(n for n, row in enumerate(before) if row["piece"]["id"] == best)
        assert f"alone gives {names[first]} first and {names[best]} at rank {rank} (0 is first)." in sentence
    top = [row["piece"]["id"] for row in before[: len(after)]]
    added, dropped = ([names[id] for id in one if id not in other] for one, other in ((after, top), (top, after)))
    changes = f"adds {' '.join(added)} and drops {' '.join(dropped)}" if added else "changes only the order"
    assert sentence.endswith(f"Of the first {len(after)} other tokens, the arithmetic {changes}.")
    if sum == "fox + fox":
        assert not added


def test_a_table_of_the_words_alone_names_no_change(model: Path, run: Run) -> None:
    plain = run("neighbours", "fox + fox", "--top", 1, "-m", model).stdout
    assert " alone gives " in plain
    assert "the arithmetic" not in plain


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
