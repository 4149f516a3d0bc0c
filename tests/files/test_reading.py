"""Reading whole files: limited in size, and never waiting for a pipe where a file belongs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.files.reading import read_file
from llmcli.files.safetensors import TensorFile
from llmcli.hub.cache import LocalModel
from llmcli.text.chat_template import find_template

posix = pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices as files")


def test_a_file_may_have_the_largest_size_but_no_more(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_file(file, 5) == b"12345"
    with pytest.raises(LlmcliError, match="larger than 4 B"):
        read_file(file, 4)
    with pytest.raises(OSError):
        read_file(tmp_path, 5)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing", 5)


@posix
def test_a_pipe_is_read_only_where_it_may_be(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(LlmcliError, match="not a regular file"):
        read_file(pipe, 5)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"12345",))
    writer.start()
    assert read_file(pipe, 5, pipes=True) == b"12345"
    writer.join()
    with pytest.raises(LlmcliError, match=r"larger than 1\.0 MB"):
        read_file(Path("/dev/zero"), 10**6, pipes=True)


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_json,
    "model.safetensors": TensorFile,
}


@posix
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_model_folder_is_an_error(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(LlmcliError, match="not a regular file") as caught:
        READERS[name](path)
    assert str(path) in caught.value.message
    assert LocalModel("x", tmp_path, "cache").family is None
    assert find_template(tmp_path) is None
