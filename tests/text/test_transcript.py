"""Saved chats: whole at every moment, and nothing else is taken for one or overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.errors import LlmcliError
from llmcli.text.chat_template import ROLES, Message
from llmcli.text.transcript import read_transcript, write_transcript

MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(ROLES), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4
)
CHAT = (Message("user", "hi\n🙂"), Message("assistant", "\x1b[31m\u2028"))


@given(MESSAGES)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, messages: list[Message]) -> None:
    path = tmp_path_factory.mktemp("chats") / "chat.json"
    write_transcript(path, "a model", messages)
    assert read_transcript(path) == tuple(messages)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["model"] == "a model"
    assert found["messages"] == [{"role": m.role, "content": m.content} for m in messages]
    assert os.listdir(path.parent) == ["chat.json"]  # noqa: PTH208


GOOD = {"role": "user", "content": "x"}
WRONG: list[Any] = [
    [GOOD],
    {},
    {"messages": "x"},
    {"messages": ["x"]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"content": "x"}]},
    {"messages": [GOOD, {"role": "tool", "content": "x"}]},
    {"messages": [{"role": ["user"], "content": "x"}]},
    {"messages": [{"role": "user", "content": ["x"]}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_what_is_no_chat_is_refused_and_never_overwritten(wrong: object, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(LlmcliError) as caught:
        read_transcript(path)
    assert str(path) in str(caught.value)
    with pytest.raises(LlmcliError, match="not a saved chat"):
        write_transcript(path, "m", CHAT)
    assert json.loads(path.read_text()) == wrong


@pytest.mark.parametrize("where", ["missing/x.json", "."])
def test_a_place_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcliError):
        write_transcript(tmp_path / where, "m", CHAT)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_older_chat_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_transcript(path, "m", CHAT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(LlmcliError, match="No space left"):
                write_transcript(path, "m", [])
        assert read_transcript(path) == CHAT
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_one(tmp_path: Path) -> None:
    write_transcript(tmp_path / "x.json", "m", [])
    (tmp_path / "link.json").symlink_to(tmp_path / "x.json")
    write_transcript(tmp_path / "link.json", "m", CHAT)
    assert (tmp_path / "link.json").is_symlink()
    assert read_transcript(tmp_path / "x.json") == CHAT


def test_killed_at_any_moment_one_of_the_two_is_there(tmp_path: Path) -> None:
    """A process that saves two chats in turn, each too large for one write, killed ten times."""
    path = tmp_path / "x.json"
    code = (
        "import sys\nfrom pathlib import Path\nfrom llmcli.text.chat_template import Message\n"
        "from llmcli.text.transcript import write_transcript\n"
        "while True:\n    for c in 'ab':\n"
        "        write_transcript(Path(sys.argv[1]), c, [Message('user', c * 300000)])\n"
    )
    for n in range(10):
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
            began = time.monotonic()
            while not path.exists() and time.monotonic() < began + 60:
                time.sleep(0.01)
            time.sleep(0.003 * n)
            process.kill() if sys.platform == "win32" else process.send_signal(signal.SIGKILL)
        (message,) = read_transcript(path)
        assert len(message.content) == 300_000
        path.unlink()
