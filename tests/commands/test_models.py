"""``llmcli models``, ``pull`` and ``rm``, and hub models in other commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.cells import cell_len

import llmcli
from llmcli import hub as hub_module
from llmcli.files.sizes import readable
from llmcli.hub import cache
from tests.commands.conftest import records
from tests.commands.test_shell import PROGRAM, bare, posix, terminal
from tests.hub_server import Hub

Run = Callable[..., Result]
SHIPPED = hub_module.default_model()


@pytest.fixture
def files(model: Path) -> dict[str, bytes]:
    """The files of the tiny trained model."""
    return {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}


@pytest.fixture
def tiny_hub(hub: Hub, files: dict[str, bytes]) -> Hub:
    """A hub that serves the tiny trained model as org/name."""
    hub.add(files)
    return hub


def size(folder: str | Path) -> int:
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def test_pull_prints_the_folder_and_the_size(run: Run, tiny_hub: Hub) -> None:
    result = run("pull", "org/name")
    folder = result.stdout.strip()
    assert (Path(folder) / "model.safetensors").is_file()
    shown = readable(size(folder))
    lines = result.stderr.splitlines()
    assert lines[0] == f"downloading org/name: {shown}"
    assert re.fullmatch(r"downloaded org/name in \d+ s", lines[1])
    assert lines[2] == f"org/name is complete: {shown} in"
    again = run("pull", "org/name")  # complete: no download to report
    assert (again.stdout, again.stderr.splitlines()) == (result.stdout, lines[2:])


def test_pull_reports_how_much_is_left(run: Run, tiny_hub: Hub) -> None:
    tiny_hub.cut["model.safetensors"] = 30_000
    first = run("pull", "org/name")
    assert first.exit_code == 1
    (stopped,) = re.findall(r"stopped at (.*) of (.*)\n", first.stderr)
    assert re.match(rf"downloading org/name: .* left of {stopped[1]}\n", run("pull", "org/name").stderr)


def test_pull_offline_only_checks(run: Run, tiny_hub: Hub) -> None:
    assert run("pull", "org/name", "--offline").exit_code == 1
    assert not tiny_hub.log
    folder = run("pull", "org/name").stdout
    tiny_hub.log.clear()
    assert run("pull", "org/name", "--offline").stdout == folder
    assert not tiny_hub.log


def test_pull_of_a_folder_is_an_error(run: Run, hub: Hub, tmp_path: Path) -> None:
    result = run("pull", tmp_path)
    assert result.exit_code == 2
    assert "is a local folder" in result.stderr
    assert run("pull", SHIPPED).exit_code == 0
    assert not hub.log


@pytest.mark.parametrize("extra", [[], ["--verbose"]])
def test_errors_are_one_line_without_the_token(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    hub.status = 403
    for token in ("hf_secret", "hf_\x0bsecret"):
        monkeypatch.setenv("HF_TOKEN", token)
        result = run("pull", "org/name", *extra)
        assert (result.exit_code, result.stdout) == (1, "")
        assert extra or re.fullmatch(r"llmcli: .* \(.*HF_TOKEN.*\)\n", result.stderr)
        assert "secret" not in result.stderr


def test_using_a_model_downloads_it(run: Run, tiny_hub: Hub, model: Path) -> None:
    options = ("--json", "-n", "4", "--seed", "1")
    first = run("generate", "The fox", "-m", "org/name", *options)
    assert first.exit_code == 0
    assert first.stderr.startswith("downloading org/name: ")
    assert records(first)[0]["model"] == "org/name"
    local = run("generate", "The fox", "-m", model, *options)
    assert [record["id"] for record in records(first)[1:-1]] == [record["id"] for record in records(local)[1:-1]]
    tiny_hub.log.clear()
    assert run("generate", "The fox", "-m", "org/name", *options).stderr == ""
    assert run("explain-step", "The", "-m", "org/name", "--offline", "--json").exit_code == 0
    assert llmcli.load("org/name").name == "org/name"
    assert not tiny_hub.log


def test_every_command_that_loads_a_model_has_offline(run: Run, tiny_hub: Hub) -> None:
    for command in ("generate", "explain-step", "tokenize"):
        result = run(command, "x", "-m", "org/name", "--offline")
        assert result.exit_code == 1
        assert "nothing is downloaded while offline" in result.stderr
    assert not tiny_hub.log


def test_two_revisions_of_a_model(run: Run, tiny_hub: Hub, files: dict[str, bytes]) -> None:
    tiny_hub.add(files | {"merges.txt": b""}, refs=("v1",))
    result = run("tokenize", "The fox", "-m", "org/name", "-m", "org/name@v1")
    assert result.stdout.splitlines()[0].split("\t") == ["#", "id", "org/name", "id", "org/name@v1"]


def test_models_lists_the_models_on_disk(run: Run, tiny_hub: Hub, files: dict[str, bytes]) -> None:
    tiny_hub.add(files, "org/broken")
    tiny_hub.cut["model.safetensors"] = 500
    assert run("pull", "org/broken").exit_code == 1
    run("pull", "org/name")
    tiny_hub.log.clear()
    found = {record["name"]: record for record in records(run("models", "--json"))}
    assert list(found) == [SHIPPED, "org/broken", "org/name"]
    one = found["org/name"]
    assert list(one) == ["name", "family", "format", "bytes", "last_use", "where", "state", "folder"]
    assert (one["family"], one["where"], one["state"]) == ("llama", "cache", "complete")
    assert one["bytes"] == size(one["folder"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one["last_use"])
    assert found[SHIPPED]["where"] == "shipped"
    assert found[SHIPPED]["last_use"] is None
    assert found["org/broken"]["state"] == "incomplete"
    table = [line.split("\t") for line in run("models").stdout.splitlines()]
    assert table[0] == ["name", "family", "format", "size", "last used", "where", "state"]
    assert table[2][-2:] == ["cache", "incomplete"]
    assert table[3] == ["org/name", "llama", "safetensors", str(one["bytes"]), one["last_use"], "cache", "complete"]
    assert not tiny_hub.log


def test_models_without_a_cache(run: Run, hub: Hub) -> None:
    assert [record["name"] for record in records(run("models", "--json"))] == [SHIPPED]


def test_rm_needs_a_terminal_or_yes(run: Run, tiny_hub: Hub) -> None:
    folder = Path(run("pull", "org/name").stdout.strip())
    freed = readable(size(folder))
    result = run("rm", "org/name")
    assert result.exit_code == 2
    assert "cannot ask for confirmation" in result.stderr
    assert folder.exists()
    result = run("rm", "org/name", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"removed org/name, {freed} freed\n")
    assert not folder.exists()
    assert run("rm", "org/name", "--yes").exit_code == 1


def test_rm_removes_only_downloaded_models(run: Run, hub: Hub, tmp_path: Path) -> None:
    for name in (SHIPPED, tmp_path, "org/name", "a/b/c"):
        result = run("rm", name, "--yes")
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
    assert tmp_path.exists()


def test_huggingface_hub_is_imported_only_for_downloads(tiny_hub: Hub, run: Run) -> None:
    run("pull", "org/name")
    for args in (["--help"], ["pull", "--help"], ["models"], ["tokenize", "x"], ["tokenize", "x", "-m", "org/name"]):
        code = f"""
