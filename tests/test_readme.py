"""The README tells the truth: its commands run as printed, its library example too, and CI runs its test command."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import COMMANDS, cli
from llmcli.hub import default_model, find
from tests.hub_server import Hub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
ONLINE = "HuggingFaceTB/SmolLM2-135M"
# Of commands that are run otherwise, further below.
ELSEWHERE = (
    "venv",
    "torchrun",
    "--endpoint",
    "train",
    "my-model",
    "tales-int4",
    "bench",
    ONLINE,
    "llmcli models",
    "chat",
    "batch",
    "--prompt-cache",
)
STORIES = "<|endoftext|>".join(
    f"Once upon a time there was a {a}. It had a {b}." for a in ("fox", "hen") * 15 for b in "xyz"
)


@pytest.mark.parametrize(
    "line",
    [line for line in SHELL if "llmcli" in line and not any(word in line for word in ELSEWHERE)],
)
def test_commands_run_as_printed(line: str) -> None:
    given = None
    line = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
    if " | " in line:
        echo, line = line.split(" | ")
        given = shlex.split(echo)[1] + "\n"
    if " < " in line:
        line, file = line.split(" < ")
        given = (ROOT / file).read_text(encoding="utf-8")
    result = CliRunner().invoke(cli, shlex.split(line)[1:], input=given, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert result.stdout


def test_commands_for_other_models_run_as_printed(hub: Hub) -> None:
    """As printed, with the shipped model in the place of the hub's."""
    hub.add({path.name: path.read_bytes() for path in find(default_model()).iterdir()}, ONLINE)
    lines = [line for line in SHELL if ONLINE in line or line == "llmcli models"]
    lines = [line for line in lines if "chat" not in line]
    assert [line.split()[1] for line in lines] == ["pull", "generate", "models", "rm"]
    for line in lines:
        result = CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        assert result.stdout or "rm" in line


def test_commands_for_speed_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed; measured once and shortly."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in SHELL if "tales-int4" in line or "bench" in line]
    assert [line.split()[1] for line in lines] == ["quantize", "generate", "compare", "bench"]
    for line in lines:
        few = ["-p", "4", "-n", "2", "-r", "1"] if "bench" in line else []
        result = CliRunner().invoke(cli, shlex.split(line)[1:] + few, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        assert result.stdout


def test_a_chat_runs_as_printed() -> None:
    """As printed, with a turn through a pipe; the shipped model stands for the hub's, without its system prompt."""
    own, named = [line for line in SHELL if line.startswith("llmcli chat")]
    for line in (own, named.replace(f"{ONLINE}-Instruct", default_model()).replace(' -s "Be brief."', "")):
        words = [*shlex.split(line)[1:], "-n", "8"]
        result = CliRunner().invoke(cli, words, input="The fox\n", catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        assert result.stdout


def test_batch_and_a_prompt_cache_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The fox", "max_tokens": 5}\n', encoding="utf-8")
    cache, batch, _ = [line for line in SHELL if line.startswith("llmcli batch") or "--prompt-cache" in line]
    for line in (batch, cache, cache):
        result = CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    assert "tokens reused" in result.stderr
    (form,) = re.findall(r'^(\{"id", "text", .*\})$', README, re.MULTILINE)
    (written,) = (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(json.loads(written)) == re.findall(r'"(\w+)"', form)


def test_training_commands_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed but for the size, which would take minutes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stories.txt").write_text(STORIES, encoding="utf-8")
    requests = [{"prompt": f"Tell {n}", "completion": f"Told {n}"} for n in range(40)]
    pairs = [{"prompt": f"Tell {n}", "chosen": f"Told {n}", "rejected": "No"} for n in range(40)]
    for name, lines in (("requests", requests), ("pairs", pairs)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    first, second, third, sft, dpo = [line for line in SHELL if "my-model" in line or "my-chat" in line]
    few = " --tokens 1280"
    small = " --hidden-size 16 --num-attention-heads 2 --num-hidden-layers 1 --context 64 --vocab-size 300"
    for line in (first.replace("2000000", "1280") + small, second, third + " -n 5", sft + few, dpo + few):
        result = CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr


def test_the_library_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [line for line in SHELL if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_example_of_help_is_a_command_line_that_parses() -> None:
    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help is not None
        examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith(f"llmcli {name}")]
        assert examples, name
        for example in examples:
            words = shlex.split(example.split(" < ")[0])[2:]
            command.make_context(name, words, resilient_parsing=False).close()


def test_every_picture_is_there_and_drawn_by_the_documented_command() -> None:
    shown = set(re.findall(r"\(docs/([\w-]+)\.svg\)", README))
    script = (ROOT / "docs" / "make_pictures.py").read_text(encoding="utf-8")
    assert shown == {path.stem for path in (ROOT / "docs").glob("*.svg")}
    assert all(f'"{name}"' in script or f"{name}.svg" in script for name in shown)


def test_the_forms_for_programs_are_those_that_are_written() -> None:
    """Of each view, the keys that the README tells and no others."""
    told = re.findall(
        r"^(tokenize --merges|attend --head|[a-z]+) +\{(.*?)(?=\n\S|\n```)", README, re.DOTALL | re.MULTILINE
    )
    assert len(told) == 12
    for view, form in told:
        text = [] if view == "inspect" else ["king" if view == "neighbours" else "Once upon a time there was"]
        options = {"attend --head": ["1.1"], "compare": ["-m", "llama-tales-12m"] * 2}.get(view, [])
        result = CliRunner().invoke(cli, [*view.split(), *options, *text, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        top = re.findall(r'"(\w+)"', _flat(form))
        assert list(json.loads(result.stdout)) == top, view


def _flat(form: str) -> str:
    """The outermost keys of a form: what stands in brackets within it left out."""
    kept, depth = "", 1
    for char in form:
        depth += (char in "[{") - (char in "]}")
        if depth == 0:
            break
        kept += char if depth == 1 else ""
    return kept
