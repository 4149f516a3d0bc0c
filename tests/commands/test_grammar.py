"""--json-schema, --regex, --choices: valid or reported as cut off, shown by explain-step, checked before loading."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from llmcli.commands.explain_step import ask_for_token
from llmcli.commands.options.grammar import read_schema
from llmcli.explain.sampling_step import Candidate, StepReport
from tests.commands.conftest import records

Run = Callable[..., Result]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
NOWHERE = ("-m", "no such model")


@pytest.mark.parametrize("shipped", [True, False])
def test_texts_are_valid(run: Run, model: Path, tmp_path: Path, shipped: bool) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8-sig")
    where = () if shipped else ("-m", model)
    for seed in range(5):
        options = ("generate", "The", *where, "-n", 50, "--temperature", 2, "--top-p", 1, "--seed", seed)
        for given in (json.dumps(SCHEMA), tmp_path / "schema.json"):
            result = run(*options, "--json-schema", given)
            assert result.exit_code == 0, result.stderr
            value = json.loads(result.stdout)
            assert list(value) == ["name", "old"]
            assert len(value["name"]) <= 6
            assert value["old"] in (True, False)
        assert re.fullmatch("[A-Z][a-z]{2,5}!\n", run(*options, "--regex", "[A-Z][a-z]{2,5}!").stdout)
        assert run(*options, "--choices", "yes, no ,maybe").stdout in ("yes\n", "no\n", "maybe\n")
        assert run(*options, "--choices", '[" a, b", "c"]').stdout in (" a, b\n", "c\n")
        assert run(*options, "--temperature", 0, "--choices", "yes,no").stdout in ("yes\n", "no\n")


def test_the_json_names_the_grammar_and_says_whether_the_text_fits(run: Run, model: Path) -> None:
    options = ("generate", "The", "-m", model, "--regex", "[a-z]{20}", "--json", "--seed", 1)
    whole, cut = run(*options), run(*options, "-n", 2)
    start, *tokens, end = records(whole)
    assert start["sampler"][0] == {"name": "grammar", "value": None}
    assert list(end)[-1] == "valid"
    assert (end["finish"], end["valid"], whole.exit_code) == ("grammar", True, 0)
    assert re.fullmatch("[a-z]{20}", end["text"])
    end = records(cut)[-1]
    assert (end["finish"], end["valid"], cut.exit_code) == ("length", False, 1)
    assert "llmcli: the text was cut off before it fit the grammar (increase --max-tokens)" in cut.stderr
    assert "valid" not in records(run("generate", "The", "-m", model, "-n", 1, "--json"))[-1]
    assert len(tokens) > 2


def test_a_text_cut_off_before_or_where_it_may_end(run: Run, model: Path) -> None:
    options = ("generate", "The", "-m", model, "-n", 3, "--seed", 1, "--logit-bias", "<|end_of_text|>=-inf")
    cut = run(*options, "--regex", "[a-z]{90}")
    assert (cut.exit_code, cut.stdout.strip().isalpha()) == (1, True)
    assert "stopped: --max-tokens reached" in cut.stderr
    good = run(*options, "--regex", "[a-z]+")
    assert (good.exit_code, "cut off" in good.stderr) == (0, False)
    full = run("generate", "The", "-m", model, "-n", 300, "--seed", 1, "--regex", "([a-z] ){200}")
    assert full.exit_code == 1
    assert "the context is full" in full.stderr


def test_verbose_names_filters_without_a_number(run: Run, model: Path) -> None:
    result = run("generate", "The", "-m", model, "--choices", "a,b", "--logit-bias", "a=1", "--verbose")
    assert "sampler: grammar, logit-bias, temperature" in result.stderr
    assert "stopped: the grammar is complete" in result.stderr


@pytest.mark.parametrize("speculative", [("--prompt-lookup",), ("--draft-model", "MODEL")], ids=lambda g: g[0])
def test_speculative_decoding_changes_nothing(run: Run, model: Path, speculative: tuple[str, ...]) -> None:
    speculative = tuple(str(model) if word == "MODEL" else word for word in speculative)
    for given in (("--regex", "(the (hen|fox) ){3,9}"), ("--json-schema", json.dumps(SCHEMA))):
        options = ("generate", "the hen the fox the hen", "-m", model, "--seed", 2, "-n", 30, *given)
        assert run(*options, *speculative).stdout == run(*options).stdout


def test_explain_step_shows_what_the_grammar_removed(run: Run, model: Path) -> None:
    options = ("The", "-m", model, "--seed", 4, "--choices", "the hen,the fox")
    tokens = [r for r in records(run("generate", *options, "--json")) if r["type"] == "token"]
    for number, token in enumerate(tokens):
        report = json.loads(run("explain-step", *options, "--step", number, "--json").stdout)
        assert report["chosen"]["id"] == token["id"]
        assert report["sampler"][0]["name"] == "grammar"
        assert report["check"]["ok"]
        shown = {row["text"]: row["cut"] for row in report["candidates"]}
        assert shown[token["text"]] is None
        assert "grammar" in shown.values()
    text = run("explain-step", *options).stdout
    assert re.search(r"^grammar: +keeps \d+ tokens?, cuts 0\.\d{4} of the probability$", text, re.MULTILINE)
    late = run("explain-step", *options, "--step", 40)
    assert late.exit_code == 2
    assert "(grammar)" in late.stderr


def test_a_token_that_the_grammar_cut_cannot_be_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(rank: int, cut: str | None) -> Candidate:
        return Candidate(rank, 10 + rank, "x", b"x", 0.0, 0.0, 0.1, 0.1, cut, 0.1, 1.0, None, None)

    report = object.__new__(StepReport)
    object.__setattr__(report, "candidates", (row(0, "grammar"), row(1, "top-k"), row(2, None)))
    answers = iter(["0", "7", "1"])
    monkeypatch.setattr(click, "prompt", lambda *_, **__: next(answers))
    assert ask_for_token(report) == 11
    output = capsys.readouterr().out
    assert "'0' is not allowed by the grammar" in output
    assert "'7' is not a rank in the table" in output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--regex", "a", "--choices", "b"), "--regex and --choices cannot be combined"),
        (("--json-schema", "{}", "--regex", "a"), "--json-schema and --regex cannot be combined"),
        (("--json-schema", "no such file.json"), "no such file.json: No such file"),
        (("--json-schema", "."), "Is a directory"),
        (("--json-schema", '{"type": }'), "--json-schema is not valid JSON (line 1, column 10: Expecting value)"),
        (("--json-schema", '{"type": "foo"}'), "cannot be used: Invalid type: foo"),
        (("--json-schema", '{"not": {"type": "null"}}'), 'Unimplemented keys: ["not"]'),
        (("--json-schema", "false"), "allows nothing"),
        (("--json-schema", '{"a":' * 100000 + "1" + "}" * 100000), "nested too deeply"),
        (("--regex", "("), "unclosed group"),
        (("--regex", ""), "is empty"),
        (("--choices", ""), "a choice is empty"),
        (("--choices", "a,,b"), "a choice is empty"),
        (("--choices", "a, a"), "'a' is given twice"),
        (("--choices", "[a],[b]"), "begins with [ but is not a JSON list of strings"),
        (("--choices", "[1, 2]"), "begins with [ but is not a JSON list of strings"),
        (("--choices", "[]"), "there are no choices"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_errors_before_a_model_is_loaded(run: Run, options: tuple[str, ...], reason: str) -> None:
    for command in ("generate", "explain-step"):
        result = run(command, "x", *NOWHERE, *options)
        assert result.exit_code == 2
        assert reason.lower() in result.stderr.lower()
        assert len(result.stderr.splitlines()) == 1


def test_an_error_in_a_schema_file_names_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{\n  "type": "object",\n}', encoding="utf-8")
    result = run("generate", "x", *NOWHERE, "--json-schema", tmp_path / "s.json")
    assert result.exit_code == 2
    assert "s.json is not valid JSON (line 3, column 1" in result.stderr


@pytest.mark.parametrize("other", [("--stop", "a"), ("--context-overflow", "shift")], ids=lambda o: o[0])
def test_options_that_cannot_be_combined_with_a_grammar(run: Run, other: tuple[str, str]) -> None:
    for command in ("generate", "explain-step") if other[1] == "shift" else ("generate",):
        result = run(command, "x", *NOWHERE, *other, "--choices", "a,b")
        assert result.exit_code == 2
        assert f"{other[0]}" in result.stderr
        assert "and --choices cannot be combined" in result.stderr


def test_several_texts_in_parallel(run: Run, model: Path) -> None:
    """Each text is the same as alone; those cut off are counted, and never the best."""
    exact = ("-m", model, "--dtype", "float32")  # in which the kernels for several texts round the same
    options = ("generate", "The", *exact, "--temperature", 2, "--regex", "[a-z ]+!", "-n", 12, "--logit-bias", "!=4")
    for seed in range(20):  # until the most probable text is one that is cut off
        result = run(*options, "--seed", seed, "--num-samples", 6, "--json")
        ends = [record for record in records(result) if record["type"] == "end"]
        cut = [end for end in ends if not end["valid"]]
        if len(cut) < 6 and max(ends, key=lambda e: e["mean_logprob"]) in cut:
            break
    assert 0 < len(cut) < 6
    alone = [records(run(*options, "--seed", seed + n, "--json"))[-1] for n in range(6)]
    assert [(e["text"], e["finish"], e["valid"]) for e in ends] == [(e["text"], e["finish"], e["valid"]) for e in alone]
    assert result.exit_code == 1
    assert f"{len(cut)} of 6 texts do not fit the grammar" in result.stderr
    best = run(*options, "--seed", seed, "--best-of", 6)
    assert best.exit_code == 0
    assert best.stdout.strip() == max((e for e in ends if e["valid"]), key=lambda e: e["mean_logprob"])["text"].strip()


def test_a_batch_fails_if_a_text_is_cut_off(run: Run, model: Path, tmp_path: Path) -> None:
    """Also when the command is repeated, or was stopped in between."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "The", "max_tokens": 1}\n{"prompt": "The"}\n', encoding="utf-8")
    command = ("batch", source, out, "-m", model, "--regex", "[a-z ]{9}!")
    for left in (2, 0, 1, 2):
        out.write_text("".join(out.read_text().splitlines(keepends=True)[: 2 - left]) if out.exists() else "")
        result = run(*command)
        assert [end["valid"] for end in map(json.loads, out.read_text().splitlines())] == [False, True]
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1] == ("llmcli: 1 of 2 texts do not fit the grammar (increase --max-tokens)")
    source.write_text('{"prompt": "The"}\n', encoding="utf-8")
    out.unlink()
    assert run(*command).exit_code == 0


def test_true_is_a_schema_and_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "true").write_text('{"type": "null"}', encoding="utf-8")
    assert read_schema(" true ") is True
    assert read_schema("./true") == {"type": "null"}


def test_without_the_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = run("generate", "x", *NOWHERE, "--choices", "a,b")
    assert result.exit_code == 1
    assert result.stderr == (
        "llmcli: the library llguidance is not installed "
        "(--json-schema, --regex and --choices need it: pip install llguidance)\n"
    )
