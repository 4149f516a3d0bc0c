"""Sampling options, and the defaults that a model's generation_config.json gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from torch import Tensor

from llmcli.commands.options import sampling
from llmcli.commands.options.sampling import Sampling, sampling_bundle, sampling_options
from llmcli.errors import LlmcliError
from llmcli.generation import filters, generation_config
from llmcli.generation.filters import FILTERS, NumberFilter, NumberOption, default_order, register
from llmcli.generation.loaded import load
from tests.commands.conftest import records

Run = Callable[..., Result]
DEFAULTS = {name: filter.option.default for name, filter in FILTERS.items()}


@pytest.fixture
def with_settings(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model that has these settings in its generation_config.json."""

    def make(**settings: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "generation_config.json").write_text(json.dumps(settings))
        return folder

    return make


def sampler_of(result: Result) -> dict[str, float]:
    return {stage["name"]: stage["value"] for stage in records(result)[0]["sampler"]}


def test_the_models_settings_apply_and_are_reported(run: Run, with_settings: Callable[..., Path]) -> None:
    folder = with_settings(do_sample=True, temperature=0.5, top_k=20, top_p=0.8, min_p=0.01)
    result = run("generate", "The", "-m", folder, "-n", 2, "--json")
    assert sampler_of(result) == {"temperature": 0.5, "top-k": 20, "top-p": 0.8, "min-p": 0.01}
    assert "from generation_config.json: temperature 0.5, top-k 20, top-p 0.8, min-p 0.01\n" in result.stderr


@pytest.mark.parametrize("command", ["generate", "explain-step"])
def test_options_override_the_models_settings(run: Run, with_settings: Callable[..., Path], command: str) -> None:
    folder = with_settings(temperature=0.5, top_k=20)
    result = run(command, "The", "-m", folder, "--temperature", 2, "--json")
    assert sampler_of(result) == {"temperature": 2, "top-k": 20, "top-p": DEFAULTS["top-p"]}
    assert "from generation_config.json: top-k 20\n" in result.stderr
    assert "temperature" not in result.stderr


def test_without_settings_nothing_is_reported(run: Run, with_settings: Callable[..., Path]) -> None:
    result = run("generate", "The", "-m", with_settings(eos_token_id=1), "-n", 2, "--json")
    assert sampler_of(result) == {"temperature": DEFAULTS["temperature"], "top-p": DEFAULTS["top-p"]}
    assert "generation_config" not in result.stderr


def test_do_sample_false_is_greedy(run: Run, with_settings: Callable[..., Path]) -> None:
    result = run("generate", "The", "-m", with_settings(do_sample=False, top_k=20), "-n", 3, "--json")
    assert sampler_of(result)["temperature"] == 0
    assert [r["u"] for r in records(result) if r["type"] == "token"] == [None] * 3


def test_penalties_apply_to_greedy_decoding(run: Run, with_settings: Callable[..., Path]) -> None:
    folder = with_settings(do_sample=False, repetition_penalty=1.5, typical_p=0.9)
    assert sampler_of(run("generate", "The", "-m", folder, "-n", 1, "--json")) == {
        "repetition-penalty": 1.5,
        "temperature": 0,
        "top-p": DEFAULTS["top-p"],
    }


def test_unsupported_settings_are_reported(run: Run, with_settings: Callable[..., Path]) -> None:
    result = run(
        "generate",
        "The",
        "-m",
        with_settings(no_repeat_ngram_size=3, typical_p=1.0, suppress_tokens=[1, 2], bad_words_ids=[]),
        "-n",
        1,
    )
    assert "from generation_config.json: not applied: no_repeat_ngram_size 3, suppress_tokens\n" in result.stderr
    assert "typical" not in result.stderr


def test_every_stop_token_of_a_list_ends_the_text(run: Run, model: Path, with_settings: Callable[..., Path]) -> None:
    options = ("The old", "-n", 12, "--seed", 3, "--temperature", 2, "--json")
    tokens = [r["id"] for r in records(run("generate", *options, "-m", model)) if r["type"] == "token"]
    assert len(set(tokens[:5])) > 2
    for place in (2, 4):
        if tokens[place] in tokens[:place]:
            continue
        stopped = records(run("generate", *options, "-m", with_settings(eos_token_id=[319, tokens[place]])))
        assert [r["id"] for r in stopped if r["type"] == "token"] == tokens[: place + 1]
        assert stopped[-1]["finish"] == "stop_token"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": -1}, "temperature must be"),
        ({"top_p": 0}, "top-p must not be 0"),
        ({"top_k": [1]}, "top_k is [1]"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"repetition_penalty": {}}, "repetition_penalty is {}"),
    ],
)
def test_invalid_settings_are_one_line(
    run: Run, with_settings: Callable[..., Path], settings: dict[str, Any], word: str
) -> None:
    result = run("generate", "The", "-m", with_settings(**settings), "-n", 1)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert word in result.stderr
    assert "generation_config.json" in result.stderr


def test_help_shows_each_filters_default_and_the_default_order() -> None:
    @sampling_options
    def command() -> None: ...

    options = {p.name.replace("_", "-"): p for p in command.__click_params__}  # type: ignore[attr-defined]
    assert options["samplers"].default == ",".join(default_order())
    for name, value in DEFAULTS.items():
        assert f"else {value:g}]" in options[name].help


@pytest.fixture
def shout(monkeypatch: pytest.MonkeyPatch) -> type[NumberFilter]:
    """A filter that only this test knows."""
    monkeypatch.setattr(filters, "FILTERS", {**FILTERS})
    for user in (sampling, generation_config):
        monkeypatch.setattr(user, "FILTERS", filters.FILTERS)

    @register
    @dataclass(frozen=True)
    class Shout(NumberFilter):
        value: float
        name: str = "shout-factor"
        option = NumberOption("Multiply every logit by X. 1: off.", default=1.0, off=1.0, low=0.5, aliases=("shout",))

        def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
            return logits * self.value

    return Shout


def test_a_new_filter_needs_nothing_but_its_class(
    shout: type[NumberFilter], with_settings: Callable[..., Path], model: Path
) -> None:
    """Its option, its range, its place in the order, and its key in generation_config.json come from the class."""
    made: list[Sampling] = []

    @click.command()
    @sampling_bundle()
    def command(sampling: Sampling) -> None:
        made.append(sampling)

    def call(*args: str) -> Any:
        result = CliRunner().invoke(command, args)
        return result.exception or made.pop()

    help = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "--shout-factor, --shout NUMBER Multiply every logit by X. 1: off. [default: the model's, else 1]" in help
    chosen = call("--shout", "2", "--top-k", "3")
    assert chosen.given == {"top-k": 3.0, "shout-factor": 2.0}
    assert chosen.order[-1] == "shout-factor"
    assert isinstance(call("--shout", "0.1"), LlmcliError)

    opened = load(with_settings(shout_factor=3.0))
    assert opened.defaults.sampling == {"shout-factor": 3.0}
    assert shout(3.0) in call().sampler(opened).filters
    assert shout(2.0) in call("--shout", "2").sampler(opened).filters
    assert shout(1.0) not in call().sampler(load(model)).filters
