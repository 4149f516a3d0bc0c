"""Real terminals and pipes: no text controls the terminal, and the reader of a pipe can close it at any time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands.test_shell import PROGRAM, bare, posix, slow_model, terminal

pytestmark = posix

ALLOWED = re.compile(r"\x1b\[[0-9;]*m")  # colors and styles, the only sequences llmcli writes apart from progress bars
EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\x0b\x7f\x85end\r"


def controls_in(text: str) -> list[str]:
    """Return the control characters in a terminal's input, except styles, line feeds and tabs."""
    return re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ALLOWED.sub("", text.replace("\r\n", "\n")))


def raw(*args: object, code: int | None = 0, width: int = 80, **env: str) -> str:
    """Return what the program writes to a terminal, byte for byte."""
    ((shown, ended),) = each_raw([args], width=width, **env)
    assert code in (None, ended), shown
    return shown


RUN = """
import json, sys
from llmcli.cli import cli
for args in json.loads(sys.argv[1]):
    try:
        cli.main(args, prog_name="llmcli")
    except SystemExit as end:
        print(f"\\n<<{end.code or 0}>>", flush=True)
"""


def each_raw(commands: Sequence[Sequence[object]], *, width: int = 80, **env: str) -> list[tuple[str, int]]:
    """Return the same for several command lines run in one process, each with its exit code."""
    import pexpect

    lines = json.dumps([[str(word) for word in args] for args in commands])
    child = pexpect.spawn(
        sys.executable,
        ["-c", RUN, lines],
        dimensions=(40, width),
        timeout=None,
        env={**os.environ, "TERM": "xterm-256color", **env},
    )
    child.expect(pexpect.EOF)
    child.close()
    text: str = child.before.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    parts = re.split(r"\n<<(\d+)>>\n", text)
    assert len(parts) == 2 * len(commands) + 1, text
    return [(shown, int(code)) for shown, code in zip(parts[::2], parts[1::2], strict=False)]


def hostile_arguments(model: Path) -> list[object]:
    """Return arguments that make the tiny model write mostly control characters, of one byte and of two."""
    from llmcli.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    ids = [tokenizer.id_of(char) for char in "\x1b\x07\x7f[\udcc2\udc9b"]
    assert None not in ids
    biases = [word for id in ids for word in ("--logit-bias", f"{id}=+300")]
    return ["generate", "The", "-m", model, "-n", 60, "--temperature", 20, "--top-p", 1, "--seed", 4, *biases]


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["color", "NO_COLOR", "dumb"])
def test_no_text_of_a_model_controls_the_terminal(model: Path, env: dict[str, str]) -> None:
    args = [*map(str, hostile_arguments(model))]
    (shown, _), (machine, _) = each_raw([[*args, "--probs"], [*args, "--json"]], **env)
    written = json.loads(machine.strip().splitlines()[-1])["text"]
    assert {"\x1b", "\x07", "\x7f", "\x9b"} <= set(controls_in(written))
    assert controls_in(shown) == []
    assert ("\x1b[" in shown) == (not env)
    assert {"␛", "␇", "␡", "<9B>"} <= set(re.findall("[␛␇␡]|<9B>", shown))
    assert controls_in(machine) == []


COMMANDS = [
    "generate|-n|5|--echo|TEXT",
    "generate|-n|5|--json|TEXT",
    "explain-step|TEXT",
    "tokenize|TEXT",
    "tokenize|TEXT|--merges",
    "tokenize|TEXT|--json",
    "lens|TEXT",
    "attend|TEXT",
    "attend|TEXT|--head|1.1",
    "why|TEXT",
    "branch|TEXT",
    "decide|x|--choices|TEXT,b",
    "score|TEXT",
    "neighbours|TEXT",
    "generate|x|--dtype|TEXT",
    "generate|x|--samplers|TEXT",
    "generate|x|--TEXT",
    "generate|x|-m|TEXT",
    "generate|x|-m|TEXT|--verbose",
    "config|TEXT",
    "TEXT",
]


def test_no_text_of_a_user_controls_the_terminal(model: Path) -> None:
    commands = [[word.replace("TEXT", EVIL) for word in line.split("|")] for line in COMMANDS]
    shown = each_raw(commands, LLMCLI_MODEL=str(model))
    assert {code for _, code in shown} == {0, 1, 2}
    for line, (text, _) in zip(COMMANDS, shown, strict=True):
        assert text, line
        assert "Traceback" not in text or "verbose" in line
        assert controls_in(text) == [], line


