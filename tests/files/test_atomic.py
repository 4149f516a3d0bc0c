"""Files and folders are replaced whole or not at all, and nothing else is touched."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import pytest

from llmcli.errors import LlmcliError
from llmcli.files import atomic
from llmcli.files.atomic import clear_leftovers, replace_text, replacing, replacing_folder

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and permissions need POSIX")


def write(path: Path, text: str, error: BaseException | None = None, *, new: bool = False) -> None:
    with replacing(path, new=new) as file:
        file.write(text.encode())
        if error is not None:
            raise error


def files(folder: Path) -> dict[str, str]:
    """The files below ``folder`` by relative path: their text, or the target of a link."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p.relative_to(folder)): f"-> {p.readlink()}" if p.is_symlink() else p.read_text() for p in found}


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, ValueError("no"), KeyboardInterrupt()], ids=type)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "x", "old")
    with pytest.raises(LlmcliError if error is FULL else type(error)) as caught:
        write(tmp_path / "x", "new", error)
    if error is FULL:
        assert f"{tmp_path / 'x'}: cannot be written: No space left" in str(caught.value)
        assert "free some space" in str(caught.value)
    assert files(tmp_path) == {"x": "old"}
    write(tmp_path / "x", "new")
    assert files(tmp_path) == {"x": "new"}


