"""``--log`` and ``log``: what is kept, how it repeats, and that a log never disturbs a text."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, LlmcliError
from llmcli.files.run_log import Run, RunLog
from tests.commands.conftest import records
from tests.endpoint_server import Endpoint

Runner = Callable[..., Result]
ENTRY = Run("2026-01-31T12:00:00Z", "generate", "m", None, "Straße", {"top-k": 3.0}, {}, 7, "text", "length", 2)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log's file."""
    folder = tmp_path / "config"
    monkeypatch.setattr("llmcli.commands.options.run_log.config_folder", lambda: folder)
    return folder / "runs.sqlite3"


def logged(run: Runner) -> list[dict[str, Any]]:
    """The runs in the log, oldest first."""
    return records(run("log", "--json"))[::-1]


# --- what is kept ---


def test_without_the_option_nothing_is_kept(run: Runner, model: Path, file: Path, tmp_path: Path) -> None:
    run("generate", "The", "-m", model, "-n", 2)
    assert not file.exists()
    assert "no runs yet" in run("log").stderr
    assert not file.exists()
    config = tmp_path / "config.toml"
    config.write_text("log = true")
    run("generate", "The", "-m", model, "-n", 2, env={"LLMCLI_CONFIG": str(config)})
    run("generate", "The", "-m", model, "-n", 2, "--no-log", env={"LLMCLI_CONFIG": str(config)})
    assert [one["options"] for one in logged(run)] == [{"model": str(model), "max-tokens": 2}]


def test_a_run_has_its_prompt_options_seed_fingerprint_and_text(run: Runner, model: Path, file: Path) -> None:
    result = run("generate", "The old", "-m", model, "-n", 5, "--seed", 3, "--top-k", 9, "--stop", "Z", "--log")
    (one,) = logged(run)
    assert list(one) == [
        *("id", "time", "command", "model", "fingerprint", "prompt", "options", "seed", "text", "finish", "tokens")
    ]
    assert re.fullmatch(r"[0-9a-f]{64}", one["fingerprint"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["time"])
    assert (one["command"], one["prompt"], one["seed"], one["finish"]) == ("generate", "The old", 3, "length")
    assert one["options"] == {"model": str(model), "top-k": 9, "seed": 3, "max-tokens": 5, "stop": ["Z"]}
    assert one["text"] + "\n" == result.stdout
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    shown = run("log", "--show", 1).stdout
    for part in ("The old", one["text"], one["fingerprint"], "top-k 9", "seed 3", "5 tokens"):
        assert part in shown


def test_the_table_and_the_search(run: Runner, file: Path) -> None:
    for prompt in ("one", "Straße\nzwei", "three"):
        RunLog(file).add(replace(ENTRY, prompt=prompt))
    rows = run("log").stdout.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["run", "3", "2", "1"]
    assert [one["id"] for one in records(run("log", "--json", "--limit", 2))] == [3, 2]
    assert [one["id"] for one in records(run("log", "--json", "--search", "STRASSE"))] == [2]
    assert "no run in the log has this text" in run("log", "--search", "%").stderr


def test_several_texts_and_replies_are_runs_of_their_own(run: Runner, model: Path, chat_model: Path) -> None:
    run("generate", "The", "-m", model, "-n", 3, "--num-samples", 2, "--seed", 5, "--json", "--log")
    turns = "Hello\n/set temperature 0.3\nAgain\n"
    replies = run("chat", "-m", chat_model, "-n", 4, "--seed", 1, "-s", "Be.", "--log", input=turns).stdout
    found = logged(run)
    assert [(one["command"], one["seed"], one["prompt"]) for one in found] == [
        *(("generate", seed, "The") for seed in (5, 6)),
        *(("chat", 1, "Hello"), ("chat", 2, "Again")),
    ]
    assert "".join(one["text"] + "\n" for one in found[2:]) == replies
    assert [one["options"].get("temperature") for one in found] == [None, None, None, 0.3]
    for one in found:
        again = run("log", "--repeat", one["id"])
        assert (again.exit_code, again.stdout) == (0, one["text"] + "\n")


def test_servers_texts_are_kept_without_the_key(run: Runner, endpoint: Endpoint, file: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret")
    options = ("--endpoint", endpoint.url, "--api-key-file", tmp_path / "key", "--log")
    run("generate", "Zero", "-n", 6, *options, input="")
    run("chat", *options, input="Hello\n", env={"LLMCLI_API_KEY": "sk-secret"})
    found = logged(run)
    assert [(one["command"], one["model"].split()[0], one["fingerprint"]) for one in found] == [
        ("generate", "toy", None),
        ("chat", "toy", None),
    ]
    assert all(one["text"] for one in found)
    assert b"secret" not in file.read_bytes()
    assert str(tmp_path / "key").encode() not in file.read_bytes()
    refused = run("log", "--repeat", 1)
    assert (refused.exit_code, "a server generated it" in refused.stderr) == (EXIT_FAILURE, True)


# --- repetition ---


@pytest.mark.parametrize(
    "options",
    [
        ("--mirostat-tau", 4, "--dry-multiplier", 0.9, "--logit-bias", "5=-inf", "--repeat-last-n", 3),
        ("--xtc-probability", 0.5, "--dry-sequence-breaker", "none", "--samplers", "temperature,xtc-probability"),
        ("--context-overflow", "shift", "--temperature", 1.5, "--ablate", "mlp.1"),
        ("--quantize", "int8", "--dtype", "bfloat16", "--prompt-lookup", "--temperature", 0),
    ],
)
def test_a_run_repeats_with_its_options(run: Runner, model: Path, options: tuple[object, ...]) -> None:
    text = run("generate", "The old fox", "-m", model, "-n", 70 if "shift" in options else 20, *options, "--log")
    assert text.exit_code == 0, text.stderr
    again = run("log", "--repeat", 1)
    assert (again.exit_code, again.stdout) == (0, text.stdout)
    assert "the text is the same as that of run 1" in again.stderr


def test_an_interrupted_run_is_kept_and_repeats_to_where_it_ended(
    run: Runner, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcli.generation.reading import last_logits

    calls: list[int] = []

    def third_is_interrupted(*args: Any, **more: Any) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return last_logits(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr("llmcli.generation.steps.last_logits", third_is_interrupted)
        result = run("generate", "The", "-m", model, "-n", 9, "--log")
    assert result.exit_code == EXIT_INTERRUPTED
    (one,) = logged(run)
    assert (one["finish"], one["tokens"]) == ("interrupted", 3)
    again = run("log", "--repeat", 1)
    assert (again.exit_code, again.stdout) == (0, result.stdout)


def test_another_model_is_refused_unless_told(run: Runner, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    text = run("generate", "The old", "-m", folder, "-n", 20, "--seed", 1, "--log").stdout
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.1, "min_p": 0.9}))
    assert run("log", "--repeat", 1).stdout == text  # settings are those of the run
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 10.0}))
    refused = run("log", "--repeat", 1)
    assert (refused.exit_code, refused.stdout) == (EXIT_FAILURE, "")
    assert "is not the model of run 1" in refused.stderr
    assert "--any-model" in refused.stderr
    other = run("log", "--repeat", 1, "--any-model")
    assert other.exit_code == EXIT_FAILURE
    assert re.search(r"differs from that of run 1 from character \d+ on", other.stderr)


