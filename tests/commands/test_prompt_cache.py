"""``generate --prompt-cache``: the same text, a note about the file, and no other file overwritten."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.generation.prompt_cache import Reuse
from llmcli.hub import default_model, find
from llmcli.render.generation import PROMPT_CACHE_UNUSED, prompt_cache_line
from llmcli.render.terminal import note
from llmcli.storage import cache_file as cachefile
from tests.commands.conftest import records
from tests.commands.test_shell import PROGRAM, slow_model

Run = Callable[..., Result]
TEXT = "The old fox met a hen by the river."


def note_of(result: Result) -> str:
    """The note about the file."""
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("prompt cache: ")]
    return line


def test_the_text_stays_the_same_and_the_note_says_what_was_reused(run: Run, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.cache"
    longer = TEXT + " They sang song number 3"
    for text, line in (
        (TEXT, f"prompt cache: {file} does not exist yet"),
        (longer, "prompt cache: {shared} of {prompt} tokens reused from {file}"),
        (longer, "prompt cache: {less} of {prompt} tokens reused from {file}"),
    ):
        common = ("generate", text, "-m", model, "-n", 12, "--seed", 3, "--dtype", "float32")
        plain, kept = run(*common), run(*common, "--prompt-cache", file)
        assert kept.stdout == plain.stdout
        count = len(records(run(*common, "--json"))[0]["prompt_ids"])
        shared = len(records(run("generate", TEXT, "-m", model, "-n", 1, "--json"))[0]["prompt_ids"])
        assert note_of(kept) == line.format(shared=shared, less=count - 1, prompt=count, file=file)
        assert ("cached)" in kept.stderr) == ("reused" in line)
        assert "prompt cache" not in plain.stderr + kept.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_followed(run: Run, model: Path, tmp_path: Path) -> None:
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(folder / "x.cache")
    common = ("generate", TEXT, "-m", model, "-n", 2, "--prompt-cache", link)
    refused = run(*common)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert f"there is no folder {folder}" in refused.stderr
    folder.mkdir()
    assert "does not exist yet" in note_of(run(*common))
    assert "tokens reused from" in note_of(run(*common))
    assert link.is_symlink()
    assert [path.name for path in folder.iterdir()] == ["x.cache"]


def test_json_has_the_number_of_cached_tokens(run: Run, model: Path, tmp_path: Path) -> None:
    common = ("generate", TEXT, "-m", model, "-n", 9, "--seed", 3, "--dtype", "float32", "--json")
    start, *plain, _ = records(run(*common))
    assert "cached" not in start
    for cached in (0, len(start["prompt_ids"]) - 1):
        again, *tokens, _ = records(run(*common, "--prompt-cache", tmp_path / "x"))
        assert again == {**start, "cached": cached}
        assert [token["id"] for token in tokens] == [token["id"] for token in plain]


@pytest.mark.parametrize(
    "options", [("--prompt-lookup",), ("--draft-model", "MODEL"), ("--quantize", "int8"), ("--max-tokens", 0)], ids=str
)
def test_with_other_options(run: Run, model: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    options = tuple(model if option == "MODEL" else option for option in options)
    common = ("generate", "The old fox. The old fox. The", "-m", model, "-n", 20, "--temperature", 0, *options)
    plain = run(*common).stdout
    for _ in range(2):
        result = run(*common, "--prompt-cache", tmp_path / "x")
        assert result.stdout == plain
    assert ("reused" in note_of(result)) == (0 not in options)


def test_an_unusable_file_is_reported_and_replaced(run: Run, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"

    def line(*options: object, text: str = TEXT) -> str:
        return note_of(run("generate", text, "-m", model, "-n", 2, "--prompt-cache", file, *options))

    line("--dtype", "float32")
    for options, why in (
        (("--dtype", "bfloat16"), PROMPT_CACHE_UNUSED["dtype"]),
        (("--dtype", "bfloat16", "--quantize", "int8"), PROMPT_CACHE_UNUSED["model"]),
    ):
        assert line(*options) == f"prompt cache: {file} {why}; the whole prompt is read"
        assert "reused" in line(*options)
    file.write_bytes(file.read_bytes()[:-9])
    assert line() == f"prompt cache: {file} {PROMPT_CACHE_UNUSED['damaged']}; the whole prompt is read"
    assert line() != f"prompt cache: {file} {PROMPT_CACHE_UNUSED['damaged']}; the whole prompt is read"


def test_every_reason_has_a_text() -> None:
    from typing import get_args

    from llmcli.generation.prompt_cache import Reason

    assert {*PROMPT_CACHE_UNUSED, "missing"} == set(get_args(Reason))
    for reason in get_args(Reason):
        line = prompt_cache_line(Reuse(0, 9, reason), "{file}[/b]")
        assert line.startswith("prompt cache: {file}[/b] ")


def test_a_file_name_is_never_markup_or_a_control_sequence() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    note(prompt_cache_line(Reuse(3, 9, None), "\x1b]0;x\x07[red]x"), stream)
    assert "\x1b]" not in stream.getvalue()
    assert "[red]x" in stream.getvalue()


# --- before the model is loaded ---


def one_line(result: Result, what: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert what in result.stderr
    assert "no such model" not in result.stderr


def test_a_file_that_cannot_be_a_prompt_cache_is_a_usage_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: object, what: str, *options: object) -> None:
        one_line(run("generate", "x", "-m", "no such model", "--prompt-cache", file, *options), what)

    (tmp_path / "notes.txt").write_text("Once upon a time, in a land of notes.")
    refused(tmp_path / "notes.txt", "is not a prompt cache")
    refused(find(default_model()) / "model.safetensors", "is not a prompt cache")
    refused(tmp_path, "a folder")
    refused("", "a folder")
    refused(tmp_path / "none" / "x", "there is no folder")
    refused(tmp_path / "notes.txt" / "x", "there is no folder")
    refused(tmp_path / ("x" * 5000), "name another file")
    refused(tmp_path / "x", "one text", "--num-samples", 2)
    refused(tmp_path / "x", "one text", "--best-of", 2)
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(tmp_path / "x", "cannot be written")
    assert (tmp_path / "notes.txt").read_text() == "Once upon a time, in a land of notes."
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no /dev/null")
def test_a_device_is_rejected(run: Run) -> None:
    one_line(run("generate", "x", "-m", "no such model", "--prompt-cache", "/dev/null"), "is not a prompt cache")


def test_a_file_that_cannot_be_written_costs_no_text(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cachefile, "write_tensors", full)
    common = ("generate", TEXT, "-m", model, "-n", 12, "--seed", 3)
    result = run(*common, "--prompt-cache", tmp_path / "x")
    assert result.exit_code == 1
    assert result.stdout == run(*common).stdout
    one = f"llmcli: {tmp_path / 'x'}: cannot be written: No space left on device (free some space"
    assert result.stderr.splitlines()[-1].startswith(one)
    assert not list(tmp_path.iterdir())


# --- in a process of its own ---


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_a_run_that_is_killed_while_writing_loses_nothing(
    run: Run, model: Path, tmp_path: Path, how: signal.Signals
) -> None:
    folder, file = slow_model(tmp_path, model), tmp_path / "x"
    arguments = ["generate", TEXT, "-m", str(folder), "--json", "-n", "2000", "--prompt-cache", str(file)]
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        os.kill(process.pid, how)
        process.stdout.read()
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "reused" in note_of(run("generate", TEXT, "-m", folder, "-n", 1, "--prompt-cache", file))


def test_greedy_ids_of_the_shipped_model_stay(run: Run, tmp_path: Path) -> None:
    text = "Once upon a time there was a little fox who lived in a forest. " * 6
    common = ("generate", text + "One day", "-n", 40, "--temperature", 0, "--json")
    run("generate", text, "-n", 1, "--prompt-cache", tmp_path / "x")
    start, *tokens, _ = records(run(*common, "--prompt-cache", tmp_path / "x"))
    assert start["cached"] > 80
    assert [token["id"] for token in tokens] == [token["id"] for token in records(run(*common))[1:-1]]
