"""``llmcli chat`` on a real terminal: editing, history, Ctrl-C and Ctrl-D, narrow and plain screens, hostile text."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("needs a POSIX terminal", allow_module_level=True)

import termios

import pexpect
import pyte

from llmcli.commands.chat.input import _history
from llmcli.render.text import escape_controls

Spawn = Callable[..., "Terminal"]
ENTER, CTRL_C, CTRL_D, UP, ALT_ENTER, TAB = "\r", "\x03", "\x04", "\x1b[A", "\x1b\r", "\t"


def keep_output() -> None:
    """Keep pending output on Ctrl-C, which a terminal otherwise discards."""
    modes = termios.tcgetattr(0)
    modes[3] |= termios.NOFLSH
    termios.tcsetattr(0, termios.TCSANOW, modes)


class Terminal:
    """A chat on a terminal, with its raw output and its screen."""

    def __init__(self, args: list[str], columns: int, env: dict[str, str], echo: bool) -> None:
        self.screen = pyte.Screen(columns, 40)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""
        self.child = pexpect.spawn(
            sys.executable, ["-m", "llmcli", "chat", *args], encoding="utf-8", dimensions=(40, columns),
            env={**os.environ, "TERM": "xterm-256color", **env}, echo=echo, preexec_fn=keep_output,
        )  # fmt: skip

    def wait(self, done: Callable[[], bool], waiting_for: object = "") -> None:
        """Read output until ``done`` returns true. Fails if the chat ends before."""
        while not done():
            ended = not self.child.isalive()
            assert self._pump() or not ended or done(), (waiting_for, self.shown)

    def _pump(self) -> bool:
        """Read available output, and return whether there was any."""
        try:
            data = self.child.read_nonblocking(65536, 0.02)
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF:
            time.sleep(0.02)
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def shown(self) -> str:
        return "\n".join(self.lines).rstrip()

    @property
    def last(self) -> str:
        return self.shown.split("\n")[-1]

    def prompt(self) -> None:
        """Wait for the next prompt, until output stops."""
        self.wait(lambda: self.last == ">" and not self._pump(), "a prompt")

    def say(self, text: str) -> None:
        """Type a line, and wait for the next prompt."""
        self.child.send(text)
        self.wait(lambda: text[-1] in self.shown)
        before = len(self.raw)
        self.child.send(ENTER)
        self.wait(lambda: len(self.raw) > before + 2)
        self.prompt()

    def end(self) -> int:
        """Wait for the chat to end, and return its exit code."""
        self.wait(lambda: not self.child.isalive())
        while self._pump():
            pass
        return int(self.child.exitstatus)


@pytest.fixture
def spawn(chat_model: Path, tmp_path: Path) -> Iterator[Spawn]:
    """Return a function that starts a chat with short greedy replies and its own config folder."""
    running: list[Terminal] = []

    def call(*args: object, model: Path = chat_model, columns: int = 80, echo: bool = True, **env: str) -> Terminal:
        options = ["-m", str(model), "--temperature", "0", "-n", "6", *map(str, args)]
        running.append(Terminal(options, columns, {"XDG_CONFIG_HOME": str(tmp_path / "config"), **env}, echo))
        running[-1].prompt()
        return running[-1]

    yield call
    for terminal in running:
        terminal.child.close(force=True)


def saved(path: Path) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in json.loads(path.read_text(encoding="utf-8"))["messages"]]


@pytest.fixture
def endless(chat_model: Path, tmp_path: Path) -> Path:
    """The chat model with a context of 100,000 tokens, for replies that tests must interrupt."""
    folder = tmp_path / "endless"
    shutil.copytree(chat_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    return folder


def test_turns_history_and_exit(spawn: Spawn, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    terminal = spawn("--chat", file)
    terminal.say("The fox")
    reply = saved(file)[1][1]
    at = terminal.lines.index("> The fox")
    assert "".join(terminal.lines[at + 1 :]).startswith(reply.split("\n")[0].strip()[:20])
    terminal.say("naïve 日本語 🙂")
    assert saved(file)[2] == ("user", "naïve 日本語 🙂")
    terminal.child.send("/he" + TAB)
    terminal.wait(lambda: terminal.last.startswith("> /help"))
    terminal.child.send(ENTER)
    terminal.wait(lambda: "/regenerate" in terminal.shown)
    terminal.prompt()
    terminal.child.send(CTRL_C)
    terminal.wait(lambda: "press Ctrl-D or type /quit to exit" in terminal.shown)
    terminal.prompt()
    terminal.child.send(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.raw
    # The history of the next chat has the typed lines and nothing else.
    history = (tmp_path / "config" / "llmcli" / "chat_history").read_text(encoding="utf-8")
    assert [line[1:] for line in history.splitlines() if line.startswith("+")] == [
        "The fox",
        "naïve 日本語 🙂",
        "/help",
    ]
    other = spawn()
    for expected in ("> /help", "> naïve 日本語 🙂"):
        other.child.send(UP)
        other.wait(lambda: other.last.replace("\x00", "") == expected, expected)  # noqa: B023
    other.child.send(UP)
    other.wait(lambda: other.last == "> The fox")
    other.child.send(" ran" + ENTER)
    other.prompt()
    assert "> The fox ran" in other.lines


def test_messages_of_several_lines(spawn: Spawn, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    terminal = spawn("--chat", file)
    terminal.child.send("one\\" + ENTER)
    terminal.wait(lambda: terminal.last == "...")
    terminal.say("two")
    terminal.child.send("three" + ALT_ENTER)
    terminal.wait(lambda: terminal.last == "...")
    terminal.say("four")
    terminal.child.send('"""five' + ENTER + ENTER)
    terminal.wait(lambda: terminal.shown.endswith("...\n..."))
    terminal.say('six"""')
    assert [content for role, content in saved(file) if role == "user"] == ["one\ntwo", "three\nfour", "five\n\nsix"]


