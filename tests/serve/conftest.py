"""A running server with the shipped model and a chat template, shared by all tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from safetensors.torch import load_file, save_file

from llmcli.generation import LoadedModel, load
from llmcli.hub import default_model, find

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}{{ raise_exception('a late system message') }}{% endif %}"
    "{{ message.role }}:\n{{ message.content }}\n"
    "{% endfor %}assistant:\n{% if enable_thinking %}<think>\n{% endif %}"
)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port: its address and its process."""
    words = [sys.executable, "-m", "llmcli", "serve", "--port", "0", *options]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "LLMCLI_API_KEY": ""})
    assert process.stderr is not None
    first = process.stderr.readline()
    found = re.search(r"http://\S+", first)
    assert found, first + process.stderr.read()
    try:
        yield found[0], process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a chat template, in float32: without the compiled engine, batches round differently."""
    made = tmp_path_factory.mktemp("served") / "tales"
    shutil.copytree(find(default_model()), made)
    (weights,) = made.glob("*.safetensors")
    save_file({name: tensor.float() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    (made / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def url(folder: Path) -> Iterator[str]:
    with server("-m", str(folder), "--parallel", "6", "--threads", "1") as (address, _):
        yield address


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LoadedModel:
    """The same model in this process."""
    return load(folder)


def post(address: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of the answer to a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urlopen(Request(address, data, headers or {}, method="POST")) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)
