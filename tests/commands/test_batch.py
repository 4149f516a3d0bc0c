"""``llmcli batch``: no result is lost, repeated or changed, whatever happens to the run."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.cli import cli
from llmcli.errors import LlmcliError
from llmcli.generation.batch import generate_batch
from llmcli.generation.jobs import local
from llmcli.generation.jobs.results import Results
from tests.commands.conftest import records

Run = Callable[..., Result]
STARTS = ("The old fox", "The shy hen", "They sang", "", "song number 3! \U0001f642", "met a crow by the")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """24 prompts of different lengths, each with its own number of tokens to generate."""
    rng, file = random.Random(4), tmp_path / "in.jsonl"
    lines = [
        {"id": f"p{n}", "prompt": STARTS[n % len(STARTS)] * rng.randint(1, 3), "max_tokens": rng.randint(1, 30)}
        for n in range(24)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def write(run: Run, model: Path, prompts: Path, out: Path, *options: object) -> Result:
    return run("batch", prompts, out, "-m", model, "--dtype", "float32", "--temperature", 1.2, *options)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def whole(run: Run, model: Path, prompts: Path, tmp_path: Path) -> Path:
    """The results of an uninterrupted run."""
    out = tmp_path / "whole.jsonl"
    assert write(run, model, prompts, out, "--batch-size", 8).exit_code == 0
    return out


def test_each_text_is_that_of_generate(run: Run, model: Path, prompts: Path, whole: Path) -> None:
    found = read(whole)
    assert [record["id"] for record in found] == [f"p{n}" for n in range(24)]
    for n, (line, record) in enumerate(zip(prompts.read_text(encoding="utf-8").splitlines(), found, strict=True)):
        job = json.loads(line)
        options = ("-m", model, "--dtype", "float32", "--temperature", 1.2, "-n", job["max_tokens"], "--seed", n)
        *tokens, end = records(run("generate", job["prompt"], *options, "--json", input=""))[1:]
        assert (record["text"], record["finish"], record["tokens"]) == (end["text"], end["finish"], end["tokens"])
        assert record["seed"] == n
        mean = sum(token["logprob"] for token in tokens) / len(tokens)
        assert record["mean_logprob"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_the_batch_does_not_matter(run: Run, model: Path, prompts: Path, whole: Path, size: int) -> None:
    out = whole.with_name("other.jsonl")
    assert write(run, model, prompts, out, "--batch-size", size).exit_code == 0
    expected = read(whole)
    if size == 1:  # without a block of rows, the last bits differ
        for mine, other in zip(read(out), expected, strict=True):
            assert mine["mean_logprob"] == pytest.approx(other["mean_logprob"], abs=1e-5)
            other["mean_logprob"] = mine["mean_logprob"]
    assert read(out) == expected
    finished = whole.with_name("finished.jsonl")
    write(run, model, prompts, finished, "--batch-size", size, "--order", "finished")
    lines = [sorted(file.read_bytes().splitlines()) for file in (finished, out)]
    assert lines[0] == lines[1]
    assert (finished.read_bytes() != out.read_bytes()) == (size != 1)


def test_a_stopped_run_resumes(run: Run, model: Path, prompts: Path, whole: Path) -> None:
    expected, out = whole.read_bytes(), whole.with_name("part.jsonl")
    for cut in (0, 1, 100, len(expected) // 2, len(expected) - 1, len(expected)):
        out.write_bytes(expected[:cut])
        result = write(run, model, prompts, out)
        assert result.exit_code == 0
        assert out.read_bytes() == expected
        torn = cut and expected[cut - 1] != ord("\n")
        assert ("is incomplete" in result.stderr) == bool(torn)


def killed(arguments: list[str], after: float) -> bool:
    """Run the command in its own process and kill it. Returns whether it was still running."""
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            cli.main(arguments, prog_name="llmcli")
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.parametrize("order", ["input", "finished"])
def test_killed_twenty_times_nothing_is_lost_or_changed(
    run: Run, model: Path, prompts: Path, whole: Path, order: str
) -> None:
    out, rng, kills = whole.with_name("killed.jsonl"), random.Random(1), 0
    options = ["-m", str(model), "--dtype", "float32", "--temperature", "1.2", "--order", order, "--batch-size", "3"]
    arguments = ["batch", str(prompts), str(out), *options]
    while kills < 20:
        running = killed(arguments, rng.uniform(0.0, 0.1))
        kills += running
        if out.exists() and (not running or rng.random() < 0.3):  # as if the machine had stopped mid-write
            written = out.read_bytes()
            out.write_bytes(written[: rng.randint(len(written) // 3, len(written))])
    assert write(run, model, prompts, out, "--order", order, "--batch-size", 3).exit_code == 0
    found = out.read_bytes().splitlines()
    assert sorted(found) == sorted(whole.read_bytes().splitlines())


def test_invalid_lines_are_reported_and_skipped(run: Run, model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    wrong = [
        (b"nonsense", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"id": 1}', "prompt is missing"),
        (b'{"prompt": 5}', "prompt must be a string, not 5"),
        (b'{"prompt": "x", "id": true}', "id must be a string or an integer, not true"),
        (b'{"prompt": "x", "id": "a"}', "id 'a' repeats that of line 2"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens must be at least 1, not 0"),
        (b'{"prompt": "x", "seed": -1}', "seed must be at least 0, not -1"),
        (b'{"prompt": "x", "stop": [1]}', "stop must be a non-empty string or a list of them"),
        (b'{"prompt": "\xff"}', "not valid UTF-8 at byte 12"),
        (b'{"prompt": "\\ud800"}', "not valid Unicode"),
        (b'{"prompt": "' + b"word " * 500 + b'"}', "--context-overflow"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": "x", "id": "\\ud800"}', "id is not valid Unicode"),
        (b'{"prompt": "x", "stop": ["a", "\\ud800"]}', "stop is not valid Unicode"),
        (
            b'{"prompt": [' + b"1, " * 9999 + b"1]}",
            "prompt must be a string, not [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,…",
        ),
    ]
    lines = [b"", b'{"prompt": "The", "id": "a", "max_tokens": 2}', b"   ", *(line for line, _ in wrong)]
    source.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + b'\n{"prompt": "They", "seed": 7, "max_tokens": 2}')
    result = write(run, model, source, out)
    assert result.exit_code == 1
    assert [(record["id"], record["seed"]) for record in read(out)] == [("a", 1), (20, 7)]
    for number, (_, reason) in enumerate(wrong, start=4):
        (report,) = [line for line in result.stderr.splitlines() if line.startswith(f"{source}:{number}: ")]
        assert reason in report
    again = write(run, model, source, out)
    assert (again.exit_code, len(read(out))) == (1, 2)


@pytest.mark.parametrize(
    "change",
    [("--temperature", 1.1), ("--seed", 3), ("-n", 7), ("--stop", "x"), ("--min-p", 0.1), ("--dtype", "bfloat16")],
)
def test_results_of_other_settings_are_not_mixed(
    run: Run, model: Path, prompts: Path, whole: Path, change: tuple[str, object]
) -> None:
    before = whole.read_bytes()
    if change[0] == "-n":
        prompts.write_text(prompts.read_text(encoding="utf-8").replace('"max_tokens": ', '"other": '), encoding="utf-8")
    result = write(run, model, prompts, whole, *change)
    assert result.exit_code == 2
    assert "from another prompt, model or settings" in result.stderr
    assert whole.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        *(b"hello\n", b"[]\n", b'{"id": []}\n', b'{"id": 1}\n', b"[" * 100_000 + b"\n"),
        *(b"hello", b"\x00\xff", b'{"prompt": "The"}', b'{"id": 1, "prompt": "The"}'),  # no line end, and not a result
    ],
)
def test_a_file_without_results_is_not_changed(run: Run, model: Path, prompts: Path, content: bytes) -> None:
    out = prompts.with_name("letter.txt")
    out.write_bytes(content)
    result = write(run, model, prompts, out)
    assert result.exit_code == 2
    assert "is not a result of llmcli batch" in result.stderr
    assert out.read_bytes() == content


def test_bad_files(run: Run, prompts: Path, tmp_path: Path) -> None:
    for source, target in (
        (tmp_path / "nowhere", tmp_path / "out"),
        (tmp_path, tmp_path / "out"),
        (prompts, tmp_path),
        (prompts, prompts),
        (prompts, tmp_path / "no folder" / "out"),
        (tmp_path / ("x" * 300), tmp_path / "out"),
        (prompts, tmp_path / ("x" * 300)),
    ):
        result = run("batch", source, target, "-m", "no such model")
        assert result.exit_code == 2, result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert "no such model" not in result.stderr


@pytest.mark.parametrize(("order", "kept"), [("input", 0), ("finished", 4)])
def test_the_reported_number_is_that_of_the_file(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, kept: int
) -> None:
    """Interrupted while the first text is incomplete and the four others are done."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"prompt": "The", "max_tokens": 1 if n else 30} for n in range(5)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def interrupted(*args: Any) -> Any:
        for number, step in enumerate(generate_batch(*args)):
            yield step
            if number == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(local, "generate_batch", interrupted)
    result = write(run, model, source, out, "--order", order)
    assert result.exit_code == 130
    assert len(read(out)) == kept
    assert f"{kept} of 5 prompts written, {5 - kept} left" in result.stderr


