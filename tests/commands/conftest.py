"""A tiny trained model for the commands, and a runner that keeps stdout and stderr apart."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llmcli.cli import cli
from llmcli.train.corpus import Corpus, Example
from llmcli.train.loop import train
from llmcli.train.recipe import Recipe, Shape
from llmcli.train.run import begin_run
from llmcli.train.vocabulary import BOS, EOS

TEXTS = [
    f"The {a} fox met a {b} by the river. They sang song number {n}! \U0001f642"
    for n in range(12)
    for a in ("old", "shy")
    for b in ("hen", "crow")
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a context of 64 tokens that has learned a little, trained in fp32."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    recipe = Recipe(
        shape=Shape(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        context=64,
        batch_size=2,
        tokens=64 * 2 * 40,
        learning_rate=1e-2,
        precision="float32",
    )
    examples = [Example(text) for text in TEXTS]
    for _ in train(begin_run(out, recipe, Corpus(examples, examples[:2]), device=torch.device("cpu")), out):
        pass
    return out


@pytest.fixture(scope="session")
def chat_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template of its tokenizer's special tokens, and a context of 4096 tokens."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": EOS}))
    return folder


@pytest.fixture
def run() -> Callable[..., Result]:
    """``run("generate", "text", input=...)`` -> click's result; unexpected exceptions are raised."""

    def call(*args: object, **options: Any) -> Result:
        return CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=False, prog_name="llmcli", **options)

    return call


def records(result: Result) -> list[dict[str, Any]]:
    """The NDJSON lines of stdout."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def colored(line: str) -> list[tuple[str, str]]:
    """The parts of a terminal's line that differ in style: the escape sequence of each part, and its text."""
    parts = re.split(r"(\x1b\[[0-9;]*m)", line)
    styles = ["", *("" if code == "\x1b[0m" else code for code in parts[1::2])]
    return [(style, text) for style, text in zip(styles, parts[::2], strict=True) if text]


def assert_one_line(result: Result, *words: str, code: int) -> None:
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
