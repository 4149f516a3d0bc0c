"""``llmcli quantize``, and ``--quantize`` of other commands."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from llmcli.commands import quantize as command
from llmcli.text.tokenizer import load_tokenizer
from llmcli.train.batches import Encoded
from llmcli.train.objective import validate
from tests.commands.conftest import TEXTS, assert_one_line, records
from tests.tiny import load

Run = Callable[..., Result]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_out_gives_the_same_text_as_the_option_quantize(run: Run, model: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "new" / "out"
    result = run("quantize", model, out, "--to", kind)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(rf"tiny: \S+ \S+ before, \S+ \S+ as {kind}", line)
    after, before = ((folder / "model.safetensors").stat().st_size for folder in (out, model))
    assert after < (0.7 if kind == "int8" else 0.6) * before
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    options = ("generate", "The old", "-n", 20, "--seed", 1, "--json")
    opened, rounded = run(*options, "-m", out), run(*options, "-m", model, "--quantize", kind)
    assert opened.exit_code == rounded.exit_code == 0
    ids, same = ([r["id"] for r in records(r) if r["type"] == "token"] for r in (opened, rounded))
    assert ids == same
    assert len(ids) > 10


def test_8_bits_are_the_default(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("quantize", model, tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["bits"] == 8


def test_text_measures_the_loss_in_quality(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(TEXTS[:3]), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXTS[4]}), encoding="utf-8")
    out = tmp_path / "out"
    result = run("quantize", model, out, "--to", "int4", "--text", tmp_path / "a.txt", "--text", tmp_path / "b.jsonl")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    _, line = result.stderr.splitlines()
    match = re.fullmatch(r"([\d.]+) bits per byte before, ([\d.]+) after: perplexity ([+-][\d.]+)%", line)
    assert match is not None
    texts = [*TEXTS[:3], TEXTS[4]]
    ids = [Encoded(load_tokenizer(model).encode(text)) for text in texts]
    size = sum(len(text.encode()) for text in texts)
    old, new = (validate(load(f, device=CPU), ids, size, precision=torch.float32) for f in (model, out))
    assert float(match[1]) == pytest.approx(old.bits_per_byte, abs=1e-4)
    assert float(match[2]) == pytest.approx(new.bits_per_byte, abs=1e-4)
    assert float(match[3]) == pytest.approx(100 * math.expm1(new.nats_per_token - old.nats_per_token), abs=0.01)
    assert old != new


@pytest.mark.parametrize(
    ("text", "words", "code"), [(None, "no such file", 1), (" \n", "no text", 1), ("T", "no token to predict", 2)]
)
def test_text_that_cannot_be_scored_stops_before_anything_is_written(
    run: Run, model: Path, tmp_path: Path, text: str | None, words: str, code: int
) -> None:
    source = Path(shutil.copytree(model, tmp_path / "m"))
    settings = json.loads((source / "tokenizer.json").read_text())
    settings["post_processor"] = None  # no BOS, so that a letter is a single token
    (source / "tokenizer.json").write_text(json.dumps(settings))
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
    result = run("quantize", source, tmp_path / "out", "--text", tmp_path / "text.txt")
    assert_one_line(result, words, code=code)
    assert not list((tmp_path / "out").glob("*"))


def test_out_must_be_new_or_empty(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "full", model):
        before = {path: path.read_bytes() for path in out.glob("*")}
        assert_one_line(run("quantize", model, out), str(out), "name another folder", code=2)
        assert {path: path.read_bytes() for path in out.glob("*")} == before
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    assert run("quantize", model, tmp_path / "empty").exit_code == 0


def test_out_that_cannot_be_created_is_one_line(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file" / "out", tmp_path / "link"):
        assert_one_line(run("quantize", model, out), str(out), "cannot create", code=2)
    monkeypatch.setattr(command.os, "access", lambda *_: False)  # root can write everywhere
    assert_one_line(run("quantize", model, tmp_path / "out"), "cannot write to", code=2)


def test_out_can_be_inside_the_model(run: Run, model: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model, tmp_path / "m"))
    names = {path.name for path in source.iterdir()}
    assert run("quantize", source, source / "out.json").exit_code == 0
    assert {path.name for path in source.iterdir()} == names | {"out.json"}
    assert run("generate", "The", "-n", 1, "-m", source / "out.json").exit_code == 0


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_model_is_not_quantized_again(run: Run, model: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    assert run("quantize", model, out, "--to", kind).exit_code == 0
    assert_one_line(run("quantize", out, tmp_path / "again"), "already", code=2)
    assert not list((tmp_path / "again").glob("*"))
    again = run("generate", "x", "-m", out, "--quantize", "int8")
    assert_one_line(again, "of out are already quantized", "--quantize", code=2)
    pair = run("compare", "x", "-m", model, "-m", out, "--quantize", kind)
    assert_one_line(pair, "the weights of out are", "or name the original model", code=2)
    assert_one_line(run("generate", "x", "-m", out, "--adapter", model), "adapter", code=2)


def test_unreadable_models_leave_no_files(run: Run, model: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(model, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert_one_line(run("quantize", pickled, tmp_path / "out"), "pickled", code=1)
    assert_one_line(run("quantize", tmp_path / "none", tmp_path / "out", "--offline"), "none", code=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", ["save_quantized", "copy_rest"])
def test_ctrl_c_leaves_no_partial_file(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from llmcli.storage import quantized_checkpoint as quantized_file

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    place = "write_tensors" if moment == "save_quantized" else "shutil.copyfileobj"
    monkeypatch.setattr(f"{quantized_file.__name__}.{place}", interrupted)
    result = run("quantize", model, tmp_path / "out")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_explain_step_with_quantized_weights(run: Run, model: Path, kind: str) -> None:
    plain, rounded = (
        run("explain-step", "The old", "-m", model, "--json", *options) for options in ((), ("--quantize", kind))
    )
    assert plain.exit_code == rounded.exit_code == 0, rounded.stderr
    (before,), (after,) = records(plain), records(rounded)
    assert after.keys() == {*before, "quantization"}
    assert after["quantization"] == kind
    assert before["prompt_ids"] == after["prompt_ids"]
    assert plain.stdout != rounded.stdout


def test_bench_has_a_row_per_format(run: Run, model: Path) -> None:
    small = ("-p", 6, "-n", 3, "-r", 1, "--threads", "1", "--json")
    rows = records(run("bench", "-m", model, *small, "--quantize", "none,int8, int4"))
    assert [row["dtype"] for row in rows] == ["bfloat16", "int8", "int4"]
    sizes = [row["weight_bytes"] for row in rows]
    assert sizes[0] > 1.7 * sizes[1] > 1.7 * sizes[2] > 0
    random = ("--config", model / "config.json", "--random")
    (row,) = records(run("bench", *random, *small, "--quantize", "int4"))
    assert row["dtype"] == "int4"
    assert row["weight_bytes"] < 1.2 * sizes[2]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("generate", "x", "--quantize", "int3"), "int3"),
        (("explain-step", "x", "--quantize", ""), "--quantize"),
        (("generate", "x", "--quantize", "none"), "none"),
        (("bench", "--quantize", "none,int3"), "int3"),
        (("bench", "--quantize", ""), "--quantize"),
        (("quantize", "llama-tales-12m", "OUT", "--to", "int2"), "int2"),
        (("quantize", "llama-tales-12m"), "OUT"),
        (("quantize",), "MODEL"),
    ],
)
def test_invalid_values_are_one_line(run: Run, args: tuple[str, ...], word: str) -> None:
    assert_one_line(run(*args), word, code=2)
    assert not Path("OUT").exists()


def test_a_gpu_is_an_error(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.generation import loaded

    monkeypatch.setattr(loaded, "pick_device", lambda name: CPU if name == "cpu" else torch.device("meta"))
    result = run("generate", "x", "-m", model, "--quantize", "int8", "--device", "cuda")
    assert_one_line(result, "not on meta", "--device cpu", code=2)
    assert run("generate", "x", "-m", model, "--quantize", "int8", "-n", 1).exit_code == 0, "auto is the CPU here"


@pytest.mark.parametrize("name", ["generate", "explain-step", "bench", "quantize"])
def test_help_lists_the_option(run: Run, name: str) -> None:
    text = run(name, "--help").stdout
    assert "int8" in text
    assert "int4" in text
    assert ("--to" if name == "quantize" else "--quantize") in text
    assert "quantize" in run("--help").stdout
