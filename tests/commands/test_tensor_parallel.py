"""Commands in several processes: with --tensor-parallel and with torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.cli import cli
from llmcli.errors import LlmcliError
from llmcli.generation.jobs.parts import PartFile, check_parts, merge, part_path

Run = Callable[..., Result]
MODULE = [sys.executable, "-m", "llmcli"]
FORKS = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
EXACT = ("--dtype", "float32", "--seed", "5", "--temperature", "1.2")


def llmcli(*arguments: object, input: str = "", program: list[str] = MODULE) -> subprocess.CompletedProcess[str]:
    command = [*program, *map(str, arguments)]
    return subprocess.run(command, input=input, capture_output=True, encoding="utf-8")


def without_floats(text: str) -> Any:
    """Parse JSON lines, round numbers and drop times: sums in another order differ in their last bits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 3)
        if isinstance(value, dict):
            return {key: rounded(part) for key, part in value.items() if not key.endswith("seconds")}
        return [rounded(part) for part in value] if isinstance(value, list) else value

    return [rounded(json.loads(line)) for line in text.splitlines()]


def test_a_split_model_writes_the_same(model: Path, run: Run) -> None:
    arguments = ("generate", "The old fox", "-m", model, "-n", 30, "--json", *EXACT)
    split = llmcli(*arguments, "--tensor-parallel", 2)
    assert (split.returncode, split.stderr) == (0, "")
    assert without_floats(split.stdout) == without_floats(run(*arguments).stdout)


def test_with_torchrun_only_the_first_rank_prints(model: Path, run: Run) -> None:
    arguments = ("explain-step", "The old fox", "-m", model, "--step", 3, "--json", *EXACT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "llmcli"]
    split = llmcli(*arguments, program=torchrun)
    assert split.returncode == 0
    assert without_floats(split.stdout) == without_floats(run(*arguments).stdout)


