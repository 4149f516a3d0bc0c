"""Sampling options, and the defaults that a model's generation_config.json gives them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from torch import Tensor

from llmcli.commands.options.sampling import Sampling, sampling_bundle, sampling_options
from llmcli.errors import LlmcliError
from llmcli.generation.conversation import Conversation
from llmcli.generation.filters import FILTERS, OPTIONS, NumberFilter, NumberOption, default_order
from llmcli.generation.generate import generate
from llmcli.generation.loaded import load
from llmcli.text.chat_format import PlainFormat, TemplateFormat
from llmcli.text.chat_template import ChatTemplate, Message
from llmcli.train.vocabulary import BOS, BOS_ID, EOS, EOS_ID
from tests.commands.conftest import records

Run = Callable[..., Result]
DEFAULTS = {name: option.default for name, option in OPTIONS.items()}


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
    ("settings", "shown"),
    [
        ({"temperature": "hot"}, 'temperature "hot"'),
        ({"temperature": -1}, "temperature -1"),
        ({"temperature": True}, "temperature true"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_k": [1]}, "top_k"),
        ({"top_k": 1.5}, "top_k 1.5"),
        ({"min_p": 2}, "min_p 2"),
        ({"repetition_penalty": {}}, "repetition_penalty"),
        ({"eos_token_id": "x"}, 'eos_token_id "x"'),
        ({"eos_token_id": [1, -1]}, "eos_token_id -1"),
        ({"eos_token_id": -1}, "eos_token_id -1"),
        ({"eos_token_id": [1, True]}, "eos_token_id true"),
        ({"do_sample": "yes"}, 'do_sample "yes"'),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"min_new_tokens": -1}, "min_new_tokens -1"),
        ({"stop_strings": ["", "."]}, 'stop_strings ""'),
    ],
)
def test_invalid_settings_are_reported_and_skipped(
    run: Run, with_settings: Callable[..., Path], settings: dict[str, Any], shown: str
) -> None:
    folder = with_settings(**{"typical_p": 0.5, **settings})
    result = run("generate", "The", "-m", folder, "-n", 1, "--json")
    assert result.exit_code == 0
    applied = 'typical-p 0.5, stop "."' if "stop_strings" in settings else "typical-p 0.5"
    assert result.stderr == f"from generation_config.json: {applied}; invalid and ignored: {shown}\n"
    assert sampler_of(result) == {
        "temperature": DEFAULTS["temperature"],
        "top-p": DEFAULTS["top-p"],
        "typical-p": 0.5,
    }


def test_an_option_in_place_of_an_invalid_setting(run: Run, with_settings: Callable[..., Path]) -> None:
    result = run("generate", "The", "-m", with_settings(top_k=-1), "-n", 1, "--top-k", 3, "--json")
    assert sampler_of(result)["top-k"] == 3
    assert result.stderr == ""


def test_settings_that_do_not_matter_to_greedy_decoding(run: Run, with_settings: Callable[..., Path]) -> None:
    result = run("generate", "The", "-m", with_settings(do_sample=False, top_p=0.0, temperature=0), "-n", 1)
    assert result.exit_code == 0
    assert "from generation_config.json: temperature 0\n" in result.stderr


@pytest.mark.parametrize("content", [b'{"temperature": 0.5,}', b"[]", b"\xff", b"{", b'{"a":' * 100_000])
def test_a_file_that_cannot_be_read_is_reported(run: Run, with_settings: Callable[..., Path], content: bytes) -> None:
    folder = with_settings()
    (folder / "generation_config.json").write_bytes(content)
    result = run("generate", "The", "-m", folder, "-n", 1, "--json")
    assert result.exit_code == 0
    assert result.stderr.startswith("generation_config.json is not used: not ")
    assert result.stderr.count("\n") == 1
    assert sampler_of(result) == {"temperature": DEFAULTS["temperature"], "top-p": DEFAULTS["top-p"]}


def test_every_other_setting_is_listed(run: Run, with_settings: Callable[..., Path]) -> None:
    neutral = {
        **{"num_beams": 1, "length_penalty": 1.0, "max_length": 64, "early_stopping": False, "min_length": 0},
        **{"use_cache": True, "cache_implementation": "hybrid", "pad_token_id": 0, "transformers_version": "5"},
        **{"forced_eos_token_id": None, "begin_suppress_tokens": [], "_from_model_config": True, "guidance_scale": 1},
    }
    other = {"num_beams": 4, "max_length": 30, "early_stopping": True, "max_time": 2.5, "chat_format": "chatml"}
    assert "generation_config" not in run("generate", "The", "-m", with_settings(**neutral), "-n", 1).stderr
    result = run("generate", "The", "-m", with_settings(**{**neutral, **other, "\x1b[2J\n": 1}), "-n", 1)
    listed = 'num_beams 4, max_length 30, early_stopping true, max_time 2.5, chat_format "chatml"'
    (line,) = [line for line in result.stderr.splitlines() if "not applied" in line]
    assert all(part in line for part in listed.split(", "))
    assert "\x1b" not in line
    many = run("generate", "The", "-m", with_settings(**{f"key{n}": n + 1 for n in range(1000)}), "-n", 1)
    assert "key19 20, and 980 more\n" in many.stderr


GREEDY = ("The", "--temperature", 0, "--json")


def text_of(result: Result) -> str:
    return str(records(result)[-1]["text"])


def test_the_models_limits_apply_unless_an_option_replaces_them(
    run: Run, with_settings: Callable[..., Path], tmp_path: Path
) -> None:
    whole = text_of(run("generate", *GREEDY, "-m", with_settings(), "-n", 20))
    stop = whole[5:8]
    folder = with_settings(max_new_tokens=6, stop_strings=[stop])
    (tmp_path / "in.jsonl").write_text('{"prompt": "The"}\n{"prompt": "The", "max_tokens": 2, "stop": []}\n')

    stopped = run("generate", *GREEDY, "-m", folder)
    assert f'from generation_config.json: max-tokens 6, stop "{stop}"\n' in stopped.stderr
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert records(stopped)[-1]["finish"] == "stop_string"
    limited = run("generate", *GREEDY, "-m", folder, "--stop", "never")
    assert records(limited)[-1]["tokens"] == 6
    assert "from generation_config.json: max-tokens 6\n" in limited.stderr
    free = run("generate", *GREEDY, "-m", folder, "--stop", "never", "-n", 20)
    assert text_of(free) == whole
    assert "generation_config" not in free.stderr

    batch = run("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "-m", folder, "--temperature", 0)
    assert batch.exit_code == 0, batch.stderr
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["text"], first["finish"]) == (whole[: whole.index(stop)], "stop_string")
    assert (second["tokens"], second["finish"]) == (2, "length")

    opened = load(folder)
    mine = generate(opened, "The", temperature=0)
    assert "".join(text for _, text in mine) == whole[: whole.index(stop)]
    assert "".join(text for _, text in generate(opened, "The", temperature=0, stop=(), max_new_tokens=20)) == whole
    chat = Conversation(opened, PlainFormat(opened.tokenizer))
    reply = chat.answer((Message("user", "The"),), mine.sampler, 20)
    assert "".join(piece.answer for _, piece in reply) == whole.split(stop)[0]


def test_a_grammar_alone_decides_where_its_text_ends(run: Run, with_settings: Callable[..., Path]) -> None:
    pytest.importorskip("llguidance")
    folder = with_settings(stop_strings=[" old"])
    assert text_of(run("generate", *GREEDY, "-m", folder, "--choices", '[" old fox"]')) == " old fox"


def test_a_chat_has_the_models_limit(run: Run, chat_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 3, "eos_token_id": [999]}')
    result = run("chat", "-m", folder, "--temperature", 0, "--verbose", input="hi\n/set max-tokens\n")
    assert "from generation_config.json: max-tokens 3\n" in result.stderr
    assert "3 tokens, decode" in result.stderr
    assert "max-tokens: 3\n" in result.stderr.split("3 tokens, decode")[1]


@pytest.mark.parametrize("command", ["generate", "batch", "samples", "chat"])
def test_no_text_ends_before_the_least_number_of_tokens(
    run: Run, with_settings: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    """With every token as a stop token a text ends at once, and else after the least number."""
    folder = with_settings(min_new_tokens=4, eos_token_id=[*range(3, 320)])
    (tmp_path / "in.jsonl").write_text('{"prompt": "The"}\n{"prompt": "The old"}\n')
    if command == "batch":
        assert run("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "-m", folder).exit_code == 0
        counts = [json.loads(line)["tokens"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    elif command == "chat":
        stderr = run("chat", "--raw", "-m", folder, "--verbose", input="The\nThe\n").stderr
        counts = [int(count) for count in re.findall(r"(\d+) tokens?, decode", stderr)]
    else:
        options = ["--num-samples", 2] if command == "samples" else []
        result = run("generate", "The", "-m", folder, "--json", *options)
        assert "from generation_config.json: min-new-tokens 4\n" in result.stderr
        counts = [record["tokens"] for record in records(result) if "finish" in record and "tokens" in record]
    assert counts
    assert min(counts) >= 5  # 5, unless the draw is one of the few other tokens


def test_a_step_before_the_least_number_of_tokens(run: Run, with_settings: Callable[..., Path]) -> None:
    """explain-step shows that the stop tokens were cut, and its check holds."""
    folder = with_settings(min_new_tokens=4, eos_token_id=[*range(3, 320)])
    for index, cut in ((0, True), (4, False)):
        result = run("explain-step", "The", "-m", folder, "--seed", 1, "--step", index, "--json")
        assert result.exit_code == 0, result.stderr
        assert ("min-new-tokens" in {each["cut"] for each in records(result)[0]["candidates"]}) == cut


@pytest.mark.parametrize(
    ("config", "own", "tokenizer", "expected"),
    [
        ({"eos_token_id": 5}, {}, {}, {5}),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, {}, {5, 6, 7}),
        ({}, {"eos_token_id": [7]}, {}, {7}),
        ({}, {"eos_token_id": 7}, {"eos_token": EOS}, {7}),
        ({}, {"eos_token_id": [-1]}, {"eos_token": EOS}, {EOS_ID}),
        ({}, {}, {"eos_token": EOS}, {EOS_ID}),
        ({}, {}, {}, {2}),
        ({}, None, {}, {2}),
        ({"eos_token_id": None}, {}, {"eos_token": EOS}, set()),
        ({"eos_token_id": None}, {"eos_token_id": 7}, {}, {7}),
    ],
)
def test_a_familys_default_ends_texts_only_if_nothing_names_an_end(
    with_settings: Callable[..., Path], config: dict[str, Any], own: Any, tokenizer: dict[str, str], expected: set[int]
) -> None:
    folder = with_settings(**(own or {}))
    if own is None:
        (folder / "generation_config.json").unlink()
    raw = json.loads((folder / "config.json").read_text())
    del raw["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(raw | config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    opened = load(folder)
    assert opened.stop_ids == expected
    ends = Conversation(opened, PlainFormat(opened.tokenizer)).loaded.stop_ids
    assert ends == expected
    template = ChatTemplate(f"{{% for m in messages %}}{{{{ m.content }}}}{BOS}{{% endfor %}}", {}, Path("x"))
    chat = Conversation(opened, TemplateFormat(template, opened.tokenizer)).loaded.stop_ids
    assert chat == (expected - {2} | {BOS_ID})  # the template names an end


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

    @dataclass(frozen=True)
    class Shout(NumberFilter):
        value: float
        name: str = "shout-factor"
        option = NumberOption("Multiply every logit by X. 1: off.", default=1.0, off=1.0, low=0.5, aliases=("shout",))

        def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
            return logits * self.value

    monkeypatch.setitem(FILTERS, Shout.name, Shout)
    monkeypatch.setitem(OPTIONS, Shout.name, Shout.option)
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


def test_mirostat_and_its_relatives_on_the_command_line(run: Run, with_settings: Callable[..., Path]) -> None:
    folder = with_settings(top_k=20, min_p=0.1, temperature=0.5)
    options = ("--mirostat-tau", 3, "--top-p", 0.5, "--dry-multiplier", 0.8, "--dynatemp-range", 0.2)
    result = run("generate", "The", "-m", folder, "-n", 3, "--json", *options)
    assert records(result)[0]["sampler"] == [
        {
            "name": "dry-multiplier",
            "value": 0.8,
            "dry-base": 1.75,
            "dry-allowed-length": 2,
            "dry-penalty-last-n": -1,
        },
        {"name": "temperature", "value": 0.5, "dynatemp-range": 0.2, "dynatemp-exponent": 1.0},
        {"name": "mirostat-tau", "value": 3.0, "mirostat-eta": 0.1},
    ]
    assert "from generation_config.json: temperature 0.5\n" in result.stderr
    assert "not applied, because mirostat replaces them: top-p\n" in result.stderr
    unlisted = run("generate", "The", "-m", folder, "-n", 0, "--samplers", "temperature", "--xtc-threshold", 0.2)
    assert "not applied, because --samplers does not list them: xtc-threshold\n" in unlisted.stderr
    alone = run("generate", "The", "-m", folder, "-n", 0, "--xtc-threshold", 0.2)
    assert "not applied, because xtc-probability is off: xtc-threshold\n" in alone.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--xtc-threshold", 1.5), "xtc-threshold must be from 0 to 1, not 1.5"),
        (("--dry-base", 0.5), "dry-base must be from 1 to 1e+09, not 0.5"),
        (("--mirostat-eta", "inf"), "mirostat-eta must be finite and at least 0, not inf"),
        (("--dry-sequence-breaker", ""), "--dry-sequence-breaker takes a text, or none and nothing else"),
        (("--dry-sequence-breaker", "\udcff"), "is not valid Unicode"),
        (("--dry-sequence-breaker", "none", "--dry-sequence-breaker", ";"), "takes a text, or none and nothing else"),
    ],
)
def test_the_other_numbers_have_ranges_too(options: tuple[object, ...], message: str) -> None:
    result = CliRunner().invoke(_sampled, [str(option) for option in options])
    assert isinstance(result.exception, LlmcliError)
    assert message in result.exception.message


@pytest.mark.parametrize(("texts", "breakers"), [((), None), (("none",), ()), ((";", "\n"), (";", "\n"))])
def test_sequence_breakers_replace_the_default_ones(texts: tuple[str, ...], breakers: tuple[str, ...] | None) -> None:
    options = [word for text in texts for word in ("--dry-sequence-breaker", text)]
    assert CliRunner().invoke(_sampled, options, standalone_mode=False).return_value.breakers == breakers


@click.command()
@sampling_bundle()
def _sampled(sampling: Sampling) -> Sampling:
    return sampling
