"""`score` against transformers' loss and by brute force, on short, long and unusual texts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from llmcli.errors import EXIT_USAGE, LlmcliError
from llmcli.explain import scoring as module
from llmcli.explain.report import ScoreReport
from llmcli.explain.scoring import score
from llmcli.generation import score as engine
from llmcli.render.json_forms import record
from llmcli.storage.quantize import Quantization, quantize
from tests.explain.reference import IDS, forget, loaded
from tests.parity import CLOSE
from tests.tiny import CONTEXT, KINDS, Tiny, TinyFactory, random_ids


def expected(case: Tiny, ids: list[int]) -> torch.Tensor:
    """transformers' log probabilities of all candidates for each token but the first, fp64 [T - 1, V]."""
    forget(case)
    with torch.no_grad():
        return case.reference(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


@pytest.mark.parametrize("name", KINDS)
def test_the_mean_is_transformers_loss_and_rows_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    ids = IDS[: getattr(case.reference.config, "max_position_embeddings", None)]
    report, logps = score(loaded(case), ids), expected(case, ids)
    assert report.check.ok
    goals = torch.tensor(ids[1:])
    loss = torch.nn.functional.cross_entropy(logps, goals)
    assert math.log(report.perplexity) == pytest.approx(float(loss), abs=CLOSE)
    assert [token.piece.id for token in report.tokens] == ids[1:]
    for token, row in zip(report.tokens, logps, strict=True):
        own = row[token.piece.id]
        assert abs(token.logprob - float(own)) <= CLOSE
        assert abs(token.surprisal + float(own) / math.log(2)) <= 2 * CLOSE
        assert token.rank == int((row > own).sum())
        assert abs(token.entropy + float((row.exp() * row).sum()) / math.log(2)) <= CLOSE
        assert token.favourite.id == int(row.argmax())
        assert abs(token.p_favourite - float(row.max().exp())) <= CLOSE


def test_totals_add_up(tiny: TinyFactory) -> None:
    report = score(loaded(tiny("gpt2")), IDS)
    assert report.bits == pytest.approx(sum(token.surprisal for token in report.tokens))
    assert report.bytes == len(" ".join(f"w{id}" for id in IDS).encode()) - len(f"w{IDS[0]}")
    assert report.bits_per_byte == pytest.approx(report.bits / report.bytes)
    assert report.perplexity == pytest.approx(2**report.bits_per_token)
    assert "".join(token.chunk for token in report.tokens) == "".join(f" w{id}" for id in IDS[1:])


@pytest.mark.parametrize("length", [CONTEXT + 1, CONTEXT + 2, 3 * CONTEXT])
def test_a_text_longer_than_the_context_is_scored_completely(tiny: TinyFactory, length: int) -> None:
    case, ids = tiny("qwen3"), random_ids(length, seed=5)[0].tolist()
    report = score(loaded(case), ids)
    assert report.check.ok
    assert [token.position for token in report.tokens] == list(range(1, length))
    half = CONTEXT // 2
    for token in report.tokens[-3:]:  # each has at least half a context before it
        starts = range(0, token.position, half)
        start = next(s for s in starts if token.position <= s + CONTEXT)
        logps = expected(case, ids[start : token.position + 1])[-1]
        assert abs(token.logprob - float(logps[token.piece.id])) <= CLOSE


def test_few_logits_are_in_memory_at_a_time(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_LOGITS", 97 * 5)
    sizes = []
    right = module._rows

    def watched(logits: torch.Tensor, goals: torch.Tensor) -> object:
        sizes.append(logits.numel())
        return right(logits, goals)

    monkeypatch.setattr(module, "_rows", watched)
    score(loaded(tiny("llama")), IDS)
    assert max(sizes) <= 97 * 5
    assert sum(sizes) == 97 * (len(IDS) - 1)


def test_equal_logits_are_ranked_by_id() -> None:
    logits = torch.zeros(2, 6)
    ranks = [row[1] for row in module._rows(logits, torch.tensor([4, 0]))]
    assert ranks == [4, 0]


@pytest.mark.parametrize("ids", [[], [5]])
def test_a_text_of_one_token_is_an_error(tiny: TinyFactory, ids: list[int]) -> None:
    with pytest.raises(LlmcliError, match="too short") as error:
        score(loaded(tiny("llama")), ids)
    assert error.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen3", "llama-tied", "qwen2-windows", "smollm3-windows", "mixtral"])
def test_other_dtypes_pass_the_check(
    tiny: TinyFactory, name: str, dtype: torch.dtype, kind: Quantization | None
) -> None:
    case = tiny(name)
    model = case.load().to(dtype)
    if kind is not None:
        quantize(model, kind)
    assert score(loaded(case, model), IDS).check.ok


def test_a_nearly_impossible_text_has_infinite_perplexity(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """2^1024 does not fit into a float."""
    monkeypatch.setattr(module, "_rows", lambda _, goals: [(-1e4, 0, 0.0, 0, 1.0)] * len(goals))
    report = score(loaded(tiny("llama")), IDS)
    assert math.isinf(report.perplexity)
    assert record(report)["perplexity"] is None


# Mistakes that the check must catch.


def wrong_row(position: int, column: int, value: float) -> Callable[..., list[tuple[float, ...]]]:
    """``_rows`` with one number of one token replaced."""
    right = module._rows

    def rows(logits: torch.Tensor, goals: torch.Tensor) -> list[tuple[float, ...]]:
        found = [list(row) for row in right(logits, goals)]
        found[position][column] = value
        return [tuple(row) for row in found]

    return rows


@pytest.mark.parametrize("position", [0, 30, -1])
@pytest.mark.parametrize(("column", "value"), [(0, -0.01), (0, math.nan), (2, 0.01), (2, math.nan)])
def test_one_wrong_number_anywhere_fails_the_check(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, position: int, column: int, value: float
) -> None:
    """A wrong or NaN log probability or entropy, even of a token that is not scored again."""
    monkeypatch.setattr(module, "_rows", wrong_row(position, column, value))
    assert not score(loaded(tiny("llama")), IDS).check.ok


def test_scores_shifted_by_one_fail_the_check(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._rows
    monkeypatch.setattr(module, "_rows", lambda logits, goals: right(logits.roll(1, 0), goals))
    report: ScoreReport = score(loaded(tiny("llama")), IDS)
    assert not report.check.ok


def test_a_cache_that_loses_a_position_fails_the_check(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.next_logits

    def forgetful(model: object, ids: list[int], cache: object, *rest: object) -> torch.Tensor:
        return right(model, ids[1:] if len(ids) > 1 else ids, cache, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "next_logits", forgetful)
    assert not score(loaded(tiny("llama")), IDS).check.ok
