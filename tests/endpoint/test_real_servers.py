"""The shipped model behind servers of other people: what they write and tell is what it writes and tells here.

Needs what the servers themselves need: pip install "llama-cpp-python[server]" gguf, or "transformers[serving]".
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
NEAR = 2e-4  # of log probabilities, by other kernels in float32


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextmanager
def started(command: list[object], page: str) -> Iterator[str]:
    """A server that is told its port last, once it answers; the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *map(str, command), "--port", str(port)], env=environment, **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the server did not start"
            try:
                urllib.request.urlopen(url + page, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("gguf") / "tales.gguf"
    write_gguf(find(default_model()), file)
    command = ["-m", "llama_cpp.server", "--model", file, "--model_alias", "tales", "--n_ctx", "1024"]
    # 0: float32, also for what is kept of the tokens before.
    with started([*command, "--logits_all", "true", "--type_k", "0", "--type_v", "0"], "/v1/models") as url:
        yield url


@pytest.fixture(scope="module")
def transformers() -> Iterator[str]:
    folder = find(default_model())
    command = ["-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--dtype", "float32", folder]
    with started(command, "/health") as url:
        yield url


def run(*words: object, **more: Any) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False, **more)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def records(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*words, "--json", input="").splitlines()]


THERE: dict[str, Callable[[str], tuple[object, ...]]] = {
    "llama_cpp": lambda url: ("--endpoint", url, "--repetition-penalty", 1),  # which is 1.1 if nobody says
    "transformers": lambda url: ("--endpoint", url, "-m", find(default_model())),
}
HERE = ("--dtype", "float32", "--temperature", 0)
BOTH = [
    pytest.param("llama_cpp", marks=needs("llama_cpp", "fastapi", "gguf")),
    pytest.param("transformers", marks=needs("fastapi", "uvicorn")),
]


@pytest.mark.parametrize("server", BOTH)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_text(server: str, prompt: str, request: pytest.FixtureRequest) -> None:
    options = THERE[server](request.getfixturevalue(server))
    there = run("generate", prompt, *options, "--temperature", 0, "-n", 60, input="")
    assert there == run("generate", prompt, *HERE, "-n", 60, input="")


@pytest.mark.parametrize("server", BOTH)
def test_the_same_chat_and_batch(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = THERE[server](request.getfixturevalue(server))
    said = "A tale of a fox\nAnd of a hen\n"
    there = run("chat", *options, "--temperature", 0, "-n", 40, input=said)
    assert there == run("chat", *HERE, "-n", 40, input=said)
    prompts = tmp_path / "in.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    run("batch", prompts, tmp_path / "there.jsonl", *options, "--temperature", 0, "-n", 30)
    run("batch", prompts, tmp_path / "here.jsonl", *HERE, "-n", 30)
    names = ("id", "text", "finish", "prompt_tokens", "tokens")
    lines = [(tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("there", "here")]
    found = [[{name: json.loads(line)[name] for name in names} for line in file] for file in lines]
    assert found[0] == found[1]


@needs("llama_cpp", "fastapi", "gguf")
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_the_same_probabilities(llama_cpp: str, prompt: str) -> None:
    options = THERE["llama_cpp"](llama_cpp)
    there = records("generate", prompt, *options, "--temperature", 0, "-n", 40)
    here = records("generate", prompt, *HERE, "-n", 40)
    assert len(there) == len(here) == 42
    for ours, theirs in zip(here[1:-1], there[1:-1], strict=True):
        assert theirs["logprob"] == pytest.approx(ours["logprob"], abs=NEAR)
        assert [rival["text"] for rival in theirs["top"]] == [rival["text"] for rival in ours["top"]]
        assert [rival["prob"] for rival in theirs["top"]] == pytest.approx(
            [rival["prob"] for rival in ours["top"]], abs=NEAR
        )
    (step,) = records("explain-step", prompt, *options, "--temperature", 0, "--step", 5)
    (ours,) = records("explain-step", prompt, *HERE, "--step", 5)
    assert step["chosen"]["surprisal"] == pytest.approx(ours["chosen"]["surprisal"], abs=NEAR)
    assert [row["text"] for row in step["candidates"]] == [row["text"] for row in ours["candidates"]]


@needs("llama_cpp", "fastapi", "gguf")
@pytest.mark.parametrize(
    "text", ["Once upon a time there was a little spaceship.", "The king 🙂 was a very good dragon."]
)
def test_the_same_score(llama_cpp: str, text: str) -> None:
    """But for the first token, before which this server tells nothing, though the model reads BOS there."""
    (there,) = records("score", text, "--endpoint", llama_cpp)
    (here,) = records("score", text, "--dtype", "float32")
    assert [token["surprisal"] for token in there["tokens"]] == pytest.approx(
        [token["surprisal"] for token in here["tokens"][1:]], abs=NEAR
    )
    for theirs, ours in zip(there["tokens"], here["tokens"][1:], strict=True):
        assert theirs["rank"] in (None, ours["rank"])