def test_ctrl_c_stops_only_the_reply(spawn: Spawn, tmp_path: Path, endless: Path) -> None:
    file = tmp_path / "x.json"
    options = ("-n", 50_000, "--temperature", 1, "--seed", 1, "--chat", file, "--logit-bias", "1=-inf")
    # With echo, the terminal could print ^C anywhere, even inside a character.
    terminal = spawn(*options, model=endless, echo=False)
    terminal.child.send("The" + ENTER)
    terminal.wait(lambda: len(terminal.shown) > 300)
    terminal.child.send(CTRL_C)
    terminal.wait(lambda: "stopped: interrupted" in terminal.shown)
    terminal.prompt()
    (_, (role, reply)) = saved(file)
    assert role == "assistant"
    assert len(reply) > 50
    # The saved reply is the text shown.
    shown = re.sub(r"\s", "", terminal.raw.split("The", 1)[1])
    assert re.sub(r"\s", "", escape_controls(reply)) in shown
    terminal.say("/set max-tokens 3")
    terminal.say("sang")
    assert len(saved(file)) == 4
    terminal.child.send(CTRL_D)
    assert terminal.end() == 0


@pytest.mark.parametrize("env", [{}, {"TERM": "dumb"}], ids=["editing", "dumb"])
def test_typing_during_a_reply_is_kept_for_the_next_turn(spawn: Spawn, endless: Path, env: dict[str, str]) -> None:
    terminal = spawn("-n", 50_000, "--temperature", 1, "--seed", 1, "--logit-bias", "1=-inf", model=endless, **env)
    terminal.child.send("The" + ENTER)
    terminal.wait(lambda: len(terminal.raw) > 100)
    terminal.child.send("/typpo\x7f\x7f\x7f")
    before = len(terminal.raw)
    terminal.wait(lambda: len(terminal.raw) > before + 200)
    assert "typ" not in terminal.raw
    terminal.child.send(CTRL_C)
    terminal.wait(lambda: terminal.last == "> /ty")
    terminal.child.send("ped" + ENTER)
    terminal.wait(lambda: "there is no command /typed" in terminal.shown)
    terminal.prompt()
    terminal.child.send(CTRL_D)
    assert terminal.end() == 0


def test_without_colors_a_terminal_still_edits_lines(spawn: Spawn) -> None:
    terminal = spawn("-n", 3, NO_COLOR="1")
    terminal.child.send("ox\x1b[D\x1b[Df")  # the left arrow, twice
    terminal.wait(lambda: terminal.last == "> fox")
    terminal.child.send(ENTER)
    terminal.prompt()
    terminal.say("/probs")
    terminal.say("/regenerate")
    assert "─" in terminal.shown
    assert not re.search(r"\x1b\[[\d;]*[1-9]\d*m", terminal.raw)  # any style but a reset


