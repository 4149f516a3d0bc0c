"""The shipped model served by other programs gives the same texts and log probabilities as llmcli.

Needs the servers: pip install "llama-cpp-python[server]" gguf, or "transformers[serving]".
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmcli.cli import cli
from llmcli.hub import default_model, find
from tests.gguf_file import write_gguf

PROMPTS = ("Once upon a time", "The king was very", "She opened the door and", "Ein Grüßen 🙂 日本")
TOLERANCE = 2e-4  # of log probabilities: other kernels round differently in float32


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextmanager
def started(command: list[object], page: str) -> Iterator[str]:
    """Start a server, with ``--port`` appended to ``command``, and yield its address once ``page`` responds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *map(str, command), "--port", str(port)], env=environment, **silent)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, "the server did not start"
            try:
                urllib.request.urlopen(url + page).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("gguf") / "tales.gguf"
    write_gguf(find(default_model()), file)
    command = ["-m", "llama_cpp.server", "--model", file, "--model_alias", "tales", "--n_ctx", "1024"]
    # Type 0 is float32, here for the KV cache.
    with started([*command, "--logits_all", "true", "--type_k", "0", "--type_v", "0"], "/v1/models") as url:
        yield url


@pytest.fixture(scope="module")
def transformers() -> Iterator[str]:
    folder = find(default_model())
    command = ["-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--dtype", "float32", folder]
    with started(command, "/health") as url:
        yield url


def run(*arguments: object, **options: Any) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, **options)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def records(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json", input="").splitlines()]


SERVER_OPTIONS: dict[str, Callable[[str], tuple[object, ...]]] = {
    "llama_cpp": lambda url: ("--endpoint", url, "--repetition-penalty", 1),  # its default is 1.1
    "transformers": lambda url: ("--endpoint", url, "-m", find(default_model())),
}
LOCAL_OPTIONS = ("--dtype", "float32", "--temperature", 0)
SERVERS = [
    pytest.param("llama_cpp", marks=needs("llama_cpp", "fastapi", "gguf")),
    pytest.param("transformers", marks=needs("fastapi", "uvicorn")),
]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_text(server: str, prompt: str, request: pytest.FixtureRequest) -> None:
    options = SERVER_OPTIONS[server](request.getfixturevalue(server))
    served = run("generate", prompt, *options, "--temperature", 0, "-n", 60, input="")
    assert served == run("generate", prompt, *LOCAL_OPTIONS, "-n", 60, input="")


@pytest.mark.parametrize("server", SERVERS)
def test_the_same_chat_and_batch(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = SERVER_OPTIONS[server](request.getfixturevalue(server))
    messages = "A tale of a fox\nAnd of a hen\n"
    served = run("chat", *options, "--temperature", 0, "-n", 40, input=messages)
    assert served == run("chat", *LOCAL_OPTIONS, "-n", 40, input=messages)
    prompts = tmp_path / "in.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    run("batch", prompts, tmp_path / "served.jsonl", *options, "--temperature", 0, "-n", 30)
    run("batch", prompts, tmp_path / "local.jsonl", *LOCAL_OPTIONS, "-n", 30)
    names = ("id", "text", "finish", "prompt_tokens", "tokens")
    lines = [(tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("served", "local")]
    texts = [[{name: json.loads(line)[name] for name in names} for line in file] for file in lines]
    assert texts[0] == texts[1]


@needs("llama_cpp", "fastapi", "gguf")
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_the_same_probabilities(llama_cpp: str, prompt: str) -> None:
    options = SERVER_OPTIONS["llama_cpp"](llama_cpp)
    served = records("generate", prompt, *options, "--temperature", 0, "-n", 40)
    local = records("generate", prompt, *LOCAL_OPTIONS, "-n", 40)
    assert len(served) == len(local) == 42
    for ours, theirs in zip(local[1:-1], served[1:-1], strict=True):
        assert theirs["logprob"] == pytest.approx(ours["logprob"], abs=TOLERANCE)
        assert [top["text"] for top in theirs["top"]] == [top["text"] for top in ours["top"]]
        assert [top["prob"] for top in theirs["top"]] == pytest.approx(
            [top["prob"] for top in ours["top"]], abs=TOLERANCE
        )
    (step,) = records("explain-step", prompt, *options, "--temperature", 0, "--step", 5)
    (ours,) = records("explain-step", prompt, *LOCAL_OPTIONS, "--step", 5)
    assert step["chosen"]["surprisal"] == pytest.approx(ours["chosen"]["surprisal"], abs=TOLERANCE)
    assert [row["text"] for row in step["candidates"]] == [row["text"] for row in ours["candidates"]]


@needs("llama_cpp", "fastapi", "gguf")
@pytest.mark.parametrize(
    "text", ["Once upon a time there was a little spaceship.", "The king 🙂 was a very good dragon."]
)
def test_the_same_score(llama_cpp: str, text: str) -> None:
    """The server gives no log probability for the first token, although the model reads BOS before it."""
    (served,) = records("score", text, "--endpoint", llama_cpp)
    (local,) = records("score", text, "--dtype", "float32")
    assert [token["surprisal"] for token in served["tokens"]] == pytest.approx(
        [token["surprisal"] for token in local["tokens"][1:]], abs=TOLERANCE
    )
    for theirs, ours in zip(served["tokens"], local["tokens"][1:], strict=True):
        assert theirs["rank"] in (None, ours["rank"])
