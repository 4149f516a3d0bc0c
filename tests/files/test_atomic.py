"""Files are replaced whole or not at all, also through symbolic links."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmcli.files.atomic import replacing

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need privileges on Windows")


def write(path: Path, text: str, *, fail: bool = False) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
        if fail:
            raise OSError("no space left")


def files(folder: Path) -> dict[str, str]:
    """The files below ``folder`` by relative path: their text, or the target of a link."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p.relative_to(folder)): f"-> {p.readlink()}" if p.is_symlink() else p.read_text() for p in found}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "x", "new", fail=True)
    assert files(tmp_path) == {"x": "old"}
    write(tmp_path / "x", "new")
    assert files(tmp_path) == {"x": "new"}


@needs_links
def test_writing_through_links_replaces_their_target(tmp_path: Path) -> None:
    """Both links are kept, although the target is in another folder."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/other")
    (tmp_path / "far" / "other").symlink_to("target")
    kept = {"link": "-> far/other", "far/other": "-> target"}
    write(tmp_path / "link", "first")  # creates the target
    assert files(tmp_path) == {**kept, "far/target": "first"}
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "link", "second", fail=True)
    assert files(tmp_path) == {**kept, "far/target": "first"}
    write(tmp_path / "link", "second")
    assert files(tmp_path) == {**kept, "far/target": "second"}
