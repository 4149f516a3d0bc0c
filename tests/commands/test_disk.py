"""What is on the disk stays complete: if the process is killed, if the disk is full, and if two processes write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from llmcli import generation
from llmcli import hub as hub_module
from llmcli.generation.conversation import Conversation
from llmcli.generation.jobs import Results
from llmcli.storage import Checkpoint
from llmcli.text import ChatFile, Message, load_tokenizer, read_transcript, write_transcript
from llmcli.train import MetricsFile
from tests.apart import kills, needs_fork, run_apart
from tests.commands.conftest import TEXTS
from tests.commands.test_train import SMALL
from tests.hub_server import Hub

Run = Callable[..., Result]
PROMPT = "The old fox met a hen by the river."
TINY_RUN = (*SMALL, "--tokens", 96, "--checkpoint-minutes", 0)  # three steps, a checkpoint after each


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, hidden ones included, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("<|endoftext|>".join(TEXTS[:8]), encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [{"prompt": PROMPT, "max_tokens": 9 - n} for n in range(8)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "in.jsonl"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder for what a command writes."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


# Killed


@needs_fork
def test_quantize_killed(run: Run, model: Path, work: Path) -> None:
    """The folder is complete or not there, and the next run removes what was left."""
    arguments, whole = ("quantize", model, work / "out"), {}
    for _ in kills(arguments, work, most=6):
        if (work / "out").exists():
            whole = whole or contents(work / "out")
            assert contents(work / "out") == whole
            assert "is not an empty folder" in run(*arguments).stderr
        else:
            assert run(*arguments).exit_code == 0
        assert contents(work) == {f"out{os.sep}{name}": data for name, data in whole.items()}
        assert os.listdir(work) == ["out"]  # noqa: PTH208
        shutil.rmtree(work / "out")
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= whole.keys()


@needs_fork
def test_export_killed(run: Run, model: Path, work: Path) -> None:
    """The file is complete or not there, and the next run removes what was left."""
    arguments, whole = ("export", model, work / "a.gguf"), {}
    for _ in kills(arguments, work, most=4):
        whole = whole or contents(work)
        there = (work / "a.gguf").exists()
        assert run(*arguments).exit_code == (2 if there else 0)
        assert contents(work) == whole
        (work / "a.gguf").unlink()


@needs_fork
def test_train_killed(run: Run, corpus: Path, work: Path) -> None:
    """The folder holds a complete model or does not exist; the run, resumed or restarted, ends as if uninterrupted."""
    arguments, whole = ("train", corpus, "--out", work / "out", *TINY_RUN), {}
    same = ("model.safetensors", "state.safetensors", "config.json", "tokenizer.json", "recipe.toml")
    for _ in kills(arguments, work, most=8):
        if (work / "out").exists():
            Checkpoint.read(work / "out").load(device=torch.device("cpu"))
            load_tokenizer(work / "out")
        begun = (work / "out" / "state.safetensors").exists()
        if whole:
            again = run("train", corpus, "--out", work / "out", "--resume") if begun else run(*arguments)
            assert again.exit_code == 0, again.stderr
        whole = whole or contents(work)
        found = contents(work)
        assert found.keys() == whole.keys()
        assert all(found[f"out{os.sep}{name}"] == whole[f"out{os.sep}{name}"] for name in same)
        assert len(found[f"out{os.sep}metrics.jsonl"].splitlines()) == 3
        shutil.rmtree(work / "out")


@needs_fork
def test_generate_killed_with_a_prompt_cache(run: Run, model: Path, work: Path) -> None:
    file = work / "x.cache"
    options = ("-m", model, "-n", 1, "--prompt-cache", file)
    assert run("generate", PROMPT, *options).exit_code == 0
    old, whole = contents(work), {}
    for _ in kills(("generate", f"They sang. {PROMPT}", *options), work, most=6):
        whole = whole or contents(work)
        assert contents(work)["x.cache"] in (old["x.cache"], whole["x.cache"])
        assert run("generate", f"They sang. {PROMPT}", *options).exit_code == 0
        assert contents(work) == whole
        file.write_bytes(old["x.cache"])


@needs_fork
def test_chat_killed(run: Run, chat_model: Path, work: Path) -> None:
    file = work / "c.json"
    arguments = ("chat", "-m", chat_model, "-n", 3, "--temperature", 0, "--chat", file)
    whole: tuple[object, ...] = ()
    for _ in kills(arguments, work, most=6, stdin="The fox\nsang\n"):
        messages = read_transcript(file) if file.exists() else ()
        whole = whole or messages
        assert messages in (whole[:0], whole[:2], whole[:4])
        assert run(*arguments, input="The end\n").exit_code == 0
        assert os.listdir(work) == ["c.json"]  # noqa: PTH208
        file.unlink()


@needs_fork
def test_batch_killed(run: Run, model: Path, prompts: Path, work: Path) -> None:
    """Even while it merges the results that several processes left."""
    out = work / "out.jsonl"
    arguments = ("batch", prompts, out, "-m", model, "--batch-size", 2)
    assert run(*arguments).exit_code == 0
    whole = out.read_bytes()

    def leave_parts() -> None:
        out.unlink()
        for rank in range(2):
            lines = whole.splitlines(keepends=True)[rank:5:2]
            (work / f"out.jsonl.rank{rank}").write_bytes(b"".join(lines))

    leave_parts()
    for _ in kills(arguments, work, most=6):
        assert run(*arguments).exit_code == 0
        assert contents(work) == {"out.jsonl": whole}
        leave_parts()


@needs_fork
def test_pull_killed(run: Run, hub: Hub, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is complete or is not found, and an update leaves the old version until the new one is complete."""
    old = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": b"old" * 999}
    new = old | {"model.safetensors": b"new!" * 999, "vocab.json": b"[]"}
    hub.add(old)
    monkeypatch.setenv("HF_HOME", str(work))
    assert run("pull", "org/name").exit_code == 0
    shutil.copytree(work, work.with_name("before"), symlinks=True)
    hub.add(new)
    for _ in kills(("pull", "org/name"), work, most=6):
        found = contents(hub_module.find("org/name", offline=True))
        assert found in (old, new)
        folder = Path(run("pull", "org/name").stdout.strip())
        assert contents(folder) == new
        assert not [name for name in contents(work) if name.endswith((".incomplete", ".part"))]
        shutil.rmtree(work)
        shutil.copytree(work.with_name("before"), work, symlinks=True)


