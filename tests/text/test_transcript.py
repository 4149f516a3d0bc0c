"""Saved chats are always complete, and no other file is read as one or overwritten."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.errors import LlmcliError
from llmcli.text.chat_template import ROLES, Message
from llmcli.text.transcript import ChatFile, read_transcript, write_transcript

MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(ROLES), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4
)
CHAT = (Message("user", "hi\n🙂"), Message("assistant", "\x1b[31m\u2028"))


@given(MESSAGES)
def test_a_saved_chat_is_loaded_unchanged(tmp_path_factory: pytest.TempPathFactory, messages: list[Message]) -> None:
    path = tmp_path_factory.mktemp("chats") / "chat.json"
    write_transcript(path, "a model", messages)
    assert read_transcript(path) == tuple(messages)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["model"] == "a model"
    assert content["messages"] == [{"role": m.role, "content": m.content} for m in messages]
    assert os.listdir(path.parent) == ["chat.json"]  # noqa: PTH208


VALID = {"role": "user", "content": "x"}
INVALID: list[Any] = [
    [VALID],
    {},
    {"messages": "x"},
    {"messages": ["x"]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"content": "x"}]},
    {"messages": [VALID, {"role": "tool", "content": "x"}]},
    {"messages": [{"role": ["user"], "content": "x"}]},
    {"messages": [{"role": "user", "content": ["x"]}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
]


@pytest.mark.parametrize("content", ["", "{", "GGUF"])
def test_a_saved_chat_that_is_not_json_was_not_downloaded(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(LlmcliError, match=r"not valid JSON.*a saved chat is"):
        read_transcript(tmp_path / "x.json")


@pytest.mark.parametrize("content", INVALID, ids=range(len(INVALID)))
def test_a_file_that_is_not_a_chat_is_an_error_and_never_overwritten(content: object, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LlmcliError) as caught:
        read_transcript(path)
    assert str(path) in str(caught.value)
    assert "download" not in str(caught.value)
    with pytest.raises(LlmcliError, match="not a saved chat"):
        write_transcript(path, "m", CHAT)
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize("path", ["missing/x.json", "."])
def test_an_unwritable_path(path: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcliError):
        write_transcript(tmp_path / path, "m", CHAT)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_previous_chat_and_leaves_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_chat_that_another_program_changed_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with ChatFile(path) as chat:
        assert chat.read() == ()
        chat.write("m", CHAT[:1])
        chat.write("m", CHAT)
        assert chat.read() == CHAT
        with pytest.raises(LlmcliError, match="another process"):
            write_transcript(path, "m", [])
        edited = path.read_text(encoding="utf-8").replace('"hi', '"bye')
        path.write_text(edited, encoding="utf-8")
        with pytest.raises(LlmcliError, match="another program has changed"):
            chat.write("m", CHAT)
        assert path.read_text(encoding="utf-8") == edited
        path.unlink()  # by its owner, who no longer wants it
        chat.write("m", CHAT)
        assert read_transcript(path) == CHAT
    write_transcript(path, "m", [])


def test_of_two_new_chats_one_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the other one is saved at the last moment."""
    path, fsync = tmp_path / "x.json", os.fsync
    with ChatFile(path) as first, ChatFile(path) as second:

        def late(file: int) -> None:
            monkeypatch.setattr(os, "fsync", fsync)
            first.write("m", CHAT)
            fsync(file)

        monkeypatch.setattr(os, "fsync", late)
        for message in ("another process is writing", "another program has changed"):
            with pytest.raises(LlmcliError, match=message):
                second.write("m", [])
        assert read_transcript(path) == CHAT
        first.write("m", CHAT[:1])


def test_of_two_chats_that_begin_at_once_one_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with ChatFile(path) as first, ChatFile(path) as second:
        first.reserve("m")
        with pytest.raises(LlmcliError, match="another p"):
            second.reserve("m")
        with pytest.raises(LlmcliError, match="another process is writing"), ChatFile(path):
            pass
        assert read_transcript(path) == ()
    assert not path.exists()
    with ChatFile(path) as chat:
        chat.reserve("m")
        chat.write("m", CHAT)
    with ChatFile(path) as chat:
        chat.reserve("m")
    assert read_transcript(path) == CHAT


def test_a_reserved_file_that_another_program_wrote_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with ChatFile(path) as chat:
        chat.reserve("m")
        path.write_text("mine")
    assert path.read_text() == "mine"


def test_after_a_failed_write_the_file_is_still_locked_and_the_next_write_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_transcript(path, "m", CHAT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with ChatFile(path) as chat:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(LlmcliError, match="No space left"):
                chat.write("m", [])
        with pytest.raises(LlmcliError, match="another process"):
            write_transcript(path, "m", [])
        chat.write("m", CHAT[:1])
    assert read_transcript(path) == CHAT[:1]


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_new_chat_is_private(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_transcript(path, "m", CHAT)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    write_transcript(path, "m", [])
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs privileges on Windows")
def test_a_symbolic_link_is_kept(tmp_path: Path) -> None:
    write_transcript(tmp_path / "x.json", "m", [])
    (tmp_path / "link.json").symlink_to(tmp_path / "x.json")
    write_transcript(tmp_path / "link.json", "m", CHAT)
    assert (tmp_path / "link.json").is_symlink()
    assert read_transcript(tmp_path / "x.json") == CHAT
