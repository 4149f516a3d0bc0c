"""Shell completion: what is offered where, that nothing heavy is imported for it, and a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.cli import COMMANDS, cli
from tests.commands.test_shell import posix
from tests.conftest import alone

Run = Callable[..., Result]


def offered(run: Run, line: str, **env: str) -> list[str]:
    """The completions that bash gets for the last word of ``line``, as "type,value"."""
    words = line.split(" ")
    variables = {"_LLMCLI_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), **env}
    result = run(env=variables)
    assert result.stderr == ""
    return result.stdout.split()


def test_commands_options_and_choices_are_completed(run: Run) -> None:
    assert offered(run, "llmcli gen") == ["plain,generate"]
    assert offered(run, "llmcli ") == [f"plain,{name}" for name in COMMANDS]
    assert offered(run, "llmcli generate --tem") == ["plain,--temperature", "plain,--temp"]
    assert offered(run, "llmcli generate --quantize ") == ["plain,int8", "plain,int4"]
    assert offered(run, "llmcli completion ") == ["plain,bash", "plain,zsh", "plain,fish"]
    assert offered(run, "llmcli config expl") == ["plain,explain", "plain,explain-step"]
    assert offered(run, "llmcli --ver") == ["plain,--version"]


@pytest.mark.parametrize(
    "line", ["generate -m", "tokenize --model", "compare -m", "bench -m", "generate --draft-model", "rm", "quantize"]
)
def test_models_on_disk_and_gguf_files_are_completed_or_else_folders(
    run: Run, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub/models--some--model/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    ref = snapshot.parents[1] / "refs/main"
    ref.parent.mkdir()
    ref.write_text("a" * 40)
    (tmp_path / "sub").mkdir()
    (tmp_path / "some.gguf").touch()
    monkeypatch.chdir(tmp_path / "sub")
    alone(tmp_path, monkeypatch)
    env = {"HF_HOME": str(tmp_path)}
    assert offered(run, f"llmcli {line} ", **env) == ["dir,", "plain,llama-tales-12m", "plain,some/model"]
    assert offered(run, f"llmcli {line} so", **env) == ["dir,so", "plain,some/model"]
    assert offered(run, f"llmcli {line} ../so", **env) == ["dir,../so", "plain,../some.gguf"]


def test_paths_are_completed_for_options_that_take_one(run: Run) -> None:
    for line in ("generate --prompt-file", "lens --save", "bench --config", "train", "quantize a b --text"):
        assert offered(run, f"llmcli {line} ") == ["file,"], line
    assert offered(run, "llmcli train --out ") == ["dir,"]


def test_a_broken_config_or_cache_prints_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(tmp_path, monkeypatch)
    (tmp_path / "hub").write_text("no folder")
    env = {"LLMCLI_CONFIG": str(tmp_path / "none"), "HF_HOME": str(tmp_path), "LLMCLI_TOP_K": "x"}
    assert offered(run, "llmcli generate -m lla", **env) == ["dir,lla", "plain,llama-tales-12m"]


def test_completing_imports_nothing_heavy() -> None:
    code = """
import sys
from llmcli.cli import main
try:
    main()
except SystemExit:
    pass
assert not {'torch', 'rich', 'tokenizers', 'numpy', 'huggingface_hub'} & set(sys.modules)
"""
    for line, word in (("llmcli generate -m ", 3), ("llmcli tr", 1), ("llmcli train --o", 2)):
        env = {**os.environ, "_LLMCLI_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_accepts_the_script(run: Run, shell: str) -> None:
    script = run("completion", shell).stdout
    assert f"_LLMCLI_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
    assert f"llmcli completion {shell}" in run("completion", "--help").stdout


def with_program(folder: Path) -> dict[str, str]:
    """The environment of a shell in which ``llmcli`` is this repository's, by a script in ``folder``."""
    program = folder / "llmcli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m llmcli "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PS1": "> ", "TERM": "dumb"}
    return {**env, "PYTHONPATH": str(Path(__file__).parents[2])}


@posix
@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_tab_in_a_real_zsh(tmp_path: Path) -> None:
    """Without a .zshrc, which would load the completion system."""
    import pexpect

    env = with_program(tmp_path) | {"HF_HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "HOME": str(tmp_path)}
    (tmp_path / "folder").mkdir()
    (tmp_path / "my.gguf").touch()
    child = pexpect.spawn(
        "zsh", ["-f", "-i"], env=env, encoding="utf-8", timeout=None, cwd=str(tmp_path), dimensions=(24, 100)
    )
    child.sendline('eval "$(llmcli completion zsh)"; echo rea""dy')
    child.expect("ready")
    child.send("llmcli gen\t")
    child.expect_exact("erate ")
    child.send("-m \t")
    for offered in ("folder/", "llama-tales-12m", "my.gguf"):
        child.expect_exact(offered)
    child.sendintr()
    child.sendline("exit")
    child.expect(pexpect.EOF)


@posix
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_tab_in_a_real_bash(tmp_path: Path) -> None:
    import pexpect

    env = with_program(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "mx").mkdir()
    for file in ("cache/org_M.gguf", "cache/my M.gguf", "my own.gguf"):
        (tmp_path / file).touch()
    env |= {"LLAMA_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path), "OLLAMA_MODELS": str(tmp_path)}
    bash = ["--norc", "--noprofile", "-i"]
    child = pexpect.spawn(
        "bash", bash, env=env, encoding="utf-8", timeout=None, cwd=str(tmp_path), dimensions=(24, 400)
    )
    child.sendline('bind "set enable-bracketed-paste off"; eval "$(llmcli completion bash)"; echo rea""dy')
    child.expect("ready")
    child.send("llmcli gen\t")
    child.expect_exact("llmcli generate ")
    child.send("-m llama-\t")
    child.expect_exact("-m llama-tales-12m ")
    child.send("--ech\t")
    child.expect_exact("--echo ")
    for typed, completed in {  # names with colons, files and folders
        "-m llama.cpp:org\t": "-m llama.cpp:org_M.gguf ",
        "-m llama.cpp:my\t": "-m llama.cpp:my\\ M.gguf ",
        "--draft-model=llama.cpp:o\t": "--draft-model=llama.cpp:org_M.gguf ",
        "'a: b' -m m\t\t": "my own.gguf  mx/",
        "y\t": "my\\ own.gguf ",
        "-m 'my\t": "-m 'my own.gguf' ",
    }.items():
        child.send(typed)
        child.expect_exact(completed)
    child.sendintr()
    child.sendline("exit")
    child.expect(pexpect.EOF)


def test_the_group_offers_every_command_without_importing_it() -> None:
    code = """
import sys
from llmcli.cli import cli
import click
cli.shell_complete(click.Context(cli), 'g')
assert 'llmcli.commands.generate' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "generate" in cli.list_commands(None)  # type: ignore[arg-type]