def test_no_name_of_a_model_controls_the_terminal(tmp_path: Path, model: Path) -> None:
    """Neither a folder's name nor the contents of its config.json, in views, tables and errors."""
    folder = shutil.copytree(model, tmp_path / "a\x1b[2Jb")
    wrong = shutil.copytree(model, tmp_path / "hub/models--some--model/snapshots" / ("a" * 40))
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "model_type": EVIL}))
    views = [["tokenize", "x"], ["tokenize", "x", "-m", folder], ["generate", "x", "-n", "1", "--verbose"], ["inspect"]]
    results = each_raw([[*view, "-m", folder] for view in views])
    results += each_raw([["generate", "x", "-m", wrong, *more] for more in ([], ["--verbose"])])
    results += each_raw([["models"]], HF_HOME=str(tmp_path), width=150)
    assert [code for _, code in results] == [0, 0, 0, 0, 1, 1, 0]
    assert "some/model" in results[-1][0]
    for shown, _ in results:
        assert "␛" in shown or r"\x1b" in shown
        assert controls_in(shown) == []


def test_no_path_controls_the_terminal(tmp_path: Path, model: Path) -> None:
    """A result that is a path is exact in a pipe, but on a terminal only a part of a line."""
    name = "a\x1b]0;title\x07\x9b31m\u202eb\nc"
    folder = shutil.copytree(model, tmp_path / name)
    config = tmp_path / f"{name}.toml"
    config.touch()
    commands = [
        ["config", "--path"],
        ["quantize", folder, tmp_path / f"q{name}"],
        ["bench", "-m", folder, "-p", 4, "-n", 2, "-r", 1, "--markdown"],
        ["score", "The old fox", "-m", folder],
        ["tokenize", "x", "-m", folder, "--save", tmp_path / f"{name}.svg"],
    ]
    for shown, code in each_raw(commands, width=200, LLMCLI_CONFIG=str(config)):
        assert code == 0
        assert controls_in(shown) == []
        assert "\u202e" not in shown
        assert "<202E>b⏎c" in shown
    environment = {**os.environ, "LLMCLI_CONFIG": str(config)}
    piped = subprocess.run([*PROGRAM, "config", "--path"], capture_output=True, env=environment)
    assert piped.stdout.decode() == f"{config}\n"


def test_unescaped_text_fails_these_tests(tmp_path: Path, model: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import llmcli.render.terminal as t\nt.escape_controls = lambda text: text\n"
    )
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    assert controls_in(raw(*hostile_arguments(model), PYTHONPATH=path))


NARROW = [
    "explain-step|The|--seed|1",
    "generate|The|-n|4|--probs|--seed|1",
    "tokenize|The fox 🙂",
    "lens|The",
    "why|The",
    "attend|The old fox",
    "attend|The old fox|--head|1.1",
    "branch|The",
    "decide|The|--choices|old fox,shy fox",
    "score|The old fox",
    "models",
]


def test_no_number_is_cut_at_20_columns(model: Path) -> None:
    """Nothing crashes, and each number in a narrow terminal's tables is also in a wide one's."""
    commands = [line.split("|") for line in NARROW]
    shown = [each_raw(commands, width=width, LLMCLI_MODEL=str(model)) for width in (200, 20)]
    numbers = re.compile(r"(?<![\w.:,-])\d+\.\d{2,4}(?![\w.])")
    with_numbers = 0
    for (name, *more), (wide, code), (narrow, other) in zip(commands, *shown, strict=True):
        assert (code, other) == (0, 0), narrow
        wide, narrow = bare(wide), bare(narrow)
        rows = [line for line in narrow.split("\n") if re.search(r"\S {2,}\S", line)]  # lines of tables
        found = {number for row in rows for number in numbers.findall(row)}
        assert found <= set(numbers.findall(wide)), (name, more)
        with_numbers += bool(found)
        if name == "tokenize":
            ids = re.findall(r"^ ?\d+ {2,}(\d+)  ", wide, re.MULTILINE)
            assert len(ids) == 4
            assert ids == re.findall(r"^ ?\d+ {2,}(\d+)  ", narrow, re.MULTILINE)
    assert with_numbers >= 6