def test_a_dumb_terminal_gets_no_escape_sequences(spawn: Spawn, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    terminal = spawn("--chat", file, TERM="dumb")
    terminal.say("/probs")
    terminal.child.send("The\\\n")
    terminal.wait(lambda: terminal.last.startswith("..."))
    terminal.say("fox")
    terminal.say("/tokens")
    terminal.child.send(CTRL_C)
    terminal.wait(lambda: "press Ctrl-D or type /quit to exit" in terminal.shown)
    terminal.child.send(CTRL_D)
    assert terminal.end() == 0
    assert "\x1b" not in terminal.raw
    assert saved(file)[0] == ("user", "The\nfox")


def test_twenty_columns(spawn: Spawn, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    terminal = spawn("--chat", file, columns=20)
    long = "日本語 " * 8 + "The old fox met a shy crow"
    terminal.child.send(long)
    terminal.wait(lambda: "The old fox met a shy crow" in "".join(terminal.screen.display).replace("\n", ""))
    assert "..." not in terminal.shown  # the line is wrapped, not continued
    terminal.child.send(ENTER)
    terminal.wait(lambda: file.exists())
    terminal.prompt()
    assert saved(file)[0] == ("user", long)
    for command in ("/tokens", "/explain", "/help"):
        terminal.say(command)
    assert "Traceback" not in terminal.raw
    assert "\x1b[6n" not in terminal.raw  # the cursor position request, which some terminals do not answer
    terminal.child.send(CTRL_D)
    assert terminal.end() == 0


def test_no_text_controls_the_terminal(spawn: Spawn, chat_model: Path, tmp_path: Path) -> None:
    """Generated text, a saved chat and a mistyped command contain escape sequences."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m[bold red]"
    chat = {"model": "m", "messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]}
    (tmp_path / "x.json").write_text(json.dumps(chat))
    (tmp_path / "config" / "llmcli").mkdir(parents=True)
    terminal = spawn("--logit-bias", "\x1b=+1000")
    terminal.say("The")
    assert "␛" * 6 in terminal.shown
    terminal.say(f"/load {tmp_path / 'x.json'}")
    terminal.say("/tokens")
    terminal.say("/undo")
    terminal.child.send("\x1b[200~/" + "\x1b]0;x\x07\x1b[201~" + ENTER)  # pasted
    terminal.wait(lambda: "there is no command" in terminal.shown)
    terminal.prompt()
    assert "\x1b]" not in terminal.raw
    assert "\x1b[2J" not in terminal.raw
    assert "\x07" not in terminal.raw
    assert "\x9b" not in terminal.raw
    assert "[bold red]" in terminal.shown
    terminal.child.send(CTRL_D)
    assert terminal.end() == 0  # the user saw the error


def test_ctrl_c_ends_a_chat_through_a_pipe(endless: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    options = ["-m", str(endless), "-n", "50000", "--logit-bias", "1=-inf", "--chat", str(file)]
    command = [sys.executable, "-m", "llmcli", "chat", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"The fox\nsang\n")
        process.stdin.flush()
        process.stdout.read(200)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait() == 130
    assert [role for role, _ in saved(file)] == ["user", "assistant"]


def test_with_stdout_in_a_file_only_the_replies_go_there(chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    command = f"{sys.executable} -m llmcli chat -m {chat_model} --temperature 0 -n 6 > {out}"
    environment = {**os.environ, "TERM": "xterm-256color", "XDG_CONFIG_HOME": str(tmp_path)}
    child = pexpect.spawn("/bin/sh", ["-c", command], encoding="utf-8", timeout=None, env=environment)
    child.expect(">")
    child.send("The fox\r")
    while child.isalive() and not out.read_bytes():  # before the reply begins, the terminal could swallow the end
        time.sleep(0.02)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    written = out.read_text(encoding="utf-8")
    assert written.endswith("\n")
    assert "\x1b" not in written
    assert ">" not in written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_loses_the_history_but_no_turn() -> None:
    history = _history(Path("/dev/full"))
    history.append_string("The fox")
    assert history.get_strings() == ["The fox"]


@pytest.mark.parametrize("obstacle", ["a file", "a folder"])
def test_a_chat_works_without_a_history_file(spawn: Spawn, tmp_path: Path, obstacle: str) -> None:
    config = tmp_path / "config"
    if obstacle == "a file":
        config.write_text("x")
    else:
        (config / "llmcli" / "chat_history").mkdir(parents=True)
    terminal = spawn()
    terminal.say("The fox")
    terminal.child.send(UP)
    terminal.wait(lambda: terminal.last == "> The fox")
