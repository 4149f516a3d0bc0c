"""--help, --version and mistyped words: in groups, at 80 columns, and without waiting for torch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import Result

from llmcli import __version__
from llmcli.cli import COMMANDS, GROUPS, cli
from llmcli.commands.shell import version
from llmcli.engine import native
from llmcli.errors import EXIT_INTERRUPTED, EXIT_READER_GONE

Run = Callable[..., Result]


def groups(text: str) -> dict[str, list[str]]:
    """Heading -> the long names of the options, or the commands, below it."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][\w ]*:", line):
            title = line[:-1]
            found[title] = []
        elif found and (match := re.match(r"  (?:-\w, )?(--[\w-]+(?: --[\w-]+)*|[a-z][\w-]*(?=  ))", line)):
            found[title] += match[1].split()
    return found


def test_commands_are_grouped_by_purpose(run: Run) -> None:
    shown = groups(run("--help").stdout)
    for title, names in GROUPS.items():
        assert shown[title] == list(names)
    assert [name for names in GROUPS.values() for name in names] == list(COMMANDS)


def test_exit_codes_are_listed(run: Run) -> None:
    codes = re.findall(r"^    (\d+) ", run("--help").stdout, re.MULTILINE)
    assert codes == ["0", "1", "2", str(EXIT_INTERRUPTED), str(EXIT_READER_GONE)]


def test_options_of_generate_are_grouped(run: Run) -> None:
    shown = groups(run("generate", "--help").stdout)
    assert shown["Prompt"] == ["--prompt-file", "--parse-special"]
    assert {"--model", "--device", "--threads"} <= set(shown["Model"])
    assert {"--temperature", "--samplers", "--seed"} <= set(shown["Sampling"])
    assert {"--echo", "--probs", "--json"} <= set(shown["Output"])
    assert shown["Other"] == ["--verbose", "--help"]
    assert list(shown)[-1] == "Other"
    assert "Options" not in shown
    assert "--step" in groups(run("explain-step", "--help").stdout)["Display"]
    assert list(groups(run("models", "--help").stdout)) == ["Options"]


def test_a_server_s_options_fit_a_screen(run: Run) -> None:
    text = run("serve", "--help").stdout
    assert len(text.splitlines()) <= 30
    described = groups(run("generate", "--help").stdout)["Model"]
    assert set(groups(text)["Model"]) - {"--models"} <= set(described), "the one refers to the other"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described_once_and_briefly(run: Run, name: str) -> None:
    text = run(name, "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    shown = [option for names in groups(text).values() for option in names if option.startswith("--")]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = [o for o in command.get_params(click.Context(command)) if isinstance(o, click.Option)]
    assert sorted(shown) == sorted(next(n for n in o.opts if n.startswith("--")) for o in options)
    assert "x>=" not in text
    assert "RANGE" not in text
    described = text[text.index("\n", text.index("Examples:")) :]
    entries = re.split(r"\n(?=  -)", described)
    for entry in entries[1:]:
        # at most a line for long names and two of text; the list of samplers has three lines more
        body = re.split(r"\n\n", entry)[0].split("\n")
        assert len(body) <= 3 + 3 * ("--samplers" in entry), entry


def test_help_shows_the_defaults_of_the_program_not_of_the_config_file(run: Run, tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "c.toml"
    path.write_text("max-tokens = 7\n")
    shown = run("generate", "--help", env={"LLMCLI_CONFIG": str(path)}).stdout
    assert shown == run("generate", "--help").stdout
    assert "[default: the model's, else 512]" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["gnerate"], "did you mean generate?"),
        (["explainstep"], "did you mean explain-step or explain?"),
        (["generate", "--temprature", "1"], "did you mean --temperature"),
        (["generate", "x", "--dtype", "bfloat"], "did you mean bfloat16"),
        (["quantize", "a", "b", "--to", "int44"], "did you mean int4"),
        (["completion", "bsh"], "did you mean bash"),
        (["generate", "Once", "upon"], "in quotes"),
        (["neighbours", "- man + king"], "put it last, after --: llmcli neighbours -- TEXT"),
        (["generate", "-5 degrees"], "after --"),
        (["score", "--", "- x", "--top", "2"], "put options before --"),
        (["lens", "x", "--dtype", "INT8"], "use --quantize int8"),
        (["generate", "gpt2", "Once upon"], "in quotes, and name a model with -m"),
        (["chat", "gpt2"], "name a model with -m"),
        (["inspect", "gpt2"], "name a model with -m"),
        (["xyzzy"], "see llmcli --help"),
        (["models", "x"], "see llmcli models --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_word_is_a_one_line_error_with_a_suggestion(run: Run, args: list[str], hint: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"llmcli: [^\n]*\n", result.stderr)
    assert hint in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "x", "-n", "abc"], "'abc' is not a whole number"),
        (["generate", "x", "-n", "1.5"], "'1.5' is not a whole number"),
        (["generate", "x", "--seed", ""], "'' is not a whole number"),
        (["completion"], "Choose from: bash, zsh, fish"),
    ],
)
def test_errors_are_in_plain_words(run: Run, args: list[str], message: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


@pytest.mark.parametrize(("variant", "named"), [("avx2", "native engine avx2"), (None, "no native engine")])
def test_version_shows_python_torch_device_and_engine(
    run: Run, monkeypatch: pytest.MonkeyPatch, variant: str | None, named: str
) -> None:
    import torch

    monkeypatch.setattr(native, "variant", lambda: variant)
    shown = run("--version").stdout
    parts = rf"Python 3\.\d+\.\d+, torch \S+, device {version.default_device('2.9.0')}, {named}"
    assert re.fullmatch(rf"llmcli {re.escape(__version__)} \({parts}\)\n", shown)
    assert f"torch {torch.__version__}," in shown


def test_version_of_a_build_for_the_cpu_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from llmcli.commands.shell.version import default_device\n"
        "print(default_device('2.9.0+cpu'))"
    )
    if sys.platform == "darwin":
        pytest.skip("every build for macOS may have a GPU")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "cpu\n"
