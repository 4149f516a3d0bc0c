"""The config file and the environment: which values they set, which one takes precedence, and their errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from llmcli.cli import COMMANDS, cli
from llmcli.commands.shell import config_file
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.config_file import config_path
from tests.commands.conftest import records

Run = Callable[..., Result]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A function that writes its argument to the config file and returns the path."""

    def put(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("LLMCLI_CONFIG", str(path))
        return path

    return put


def seed_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return records(result)[0]["seed"]


def test_each_source_overrides_the_next(run: Run, model: Path, write: Write) -> None:
    """Each added source sets another seed, and the last one added is used."""
    args = ["generate", "The", "-m", model, "-n", 1, "--json"]
    assert seed_of(run(*args)) not in range(1, 6)
    write("seed = 5\n")
    assert seed_of(run(*args)) == 5
    write("seed = 5\n[generate]\nseed = 4\n")
    assert seed_of(run(*args)) == 4
    assert seed_of(run(*args, env={"LLMCLI_SEED": "3"})) == 3
    both = {"LLMCLI_SEED": "3", "LLMCLI_GENERATE_SEED": "2"}
    assert seed_of(run(*args, env=both)) == 2
    assert seed_of(run(*args, "--seed", 1, env=both)) == 1


def test_the_file_overrides_the_models_own_settings(run: Run, model: Path, write: Write, tmp_path: Path) -> None:
    import shutil

    warm = shutil.copytree(model, tmp_path / "warm")
    (warm / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7}')
    write("temperature = 0.5\n")
    sampler = records(run("generate", "The", "-m", warm, "-n", 1, "--json"))[0]["sampler"]
    values = {filter["name"]: filter["value"] for filter in sampler}
    assert (values["temperature"], values["top-k"]) == (0.5, 7)


def test_every_kind_of_value(
    run: Run, model: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags, numbers, text, lists and ~ in paths; keys with hyphens or underscores, and every name of an option."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "prompt.txt").write_text("The old", encoding="utf-8")
    write(
        f"model = {json.dumps(str(model))}\ntemp = 1\n[generate]\njson = true\nmax_tokens = 30\n"
        'prompt-file = "~/prompt.txt"\nstop = ["fox", "hen"]\nseed = 1\n'
    )
    start, *_, end = records(run("generate"))
    assert {"name": "temperature", "value": 1.0} in start["sampler"]
    assert not {"fox", "hen"} & set(end["text"].split())
    free = run("generate", "The old", "--prompt-file", tmp_path / "prompt.txt", "--no-such")
    assert free.exit_code == 2
    # A repeatable option accepts a single value, too: here `tokenize -m`.
    assert run("tokenize", "x", "--ids").exit_code == 0


def test_keys_of_other_commands_are_ignored(run: Run, model: Path, write: Write) -> None:
    write('temperatures = "0,1"\n[train]\ntokens = 5\n[tour]\nno-pause = 3\n')
    assert run("generate", "The", "-m", model, "-n", 1).exit_code == 0
    assert "no-pause" in run("tour").stderr


BROKEN = {
    "temperatur = 1": ["temperatur:", "did you mean temperature"],
    "temperature = 'hot'": ["temperature:", "must be a number", '"hot"'],
    "temperature = true": ["temperature:", "must be a number", "true"],
    "temperature = nan": ["temperature:", "nan"],
    "top-k = 1.5": ["top-k:", "a whole number"],
    "top-k = -1": ["top-k:", "-1"],
    "json = 'yes'": ["json:", "true or false"],
    "model = 3": ["model:", "text in quotes"],
    "model = ['a', 'b']": ["model:", "one value"],
    "quantize = 'int9'": ["quantize:", "did you mean int"],
    "temp = 1\ntemperature = 2": ["temperature:", "the same option as temp"],
    "prompt-file = 'a\\u0000b'".replace("'", '"'): ["prompt-file:", "NUL"],
    "seed = 2000-01-01": ["seed:", "a whole number"],
    "[genrate]": ["[genrate]", "did you mean generate"],
    "[generate]\ntop_q = 1": ["generate.top_q:", "did you mean top-p or top-k"],
    "[generate.model]\na = 1": ["generate.model:", "a table"],
    "help = true": ["help:", "no such option"],
    "model = ": ["not valid TOML", "line 1"],
    "x = " + "[" * 100_000: ["not valid TOML"],
    ".".join(["a"] * 5000) + " = 1": ["more than 20 levels"],
    "stop = " + "[" * 400 + "]" * 400: ["more than 20 levels"],
    "\n".join(f"a{n}.b = {n}" for n in range(5000)): ["more than 1000 values"],
}


@pytest.mark.parametrize("text", BROKEN, ids=[key[:30] for key in BROKEN])
def test_errors_are_one_line_and_name_file_and_key(run: Run, write: Write, text: str) -> None:
    """A command that uses the key fails; --help and config still run."""
    path = write(text + "\n")
    result = run("generate", "x", "-m", "no such model")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    for word in [str(path), *BROKEN[text]]:
        assert word in result.stderr
    assert run("generate", "--help").exit_code == 0
    assert run("--help").exit_code == 0
    shown = run("config")
    assert shown.exit_code == 2
    assert BROKEN[text][0] in shown.stderr
    assert json.loads(run("config", "--json").stdout)["faults"]
    assert run("config", "--path").stdout == f"{path}\n"


def test_files_that_cannot_be_read(run: Run, tmp_path: Path, write: Write) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        result = run("generate", "x", env={"LLMCLI_CONFIG": str(path)})
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert str(path) in result.stderr
    write("").write_bytes(b"seed = 1 # \xff")
    assert "UTF-8" in run("generate", "x").stderr


def test_the_home_of_an_unknown_user_is_not_expanded(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('prompt-file = "~no-such-user/x"\n')
    result = run("generate", "-m", "no such model")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no-such-user" in result.stderr
    monkeypatch.setenv("LLMCLI_CONFIG", "~no-such-user/config.toml")
    assert run("config", "--path").stdout.startswith("~no-such-user")


def test_a_setting_is_one_row_whatever_its_value(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('stop = "a\\tb\\u001b[31m"\n"x\\ny" = 1\n')
    monkeypatch.setenv("LLMCLI_GENERATE_STOP", "one\ntwo")
    result = run("config")
    assert "\x1b" not in result.stdout + result.stderr
    assert [line.count("\t") for line in result.stdout.splitlines()] == [4] * 4
    assert result.stderr.count("\n") == 2


def test_a_byte_order_mark_is_ignored(run: Run, model: Path, write: Write) -> None:
    write("").write_bytes(b"\xef\xbb\xbfseed = 9\n")
    assert seed_of(run("generate", "The", "-m", model, "-n", 1, "--json")) == 9


def test_an_invalid_value_is_reported_with_its_source(run: Run, model: Path, write: Write) -> None:
    path = write("[generate]\ntemperature = -2\n")
    assert f"{path}: generate.temperature" in run("generate", "x", "-m", model).stderr
    result = run("generate", "x", "-m", model, env={"LLMCLI_TEMPERATURE": "-3"})
    assert "LLMCLI_TEMPERATURE" in result.stderr
    assert str(path) not in result.stderr
    assert "LLMCLI_TOP_K" in run("generate", "x", env={"LLMCLI_TOP_K": "many"}).stderr
    assert str(path) not in run("generate", "x", "-m", model, "--temperature", "-4").stderr


def test_config_shows_the_source_of_each_value(run: Run, write: Write) -> None:
    path = write('seed = 5\n[generate]\nmax-tokens = 7\nstop = ["a", "b"]\n')
    env = {"LLMCLI_TOP_K": "3", "LLMCLI_GENERATE_SEED": "2", "LLMCLI_TEMPRATURE": "1"}
    report = json.loads(run("config", "generate", "--json", env=env).stdout)
    rows = {row["option"]: (row["value"], row["source"], row["where"]) for row in report["options"]}
    assert report["path"] == str(path)
    assert rows["seed"] == ("2", "environment", "LLMCLI_GENERATE_SEED")
    assert rows["top-k"] == ("3", "environment", "LLMCLI_TOP_K")
    assert rows["max-tokens"] == (7, "file", "generate.max-tokens")
    assert rows["stop"] == (["a", "b"], "file", "generate.stop")
    assert rows["repeat-last-n"] == (-1, "default", None)
    assert rows["model"] == ("the shipped model", "default", None)
    table = run("config", env=env)
    assert "LLMCLI_TEMPRATURE sets no option" in run("config", "generate", env=env).stderr
    assert [line.split("\t")[:3] for line in table.stdout.splitlines()[1:]] == [
        ["top-k", "all", "3"],
        ["seed", "generate", "2"],
        ["seed", "all", "5"],
        ["max-tokens", "generate", "7"],
        ["stop", "generate", "a, b"],
    ]
    assert "LLMCLI_TEMPRATURE sets no option (did you mean LLMCLI_TEMPERATURE" in table.stderr
    assert "did you mean generate?" in run("config", "genrate").stderr


def test_config_shows_the_source_that_click_uses(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every option of every command, `config` shows the source that click takes the value from."""
    write('temperature = 0.5\nthreads = 2\nmodel = "m"\ntop = 3\n[train]\nout = "o"\n[bench]\nrepeat = 2\n')
    monkeypatch.setenv("LLMCLI_THREADS", "1")
    monkeypatch.setenv("LLMCLI_BRANCH_WIDTH", "2")
    sources = {"environment": "ENVIRONMENT", "file": "DEFAULT_MAP", "default": "DEFAULT"}
    root = cli.make_context("llmcli", ["config"])
    for name in COMMANDS:
        command = cli.get_command(root, name)
        if not isinstance(command, Command):
            continue
        needed = [p for p in command.params if isinstance(p, click.Argument) and p.required]
        words = [p.type.choices[0] if isinstance(p.type, click.Choice) else "x" for p in needed]
        context = command.make_context(name, words, parent=root)
        rows = json.loads(run("config", name, "--json").stdout)["options"]
        by_key = {config_file.key_of(p): p.name for p in command.params if isinstance(p, click.Option)}
        assert [row["option"] for row in rows] == list(by_key)
        for row in rows:
            used = context.get_parameter_source(by_key[row["option"]])
            assert used is not None
            assert used.name == sources[row["source"]], (name, row)


def test_the_default_path_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLMCLI_CONFIG")
    if sys.platform == "win32":
        assert config_path().name == "config.toml"
        return
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert config_path() == tmp_path / ".config/llmcli/config.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert config_path() == tmp_path / "x/llmcli/config.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert config_path() == tmp_path / ".config/llmcli/config.toml"
    monkeypatch.setenv("LLMCLI_CONFIG", "~/own.toml")
    assert config_path() == tmp_path / "own.toml"


def test_no_variable_belongs_to_two_options() -> None:
    """Neither a variable for one command nor one for all commands has two meanings; LLMCLI_CONFIG has its own."""
    own: dict[str, str] = {}
    shared: set[str] = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        for option in command.params if isinstance(command, Command) else []:
            if isinstance(option, click.Option):
                first, *rest = config_file.variables_of(name, option)
                assert first not in own, (first, name)
                own[first] = name
                shared |= set(rest)
    assert not shared & set(own)
    assert "LLMCLI_CONFIG" not in shared | set(own)


def test_every_command_reads_the_config_file() -> None:
    without = {name for name in COMMANDS if not isinstance(cli.get_command(click.Context(cli), name), Command)}
    assert without == {"config", "completion"}


def test_the_example_in_help_is_a_config_file(run: Run, write: Write) -> None:
    text = run("config", "--help").stdout.split("another one:")[1].split("Examples:")[0]
    write("\n".join(line.strip() for line in text.splitlines()))
    assert run("config").exit_code == 0
    assert json.loads(run("config", "generate", "--json").stdout)["faults"] == []
    rows = run("config").stdout.splitlines()
    assert len(rows) == 1 + 4


def test_a_wrong_order_of_variables_fails_the_test(
    run: Run, model: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = cli.get_command(click.Context(cli), "generate")
    assert command is not None
    seed = next(option for option in command.params if option.name == "seed")
    assert isinstance(seed.envvar, list)
    monkeypatch.setattr(seed, "envvar", seed.envvar[::-1])
    with pytest.raises(AssertionError):
        test_each_source_overrides_the_next(run, model, write)


def test_the_tests_ignore_the_config_file_of_their_user() -> None:
    assert os.environ["LLMCLI_CONFIG"] == os.devnull


def test_verbose_shows_a_traceback_however_it_is_set(run: Run, write: Write) -> None:
    wrong = ("generate", "x", "-m", "no-such-model")
    assert "Traceback" not in run(*wrong).stderr
    for result in (run(*wrong, "--verbose"), run(*wrong, env={"LLMCLI_VERBOSE": "1"})):
        first, *_, last = result.stderr.splitlines()
        assert first.startswith("Traceback")
        assert last.startswith("llmcli: there is no model no-such-model")
    write("verbose = true\n")
    assert "Traceback" in run(*wrong).stderr
    assert "Traceback" in run("generate", "x", "--temperature", "hot").stderr  # an error in another option
    assert "Traceback" not in run("generate", "x", "--no-such-option").stderr  # an error before options are known
    assert "Traceback" not in run("no-such-command").stderr


def test_all_faults_are_listed(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names, wrong types, values that only a command's checks reject, and all of these in the environment."""
    write(
        'temprature = 1\ntop-p = 3\nsamplers = "top-q"\ndevice = "gpu"\nsave = "x.png"\n'
        '[generate]\nlogit-bias = "x"\nseed = "y"\n[chat]\nprompt-lookup = true\n[score]\nthreads = 2\n'
    )
    monkeypatch.setenv("LLMCLI_TOP_K", "many")
    monkeypatch.setenv("LLMCLI_BATCH_MIN_P", "7")
    result = run("config")
    assert result.exit_code == 2
    culprits = ["temprature", "top-p", "samplers", "device", "save", "generate.logit-bias", "generate.seed"]
    lines = result.stderr.splitlines()
    for culprit in [*(f"config.toml: {key}:" for key in (*culprits, "chat.prompt-lookup")), "LLMCLI_TOP_K:"]:
        assert sum(culprit in line for line in lines) == 1, culprit
    assert "LLMCLI_BATCH_MIN_P: min-p must be from 0 to 1, not 7" in lines
    assert not any("threads" in line for line in lines)
    own = run("config", "generate").stderr
    assert own.count("\n") == 7
    assert "chat" not in own


def test_options_that_exclude_each_other_are_a_fault(run: Run, write: Write) -> None:
    write('prompt-lookup = true\ndraft-model = "x"\n')
    assert "--prompt-lookup and --draft-model cannot be combined" in run("config", "generate").stderr


def test_options_that_need_others_are_no_fault(run: Run, write: Write) -> None:
    write("threads = 2\n[compare]\noffline = true\n")
    result = run("config")
    assert (result.exit_code, result.stderr.count("\n")) == (0, 1)


def test_a_command_says_how_many_more_faults_there_are(run: Run, model: Path, write: Write) -> None:
    write('temprature = 1\nseed = "x"\ndevice = "gpu"\n')
    result = run("generate", "The", "-m", model)
    assert result.exit_code == 2
    assert "temprature: no such option" in result.stderr
    assert result.stderr.endswith("; 2 more: llmcli config lists all)\n")