def test_of_two_simultaneous_runs_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Results(out) as first:
        early, late = Results(out), Results(out)
        with pytest.raises(LlmcliError, match="another process"):
            early.__enter__()
        first.append({"id": 1, "mark": "a", "finish": "length"})
        with pytest.raises(LlmcliError, match="another process"):
            late.__enter__()
        first.append({"id": 2, "mark": "b", "finish": "length"})
    with pytest.raises(LlmcliError, match="another process"):
        early.__enter__()  # the file has results that this run does not know
    assert [record["id"] for record in read(out)] == [1, 2]


def test_where_files_cannot_be_locked_a_second_run_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("llmcli.files.lock.lock", without_locks)
    with Results(tmp_path / "out.jsonl") as first, Results(tmp_path / "out.jsonl") as second:
        first.append({"id": 1, "mark": "a", "finish": "length"})
        with pytest.raises(LlmcliError, match="another process"):
            second.append({"id": 1, "mark": "a", "finish": "length"})


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no names there")
def test_a_pipe_is_rejected(run: Run, prompts: Path, tmp_path: Path) -> None:
    """It cannot be read a second time, so its prompts would be lost."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for source, target in (
        (pipe, tmp_path / "out"),
        (prompts, pipe),
        (prompts, Path("-")),
        (Path("-"), tmp_path / "out"),
    ):
        result = run("batch", source, target, "-m", "no such model")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "is not a regular file" in result.stderr


def test_sabotage_is_seen(run: Run, model: Path, prompts: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier results are ignored and generated again."""
    out = whole.with_name("part.jsonl")
    out.write_bytes(whole.read_bytes()[:600])
    monkeypatch.setattr(Results, "_note", lambda *_: None)
    write(run, model, prompts, out)
    assert out.read_bytes() != whole.read_bytes()