@posix
def test_writing_through_links_replaces_their_target(tmp_path: Path) -> None:
    """Both links are kept, although the target is in another folder."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/other")
    (tmp_path / "far" / "other").symlink_to("target")
    kept = {"link": "-> far/other", "far/other": "-> target"}
    write(tmp_path / "link", "first")  # creates the target
    assert files(tmp_path) == {**kept, "far/target": "first"}
    with pytest.raises(LlmcliError):
        write(tmp_path / "link", "second", FULL)
    assert files(tmp_path) == {**kept, "far/target": "first"}
    write(tmp_path / "link", "second")
    assert files(tmp_path) == {**kept, "far/target": "second"}


@posix
def test_files_and_links_with_names_like_temporary_ones_are_neither_followed_nor_changed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    names = ("x.part", ".x.part", "x.tmp", "x~", ".x.0123456789abcde.part", "x.0123456789abcdef.part")
    for name in names[1:]:
        (tmp_path / name).write_text("mine")
    (tmp_path / "x.part").symlink_to("precious")
    (tmp_path / ".x.0123456789abcdef.part").symlink_to("precious")
    before = files(tmp_path)
    write(tmp_path / "x", "new")
    assert files(tmp_path) == {**before, "x": "new"}


@posix
def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "x", "new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "x").chmod(0o640)
    write(tmp_path / "x", "newer")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@posix
def test_what_cannot_be_replaced_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("folder", "pipe", "loop", "none/x", "a\0b", "x" * 300):
        with pytest.raises(LlmcliError, match="cannot be written"):
            write(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "loop", "pipe"]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "🙂" * 63])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "new")
    assert files(tmp_path) == {name: "new"}


def test_a_new_file_replaces_none_that_appeared_in_the_meantime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x", "first", new=True)
    with pytest.raises(LlmcliError, match="exists"):
        write(tmp_path / "x", "second", new=True)
    assert files(tmp_path) == {"x": "first"}

    def without_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", without_links)
    write(tmp_path / "y", "third", new=True)
    assert files(tmp_path) == {"x": "first", "y": "third"}


def left_behind(path: Path) -> Path:
    """What a killed process leaves that was writing ``path``: its temporary file."""
    with replacing(path) as file:
        name = Path(file.name).name
    path.with_name(name).write_text("half")
    return path.with_name(name)


def test_the_next_write_deletes_what_a_killed_process_left_but_no_file_that_is_being_written(tmp_path: Path) -> None:
    left_behind(tmp_path / "x")
    left_behind(tmp_path / "x")
    other = left_behind(tmp_path / "xy")
    with replacing(tmp_path / "x") as slow:
        slow.write(b"slow")
        write(tmp_path / "x", "quick")
        assert len(files(tmp_path)) == 4  # x, xy, what was left of xy, and what is being written
    assert (tmp_path / "x").read_text() == "slow"
    assert {path.name for path in tmp_path.iterdir()} == {"x", "xy", other.name}


def test_a_file_that_is_cleared_before_it_is_locked_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, first = atomic.lock, iter((True,))

    def late(file: object) -> bool:
        if next(first, False):  # another process clears
            Path(file.name).unlink()  # type: ignore[attr-defined]
        return real(file)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic, "lock", late)
    write(tmp_path / "x", "new")
    assert files(tmp_path) == {"x": "new"}


def test_where_files_cannot_be_locked_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = left_behind(tmp_path / "x")

    def without_locks(*_: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(atomic, "lock", without_locks)
    write(tmp_path / "x", "new")
    assert files(tmp_path) == {"x": "new", other.name: "half"}


# Folders


def fill(folder: Path, error: BaseException | None = None, **contents: str) -> None:
    with replacing_folder(folder, last="last") as new:
        for name, text in contents.items():
            replace_text(new / name, text)
        if error is not None:
            raise error


@pytest.mark.parametrize("existing", ["none", "empty", "files"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=type)
def test_a_folder_is_complete_or_unchanged(tmp_path: Path, existing: str, error: BaseException) -> None:
    out = tmp_path / "deep" / "out"
    if existing != "none":
        out.mkdir(parents=True)
    if existing == "files":
        (out / "mine").write_text("mine")
        (out / "a").write_text("old")
    before = files(tmp_path)
    with pytest.raises(LlmcliError if error is FULL else KeyboardInterrupt):
        fill(out, error, last="1", a="2")
    assert files(tmp_path) == before
    assert out.exists() == (existing != "none")
    fill(out, last="1", a="2")
    assert files(out) == {"last": "1", "a": "2"} | ({"mine": "mine"} if existing == "files" else {})
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_in_a_folder_with_files_the_last_file_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("mine")
    moved = []
    real = Path.replace

    def watched(path: Path, target: Path) -> Path:
        moved.append(target.name)
        return real(path, target)

    with replacing_folder(tmp_path, last="last") as new:
        for name in ("last", "a", "z"):
            (new / name).write_text(name)
        monkeypatch.setattr(Path, "replace", watched)
    assert sorted(moved[:2]) == ["a", "z"]
    assert moved[2:] == ["last"]


def test_errors_name_the_file_where_it_would_be(tmp_path: Path) -> None:
    full = f"{tmp_path / 'out' / 'a'}: cannot be written: No space left on device"
    with (
        pytest.raises(LlmcliError, match=re.escape(full)),
        replacing_folder(tmp_path / "out", last="last") as new,
        replacing(new / "a"),
    ):
        raise FULL
    with (
        pytest.raises(LlmcliError, match=r"^the tokenizer of out fails"),
        replacing_folder(tmp_path / "out", "") as new,
    ):
        raise LlmcliError(f"the tokenizer of {new.name} fails")


def test_what_a_killed_process_left_of_a_folder_is_deleted(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out", last="last") as new:
        name = new.name
        clear_leftovers(tmp_path / "out")  # another process does not delete what is being written
        assert new.exists()
    left = tmp_path / name
    left.mkdir()
    (left / "a").write_text("half")
    left.with_suffix(".part").touch()
    clear_leftovers(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_that_another_process_filled_in_the_meantime_is_left(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"

    def meanwhile(new: Path) -> None:
        (new / "a").write_text("mine")
        if kind == "file":
            out.write_text("theirs")
        else:
            out.mkdir()
            (out / "last").write_text("theirs")

    with pytest.raises(LlmcliError, match="cannot be written"), replacing_folder(out, last="last") as new:
        meanwhile(new)
    assert files(tmp_path) == {"out" if kind == "file" else str(Path("out") / "last"): "theirs"}
