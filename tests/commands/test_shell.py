"""The program as a shell runs it: imports, pipes, signals, terminals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli.__main__ import limit_spinning

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
PROGRAM = [sys.executable, "-m", "llmcli"]


def shell(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL, **options
    )  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["generate", "--help"],
        ["train", "--help"],
        ["tokenize", "x", "-m", "MODEL"],
        ["tokenize", "x", "-m", "MODEL", "--merges"],
    ],
)
def test_no_torch_is_imported(args: list[str], model: Path) -> None:
    args = [str(model) if arg == "MODEL" else arg for arg in args]
    code = f"""
import sys
from llmcli.cli import main
sys.argv[1:] = {args!r}
try:
    main()
except SystemExit as end:
    assert not end.code
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


@posix
def test_a_reader_that_closes_the_pipe_causes_no_message(model: Path) -> None:
    command = " ".join(PROGRAM) + f" generate The -m {model} --json -n 60 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(model: Path) -> None:
    """Python flushes stdout and stderr once more at exit."""
    command = [*PROGRAM, "generate", "The", "-m", str(model), "-n", "3"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        for other in (full, subprocess.PIPE):
            assert subprocess.run(command, stdout=other, stderr=full, stdin=subprocess.DEVNULL).returncode == 1
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == "llmcli: no space left on the disk (free some space, or write to another disk)"
    )
    assert "Exception" not in done.stderr


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_closed_streams_cause_no_traceback(model: Path, closed: str) -> None:
    command = " ".join(PROGRAM) + f" generate The -m {model} -n 3 --temperature 0 {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (closed != ">&-")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["default", "count", "policy"],
)
def test_threads_spin_briefly_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {**given})
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_invalid_input_is_a_one_line_error(model: Path) -> None:
    done = shell("generate", "x", "-m", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"llmcli: there is no model nowhere \(.*\)\n", done.stderr)


def terminal(args: str, width: int = 80, env: dict[str, str] | None = None) -> str:
    """What the program writes on a terminal of that width."""
    import pexpect

    child = pexpect.spawn(
        PROGRAM[0],
        [*PROGRAM[1:], *args.split("|")],
        dimensions=(40, width),
        encoding="utf-8",
        timeout=None,
        env={**os.environ, "TERM": "xterm-256color", **(env or {})},
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
    text: str = child.before
    return text.replace("\r\n", "\n")


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@posix
@pytest.mark.parametrize(
    ("args", "width"),
    [
        ("explain-step|The|--seed|1|--temperatures|0,1", 40),
        ("tokenize|The fox sang 🙂|--merges", 80),
        ("generate|The|-n|6|--probs", 40),
        ("generate|The|-n|6|--probs", 120),
        ("inspect", 40),
    ],
)
def test_tables_fit_the_terminal(model: Path, args: str, width: int) -> None:
    from rich.cells import cell_len

    text = terminal(f"{args}|-m|{model}", width)
    assert "\x1b[" in text
    assert "Traceback" not in text
    tables = [line for line in bare(text).split("\n") if "─" in line]
    assert tables
    assert all(cell_len(line) <= width for line in tables)


@posix
def test_no_color_takes_the_colors_and_nothing_else(model: Path) -> None:
    """A terminal shows tables for people; tabs and 17 digits are for pipes."""
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text = terminal(f"generate|The|-n|4|--probs|-m|{model}", env=env)
        assert "\x1b" not in text
        assert "─" in text
        assert "\t" not in text
        assert not re.search(r"\.\d{7}", text)


@posix
def test_ctrl_c_keeps_the_text_and_exits_130(model: Path) -> None:
    import pexpect

    child = pexpect.spawn(
        PROGRAM[0],
        [*PROGRAM[1:], "explain-step", "The", "-m", str(model), "--interactive"],
        encoding="utf-8",
        timeout=None,
    )
    child.expect("rank of the next token")
    child.sendline("1")
    child.expect("step 1")
    child.expect("rank of the next token")
    while True:  # Python drops a signal that arrives in a finalizer, as happens on a busy machine
        child.sendintr()
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=10) == 0:
            break
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in child.before


@posix
def test_sigint_mid_stream(tmp_path: Path, model: Path) -> None:
    """A real SIGINT while text streams: the written lines stay, and the last one reports the interruption."""
    import json

    with subprocess.Popen(
        [*PROGRAM, "generate", "The", "-m", str(slow_model(tmp_path, model)), "--json", "-n", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        rest, errors = process.stdout.read(), process.stderr.read()
    records = [json.loads(line) for line in (*lines, *rest.splitlines())]
    assert process.returncode == 130
    assert records[-1]["finish"] == "interrupted"
    assert records[-1]["tokens"] == len(records) - 2
    assert errors == ""


def slow_model(tmp_path: Path, model: Path) -> Path:
    """The tiny model with a context so long that it cannot reach its end before it is interrupted."""
    import json
    import shutil

    folder = tmp_path / "long"
    shutil.copytree(model, folder)
    for name, change in (
        ("config.json", {"max_position_embeddings": 100_000, "eos_token_id": None}),
        ("generation_config.json", {"eos_token_id": None}),
    ):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | change))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_libraries_load_is_not_lost(tmp_path: Path) -> None:
    """Some libraries swallow every exception that is raised while they are imported."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n"
        "except BaseException:\n    pass\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from llmcli.commands.shell import interrupt; interrupt.import_torch()"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 130
