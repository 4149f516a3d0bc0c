"""``generate --num-samples``, ``--best-of`` and ``--context-overflow``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.engine.native import variant
from llmcli.generation import samples as module
from tests.commands.conftest import records

Run = Callable[..., Result]
PRECISIONS = [("--dtype", "float32"), ("--dtype", "bfloat16"), ("--quantize", "int8"), ("--quantize", "int4")]


def texts(run: Run, model: Path, *options: object) -> list[list[dict[str, Any]]]:
    """The records of each sample, in the order of the lines."""
    found: list[list[dict[str, Any]]] = []
    for record in records(run("generate", "The", "-m", model, "--seed", 5, "-n", 12, "--json", *options)):
        if record["type"] == "start":
            found.append([])
        found[-1].append(record)
    return found


def test_samples_are_the_texts_of_their_seeds(run: Run, model: Path) -> None:
    samples = texts(run, model, "--num-samples", 4, "--dtype", "float32")
    assert [start["seed"] for start, *_ in samples] == [5, 6, 7, 8]
    for n, (start, *tokens, end) in enumerate(samples):
        assert {record["sample"] for record in (start, *tokens, end)} == {n}
        alone = records(run("generate", "The", "-m", model, "--seed", 5 + n, "-n", 12, "--dtype", "float32", "--json"))
        assert end["text"] == alone[-1]["text"]
        assert [token["id"] for token in tokens] == [token["id"] for token in alone[1:-1]]
        mean = sum(token["logprob"] for token in tokens) / len(tokens)
        assert end["mean_logprob"] == pytest.approx(mean, abs=1e-5)
        assert end["tokens"] == len(tokens)


@pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")
@pytest.mark.parametrize("precision", PRECISIONS, ids=" ".join)
def test_the_text_of_a_seed_is_the_same_from_every_command(
    run: Run, model: Path, tmp_path: Path, precision: tuple[str, str]
) -> None:
    """``generate``, ``--num-samples``, ``--prompt-lookup`` and ``batch``; ``explain-step`` names its tokens."""
    seeds, options = (5, 6, 7), ("-m", model, "-n", 24, "--temperature", 1.2, "--device", "cpu", *precision)
    alone = [records(run("generate", "The", "--seed", seed, *options, "--json")) for seed in seeds]
    expected = [(found[-1]["text"], [token["id"] for token in found[1:-1]]) for found in alone]
    assert len({text for text, _ in expected}) == len(seeds)
    several = records(run("generate", "The", "--seed", seeds[0], "--num-samples", len(seeds), *options, "--json"))
    assert [record["text"] for record in several if record["type"] == "end"] == [text for text, _ in expected]
    looked_up = records(run("generate", "The", "--seed", seeds[0], "--prompt-lookup", *options, "--json"))
    assert looked_up[-1]["text"] == expected[0][0]
    jobs = tmp_path / "in.jsonl"
    jobs.write_text("".join(json.dumps({"prompt": "The", "seed": seed}) + "\n" for seed in seeds), encoding="utf-8")
    assert run("batch", jobs, tmp_path / "out.jsonl", "--batch-size", 2, *options).exit_code == 0
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in written] == [text for text, _ in expected]
    for index in (0, len(expected[0][1]) - 1):
        step = ("explain-step", "The", "--seed", seeds[0], "--step", index, "-m", model, "--temperature", 1.2)
        (report,) = records(run(*step, "--device", "cpu", *precision, "--json"))
        assert report["chosen"]["id"] == expected[0][1][index]
        assert report["chosen"]["p_final"] == alone[0][1 + index]["final_prob"]


def test_the_best_is_the_most_probable(run: Run, model: Path) -> None:
    samples = texts(run, model, "--num-samples", 6)
    (best,) = texts(run, model, "--best-of", 6)
    assert best == max(samples, key=lambda sample: sample[-1]["mean_logprob"])


def test_texts_are_labeled_and_in_order(run: Run, model: Path) -> None:
    ends = [sample[-1] for sample in texts(run, model, "--num-samples", 3)]
    result = run("generate", "The", "-m", model, "--seed", 5, "-n", 12, "--num-samples", 3, "--echo")
    expected = [f"--- sample {n}, seed {5 + n} ---\nThe{end['text'].rstrip(chr(10))}\n" for n, end in enumerate(ends)]
    assert result.stdout == "\n".join(expected)
    assert "3 samples, " in result.stderr
    best = run("generate", "The", "-m", model, "--seed", 5, "-n", 12, "--best-of", 3)
    assert "---" not in best.stdout
    assert [line for line in best.stderr.splitlines() if line.startswith("→")]


def test_each_text_has_its_table_of_probabilities(run: Run, model: Path) -> None:
    result = run("generate", "The", "-m", model, "--seed", 5, "-n", 4, "--num-samples", 2, "--probs")
    assert result.stderr.count("\ttop 1\tp 1\t") == 2


@pytest.mark.parametrize(
    "options",
    [
        ("--num-samples", 2, "--best-of", 2),
        ("--best-of", 2, "--prompt-lookup"),
        ("--num-samples", 0),
        ("--best-of", 10**6),
    ],
    ids=str,
)
def test_bad_options(run: Run, options: tuple[object, ...]) -> None:
    result = run("generate", "x", "-m", "no such model", *options)
    assert result.exit_code == 2
    assert "no such model" not in result.stderr


def test_samples_without_tokens(run: Run, model: Path) -> None:
    """Each has a start, an end and a label, and the same grammar check as a single text."""
    options = ("generate", "The", "-m", model, "--seed", 5, "-n", 0)
    start, end = records(run(*options, "--json"))
    (begun, ended), (_, _) = texts(run, model, "-n", 0, "--num-samples", 2)
    assert begun == {"type": "start", "sample": 0, **start}
    shared = ("type", "finish", "text", "tokens")
    assert {key: ended[key] for key in shared} == {key: end[key] for key in shared}
    assert ended["mean_logprob"] is None
    shown = run(*options, "--num-samples", 2, "--echo", "--probs")
    assert shown.stdout == "--- sample 0, seed 5 ---\nThe\n\n--- sample 1, seed 6 ---\nThe\n"
    assert "2 samples, 0 tokens in total" in shown.stderr
    assert run(*options, "--best-of", 2, "--echo").stdout == "The\n"
    for count in (1, 2):
        refused = run(*options, "--num-samples", count, "--choices", "a,b", "--json")
        assert (refused.exit_code, records(refused)[1]["valid"]) == (1, False)


# --- the context ---

LONG = "The old fox met a hen by the river. " * 20


def test_a_long_prompt_is_an_error_by_default(run: Run, model: Path) -> None:
    result = run("generate", LONG, "-m", model, "-n", 3)
    assert result.exit_code == 2
    assert "--context-overflow truncate-start" in result.stderr
    for overflow, left in (("truncate-start", 48), ("shift", 36)):
        result = run("generate", LONG, "-m", model, "-n", 3, "--json", "--context-overflow", overflow)
        start, *_ = records(result)
        assert len(start["prompt_ids"]) == left
        assert "were dropped" in result.stderr


ON = ("--seed", 1, "--logit-bias", "1=-inf")  # token 1 would end the text


def test_shift_continues_and_explain_step_agrees(run: Run, model: Path) -> None:
    common = ("The old", "-m", model, *ON, "--context-overflow", "shift")
    _, *tokens, end = records(run("generate", *common, "-n", 100, "--json"))
    assert (len(tokens), end["finish"]) == (100, "length")
    for index in (20, 64, 99):
        (report,) = records(run("explain-step", *common, "--step", index, "--json"))
        assert report["chosen"]["id"] == tokens[index]["id"]
        assert report["chosen"]["p_final"] == pytest.approx(tokens[index]["final_prob"], abs=1e-5)
        assert len(report["context_ids"]) < 64


def test_counts_are_always_shown(run: Run, model: Path) -> None:
    result = run("generate", "The old", "-m", model, "-n", 100, *ON)
    assert "context 64 of 64 | stopped: the context is full" in result.stderr


def test_results_are_not_rebuilt_for_every_sample(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    sample = module.Sample
    monkeypatch.setattr(module, "Sample", lambda **fields: made.append(fields) or sample(**fields))
    found = records(run("generate", "The", "-m", model, "-n", 1, "--num-samples", 40, "--json"))
    assert sum(record["type"] == "end" for record in found) == 40
    assert len(made) == 80  # one for each end, and one for the final check of each
