"""``llmcli explain-step``: it explains exactly the token that ``generate`` generates."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.commands.conftest import records

Run = Callable[..., Result]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        ("--temperature", 2.0, "--top-p", 1),
        ("--temperature", 0),
        ("--top-k", 7, "--min-p", 0.01, "--samplers", "top-k,min-p,temperature"),
        ("--repetition-penalty", 2, "--frequency-penalty", 0.5, "--repeat-last-n", 4, "--typical-p", 0.9),
        ("--temperature", 0, "--presence-penalty", 3, "--logit-bias", "e=-inf", "--logit-bias", "300=+2"),
    ],
    ids=["hot", "greedy", "reordered", "penalised", "biased"],
)
def test_step_n_is_the_token_that_generate_chose_at_n(
    run: Run, model: Path, seed: int, options: tuple[object, ...]
) -> None:
    common = ("The old", "-m", model, "--seed", seed, *options)
    start, *tokens, _ = records(run("generate", *common, "-n", 8, "--json"))
    for token in tokens:
        (report,) = records(run("explain-step", *common, "--step", token["index"], "--json"))
        assert report["chosen"]["id"] == token["id"]
        assert report["chosen"]["u"] == token["u"]
        assert report["chosen"]["p_final"] == token["final_prob"]
        assert report["context_ids"] == start["prompt_ids"] + [t["id"] for t in tokens[: token["index"]]]
        assert report["check"]["ok"]


def report_of(run: Run, model: Path, *args: object) -> dict[str, Any]:
    (report,) = records(run("explain-step", "The", "-m", model, "--json", "--seed", 4, *args))
    return report


def test_json_fields(run: Run, model: Path) -> None:
    report = report_of(run, model, "--top-k", 3, "--top", 6)
    fields = ["step", "prompt_ids", "context_ids", "sampler", "seed", "entropy", "candidates", "chosen", "check"]
    assert list(report) == ["model", "dtype", *fields]
    assert [list(stage) for stage in report["sampler"]] == [
        ["name", "value", "kept", "removed_mass", "changed", "moved", "settings", "state"]
    ] * 3
    row = ["rank", "id", "text", "logit", "adjusted", "p", "p_temperature", "cut", "p_final", "cumulative"]
    assert all(list(candidate) == [*row, "u_low", "u_high"] for candidate in report["candidates"])
    assert list(report["chosen"]) == ["id", "u", "p_final", "surprisal"]
    assert [c["cut"] for c in report["candidates"]][3:] == ["top-k"] * 3
    assert [c["u_low"] for c in report["candidates"]][3:] == [None] * 3


def test_bias_and_penalties_are_stages(run: Run, model: Path) -> None:
    options = ("--logit-bias", "e=-inf", "--logit-bias", "o=2.5", "--repetition-penalty", 3)
    common = ("--top", 1000, "--dtype", "float32")
    report, plain = report_of(run, model, *options, *common), report_of(run, model, *common)
    (bias, penalty), rest = report["sampler"][:2], report["sampler"][2:]
    assert [stage["name"] for stage in rest] == ["temperature", "top-p"]
    assert (bias["name"], bias["value"], bias["changed"]) == ("logit-bias", None, 1)
    assert (penalty["name"], penalty["value"]) == ("repetition-penalty", 3)
    assert penalty["changed"] == len(set(report["context_ids"]))
    before = {row["id"]: row["logit"] for row in plain["candidates"]}
    for row in report["candidates"]:
        logit = before[row["id"]]
        assert row["logit"] == logit
        if row["text"] == "e":
            assert row["adjusted"] is None
            continue
        expected = logit + 2.5 * (row["text"] == "o")
        if row["id"] in report["context_ids"]:
            expected = logit / 3 if logit > 0 else logit * 3
        assert row["adjusted"] == pytest.approx(expected, rel=2e-5)
    assert [row["cut"] for row in report["candidates"] if row["text"] == "e"] == ["logit-bias"]
    assert report["check"]["ok"]


@pytest.mark.parametrize("bias", ["e", "=3", "e=", "e=x", "e=nan", "e=inf", ""])
def test_an_invalid_bias(run: Run, bias: str) -> None:
    result = run("explain-step", "x", "-m", "no such model", "--logit-bias", bias)
    assert result.exit_code == 2
    assert "--logit-bias takes TOKEN=NUMBER, not" in result.stderr


def test_a_bias_for_a_text_that_is_not_a_token(run: Run, model: Path) -> None:
    result = run("explain-step", "x", "-m", model, "--logit-bias", "qzqz=1")
    assert result.exit_code == 2
    assert "is not one token" in result.stderr


def test_temperatures_equal_separate_runs(run: Run, model: Path) -> None:
    report = report_of(run, model, "--temperatures", "0,0.7,2")
    for column in report["temperatures"]:
        alone = report_of(run, model, "--temperature", column["temperature"])
        assert alone["chosen"]["id"] == column["drawn"]["id"]
        final = {c["id"]: c["p_final"] for c in alone["candidates"]}
        for row in column["probs"]:
            if row["id"] in final:
                assert row["p_final"] == final[row["id"]]


def test_temperature_alone_is_the_models_own_p_at_1(run: Run, model: Path) -> None:
    """Top-p acts here, so the final p differ from it; the temperature of the step is among the columns."""
    report = report_of(run, model, "--temperatures", "0,1,2", "--top-p", 0.5, "--dtype", "float32")
    columns = {column["temperature"]: column for column in report["temperatures"]}
    assert [(t, column["used"]) for t, column in columns.items()] == [(0, False), (0.8, True), (1, False), (2, False)]
    own = {row["id"]: row["p"] for row in report["candidates"]}
    assert {row["id"]: row["p_alone"] for row in columns[1]["probs"]} == pytest.approx(own, rel=1e-5)
    assert {row["id"]: row["p_final"] for row in columns[1]["probs"]} != pytest.approx(own, rel=1e-2)
    logits = {row["id"]: row["logit"] for row in report["candidates"]}
    (first, one), (second, two), *_ = ((row["id"], row["p_alone"]) for row in columns[2]["probs"])
    assert math.log(one / two) == pytest.approx((logits[first] - logits[second]) / 2, abs=1e-4)
    shown = run("explain-step", "The", "-m", model, "--temperatures", "0,1,2", "--top-p", 0.5).stdout
    assert "p by temperature alone:" in shown
    assert "final p, after all filters (temperature, top-p 0.5):" in shown
    assert "The final p differs because of top-p 0.5" in shown
    assert "At T=1" in shown
    assert "At T=1" not in run("explain-step", "The", "-m", model, "--temperatures", "2", "--top-p", 0.5).stdout
    plain = run("explain-step", "The", "-m", model, "--temperatures", "0.8", "--top-p", 1).stdout
    assert "no other filter changes it" in plain
    assert "temperature alone" not in plain


def test_the_table_shows_every_candidate(run: Run, model: Path) -> None:
    result = run("explain-step", "The", "-m", model, "--seed", 4, "--top", 4, "--temperatures", "0.5,1")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("step 0: ")
    assert lines[1].split("\t")[1:4] == ["rank", "id", "token"]
    assert sum(line.startswith("→") for line in lines) == 1
    assert any(line.startswith("chosen: ") and "seed 4" in line for line in lines)
    assert lines[-2].startswith("check: ok")
    assert lines[-1].startswith("model: ")
    assert "\x1b" not in result.stdout


def test_a_step_after_the_end_of_the_text(run: Run, model: Path) -> None:
    result = run("explain-step", "The", "-m", model, "--seed", 1, "--step", 500)
    assert result.exit_code == 2
    assert "there is no step 500: the model's context is 64" in result.stderr
    result = run("explain-step", "The", "-m", model, "--seed", 1, "--step", 64)
    assert "there is no step 64: the text ended at step" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("--temperatures", "0,hot"),
        ("--temperatures", "-1"),
        ("--temperatures", ","),
        ("--temperatures", "nan"),
        ("--interactive",),
        ("--top", "0"),
        ("--step", "-1"),
    ],
    ids=" ".join,
)
def test_bad_options(run: Run, args: tuple[str, ...]) -> None:
    result = run("explain-step", "x", "-m", "no such model", *args)
    assert result.exit_code == 2
    assert "no such model" not in result.stderr


def test_a_sum_without_an_error_is_called_exact(run: Run) -> None:
    result = run("explain-step", "The fox", "--temperature", 0, "--top", 1)
    assert result.stdout.count("the final p sum to 1 (exact)") == 1, result.stdout
