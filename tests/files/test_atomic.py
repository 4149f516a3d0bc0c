"""Files that are written whole or not at all, also where a link leads to them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmcli.files.atomic import replacing

links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def write(path: Path, text: str, *, fail: bool = False) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
        if fail:
            raise OSError("no space left")


def files(folder: Path) -> dict[str, str]:
    """What lies below ``folder``: texts by name, and for links where they lead."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p.relative_to(folder)): f"-> {p.readlink()}" if p.is_symlink() else p.read_text() for p in found}


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "x", "new", fail=True)
    assert files(tmp_path) == {"x": "old"}
    write(tmp_path / "x", "new")
    assert files(tmp_path) == {"x": "new"}


@links
def test_a_link_stays_one(tmp_path: Path) -> None:
    """Of a link to a link, from another folder, the file at the end is written, beside which half of it may lie."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/other")
    (tmp_path / "far" / "other").symlink_to("target")
    kept = {"link": "-> far/other", "far/other": "-> target"}
    write(tmp_path / "link", "first")  # the target is yet to come
    assert files(tmp_path) == {**kept, "far/target": "first"}
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "link", "second", fail=True)
    assert files(tmp_path) == {**kept, "far/target": "first"}
    write(tmp_path / "link", "second")
    assert files(tmp_path) == {**kept, "far/target": "second"}