def test_score_and_chat_of_a_split_model(model: Path, chat_model: Path, run: Run) -> None:
    scored = ("score", "The old fox met a hen.", "-m", model, "--dtype", "float32", "--json")
    assert without_floats(llmcli(*scored, "--tensor-parallel", 3).stdout) == without_floats(run(*scored).stdout)
    typed = "The fox\n/undo\nThe hen\nThe crow\n"
    chat = ("chat", "-m", chat_model, "-n", 12, *EXACT)
    assert llmcli(*chat, "--tensor-parallel", 2, input=typed).stdout == run(*chat, input=typed).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_the_text_survives_a_killed_rank(model: Path, run: Run, tmp_path: Path) -> None:
    arguments = ["generate", "The old fox", "-m", str(model), "--context-overflow", "shift", *EXACT]
    written = tmp_path / "text"
    with written.open("wb") as out:
        process = subprocess.Popen(
            [*MODULE, *arguments, "-n", "100000", "--tensor-parallel", "2"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        while written.stat().st_size < 60:
            assert process.poll() is None
            time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid,args", "--ppid", str(process.pid)], capture_output=True, text=True)
    other = next(line.split()[0] for line in children.stdout.splitlines() if "spawn_main" in line)
    os.kill(int(other), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors == "llmcli: another rank has ended or does not respond (start again)\n"
    text = (
        written.read_text(encoding="utf-8").removesuffix("\n").rstrip("\ufffd")
    )  # its last character may be incomplete
    assert run(*arguments, "-n", 2000).stdout.startswith(text[:2000])


STARTED_BY_MULTIPROCESSING = """
from multiprocessing import get_context
from llmcli.commands.options.distributed import end_with_parent

def rank():
    end_with_parent()
    print("ready", flush=True)
    time.sleep(1000)

if __name__ == "__main__":
    get_context("spawn").Process(target=rank, daemon=True).start()
    time.sleep(1000)
"""
STARTED_BY_TORCHRUN = """
import subprocess
code = "import time; from llmcli.commands.options.distributed import end_with_parent; end_with_parent();"
subprocess.run([sys.executable, "-c", code + "print('ready', flush=True); time.sleep(1000)"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@pytest.mark.parametrize("program", [STARTED_BY_MULTIPROCESSING, STARTED_BY_TORCHRUN], ids=["spawn", "torchrun"])
def test_a_rank_ends_when_its_parent_is_killed(program: str, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text("import sys, time" + program, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, encoding="utf-8")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    assert parent.stdout.read() == ""  # returns when the rank has ended, too
    parent.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tensor-parallel", 1000), "1000 is not in the range"),
        (("--tensor-parallel", 5), "has 4 attention heads, too few for 5 ranks"),
        (("--tensor-parallel", 2, "--quantize", "int8"), "--quantize needs the whole model"),
        (("--tensor-parallel", 2, "--num-samples", 2), "--num-samples (or --best-of) needs the whole model"),
        (("--tensor-parallel", 2, "--prompt-cache", "x"), "--prompt-cache needs the whole model"),
        (("--tensor-parallel", 2, "--device", "mps"), "ranks compute on cpu or cuda"),
    ],
)
def test_options_that_exclude_a_split_model(run: Run, arguments: tuple[object, ...], message: str, model: Path) -> None:
    result = run("generate", "x", "-m", model, *arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_commands_that_need_one_process(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    result = run("attend", "x", "-m", model)
    assert result.exit_code == 2
    assert "attend runs in one process" in result.stderr
    monkeypatch.setenv("RANK", "1")
    assert run("attend", "x", "-m", model).stderr == ""  # the first rank has reported it
    monkeypatch.setenv("RANK", "0")
    result = run("generate", "x", "-m", model, "--tensor-parallel", 3)
    assert result.exit_code == 2
    assert "torchrun started 2 processes, but --tensor-parallel is 3" in result.stderr


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets for a process."""
    ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    return {**{name: str(value) for name, value in ranks.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def started(arguments: list[str], size: int) -> list[int]:
    """Run the command in ``size`` processes like torchrun, and return their process ids."""
    port, children = free_port(), []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(variables(rank, size, port))
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            try:
                cli.main(arguments, prog_name="llmcli")
            except SystemExit as done:
                os._exit(int(done.code or 0))
            finally:
                os._exit(99)
        children.append(child)
    return children


def together(arguments: list[str], size: int) -> list[int]:
    """Run the command in ``size`` processes and return their wait statuses."""
    return [os.waitpid(child, 0)[1] for child in started(arguments, size)]


def killed(arguments: list[str], size: int, out: Path, count: int, rng: random.Random) -> list[int]:
    """Kill the ranks one after another once they have written ``count`` bytes, and return their wait statuses.

    Bytes, not seconds, because they are the same part of the work on every machine.
    """
    children, before, statuses = started(arguments, size), written(out), {}
    while written(out) - before < count and len(statuses) < size:
        for child in set(children) - set(statuses):
            ended, status = os.waitpid(child, os.WNOHANG)
            statuses |= {ended: status} if ended else {}
        time.sleep(0.002)
    for child in rng.sample(children, size):
        if child not in statuses:
            time.sleep(rng.uniform(0, 0.05))  # the others go on, and may be merging
            os.kill(child, signal.SIGKILL)
            statuses[child] = os.waitpid(child, 0)[1]
    return [statuses[child] for child in children]


def written(out: Path) -> int:
    """The bytes of the file and of its part files. A part that is merged meanwhile counts once or not at all."""
    total = 0
    for path in (out, *out.parent.glob(f"{out.name}.rank*")):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file, rng = tmp_path / "in.jsonl", random.Random(4)
    lines = [{"id": f"p{n}", "prompt": "The old fox" * (n % 3), "max_tokens": rng.randint(1, 30)} for n in range(30)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture
def batch(model: Path, prompts: Path, run: Run) -> Callable[..., list[str]]:
    """Return the arguments of a batch that writes to a file of the given name."""

    def arguments(name: str, *more: str) -> list[str]:
        options = ["-m", str(model), "--dtype", "float32", "--temperature", "1.2", "--batch-size", "4"]
        return ["batch", str(prompts), str(prompts.with_name(name)), *options, *more]

    return arguments


@pytest.fixture
def whole(batch: Callable[..., list[str]], prompts: Path, run: Run) -> bytes:
    """The results that a single process writes."""
    assert run(*batch("whole.jsonl")).exit_code == 0
    return prompts.with_name("whole.jsonl").read_bytes()


@FORKS
@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_prompts(size: int, batch: Callable[..., list[str]], whole: bytes, prompts: Path) -> None:
    assert together(batch("out.jsonl"), size) == [0] * size
    assert prompts.with_name("out.jsonl").read_bytes() == whole
    assert sorted(path.name for path in prompts.parent.glob("*.jsonl*")) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


@FORKS
@pytest.mark.parametrize("order", ["input", "finished"])
def test_processes_can_be_killed_at_any_time(
    order: str, batch: Callable[..., list[str]], whole: bytes, prompts: Path, run: Run
) -> None:
    """No result is lost, repeated or changed, even if one process resumes the work of several."""
    rng, out, kills = random.Random(order), prompts.with_name("out.jsonl"), 0
    for _ in range(6):
        out.unlink(missing_ok=True)
        for _ in range(rng.randint(1, 3)):
            size = rng.randint(2, 4)
            count = rng.randrange(len(whole))
            statuses = killed(batch("out.jsonl", "--order", order), size, out, count, rng)
            kills += sum(os.WIFSIGNALED(status) for status in statuses)
            tear(prompts, rng)
        if rng.random() < 0.5:
            assert run(*batch("out.jsonl", "--order", order)).exit_code == 0
        else:
            size = rng.randint(2, 3)
            assert together(batch("out.jsonl", "--order", order), size) == [0] * size
        found = out.read_bytes()
        assert sorted(found.splitlines()) == sorted(whole.splitlines())
        if order == "input":
            assert found == whole
        assert not list(prompts.parent.glob("*.rank*"))
    assert kills >= 6


def tear(prompts: Path, rng: random.Random) -> None:
    """Cut off the end of a part's last line, as if the machine had stopped while writing it."""
    for part in prompts.parent.glob("out.jsonl.rank*"):
        lines = part.read_bytes().splitlines(keepends=True)
        if lines and rng.random() < 0.5:
            part.write_bytes(b"".join(lines[:-1]) + lines[-1][: rng.randint(1, len(lines[-1]) - 1)])


def test_merging_interrupted_after_the_file_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, line = tmp_path / "out", '{{"id": {}, "text": "x", "finish": "length", "mark": "m"}}\n'
    out.write_text(line.format(3), encoding="utf-8")
    part_path(out, 0).write_text(line.format(1) + line.format(4), encoding="utf-8")
    part_path(out, 1).write_text(line.format(2) + '{"id": 5, "te', encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        merge(out, {id: id for id in range(1, 6)})
    assert part_path(out, 0).exists()
    merge(out, {id: id for id in range(1, 6)})
    assert out.read_text(encoding="utf-8") == "".join(line.format(id) for id in range(1, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_or_incomplete_part_file(tmp_path: Path) -> None:
    path = part_path(tmp_path / "out", 1)
    with pytest.raises(LlmcliError, match="results of rank 0, is missing"):
        check_parts([PartFile(path, 0)])
    path.write_bytes(b"ab")
    check_parts([PartFile(path, 2)])
    with pytest.raises(LlmcliError, match="is missing here or incomplete"):
        check_parts([PartFile(path, 3)])


def test_a_part_file_cannot_be_the_target(run: Run, batch: Callable[..., list[str]]) -> None:
    result = run(*batch("out.jsonl.rank1"))
    assert result.exit_code == 2
    assert "name of a part file" in result.stderr
