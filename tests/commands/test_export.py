"""``llmcli export``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from gguf import GGUFReader

from llmcli.storage import Checkpoint
from llmcli.text import find_template, load_tokenizer
from llmcli.train.vocabulary import BOS, EOS
from tests.commands.conftest import assert_one_line

Run = Callable[..., Result]
PROMPT = "The old fox met a hen"


def test_the_file_writes_the_same_text(run: Run, chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    result = run("export", chat_model, out, "--type", "f32")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert result.stderr == f"chatty: {round(out.stat().st_size / 1000)} kB as F32\n"
    for command in (("generate", PROMPT, "-n", 20, "--temperature", 0), ("score", "They sang song number 7!")):
        theirs, ours = run(*command, "-m", chat_model), run(*command, "-m", out)
        assert ours.exit_code == 0, ours.stderr
        assert ours.stdout.replace("a.gguf", "chatty") == theirs.stdout
    template, original = find_template(out), find_template(chat_model)
    assert template is not None
    assert original is not None
    assert template.source == original.source
    assert (template.render([]), original.render([])) == (f"{BOS}assistant: ",) * 2
    assert run("chat", "-m", out, "-n", 3, input="Tell me.\n").exit_code == 0


def test_every_type_is_named_in_the_file(run: Run, model: Path, tmp_path: Path) -> None:
    sizes = {}
    for number, kind in {"BF16": 32, "Q4_0": 2, "Q4_K": 15}.items():
        out = tmp_path / f"{number}.gguf"
        result = run("export", model, out, *(() if number == "BF16" else ("--type", number)))
        assert result.exit_code == 0, result.stderr
        fields = GGUFReader(out).fields
        assert fields["general.file_type"].contents() == kind
        assert fields["general.name"].contents() == "tiny"
        sizes[number] = out.stat().st_size
        fallback = "tiny: stored as Q5_1, because rows are not multiples of 256: 12 of 15 matrices"
        assert (fallback in " ".join(result.stderr.split())) == (number == "Q4_K")
    assert sizes["BF16"] > sizes["Q4_K"] > sizes["Q4_0"]


def test_end_tokens_and_the_tokenizer_come_back(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 1]}))
    assert run("export", folder, tmp_path / "a.gguf").exit_code == 0
    fields = GGUFReader(tmp_path / "a.gguf").fields
    assert {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("bos", "eos", "eot")} == {
        "bos": load_tokenizer(model).fast.token_to_id(BOS),
        "eos": load_tokenizer(model).fast.token_to_id(EOS),
        "eot": 9,
    }
    assert load_tokenizer(tmp_path / "a.gguf").encode(PROMPT) == load_tokenizer(folder).encode(PROMPT)


def test_a_gguf_file_is_written_in_another_type(run: Run, model: Path, tmp_path: Path) -> None:
    for source, out, kind in (
        (model, "a", "Q8_0"),
        (tmp_path / "a.gguf", "b", "F32"),
        (tmp_path / "a.gguf", "c", "Q8_0"),
    ):
        result = run("export", source, tmp_path / f"{out}.gguf", "--type", kind)
        assert result.exit_code == 0, result.stderr
    a, b, c = (tmp_path / f"{name}.gguf" for name in "abc")
    assert a.read_bytes() == c.read_bytes()
    ours, theirs = (Checkpoint.read(path).load(device=torch.device("cpu"), dtype=torch.float32) for path in (a, b))
    ids = torch.tensor([[0, 9, 80, 7]])
    torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("MODEL", "FILE"), ("old.gguf exists", "name another file")),
        (("MODEL", "FOLDER"), ("that is a folder",)),
        (("MODEL", "FOLDER/no/a.gguf"), ("there is no folder",)),
        (("MODEL", "NEW", "--type", "Q4_K_M"), ("'Q4_K_M' is not one of 'BF16', 'F16'", "did you mean Q4_K")),
        (("QUANTIZED", "NEW", "--adapter", "MODEL"), ("an adapter cannot be merged into quantized weights",)),
        (("FILE", "NEW", "--adapter", "MODEL"), ("an adapter cannot be merged into the weights of a GGUF file",)),
    ],
    ids=["exists", "folder", "no-folder", "type", "quantized", "gguf"],
)
def test_what_cannot_be_exported_is_one_line(
    run: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    paths = {
        "MODEL": model,
        "FILE": tmp_path / "old.gguf",
        "NEW": tmp_path / "new.gguf",
        "QUANTIZED": tmp_path / "int8",
    }
    assert run("export", model, paths["FILE"]).exit_code == 0
    if "QUANTIZED" in arguments:
        assert run("quantize", model, paths["QUANTIZED"]).exit_code == 0
    before = sorted(tmp_path.iterdir())
    given = [paths.get(argument, argument.replace("FOLDER", str(tmp_path))) for argument in arguments]
    assert_one_line(run("export", *given), *words, code=2)
    assert sorted(tmp_path.iterdir()) == before


def test_models_that_the_format_cannot_express_leave_no_file(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"hidden_act": "gelu"}))
    result = run("export", folder, tmp_path / "a.gguf")
    assert_one_line(result, "the GGUF architecture llama cannot express this model's activation", code=1)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    (folder / "config.json").write_text(json.dumps(raw))
    result = run("export", folder, tmp_path / "a.gguf")
    assert_one_line(result, "model: a GGUF file cannot describe the tokenizer", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_adapter_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert_one_line(run("export", tmp_path, tmp_path / "a.gguf"), "is a LoRA adapter, not a model", code=1)


def test_ctrl_c_leaves_no_file(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmcli.storage.gguf.export.encode", interrupted)
    result = run("export", model, tmp_path / "a.gguf")
    assert (result.exit_code, result.stdout, list(tmp_path.iterdir())) == (130, "", [])
    assert "Traceback" not in result.stderr