def test_a_run_with_an_option_that_the_log_does_not_know_is_not_repeated(
    run: Runner, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmcli.commands.options.run_log.sampling_parameters", lambda: ())
    run("generate", "The", "-m", model, "-n", 2, "--top-k", 3, "--log")
    refused = run("log", "--repeat", 1)
    assert "the log does not keep what top-k changes" in refused.stderr


# --- deletion, and files that cannot be used ---


def test_deleted_runs_leave_no_trace_and_their_numbers_are_not_used_again(run: Runner, file: Path) -> None:
    log = RunLog(file)
    for prompt in ("first", "second-prompt", "third"):
        log.add(replace(ENTRY, prompt=prompt))
    assert "there is no run 9" in run("log", "--delete", 2, "--delete", 9).stderr
    assert len(logged(run)) == 3  # nothing is deleted if one does not exist
    assert "deleted 1 run\n" in run("log", "--delete", 2).stderr
    assert b"second-prompt" not in file.read_bytes()
    assert run("log", "--delete", "all").exit_code == EXIT_USAGE  # there is no terminal to ask
    assert "deleted 2 runs\n" in run("log", "--delete", "all", "--yes").stderr
    assert log.add(ENTRY) == 4
    assert "there is no run 2 in the log" in run("log", "--show", 2).stderr


@pytest.mark.parametrize("damage", ["folder", "not a database", "newer"])
def test_a_log_that_cannot_be_used_costs_a_note_and_not_the_text(
    run: Runner, model: Path, file: Path, damage: str
) -> None:
    file.parent.mkdir()
    if damage == "folder":
        file.mkdir()
    elif damage == "not a database":
        file.write_bytes(b"x" * 5000)
    else:
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 99")
    text = run("generate", "The", "-m", model, "-n", 2, "--seed", 1)
    result = run("generate", "The", "-m", model, "-n", 2, "--seed", 1, "--log")
    assert (result.exit_code, result.stdout) == (0, text.stdout)
    assert result.stderr.count("the run is not in the log") == 1
    assert str(file) in result.stderr
    listing = run("log")
    assert listing.exit_code == EXIT_FAILURE
    assert listing.stderr.count("\n") == 1


def test_two_writers_at_once_lose_nothing(file: Path) -> None:
    def add(n: int) -> int:
        return RunLog(file).add(replace(ENTRY, text=str(n)))

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(add, range(40)))
    assert sorted(ids) == list(range(1, 41))
    assert {one.id: int(one.text) for one in RunLog(file).latest(99)} == dict(zip(ids, range(40), strict=True))


def test_an_entry_comes_back_as_it_was(file: Path) -> None:
    entry = replace(ENTRY, text="🙂\0\n", replay={"bias": float("-inf")}, seed=2**32 - 1)
    log = RunLog(file)
    assert log.get(log.add(entry)) == replace(entry, id=1)
    assert log.get(log.add(replace(entry, prompt="\udce9"))).prompt == "?"
    with pytest.raises(LlmcliError, match="there is no run 3"):
        log.get(3)


def test_actions_exclude_each_other(run: Runner) -> None:
    for options in (("--show", 1, "--repeat", 1), ("--json", "--delete", 1), ("--delete", "x")):
        assert run("log", *options).exit_code == EXIT_USAGE
