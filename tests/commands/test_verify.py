"""``llmcli verify``: its output formats, inputs and exit codes."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.commands.options import model as model_module
from llmcli.commands.options.model import ModelChoice
from llmcli.explain.report import VocabEntry
from llmcli.explain.verification.proof import Divergence, Proof
from llmcli.explain.verification.view import TEXT, Verdicts, VerifyReport
from llmcli.generation.loaded import LoadedModel
from llmcli.render.progress import VerifyProgress
from llmcli.render.views.verify import print_verify
from llmcli.text.tokenizer import load_tokenizer
from tests.commands.conftest import records

Run = Callable[..., Result]
SENTENCE = "The old fox met a hen by the river."
KEYS = ["model", "device", "dtype", "quantized", "text_tokens", "tokens", "proofs", "layers", "check"]
PROOF_KEYS = ["name", "means", "verdict", "error", "limit", "largest", "parting", "reason", "largest_kl"]
OWN = 13  # proofs that need only the model and torch


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide transformers, which takes seconds to import."""
    monkeypatch.setitem(sys.modules, "transformers", None)


def proved(result: Result) -> dict[str, Any]:
    (record,) = records(result)
    return record


def test_a_model_is_compared_with_transformers(run: Run, model: Path) -> None:
    result = run("verify", SENTENCE, "-m", model, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    record = proved(result)
    assert list(record) == KEYS
    assert all(list(proof) == PROOF_KEYS for proof in record["proofs"])
    assert record["tokens"] == record["text_tokens"] == len(load_tokenizer(model).encode(SENTENCE))
    verdicts = {proof["name"]: proof["verdict"] for proof in record["proofs"]}
    assert verdicts.pop("cpu = accelerator", "skipped") == "skipped"
    assert set(verdicts.values()) == {"ok"}, [proof for proof in record["proofs"] if proof["verdict"] != "ok"]
    assert [layer["layer"] for layer in record["layers"]] == [0, 1]
    counts = record["check"]
    assert counts == {"ok": True, "held": len(verdicts), "failed": 0, "skipped": len(record["proofs"]) - len(verdicts)}


def test_wrong_weights_are_exit_code_1(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ModelChoice.open

    def wrong(choice: ModelChoice) -> LoadedModel:
        loaded = right(choice)
        loaded.model.blocks[1].attn.out.weight.mul_(1.1)  # type: ignore[union-attr,operator]
        return loaded

    monkeypatch.setattr(model_module.ModelChoice, "open", wrong)
    result = run("verify", SENTENCE, "-m", model, "--dtype", "float32", "--device", "cpu")
    assert result.exit_code == 1
    assert "check: FAILED; 2 of" in result.stdout
    assert "layers = transformers, logits = transformers" in result.stdout.splitlines()[-2]


@pytest.mark.usefixtures("no_transformers")
def test_output_formats_agree(run: Run, model: Path, tmp_path: Path) -> None:
    record = proved(run("verify", SENTENCE, "-m", model, "--json"))
    result = run("verify", SENTENCE, "-m", model, "--save", tmp_path / "v.svg")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    table = [line.split("\t") for line in lines if "\t" in line]
    assert table[0] == ["proof", "what it shows", "error", "limit", "verdict"]
    for row, proof in zip(table[1:], record["proofs"], strict=True):
        numbers = ["" if proof[key] is None else repr(proof[key]) for key in ("error", "limit")]
        assert row == [proof["name"], proof["means"], *numbers, proof["verdict"]]
    assert lines[-2].startswith(f"check: ok; {record['check']['held']} proofs hold, ")
    assert any(line.startswith("layers = transformers: ") and "pip install" in line for line in lines)
    assert "seed" in (tmp_path / "v.svg").read_text(encoding="utf-8")
    assert "saved" in result.stderr


@pytest.mark.usefixtures("no_transformers")
def test_inputs(run: Run, model: Path, tmp_path: Path) -> None:
    def tokens(*args: object, **options: Any) -> int:
        return int(proved(run("verify", *args, "-m", model, "--json", **options))["text_tokens"])

    encode = load_tokenizer(model).encode
    (tmp_path / "t.txt").write_text(SENTENCE + "\n", encoding="utf-8")
    assert tokens() == len(encode(TEXT))
    assert tokens(input="\n") == len(encode(TEXT))
    assert tokens(SENTENCE) == tokens("--prompt-file", tmp_path / "t.txt") == len(encode(SENTENCE))
    assert tokens(input=SENTENCE) == len(encode(SENTENCE))


@pytest.mark.usefixtures("no_transformers")
def test_a_text_longer_than_the_context_is_cut_with_a_notice(run: Run, model: Path) -> None:
    result = run("verify", "-m", model)
    assert result.exit_code == 0
    assert f"Read 64 tokens (the first of {len(load_tokenizer(model).encode(TEXT))})" in result.stdout


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_when_loaded_and_when_stored(run: Run, model: Path, tmp_path: Path, kind: str) -> None:
    assert run("quantize", model, tmp_path / "rounded", "--to", kind).exit_code == 0
    opened = proved(run("verify", "-m", model, "--quantize", kind, "--json"))
    stored = proved(run("verify", "-m", tmp_path / "rounded", "--json"))
    for record in (opened, stored):
        assert record["check"]["ok"]
        assert record["check"]["held"] > OWN
        assert record["quantized"] == kind


@pytest.mark.usefixtures("no_transformers")
def test_one_token_is_a_usage_error(run: Run, model: Path) -> None:
    # The tokenizer adds BOS to every text.
    assert run("verify", "a", "-m", model).exit_code == 0
    result = run("verify", "-m", model, "--prompt-file", "nowhere.txt")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


# The table on a terminal.


class Tty(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Tty:
    for name in ("NO_COLOR", "FORCE_COLOR", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Tty()


def report() -> VerifyReport:
    """A report with every kind of check, for a text with control characters."""
    parted = Divergence(7, VocabEntry(1, " [bold]", b" [bold]"), VocabEntry(2, "\x1b[31m", b"\x1b[31m"), 0.25)
    tie = dataclasses.replace(parted, margin=0.0)
    proofs = (
        Proof("a = b", "one gives what the other gives", "ok", 1.25e-7, 1e-4, 2e-7, None, None),
        Proof("c = d", "one gives what the other gives", "failed", 0.5, 1e-4, 0.75, parted, None),
        Proof("e = f", "one gives what the other gives", "ok", 0.0, 0.05, 0.0125, None, None),
        Proof("g = h", "one gives what the other gives", "ok", 0.01, 0.05, 0.0125, tie, None),
        Proof("i = j", "one gives what the other gives", "failed", float("nan"), 0.05, None, None, None),
        Proof("k = l", "one gives what the other gives", "skipped", None, None, None, None, "nothing is here"),
    )
    return VerifyReport("m", "cpu", "float32", "int8", 9, 8, proofs, (), Verdicts(False, 3, 2, 1))


def test_a_terminal_shows_every_result_within_its_width(terminal: Tty) -> None:
    from tests.render.test_terminal import lines_of

    print_verify(report(), terminal)
    lines = lines_of(terminal, 80)
    text = "\n".join(lines)
    assert "in float32 with int8 weights on cpu?" in text
    assert [line.split()[-1] for line in lines if "one gives" in line] == [
        "ok",
        "failed",
        "ok",
        "ok",
        "failed",
        "skipped",
    ]
    assert "1e-07" in text
    assert "c = d: after position 7 the top token is “␛[31m” instead of “·[bold]”" in text
    assert "g = h: after position 7 the top token is “␛[31m” instead of “·[bold]”" in text
    assert "e = f: no token differs; logits differ by up to 1e-02 of the largest" in text
    assert "k = l: nothing is here" in text
    assert lines[-1] == "check: FAILED; 2 of 5 proofs fail: c = d, i = j, 1 skipped"


def test_missing_numbers_are_null_in_json() -> None:
    from llmcli.render.json_forms import record

    proofs = json.loads(json.dumps(record(report()), allow_nan=False))["proofs"]
    assert proofs[4]["error"] is None
    assert proofs[4]["verdict"] == "failed"


def test_progress_is_shown_only_on_a_terminal_and_erased(terminal: Tty) -> None:
    plain = io.StringIO()
    for stream in (terminal, plain):
        with VerifyProgress(stream) as view:
            view("first proof")
            view.pause()
            view("second proof")
    assert plain.getvalue() == ""
    assert "first proof" in terminal.getvalue()
    assert "second proof" in terminal.getvalue()
    assert terminal.getvalue().endswith(("\x1b[2K", "\x1b[?25h"))