import sys
from llmcli.cli import main
sys.argv[1:] = {args!r}
try:
    main()
except SystemExit as end:
    assert not end.code
assert not {{'huggingface_hub', 'torch'}} & sys.modules.keys()
"""
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def test_a_broken_huggingface_hub_is_one_line(hub: Hub) -> None:
    done = subprocess.run(
        [*PROGRAM, "pull", "org/name"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
    )
    assert done.returncode == 1
    assert re.fullmatch(r"llmcli: huggingface_hub cannot be imported: .*'soon' \(.*HF_.*\)\n", done.stderr)


def test_huggingface_hub_prints_nothing_itself(tiny_hub: Hub) -> None:
    tiny_hub.warning = "Unauthenticated; Please log in"
    done = subprocess.run([*PROGRAM, "pull", "org/name"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    expected = r"downloading .*\ndownloaded .*\norg/name is complete.*\n"
    assert re.fullmatch(expected, done.stderr)


@posix
def test_ctrl_c_in_a_download(tiny_hub: Hub, run: Run) -> None:
    tiny_hub.stall["model.safetensors"] = 700
    with subprocess.Popen(
        [*PROGRAM, "pull", "org/name"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        while not tiny_hub.stalled.wait(0.1):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert stdout == ""
    assert "interrupted at" in stderr
    assert "Traceback" not in stderr
    kept = sum(path.stat().st_size for path in cache.cache_folder().glob("*/blobs/*.incomplete"))
    tiny_hub.stall.clear()
    assert run("pull", "org/name").exit_code == 0
    assert tiny_hub.requests_for("model.safetensors")[1].headers["range"] == f"bytes={kept}-"


@posix
@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_bar_fits_the_terminal(tiny_hub: Hub, width: int) -> None:
    text = terminal("pull|org/name", width)
    assert "\x1b[" in text
    bars = [line for line in re.split("[\r\n]", bare(text)) if "━" in line]
    assert bars
    assert all(cell_len(line) <= width for line in bars)
    assert "org/name is complete" in bare(text)


@posix
def test_no_bar_on_a_dumb_terminal_and_no_color_in_one_without(tiny_hub: Hub, run: Run) -> None:
    text = terminal("pull|org/name", env={"TERM": "dumb"})
    assert text.startswith("downloading org/name: ")
    assert "\x1b" not in text
    assert "━" not in text
    assert run("rm", "org/name", "--yes").exit_code == 0
    text = terminal("pull|org/name", env={"NO_COLOR": "1"})
    assert "━" in text
    assert not re.search(r"\x1b\[[\d;]*m", text)


@posix
@pytest.mark.parametrize("width", [40, 80])
def test_the_table_keeps_names_whole(hub: Hub, files: dict[str, bytes], run: Run, width: int) -> None:
    name = "some-organisation/some-model-1B"
    hub.add(files, name)
    assert run("pull", name).exit_code == 0
    shown = bare(terminal("models", width))
    assert width == 40 or name in shown
    assert "…" not in shown
    assert all(cell_len(line) <= width for line in shown.splitlines())


@posix
@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("y", False)])
def test_rm_asks(tiny_hub: Hub, run: Run, answer: str, stays: bool) -> None:
    import pexpect

    folder = Path(run("pull", "org/name").stdout.strip())
    child = pexpect.spawn(PROGRAM[0], [*PROGRAM[1:], "rm", "org/name"], encoding="utf-8", timeout=None)
    child.expect_exact(f"Remove org/name ({readable(size(folder))})? [y/N]: ")
    child.sendline(answer)
    child.expect_exact("nothing was removed" if stays else "removed org/name")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert folder.exists() == stays
