"""What commands say about the weights that they load: damaged ones, unused ones, and with --verbose what it took."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.engine import transformer
from llmcli.errors import EXIT_FAILURE, EXIT_OK
from llmcli.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, WEIGHTS

Run = Callable[..., Result]
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def with_tensors(model: Path, tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
    """A copy of the tiny model with changed or additional tensors."""

    def make(changes: dict[str, Tensor]) -> Path:
        folder = Path(shutil.copytree(model, tmp_path / "model", dirs_exist_ok=True))
        save_file(load_file(model / WEIGHTS) | changes, folder / WEIGHTS)
        return folder

    return make


def damaged(weights: Path, value: float) -> dict[str, Tensor]:
    query = load_file(weights)[QUERY]
    query[3, 5] = value
    return {QUERY: query}


@pytest.mark.parametrize("command", ["generate", "score", "lens", "attend", "explain-step"])
def test_a_single_nan_in_the_weights_stops_every_command(
    run: Run, model: Path, with_tensors: Callable[..., Path], command: str
) -> None:
    folder = with_tensors(damaged(model / WEIGHTS, float("nan")))
    result = run(command, "The old fox", "-m", folder)
    assert result.exit_code == EXIT_FAILURE
    assert result.stdout == ""
    assert f"{folder / WEIGHTS}: tensor {QUERY} contains NaN or infinity" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_infinity_is_found_before_weights_are_quantized(
    run: Run, model: Path, with_tensors: Callable[..., Path], quantize: str
) -> None:
    result = run("generate", "The", "-m", with_tensors(damaged(model / WEIGHTS, float("inf"))), "--quantize", quantize)
    assert result.exit_code == EXIT_FAILURE
    assert QUERY in result.stderr


def test_nan_in_an_adapter_is_said_to_be_the_adapters(run: Run, model: Path, tmp_path: Path) -> None:
    factors = {"A": torch.ones(2, 32), "B": torch.zeros(32, 2)}
    factors["A"][1, 7] = torch.nan
    name = f"base_model.model.{QUERY.removesuffix('.weight')}"
    save_file({f"{name}.lora_{key}.weight": value for key, value in factors.items()}, tmp_path / ADAPTER_WEIGHTS)
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    result = run("generate", "The", "-m", model, "--adapter", tmp_path)
    assert result.exit_code == EXIT_FAILURE
    assert f"{tmp_path / ADAPTER_WEIGHTS}: the adapter for {QUERY} contains NaN or infinity" in result.stderr


def test_weights_too_large_for_the_dtype_have_a_hint(run: Run, model: Path, with_tensors: Callable[..., Path]) -> None:
    result = run("generate", "The", "-m", with_tensors(damaged(model / WEIGHTS, 1e6)), "--dtype", "float16")
    assert result.exit_code == EXIT_FAILURE
    assert "too large for float16 (use --dtype bfloat16 or --dtype float32)" in result.stderr


def test_unused_tensors_are_named(run: Run, model: Path, with_tensors: Callable[..., Path]) -> None:
    more = {f"vision.{name}": torch.ones(1) for name in "abcdefghij"}
    layers = {f"model.layers.{layer}.bias": torch.ones(1) for layer in (0, 1)}
    plain = run("generate", "The", "-m", model, "-n", 3, "--seed", 1)
    assert "does not use" not in plain.stderr
    result = run("generate", "The", "-m", with_tensors(layers), "-n", 3, "--seed", 1)
    assert (result.exit_code, result.stdout) == (EXIT_OK, plain.stdout)
    assert "model does not use these tensors of its files: model.layers.{0,1}.bias\n" in result.stderr
    many = run("generate", "The", "-m", with_tensors(more | layers), "-n", 1, "--seed", 1)
    assert "model.layers.{0,1}.bias, vision.a, " in many.stderr
    assert "vision.g and 3 more\n" in many.stderr


def test_verbose_says_what_the_check_took_and_what_decodes(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = re.compile(r"^tiny: checked [\d.]+ [kM]B of weights for NaN and infinity in \d+\.\d\d s$", re.MULTILINE)
    decoded = re.compile(r"^tiny: decoded by (.*)$", re.MULTILINE)
    without = "torch (the native engine was not built)"
    command = ("score", "The old fox", "-m", model)
    shown = run(*command, "--verbose").stderr
    assert checked.search(shown)
    native = f"native engine ({transformer.variant()}), threads: {torch.get_num_threads()}"
    assert decoded.findall(shown) == [native if transformer.variant() else without]
    quiet = run(*command).stderr
    assert not checked.search(quiet)
    assert not decoded.search(quiet)
    monkeypatch.setattr(transformer, "variant", lambda: None)
    for missing in ("native_step", "native_products"):
        monkeypatch.setattr(transformer, missing, lambda model: None)
    assert decoded.findall(run(*command, "--verbose").stderr) == [without]


@pytest.mark.parametrize("settings", [{"hidden_act": "x" * 5000}, {"intermediate_size": "x" * 5000}])
def test_an_error_about_a_very_long_value_stays_short(
    run: Run, model: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | settings))
    result = run("inspect", "-m", folder)
    assert result.exit_code == EXIT_FAILURE
    assert len(result.stderr) < 1300
    assert next(iter(settings)) in result.stderr
    assert "this model is not supported" in result.stderr
    assert settings.popitem()[1] in run("inspect", "-m", folder, "--verbose").stderr
