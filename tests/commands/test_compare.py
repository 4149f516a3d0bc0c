"""``llmcli compare``: two models, a model and its LoRA, and models that cannot be compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llmcli.errors import EXIT_USAGE
from llmcli.render.marks import NEGATIVE, POSITIVE, signed_bar_cell
from llmcli.render.views.compare import NOTABLE
from llmcli.train.vocabulary import train_tokenizer
from tests.commands.conftest import colored, records
from tests.commands.test_views import ESCAPE, on_terminal
from tests.parity import CLOSE

Run = Callable[..., Result]
TEXT = "The old fox met a hen by the moon"


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA adapter for the model in PEFT format, large enough to change its output visibly."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    tuned.save_pretrained(folder)
    return folder


def compared(run: Run, *arguments: object) -> dict[str, Any]:
    (record,) = records(run("compare", TEXT, *arguments, "--json"))
    return record


def table(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_compared_with_its_base(model: Path, run: Run, lora: Path) -> None:
    """Both log probabilities equal those of transformers and peft, and the two models have different names."""
    from peft import PeftModel

    record = compared(run, "-m", model, "--adapter", lora, "--dtype", "float32")
    assert record["models"] == [model.name, f"{model.name} + {lora.name}"]
    assert record["check"]["ok"]
    (tokens,) = records(run("tokenize", TEXT, "-m", model, "--json"))
    ids = torch.tensor([[token["id"] for token in tokens["tokens"]]])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logps = [base(ids).logits[0, :-1].double().log_softmax(-1)]
        logps.append(PeftModel.from_pretrained(base, lora).eval()(ids).logits[0, :-1].double().log_softmax(-1))
    for n, token in enumerate(record["tokens"]):
        expected = [float(logp[n, ids[0, n + 1]]) for logp in logps]
        assert token["logprobs"] == pytest.approx(expected, abs=CLOSE)
        assert [piece["id"] for piece in token["favourites"]] == [int(logp[n].argmax()) for logp in logps]
    kl = torch.nn.functional.kl_div(logps[1], logps[0], log_target=True, reduction="batchmean") / torch.tensor(2).log()
    assert record["mean_kl"] == pytest.approx(float(kl), abs=5 * CLOSE)
    assert record["mean_kl"] > 100 * CLOSE, "else nothing is tested"


def test_top_0_lists_every_token(model: Path, run: Run, lora: Path) -> None:
    given = ("compare", TEXT * 3, "-m", model, "--adapter", lora)
    every, some = run(*given, "--top", 0), run(*given)
    assert len(table(some)) == 1 + 20 < len(table(every))
    assert "largest changes" in some.stdout
    assert "largest changes" not in every.stdout


def test_the_table_in_a_file_is_complete(model: Path, run: Run, lora: Path) -> None:
    record, top = compared(run, "-m", model, "--adapter", lora), 3
    result = run("compare", TEXT, "-m", model, "--adapter", lora, "--top", top)
    head, *rows = table(result)
    assert head.pop() == "top token 2"
    assert head.pop() == "top token 1"
    assert head == ["#", "token", "logprob 1", "logprob 2", "change, nats", "sign", "KL, bits"]
    most = sorted(record["tokens"], key=lambda token: abs(token["delta"]))[-top:]
    assert [int(row[0]) for row in rows] == sorted(token["position"] for token in most)
    for row in rows:
        token = record["tokens"][int(row[0]) - 1]
        assert [float(row[n]) for n in (2, 3, 4, 6)] == [*token["logprobs"], token["delta"], token["kl"]]
        assert row[5] == ("+" if token["delta"] > 0 else "-")
        assert row[7:] == [piece["text"].replace(" ", "·") for piece in token["favourites"]]
    assert f"the {top} largest changes of {len(record['tokens'])} tokens" in result.stdout
    others = sum(token["favourites"][0] != token["favourites"][1] for token in record["tokens"])
    assert f"different top token at {others} of {len(record['tokens'])} positions" in result.stdout
    assert TEXT not in result.stdout


def test_a_terminal_colors_the_text_by_the_change(
    model: Path, run: Run, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = compared(run, "-m", model, "--adapter", lora)
    shown = on_terminal(["compare", TEXT, "-m", str(model), "--adapter", str(lora)], 200, monkeypatch)
    line, legend = shown.splitlines()[1:3]
    assert ESCAPE.sub("", line) == TEXT
    notable = {token["delta"] > 0 for token in record["tokens"] if abs(token["delta"]) >= NOTABLE}
    assert notable == {True, False}, "else nothing is tested"
    more, less = [code for code, part in colored(legend) if code]
    expected = [
        "" if abs(token["delta"]) < NOTABLE else more if token["delta"] > 0 else less
        for token in record["tokens"]
        for _ in token["chunk"]
    ]
    assert [code for code, part in colored(line) for _ in part] == expected


def test_a_narrow_terminal_drops_dependent_columns_first(
    model: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first model's column can appear without the second's, but not the second's without the first's."""
    seen = set()
    for width in range(30, 120, 2):
        shown = ESCAPE.sub(
            "", on_terminal(["compare", TEXT, "-m", str(model), "--adapter", str(lora)], width, monkeypatch)
        )
        (head,) = [line for line in shown.splitlines() if "change, nats" in line]
        seen.add(("logprob 1" in head, "logprob 2" in head))
    assert seen == {(True, True), (True, False), (False, False)}


def test_a_model_compared_with_itself_has_no_color(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record = compared(run, "-m", model, "-m", model)
    assert all(token["delta"] == token["kl"] == 0 for token in record["tokens"])
    assert len(set(record["bits_per_byte"])) == 1
    shown = on_terminal(["compare", TEXT, "-m", str(model), "-m", str(model)], 100, monkeypatch)
    legend = shown.splitlines()[2]
    assert sum(shown.count(code) for code in set(ESCAPE.findall(legend)) - {"\x1b[0m"}) == 2


@pytest.mark.parametrize(
    ("value", "sign", "style"), [(0.3, "+", POSITIVE), (-0.3, "-", NEGATIVE), (0.0, "", ""), (-0.0, "", "")]
)
def test_only_a_change_has_a_sign(value: float, sign: str, style: str) -> None:
    cell = signed_bar_cell(value, 1.0)
    assert (cell.plain, cell.style) == (sign, style)
    assert ("█" in cell.shown) == (sign != "")


def test_a_different_tokenizer_is_one_line(model: Path, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    train_tokenizer(["quite another text, quite another vocabulary"] * 3, 300).save(str(other / "tokenizer.json"))
    result = run("compare", TEXT, "-m", model, "-m", other)
    assert result.exit_code == EXIT_USAGE
    assert "different tokenizers" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_top_token_that_both_models_share_is_named_once(model: Path, run: Run) -> None:
    result = run("compare", "The fox", "-m", model, "-m", model, "--summary")
    assert result.exit_code == 0, result.stderr
    assert "” for both models." in result.stdout
    assert "for model 1" not in result.stdout


def test_a_number_of_rows_for_a_summary_is_an_error(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ("compare", "The fox", "-m", model, "-m", model, "--summary")
    result = run(*models, "--top", 5)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--top has no effect" in result.stderr
    monkeypatch.setenv("LLMCLI_TOP", "5")  # for every command, not for this one alone
    assert run(*models).exit_code == 0


def test_an_empty_text_is_an_error(model: Path, run: Run) -> None:
    result = run("compare", "", "-m", model, "-m", model)
    assert result.exit_code == EXIT_USAGE
    assert "too short" in result.stderr