def test_resizing_while_text_streams_loses_nothing(tmp_path: Path, model: Path) -> None:
    import pexpect

    folder = slow_model(tmp_path, model)
    args = ["generate", "The", "-m", str(folder), "-n", "400", "--seed", "3", "--temperature", "0.9"]
    alone = subprocess.run([*PROGRAM, *args], capture_output=True, stdin=subprocess.DEVNULL).stdout.decode()
    child = pexpect.spawn(
        PROGRAM[0], [*PROGRAM[1:], *args], dimensions=(24, 80), encoding="utf-8", timeout=None, env={**os.environ}
    )
    seen = child.read(40)
    for width in (20, 132, 3, 80):
        child.setwinsize(24, width)
        child.kill(signal.SIGWINCH)
        seen += child.read(20)
    seen += child.read()
    child.close()
    assert child.exitstatus == 0
    from llmcli.render.text import escape_controls

    assert bare(seen).replace("\r\n", "\n").startswith(escape_controls(alone))


def test_wide_characters_wrap(model: Path) -> None:
    """On pyte's screen of 20 columns the text is complete, including characters that take two cells."""
    import pyte

    text = "狐狸 🙂 fox 狐狸狐狸狐狸狐狸 🙂🙂 naïve"
    screen = pyte.Screen(20, 40)
    pyte.Stream(screen).feed(raw("generate", text, "-m", model, "-n", "1", "--echo", width=20).replace("\n", "\r\n"))
    assert "".join(screen.display).replace(" ", "").startswith(text.replace(" ", ""))


READERS = [
    "lens|The",
    "generate|The|-n|60",
    "generate|The|-n|60|--json",
    "explain-step|The",
    "tokenize|The fox",
    "inspect",
]


@pytest.mark.parametrize("args", [*READERS, "models", "--help", "config|generate"])
def test_a_closed_pipe_is_silent_and_exits_with_141(model: Path, args: str) -> None:
    """A shell reports the same of `cat`, whether or not the pipe also takes stderr."""
    pipe = "2>&1 |" if args == "generate|The|-n|60" else "|"
    words = [*PROGRAM, *args.split("|"), *(["-m", str(model)] if args in READERS else [])]
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"{quoted} {pipe} true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("args", ["generate|The|-n|5", "explain-step|The"])
def test_files_get_no_escape_codes(model: Path, args: str, tmp_path: Path) -> None:
    """Not even if the other stream is a terminal."""
    import pexpect

    for redirect in (f"> {tmp_path}/out", f"2> {tmp_path}/out"):
        words = " ".join(f"'{word}'" for word in [*PROGRAM, *args.split("|"), "-m", str(model)])
        child = pexpect.spawn("bash", ["-c", f"{words} {redirect}"], encoding="utf-8", timeout=None)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert "\x1b" not in (tmp_path / "out").read_text(encoding="utf-8")


def test_long_commands_write_few_lines_to_a_file(tmp_path: Path, model: Path) -> None:
    """Training, quantizing and benchmarking write a few plain lines each."""
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 60, encoding="utf-8")
    size = "--hidden-size 16 --num-attention-heads 2 --num-key-value-heads 2 --num-hidden-layers 1"
    train = f"train {text} --out {tmp_path}/m {size} --vocab-size 300 --context 16 --batch-size 1 --tokens 1600"
    for words in (
        train.split(),
        ["quantize", str(model), str(tmp_path / "q"), "--text", str(text)],
        ["bench", "-m", str(model), "-p", "4", "-n", "2", "-r", "1"],
    ):
        done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        assert done.stderr
        assert not {"\x1b", "\r"} & set(done.stderr + done.stdout)
        assert done.stderr.count("\n") <= 40


def test_a_run_of_a_million_steps_prints_few_lines() -> None:
    from io import StringIO

    from llmcli.render.training import MAX_LINES, TrainingProgress
    from llmcli.train.metrics import Metrics

    stream = StringIO()
    steps = 1_000_000
    with TrainingProgress(stream, "nats per token") as view:
        for step in range(500, steps + 1, 500):
            view.show(Metrics(step, steps, step, 1.0, 0.1, 9.0, nats_per_token=1.0, bits_per_byte=1.0))
    lines = stream.getvalue().splitlines()
    assert MAX_LINES < len(lines) <= 2 * MAX_LINES + 2
    assert f"step {steps}: validation" in lines[-1]


def test_ctrl_c_during_startup_prints_no_traceback(tmp_path: Path) -> None:
    """While click is imported, as on a slow disk; before that, Python itself is starting."""
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n")
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    """As for a background job of a shell script."""
    code = (
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from llmcli.commands.shell.interrupt import Interrupt, exit_on_ctrl_c\n"
        "for context in (exit_on_ctrl_c(), Interrupt()):\n"
        "    with context:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_an_empty_text_is_not_the_default_text(model: Path) -> None:
    for command in ("verify", "tour"):
        assert "the text is empty" in raw(command, "", "-m", model, code=2)
    assert "check: ok" in terminal(f"tour|--no-pause|-m|{model}")