# A full disk


@pytest.fixture
def full(work: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """A function that runs a command on a full disk, of 3 MB, and returns its exit code and what it wrote to stderr.

    Where none can be mounted, the size of each file is limited instead.
    """
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", work], stderr=subprocess.DEVNULL
    ).returncode

    def call(*arguments: object, stdin: str = "", room: int) -> tuple[int, str]:
        filler = work / "filler"
        if mounted:
            free = os.statvfs(work).f_bavail * os.statvfs(work).f_frsize
            filler.write_bytes(b"x" * max(0, free - room))
        ended = run_apart(arguments, work, stdin=stdin, largest=None if mounted else room)
        filler.unlink(missing_ok=True)
        return ended.code, ended.stderr

    yield call
    if mounted:
        subprocess.run(["umount", "-l", work], check=True)


def assert_one_line(ended: tuple[int, str], *words: str) -> None:
    code, stderr = ended
    assert code == 1, stderr
    assert "Traceback" not in stderr
    (error,) = [line for line in stderr.splitlines() if "free some space" in line]
    assert error.startswith("llmcli: ")
    assert all(word in error for word in words), error


@needs_fork
def test_what_does_not_fit_is_one_line_and_the_old_file_stays(
    run: Run, model: Path, chat_model: Path, prompts: Path, work: Path, full: Callable[..., tuple[int, str]]
) -> None:
    chat = ("chat", "-m", chat_model, "-n", 3, "--chat", work / "c.json")
    cache = ("-m", model, "-n", 1, "--prompt-cache", work / "x.cache")
    picture = ("tokenize", PROMPT, "-m", model, "--save", work / "x.svg")
    batch = ("batch", prompts, work / "out.jsonl", "-m", model)
    assert run(*chat, input="The fox\n").exit_code == 0
    assert run("generate", PROMPT, *cache).exit_code == 0
    assert run(*picture).exit_code == 0
    before = contents(work)
    long = "sang " * 900
    assert_one_line(full(*chat, stdin=f"{long}\n", room=4096), str(work / "c.json"))
    assert_one_line(full(*chat, stdin=f"{long}\n", room=0), str(work / "c.json"))
    assert_one_line(full("generate", f"They sang. {PROMPT}", *cache, room=0), str(work / "x.cache"))
    assert_one_line(full(*picture[:1], f"They sang. {PROMPT}", *picture[2:], room=0), str(work / "x.svg"))
    assert_one_line(full("quantize", model, work / "out", room=8192), str(work / "out" / "model.safetensors"))
    assert_one_line(full("export", model, work / "a.gguf", room=8192), str(work / "a.gguf"))
    assert contents(work) == before
    assert not (work / "out").exists()
    assert_one_line(full(*batch, room=0), str(work / "out.jsonl"))
    assert run(*batch).exit_code == 0
    assert len((work / "out.jsonl").read_bytes().splitlines()) == 8


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_output_that_does_not_fit_is_one_line(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("llmcli.commands.tokenize.write_line", full)
    result = run("tokenize", PROMPT, "-m", model, "--json")
    assert_one_line((result.exit_code, result.stderr), "no space left on the disk")


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_limit_of_the_system_is_one_line(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("llmcli.commands.tokenize.write_line", refuse)
    result = run("tokenize", PROMPT, "-m", model, "--json")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("llmcli: ")


@needs_fork
def test_training_on_a_full_disk(run: Run, corpus: Path, work: Path, full: Callable[..., tuple[int, str]]) -> None:
    out = work / "out"
    arguments = ("train", corpus, "--out", out, *TINY_RUN)
    assert_one_line(full(*arguments, room=4096), str(out))
    assert_one_line(full("train", "--demo", "--out", out, room=4096), str(out / "corpus.jsonl"))
    assert not list(work.iterdir())
    assert run(*arguments).exit_code == 0
    before = contents(out)
    longer = ("train", corpus, "--out", out, "--resume", "--tokens", 160, "--checkpoint-minutes", 0)
    assert_one_line(full(*longer, room=8192), str(out))
    after = contents(out)
    assert after.keys() == before.keys()
    for name in ("model.safetensors", "state.safetensors", "config.json", "tokenizer.json"):
        assert after[name] == before[name]
    assert run(*longer).exit_code == 0
    assert len((out / "metrics.jsonl").read_bytes().splitlines()) == 5


@needs_fork
def test_a_download_on_a_full_disk_resumes(
    run: Run, hub: Hub, model: Path, work: Path, full: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add({path.name: path.read_bytes() for path in model.iterdir()})
    monkeypatch.setenv("HF_HOME", str(work))
    monkeypatch.setattr("llmcli.hub.downloads.free_space", lambda folder: 1 << 40)  # another program fills it
    assert_one_line(full("pull", "org/name", room=20_000), str(work))
    assert run("pull", "org/name").exit_code == 0


# Two processes


def test_a_run_that_has_nothing_to_write_removes_what_was_left_too(
    run: Run, model: Path, chat_model: Path, prompts: Path, work: Path
) -> None:
    cache = ("generate", PROMPT, "-m", model, "-n", 1, "--prompt-cache", work / "x")
    batch = ("batch", prompts, work / "x", "-m", model)
    chat = ("chat", "-m", chat_model, "--chat", work / "x")
    for command, stdin in ((cache, ""), (batch, ""), (chat, "/help\n")):
        (work / "x").unlink(missing_ok=True)
        run(*command, input=stdin)
        (work / ".x.0123456789abcdef.part").touch()
        assert run(*command, input=stdin).exit_code == 0
        assert not list(work.glob(".x.*"))


def test_two_chats_on_one_file(run: Run, chat_model: Path, work: Path) -> None:
    """The second is refused before it loads its model; no turn is lost."""
    file, other = work / "c.json", work / "other.json"
    options = ("-m", chat_model, "-n", 3, "--temperature", 0)
    assert run("chat", *options, "--chat", file, input="The fox\n").exit_code == 0
    with ChatFile(file) as first:
        second = run("chat", "-m", "no such model", "--chat", file, input="sang\n")
        assert (second.exit_code, second.stdout, second.stderr.count("\n")) == (1, "", 1)
        assert f"another process is writing to {file}" in second.stderr
        saving = run("chat", *options, "--chat", other, input=f"sang\n/save {file}\n/save {other}\n/load {file}\n")
        assert saving.stderr.count(f"another process is writing to {file}") == 1
        assert f"saved {other}" in saving.stderr
        first.write("m", [*first.read(), Message("user", "the end")])
    assert [message.content for message in read_transcript(file) if message.role == "user"] == ["The fox", "the end"]
    assert run("chat", *options, "--chat", file, input="sang\n").exit_code == 0


def test_a_new_chat_whose_file_is_replaced(
    run: Run, chat_model: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced during the chat's first reply: its turns are not saved, which is an error, and not lost."""
    file, theirs = work / "c.json", [Message("user", "theirs")]
    answer = Conversation.answer

    def slow(*arguments: Any) -> Any:
        if read_transcript(file) != tuple(theirs):
            file.unlink()
            write_transcript(file, "m", theirs)
        return answer(*arguments)

    monkeypatch.setattr(Conversation, "answer", slow)
    lines = f"The fox\nsang\n/save {work / 'mine.json'}\n"
    result = run("chat", "-m", chat_model, "-n", 3, "--chat", file, input=lines)
    assert (result.exit_code, result.stderr.count(f"another program has changed {file}")) == (1, 2)
    assert list(read_transcript(file)) == theirs
    assert len(read_transcript(work / "mine.json")) == 4


def test_two_chats_that_begin_with_one_new_file(
    run: Run, chat_model: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that comes second ends at its start."""
    file, results, opened = work / "c.json", list[Result](), generation.load
    arguments = ("chat", "-m", chat_model, "-n", 3, "--chat", file)

    def load(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        results.append(run(*arguments, input="The fox\n"))  # the whole of another chat, while this one loads
        return opened(*args, **options)

    monkeypatch.setattr(generation, "load", load)
    second = run(*arguments, input="sang\n")
    assert (results[0].exit_code, second.exit_code, second.stdout) == (0, 1, "")
    assert second.stderr.startswith(f"llmcli: another program has changed {file}")
    assert len(read_transcript(file)) == 2


def test_two_runs_in_one_folder(run: Run, corpus: Path, work: Path) -> None:
    out = work / "out"
    assert run("train", corpus, "--out", out, *TINY_RUN).exit_code == 0
    before = contents(out)
    with MetricsFile(out):
        second = run("train", corpus, "--out", out, "--resume", "--tokens", 160)
        assert (second.exit_code, second.stderr.count("\n")) == (1, 1)
        assert f"another process is writing to {out / 'metrics.jsonl'}" in second.stderr
    assert contents(out) == before


def test_two_batches_to_one_file(run: Run, model: Path, prompts: Path, work: Path) -> None:
    out = work / "out.jsonl"
    with Results(out):
        second = run("batch", prompts, out, "-m", model)
        assert (second.exit_code, second.stderr.count("\n")) == (1, 1)
        assert f"another process is writing to {out}" in second.stderr
    assert out.read_bytes() == b""
