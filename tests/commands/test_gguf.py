"""GGUF files in place of a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.commands.options import model as model_options
from llmcli.commands.shell.hints import hint_of
from llmcli.engine.tensor_parallel.transformer import load_split
from llmcli.errors import LlmcliError
from llmcli.files import gguf
from llmcli.files.sizes import readable
from llmcli.hub import default_model, find
from llmcli.storage.checkpoint import Checkpoint
from llmcli.text.gguf import vocabulary as gguf_vocabulary
from tests.commands.conftest import records
from tests.gguf_file import write_gguf
from tests.hub_server import Hub

Run = Callable[..., Result]
FLOAT32 = ("--dtype", "float32")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in one file: matrices in Q8_0, norms in float32."""
    path = tmp_path_factory.mktemp("gguf") / "tales.gguf"
    write_gguf(find(default_model()), path, lambda name, tensor: "Q8_0" if tensor.ndim == 2 else "F32")
    return path


def test_a_file_writes_what_its_folder_writes(run: Run, tmp_path: Path) -> None:
    write_gguf(find(default_model()), tmp_path / "exact.gguf")
    options = ("generate", "Once upon a time", "-n", 30, "--temperature", 0, *FLOAT32)
    theirs, ours = run(*options), run(*options, "-m", tmp_path / "exact.gguf")
    assert ours.exit_code == 0, ours.stderr
    assert ours.stdout == theirs.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("explain-step", "Once upon a time"),
        ("lens", "Once upon a time"),
        ("score", "Once upon a time, there was a king."),
        ("tokenize", "Once upon a time"),
        ("inspect",),
        ("verify", "Once upon a time, there was a king."),
    ],
    ids=lambda command: command[0],
)
def test_commands_open_a_file(run: Run, file: Path, command: tuple[str | int, ...]) -> None:
    result = run(*command, "-m", file)
    assert result.exit_code == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("command", ["generate", "verify", "score", "tokenize"])
def test_a_model_in_place_of_the_text_is_an_error(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(find(default_model()))
    for path in (file, find(default_model())):
        result = run(command, path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"llmcli: {path} is a model, not a text (name a model with -m)\n"
    assert run("tokenize", ".", "--ids").exit_code == 0  # a text, although it is also this folder


def test_a_damaged_file_is_reported_before_torch_is_imported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" * 10)
    monkeypatch.setattr(model_options, "import_torch", None)
    result = run("generate", "a", "-m", tmp_path / "a.gguf")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"llmcli: {tmp_path / 'a.gguf'}: not a complete GGUF file: ")


def test_a_file_is_not_split_among_processes(file: Path) -> None:
    alone: Any = None  # no other process is needed to find out
    with pytest.raises(LlmcliError, match="GGUF files cannot be split among processes") as error:
        load_split(Checkpoint.read(file), alone)
    assert "run it in one process" in hint_of(error.value)


def test_chat_uses_the_template_of_the_file(run: Run, file: Path) -> None:
    result = run("chat", "-m", file, "-n", 5, input="Tell me a story.\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout


def test_headers_and_vocabularies_are_read_once(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (calls.append(name), original(*args))[1]

    monkeypatch.setattr(gguf._Reader, "header", count("header", gguf._Reader.header))
    monkeypatch.setattr(gguf_vocabulary, "read_vocabulary", count("vocabulary", gguf_vocabulary.read_vocabulary))
    shutil.copy(file, file.with_name("again.gguf"))
    result = run("chat", "-m", file.with_name("again.gguf"), "-n", 2, input="Tell me a story.\n")
    assert result.exit_code == 0, result.stderr
    assert calls == ["header", "vocabulary"]


def test_inspect_predicts_the_memory_of_packed_weights(run: Run, file: Path) -> None:
    (report,) = records(run("inspect", "-m", file, "--json"))
    assert report["check"]["ok"]
    assert {stored["dtype"] for stored in report["stored"]} == {"Q8_0", "F32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantize", "FILE", "OUT"), "is a GGUF file"),
        (("generate", "a", "-m", "FILE", "--adapter", "FILE"), "cannot be merged into the weights of a GGUF file"),
        (("generate", "a", "-m", "FILE", "--quantize", "int8"), "the weights of tales.gguf are already quantized"),
    ],
)
def test_what_needs_the_original_model(
    run: Run, file: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    paths = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    result = run(*(paths.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_of_the_hub_is_pulled_used_listed_and_removed(run: Run, file: Path, hub: Hub) -> None:
    hub.add({"tales-Q8_0.gguf": file.read_bytes(), "tales-Q2_K.gguf": b"GGUF"})
    pulled = run("pull", "org/name")
    assert pulled.exit_code == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).name == "tales-Q8_0.gguf"
    assert "org/name: using Q8_0; for another file, add a colon and one of: Q2_K\n" in pulled.stderr
    assert f"org/name is complete: {readable(file.stat().st_size)} in\n" in pulled.stderr
    hub.log.clear()
    options = ("generate", "Once", "-n", 3, "--seed", 1, "--json")
    used, local = run(*options, "-m", "org/name:q8_0"), run(*options, "-m", file)
    assert [step["id"] for step in records(used)[1:-1]] == [step["id"] for step in records(local)[1:-1]]
    assert records(used)[0]["model"] == "org/name:Q8_0"
    (listed,) = (model for model in records(run("models", "--json")) if model["name"] == "org/name:Q8_0")
    assert (listed["format"], listed["family"], listed["bytes"]) == ("GGUF Q8_0", "llama", file.stat().st_size)
    assert run("rm", "org/name:Q8_0", "--yes").exit_code == 0
    assert run("generate", "x", "-m", "org/name:Q8_0", "--offline").exit_code == 1
    assert not hub.log


def test_packed_weights_have_the_name_of_their_format(run: Run, file: Path, tmp_path: Path) -> None:
    (row,) = records(run("bench", "-m", file, "-p", 4, "-n", 2, "-r", 1, "--json"))
    assert (row["model"], row["dtype"]) == ("tales.gguf", "Q8_0")
    (report,) = records(run("inspect", "-m", file, "--json"))
    assert (report["dtype"], report["quantization"]) == ("bfloat16", "Q8_0")
    assert [need["weights"] for need in report["needs"]] == ["Q8_0"]
    mixed = tmp_path / "mixed.gguf"
    layers = {True: "Q4_0", False: "Q8_0"}
    write_gguf(find(default_model()), mixed, lambda name, tensor: layers["blk" in name] if tensor.ndim == 2 else "F32")
    for command in ("inspect",), ("lens", "Once upon a time"):
        (report,) = records(run(*command, "-m", mixed, "--json"))
        assert report["quantization"] == "Q4_0+Q8_0"


def test_formats_that_are_restored_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.storage.gguf.weights.MULTIPLIED", ("Q8_0",))
    write_gguf(find(default_model()), tmp_path / "a.gguf", lambda name, tensor: "Q5_1" if tensor.ndim == 2 else "F32")
    result = run("generate", "Once", "-n", 1, "-m", tmp_path / "a.gguf")
    assert "a.gguf: weights in Q5_1 were restored to bfloat16, which takes more memory" in " ".join(
        result.stderr.split()
    )


def test_a_damaged_file_is_an_error_of_one_line(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:1000])
    result = run("generate", "a", "-m", tmp_path / "cut.gguf")
    assert result.exit_code == 1
    assert "cut.gguf: not a complete GGUF file: it ends within its header" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
