"""Two models on one text: each beside transformers, their divergence by brute force, and where tuning was done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel

from llmcli.errors import LlmcliError
from llmcli.explain.compare import CompareReport, compare_report
from llmcli.generate.loaded import LoadedModel
from llmcli.text.tokenizer import Tokenizer
from tests.explain.reference import IDS, forget, loaded
from tests.parity import CLOSE
from tests.tiny import Tiny

Make = Callable[[str], Tiny]
TEXT = " ".join(f"w{id}" for id in IDS)


def expected(case: Tiny) -> torch.Tensor:
    forget(case)
    with torch.no_grad():
        return case.reference(torch.tensor([IDS])).logits[0, :-1].double().log_softmax(-1)


def totals(report: CompareReport) -> tuple[float, float]:
    return sum(t.logprobs[0] for t in report.tokens), sum(t.logprobs[1] for t in report.tokens)


@pytest.mark.parametrize(("first", "second"), [("llama", "gpt2"), ("gemma2", "qwen3"), ("gpt_neox", "mistral")])
def test_both_are_transformers_own(tiny: Make, first: str, second: str) -> None:
    cases = tiny(first), tiny(second)
    report = compare_report(*(loaded(case) for case in cases), TEXT)
    assert report.check.ok
    a, b = (expected(case) for case in cases)
    kl = (a.exp() * (a - b)).sum(-1) / math.log(2)
    for n, token in enumerate(report.tokens):
        id = IDS[n + 1]
        assert token.piece.id == id
        assert token.logprobs == pytest.approx((float(a[n, id]), float(b[n, id])), abs=CLOSE)
        assert token.delta == pytest.approx(float(b[n, id] - a[n, id]), abs=2 * CLOSE)
        assert token.kl == pytest.approx(float(kl[n]), abs=5 * CLOSE)
        assert [piece.id for piece in token.favourites] == [int(a[n].argmax()), int(b[n].argmax())]
    assert report.mean_kl == pytest.approx(float(kl.mean()), abs=5 * CLOSE)
    assert report.other_favourite == pytest.approx(float((a.argmax(-1) != b.argmax(-1)).double().mean()))
    size = sum(len(token.chunk.encode()) for token in report.tokens)
    assert [bits * size * -math.log(2) for bits in report.bits_per_byte] == pytest.approx(totals(report))


def test_a_model_is_as_itself(tiny: Make) -> None:
    report = compare_report(loaded(tiny("llama")), loaded(tiny("llama")), TEXT)
    assert all(token.delta == token.kl == 0 for token in report.tokens)
    assert (report.mean_kl, report.other_favourite) == (0, 0)


def test_what_was_tuned_shows_where_it_was_tuned(tiny: Make) -> None:
    """One row of the head is moved: only the probability of that token can gain, wherever it stands."""
    case, token = tiny("llama"), IDS[10]
    tuned = case.load()
    assert tuned.head is not None
    with torch.no_grad():
        tuned.head.weight[token] *= 1.5
    report = compare_report(loaded(case), loaded(case, tuned), TEXT)
    others = [t for t in report.tokens if t.piece.id != token]
    moved = [t for t in report.tokens if t.piece.id == token]
    assert min(abs(t.delta) for t in moved) > 10 * max(CLOSE, min(abs(t.delta) for t in others))
    assert all(t.kl > 0 for t in report.tokens)


def test_contexts_of_two_sizes_are_read_by_the_smaller(tiny: Make) -> None:
    short, long = loaded(tiny("qwen3")), loaded(tiny("llama"))
    short.model.config = dataclasses.replace(short.model.config, max_position_embeddings=32)
    assert short.model.config.max_position_embeddings < len(IDS) < long.model.config.max_position_embeddings
    report = compare_report(short, long, TEXT)
    assert report.check.ok
    assert len(report.tokens) == len(IDS) - 1


def test_another_tokenizer_is_refused(tiny: Make) -> None:
    ours = loaded(tiny("llama"))
    fast = FastTokenizer(WordLevel({f"v{n}": n for n in range(97)}, unk_token="v0"))
    other = LoadedModel("other", ours.folder, ours.model, Tokenizer(fast, "other"), ours.defaults)
    with pytest.raises(LlmcliError, match="different tokenizers"):
        compare_report(ours, other, TEXT)


def test_too_short_is_said(tiny: Make) -> None:
    with pytest.raises(LlmcliError, match="two tokens"):
        compare_report(loaded(tiny("llama")), loaded(tiny("llama")), "w1")


def test_rows_out_of_step_fail_the_check(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.explain import compare as module

    right = module._each

    def late(opened: LoadedModel, ids: list[int], context: int) -> list[torch.Tensor]:
        rows = list(right(opened, ids, context))
        return [rows[0], *rows[:-1]] if opened.name == "gpt2" else rows

    monkeypatch.setattr(module, "_each", late)
    report = compare_report(loaded(tiny("llama")), loaded(tiny("gpt2")), TEXT)
    assert [claim.holds for claim in report.check.claims] == [True, False]
