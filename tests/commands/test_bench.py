"""``llmcli bench``: what it counts and prints, not how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from llmcli.engine.native import NativeStep
from llmcli.engine.random_weights import random_model
from llmcli.generation import bench
from llmcli.generation.bench import measure, read_bytes
from tests.commands.conftest import records
from tests.tiny import TinyFactory, load

Run = Callable[..., Result]
SMALL = ("-p", 6, "-n", 3, "-r", 2, "--threads", "1")


def test_each_combination_has_its_row(run: Run, model: Path) -> None:
    rows = records(run("bench", "-m", model, "-m", model, *SMALL, "-d", "0,5", "--dtype", "float32,bfloat16", "--json"))
    assert [(r["dtype"], r["depth"]) for r in rows] == 2 * [
        ("float32", 0), ("float32", 5), ("bfloat16", 0), ("bfloat16", 5)
    ]  # fmt: skip
    for row in rows:
        assert (row["prompt_tokens"], row["output_tokens"], row["threads"]) == (6, 3, 1)
        assert len(row["prefill"]) == len(row["decode"]) == 2
        assert min(row["prefill"] + row["decode"]) > 0
        assert row["share"] > 0
    # fp32 weights take twice the bytes; the cache holds depth + prompt + output - 1 positions at least.
    assert rows[0]["weight_bytes"] == 2 * rows[2]["weight_bytes"]
    per_position = 2 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, features, bytes
    assert rows[1]["cache_bytes"] >= (5 + 6 + 2) * per_position > rows[1]["cache_bytes"] / 2


def test_table_and_markdown(run: Run, model: Path) -> None:
    lines = run("bench", "-m", model, *SMALL).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].split("\t")[:4] == ["model", "dtype", "threads", "depth"]
    assert len(lines[1].split("\t")) == len(lines[0].split("\t"))
    lines = run("bench", "-m", model, *SMALL, "--markdown").stdout.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "%" in lines[2]


def test_what_can_run_is_measured(run: Run, model: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "tiny-int8"
    assert run("quantize", model, quantized).exit_code == 0
    result = run("bench", "-m", quantized, "-m", "x/y", "--offline", *SMALL, "--quantize", "none,int4,int8", "--json")
    assert [row["dtype"] for row in map(json.loads, result.stdout.splitlines())] == ["int8"]
    assert result.exit_code in (1, 2)
    *_, packed, missing = result.stderr.splitlines()
    assert result.stderr.count("llmcli:") == 2
    assert "tiny-int8 are already quantized (omit --quantize" in packed
    assert "x/y is not completely on disk" in missing


def test_random_weights_need_only_a_config(run: Run, model: Path) -> None:
    (row,) = records(run("bench", "--config", model / "config.json", "--random", *SMALL, "--json"))
    assert row["model"] == "random tiny"
    stored = (model / "model.safetensors").stat().st_size
    assert 0 < stored - row["weight_bytes"] < 10_000  # the difference is the header


def test_random_models_run_and_no_two_rows_are_equal(tiny: TinyFactory) -> None:
    config = tiny("gemma2").load().config
    model = random_model(config, device=torch.device("cpu"), dtype=torch.float32)
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()
    rows = torch.cat([p for p in model.parameters() if p.ndim == 2 and p.shape[1] == config.hidden_size])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_one_token_reads_everything_but_tables_and_idle_experts(tiny: TinyFactory) -> None:
    tied, untied, moe = (tiny(name).load() for name in ("llama-tied", "llama", "mixtral"))
    assert read_bytes(tied) == sum(p.nbytes for p in tied.parameters())
    assert read_bytes(untied) == sum(p.nbytes for p in untied.parameters()) - untied.embedding.weight.nbytes
    experts = sum(p.nbytes for name, p in moe.named_parameters() if ".experts." in name)
    rest = sum(p.nbytes for p in moe.parameters()) - moe.embedding.weight.nbytes - experts
    assert read_bytes(moe) == rest + experts // 2  # 2 of 4


def test_depth_is_read_before_the_clock_starts(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each timed run reads only the prompt and generates the output."""
    ours = load(model, device=torch.device("cpu"))
    passes: list[int] = []
    hidden, feed = ours.hidden, NativeStep.feed
    monkeypatch.setattr(ours, "hidden", lambda ids, *rest: passes.append(ids.shape[1]) or hidden(ids, *rest))
    monkeypatch.setattr(NativeStep, "feed", lambda step, ids, *rest: passes.append(len(ids)) or feed(step, ids, *rest))
    monkeypatch.setattr(bench, "WARM_UP", 0)
    (speed,) = measure(ours, prompt=7, output=3, depths=[20], repeat=2)
    assert passes == [16, 4, 7, 1, 1, 7, 1, 1]
    assert (speed.depth, speed.prompt, speed.output) == (20, 7, 3)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--random",), "--config"),
        (("--config", "x.json"), "--random"),
        (("--config", "x.json", "--random", "-m", "y"), "--model"),
        (("--config", "x.json", "--random"), "x.json"),
        (("--json", "--markdown"), "cannot be combined"),
        (("--dtype", "float32,int3"), "int3"),
        (("-d", "0,x"), "0,x"),
        (("--threads", "0"), "'0'"),
        (("-n", "1"), "x>=2"),
        (("-p", "60"), "context holds 64"),
    ],
)
def test_errors_are_one_line(run: Run, model: Path, args: tuple[str, ...], word: str) -> None:
    result = run("bench", *(("-m", model) if "--config" not in args and "--random" not in args else ()), *args)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert word in result.stderr
