"""`batch` with choices: each row as `decide` says, right answers counted, stopped runs resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.errors import EXIT_FAILURE, EXIT_USAGE
from llmcli.generation.jobs import Accuracy
from tests.commands.conftest import assert_one_line, records

Run = Callable[..., Result]
ROWS: list[dict[str, Any]] = [
    {"prompt": "The", "answer": "old fox", "id": "a"},
    {"prompt": "The old fox met a", "choices": ["hen", "crow", "hen by the river"], "answer": 0},
    {"prompt": "They sang song", "choices": [" number", " fox"], "answer": "number"},
    {"prompt": "", "answer": None},
    {"prompt": "The shy fox met", "choices": ["a crow", "a hen", "a hen by the river. They sang song number 3!"]},
]
CHOICES = ("--choices", "fox,old fox,shy crow")


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [(), ("--end",), ("--delimiter", "")])
def test_each_row_is_what_decide_says(run: Run, model: Path, source: Path, options: tuple[str, ...]) -> None:
    out = source.with_name("out.jsonl")
    result = run("batch", source, out, "-m", model, "--dtype", "float32", *CHOICES, *options)
    assert result.exit_code == 0, result.stderr
    right = [0, 0]
    for row, found in zip(ROWS, written(out), strict=True):
        choices = row.get("choices", CHOICES[1].split(","))
        call = ("decide", row["prompt"], "-m", model, "--choices", json.dumps(choices), "--json", *options)
        (report,) = records(run(*call))
        assert [found["choice"], found["choice_per_token"]] == [report["best"], report["best_per_token"]]
        assert found["text"] == choices[report["best"]]
        for key, name in (("logprobs", "logprob"), ("shares", "share")):
            assert found[key] == pytest.approx([choice[name] for choice in report["choices"]], rel=1e-4)
        assert found["outside"] == pytest.approx(report["outside"], rel=1e-4)
        assert found["prompt_tokens"] == report["prompt_tokens"]
        answer = row.get("answer")
        index = answer if isinstance(answer, int | None) else [c.strip() for c in choices].index(answer)
        assert found["answer"] == index
        assert found["correct"] == (None if index is None else found["choice"] == index)
        if index is not None:
            right[0] += found["choice"] == index
            right[1] += found["choice_per_token"] == index
    table = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[:4] for row in table[1:3]] == [
        ["log probability", str(right[0]), "3", repr(right[0] / 3)],
        ["log probability per token", str(right[1]), "3", repr(right[1] / 3)],
    ]
    assert float(table[3][3]) == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_batches_and_stops_change_nothing(run: Run, model: Path, source: Path) -> None:
    """Not a byte of the results, nor the table, whatever the size, the order and where a run stopped."""
    out = source.with_name("out.jsonl")
    call = ("batch", source, out, "-m", model, *CHOICES)
    whole = run(*call)
    text = out.read_bytes()
    for size, kept in ((1, 0), (16, 2), (2, 4), (3, 5)):
        out.write_bytes(b"".join(text.splitlines(keepends=True)[:kept]) + (b'{"id": 4' if kept == 4 else b""))
        result = run(*call, "--batch-size", size)
        assert (out.read_bytes(), result.stdout) == (text, whole.stdout)
    assert run(*call, "--end").exit_code == EXIT_USAGE  # other results in the file
    finished = source.with_name("finished.jsonl")
    assert run("batch", source, finished, "-m", model, *CHOICES, "--order", "finished").stdout == whole.stdout
    assert sorted(finished.read_bytes().splitlines()) == sorted(text.splitlines())


def test_a_chat_model_is_asked_in_its_template(run: Run, chat_model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "old?", "choices": ["yes", "no"]}\n', encoding="utf-8")
    chat = ("-m", chat_model, "--dtype", "float32", "--apply-chat-template", "-s", "Be brief.")
    result = run("batch", source, out, *chat)
    assert (result.exit_code, result.stdout) == (0, "")  # no answers, no table
    (report,) = records(run("decide", "old?", *chat, "--choices", "yes,no", "--json"))
    (found,) = written(out)
    assert found["logprobs"] == pytest.approx([row["logprob"] for row in report["choices"]], rel=1e-4)


def test_invalid_lines_are_skipped(run: Run, model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = {
        '{"prompt": "The", "choices": ["a", "b"], "answer": 2}': "answer 2 is not the index of a choice",
        '{"prompt": "The", "choices": ["a", "b"], "answer": "c"}': "answer must be a choice or its index, not 'c'",
        '{"prompt": "The", "choices": ["a", "b"], "answer": true}': "answer must be a choice or its index, not true",
        '{"prompt": "The", "choices": ["a"]}': "choices must be a list of at least two strings",
        '{"prompt": "The", "choices": ["a", "a"]}': "the choice 'a' is given twice",
        '{"prompt": "The", "choices": ["a", " a"]}': "are the same tokens",
        '{"prompt": "The", "choices": ["a", "' + "old fox " * 40 + '"]}': "the model's context holds 64",
        '{"prompt": "The"}': "choices is missing: other lines have choices",
        '{"prompt": "The", "choices": ["a", "b"], "answer": 1}': "",
    }
    source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    result = run("batch", source, out, "-m", model)
    assert result.exit_code == EXIT_FAILURE
    for number, message in enumerate(lines.values(), start=1):
        assert not message or any(f":{number}: " in line and message in line for line in result.stderr.splitlines())
    assert [record["id"] for record in written(out)] == [9]


def test_options_that_generate_are_errors(run: Run, model: Path, source: Path) -> None:
    out = source.with_name("out.jsonl")
    result = run("batch", source, out, "-m", model, *CHOICES, "--regex", "a")
    assert_one_line(result, "choices and --regex cannot be combined", code=EXIT_USAGE)
    assert not out.exists()


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (5, 5), (17, 20), (1, 1), (500, 1000)])
def test_the_interval_holds_the_shares_that_are_not_rejected(correct: int, n: int) -> None:
    """Wilson's interval: the shares p for which the result is within 1.96 standard errors sqrt(p (1 - p) / n) of p."""
    low, high = Accuracy(n, correct, 0.25).interval
    for share in (low, high):
        error = math.sqrt(share * (1 - share) / n)
        assert share in (0, 1) or abs(correct / n - share) == pytest.approx(1.959964 * error, abs=1e-9)
    assert low <= correct / n <= high
