"""Views compute in float32 where it fits, name the dtype, and print no more digits than hold."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from llmcli.files.names import WEIGHTS
from llmcli.model.device import Memory
from llmcli.render import ModelLabel
from llmcli.render.json_forms import EXACT, rounded, with_dtypes
from tests.commands.conftest import records
from tests.commands.test_views import ESCAPE, PROMPT, VIEWS, on_terminal, words

Run = Callable[..., Result]
WITH_NUMBERS = [view for view in VIEWS if view.split()[0] not in ("tokenize", "inspect", "verify")]
IN_FLOAT32 = [view for view in WITH_NUMBERS if view != "explain-step"]
ALL_NAMED = [view for view in VIEWS if view.split()[0] not in ("tokenize", "verify")]


@pytest.fixture(scope="module")
def wide(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which is stored in bfloat16, stored in float32."""
    out = tmp_path_factory.mktemp("wide") / model.name
    shutil.copytree(model, out)
    tensors = load_file(model / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    save_file({name: tensor.float() for name, tensor in tensors.items()}, out / WEIGHTS)
    return out


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.model.device.memory_of", lambda device: Memory(1000, None))
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: True)


def floats(form: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every float of a JSON value, with the key nearest to it."""
    if isinstance(form, dict):
        for name, value in form.items():
            yield from floats(value, name)
    elif isinstance(form, list):
        for value in form:
            yield from floats(value, key)
    elif isinstance(form, float):
        yield key, form


def digits(number: str) -> int:
    """How many significant digits a number has in its decimal form."""
    return len(re.sub(r"^[-+]?0*|e.*$", "", number.replace(".", "")).rstrip("0"))


@pytest.mark.parametrize("view", IN_FLOAT32)
def test_weights_in_bfloat16_give_the_numbers_of_float32(run: Run, model: Path, wide: Path, view: str) -> None:
    (ours,), (expected,) = (records(run(*words(view, path), "--json")) for path in (model, wide))
    (rounded,) = records(run(*words(view, model), "--json", "--dtype", "bfloat16"))
    assert ours.get("dtype", ours.get("dtypes")) in ("float32", ["float32"] * 2)
    pairs = zip(floats(ours), floats(expected), strict=True)
    assert all(a == pytest.approx(b, rel=1e-6, abs=1e-6) for a, b in ((a[1], b[1]) for a, b in pairs))
    if view != "neighbours":  # cosines of stored weights
        assert ours != rounded


@pytest.mark.parametrize("view", ["lens", "score", "compare"])
def test_a_large_model_is_not_converted(run: Run, model: Path, little_memory: None, view: str) -> None:
    (record,) = records(run(*words(view, model), "--json"))
    assert record.get("dtype", record.get("dtypes")) in ("bfloat16", ["bfloat16"] * 2)
    (asked,) = records(run(*words(view, model), "--json", "--dtype", "fp32"))
    assert asked.get("dtype", asked.get("dtypes")) in ("float32", ["float32"] * 2)


def test_quantized_weights_are_multiplied_in_float32(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("quantize", model, tmp_path / "small", "--to", "int8").exit_code == 0
    (record,) = records(run("lens", PROMPT, "-m", tmp_path / "small", "--json"))
    (now,) = records(run("lens", PROMPT, "-m", model, "--quantize", "int8", "--json"))
    assert [record[key] for key in ("dtype", "quantization")] == ["float32", "int8"]
    assert list(record)[:3] == ["model", "dtype", "quantization"]
    assert record["rows"] == now["rows"]
    both = ("compare", PROMPT, "-m", model, "-m", tmp_path / "small")
    (pair,) = records(run(*both, "--json"))
    assert (pair["dtypes"], pair["quantizations"]) == (["float32"] * 2, [None, "int8"])
    assert run(*both).stdout.splitlines()[-2:] == ["model: tiny, float32", "model: small, float32, int8"]


def test_explain_step_uses_the_dtype_of_generate(run: Run, model: Path) -> None:
    common = ("The old", "-m", model, "--seed", 3, "--json")
    start, token, *_ = records(run("generate", *common, "-n", 1))
    (step,) = records(run("explain-step", *common))
    assert (start["dtype"], step["dtype"]) == ("bfloat16", "bfloat16")
    assert (step["model"], step["chosen"]["id"]) == (model.name, token["id"])
    (row,) = [row for row in step["candidates"] if row["id"] == token["id"]]
    assert [row["p"], row["p_final"]] == [token["prob"], token["final_prob"]]


@pytest.mark.parametrize("options", [("--num-samples", 2), ("--best-of", 2), ("--quantize", "int4")])
def test_the_start_of_generate_has_the_dtype(run: Run, model: Path, options: tuple[object, ...]) -> None:
    lines = records(run("generate", "The old", "-m", model, "-n", 2, "--json", *options))
    starts = [line for line in lines if line["type"] == "start"]
    assert starts
    quantization = "int4" if "int4" in options else None
    for start in starts:
        assert (start["dtype"], start.get("quantization")) == ("bfloat16", quantization)
    assert all(digits(repr(value)) <= 4 for line in lines for key, value in floats(line) if key not in EXACT)


@pytest.mark.parametrize("view", ALL_NAMED)
def test_the_last_line_names_the_model_and_its_dtype(
    run: Run, model: Path, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = "float32" if view in IN_FLOAT32 else "bfloat16"
    expected = [f"model: {model.name}, {dtype}"] * (2 if view.startswith("compare") else 1)
    path = tmp_path / "x.html"
    plain = run(*words(view, model), "--save", path).stdout.splitlines()
    shown = ESCAPE.sub(
        "", on_terminal([*words(view, model), *(["--no-pause"] if view == "tour" else [])], 80, monkeypatch)
    )
    for lines in (plain, shown.splitlines()):
        assert lines[-len(expected) :] == expected
        assert sum(line.startswith("model: ") for line in lines) == len(expected)
    assert path.read_text(encoding="utf-8").count("model: ") == 1  # in the caption


@pytest.mark.parametrize(("dtype", "most"), [("float32", 6), ("bfloat16", 4)])
@pytest.mark.parametrize("view", WITH_NUMBERS)
def test_no_number_has_more_digits_than_hold(run: Run, model: Path, view: str, dtype: str, most: int) -> None:
    arguments = [*words(view, model), "--dtype", dtype]
    (record,) = records(run(*arguments, "--json"))
    numbers = [repr(value) for key, value in floats(record) if key not in EXACT]
    table = [line.split("\t") for line in run(*arguments).stdout.splitlines() if "\t" in line]
    exact = {repr(value) for key, value in floats(record) if key in EXACT}
    cells = [cell for line in table for cell in line if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", cell)]
    assert numbers
    assert cells
    assert max(map(digits, numbers)) == most  # and not fewer
    assert max(digits(cell) for cell in cells if cell not in exact) == most


def test_numbers_that_repeat_a_draw_are_exact(run: Run, model: Path) -> None:
    common = ("The", "-m", model, "--seed", 4, "--temperature", "0.123456789012", "--json")
    (step,) = records(run("explain-step", *common, "--top", 300, "--top-p", 1))
    assert step["sampler"][0]["value"] == 0.123456789012
    inside = [row["id"] for row in step["candidates"] if row["u_low"] <= step["chosen"]["u"] < row["u_high"]]
    assert inside == [step["chosen"]["id"]]
    assert digits(repr(step["chosen"]["u"])) > 8
    assert {row["u_low"] for row in step["candidates"]} <= {0.0, *(row["u_high"] for row in step["candidates"])}


def test_a_terminal_shows_no_more_digits_than_hold(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ESCAPE.sub("", on_terminal([*words("why", model), "--dtype", "bf16", "--top", "0"], 120, monkeypatch))
    found = re.findall(r"(?<![\w.])[-+]?\d+\.\d+\b", shown.split("\n", 1)[1])
    assert found
    assert max(map(digits, found)) <= 4


def test_a_view_of_a_server_has_no_dtype() -> None:
    label = ModelLabel("far")
    assert with_dtypes({"model": "far", "p": 0.123456789}, [label]) == {"model": "far", "dtype": None, "p": 0.123456789}
    assert str(label) == "far"
    assert json.dumps(rounded({"p": 0.123456789, "u": 0.123456789, "ids": [1234567]}, label.digits)) == (
        '{"p": 0.123457, "u": 0.123456789, "ids": [1234567]}'
    )


# p of the token after "The capital of France is", from transformers in float64.
REAL = {"gemma3": (" the", 0.1920043), "smollm2": (" Paris", 0.7705751)}


@pytest.mark.skipif("LLMCLI_REAL_MODELS" not in os.environ, reason="needs LLMCLI_REAL_MODELS")
@pytest.mark.parametrize("name", REAL)
def test_views_of_real_models_agree(run: Run, name: str) -> None:
    (token, p), text = REAL[name], "The capital of France is"
    common = ("-m", Path(os.environ["LLMCLI_REAL_MODELS"]) / name, "--json")
    (lens,), (branch,), (score,), (step,) = (
        records(run(*view, *common))
        for view in (("lens", text), ("branch", text), ("score", text + token), ("explain-step", text, "--seed", 1))
    )
    _, first, *_ = records(run("generate", text, *common, "--seed", 1, "-n", 1))
    for found in (lens["rows"][-1]["p"], branch["children"][0]["p"], math.exp(score["tokens"][-1]["logprob"])):
        assert found == pytest.approx(p, rel=4e-6)
    for candidates, key in ((step["candidates"], "p"), (first["top"], "prob")):
        (stored,) = [row[key] for row in candidates if row["text"] == token]
        assert stored == pytest.approx(p, rel=5e-3)
