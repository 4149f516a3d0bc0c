"""`compare`: both models against transformers, KL by brute force, and a change that shows only where it was made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn

from llmcli.errors import LlmcliError
from llmcli.explain.models.comparison import CompareReport, compare
from llmcli.generation import score as engine
from llmcli.generation.distribution import kl_divergence
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.score import surprisals
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import Quantization, quantize
from llmcli.text.tokenizer import Tokenizer
from tests.explain.reference import IDS, forget, loaded
from tests.parity import CLOSE
from tests.tiny import CONTEXT, VOCAB, Tiny, TinyFactory, random_ids

TEXT = " ".join(f"w{id}" for id in IDS)


def expected(case: Tiny) -> torch.Tensor:
    forget(case)
    with torch.no_grad():
        return case.reference(torch.tensor([IDS])).logits[0, :-1].double().log_softmax(-1)


def totals(report: CompareReport) -> tuple[float, float]:
    return sum(t.logprobs[0] for t in report.tokens), sum(t.logprobs[1] for t in report.tokens)


@pytest.mark.parametrize(("first", "second"), [("llama", "gpt2"), ("gemma2", "qwen3"), ("gpt_neox", "mistral")])
def test_both_models_match_transformers(tiny: TinyFactory, first: str, second: str) -> None:
    cases = tiny(first), tiny(second)
    report = compare(*(loaded(case) for case in cases), TEXT)
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


def test_a_model_does_not_differ_from_itself(tiny: TinyFactory) -> None:
    report = compare(loaded(tiny("llama")), loaded(tiny("llama")), TEXT)
    assert all(token.delta == token.kl == 0 for token in report.tokens)
    assert (report.mean_kl, report.other_favourite) == (0, 0)


def test_a_change_shows_where_it_was_made(tiny: TinyFactory) -> None:
    """One row of the head is changed: only that token can become more probable, wherever it occurs."""
    case, token = tiny("llama"), IDS[10]
    tuned = case.load()
    assert tuned.head is not None
    with torch.no_grad():
        tuned.head.weight[token] *= 1.5
    report = compare(loaded(case), loaded(case, tuned), TEXT)
    others = [t for t in report.tokens if t.piece.id != token]
    moved = [t for t in report.tokens if t.piece.id == token]
    assert min(abs(t.delta) for t in moved) > 10 * max(CLOSE, min(abs(t.delta) for t in others))
    assert all(t.kl > 0 for t in report.tokens)


def test_windows_have_the_smaller_context(tiny: TinyFactory) -> None:
    short, long = loaded(tiny("qwen3")), loaded(tiny("llama"))
    short.model.config = dataclasses.replace(short.model.config, max_position_embeddings=32)
    assert short.model.config.max_position_embeddings < len(IDS) < long.model.config.max_position_embeddings
    report = compare(short, long, TEXT)
    assert report.check.ok
    assert len(report.tokens) == len(IDS) - 1
    long.model.config = dataclasses.replace(long.model.config, max_position_embeddings=32)
    for n, one in enumerate((short, long)):
        found = torch.tensor([-token.logprobs[n] for token in report.tokens])
        assert torch.allclose(found, surprisals(one.model, IDS), atol=CLOSE)


def test_different_tokenizers_are_an_error(tiny: TinyFactory) -> None:
    ours = loaded(tiny("llama"))
    fast = FastTokenizer(WordLevel({f"v{n}": n for n in range(97)}, unk_token="v0"))
    other = LoadedModel("other", ours.folder, ours.model, Tokenizer(fast, "other"), ours.defaults)
    with pytest.raises(LlmcliError, match="different tokenizers"):
        compare(ours, other, TEXT)


def test_a_text_of_one_token_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="too short"):
        compare(loaded(tiny("llama")), loaded(tiny("llama")), "w1")


def test_different_tokens_from_one_vocabulary_are_an_error(tiny: TinyFactory) -> None:
    """One tokenizer adds a BOS token, the other does not."""
    ours = loaded(tiny("llama"))
    fast = FastTokenizer.from_str(ours.tokenizer.fast.to_str())
    fast.post_processor = TemplateProcessing(single="w3 $A", special_tokens=[("w3", 3)])
    other = dataclasses.replace(ours, name="other", tokenizer=Tokenizer(fast, "other"))
    with pytest.raises(LlmcliError, match="different tokens"):
        compare(ours, other, TEXT)


def words(count: int) -> Tokenizer:
    fast = FastTokenizer(WordLevel({f"w{n}": n for n in range(count)}, unk_token="w0"))
    fast.pre_tokenizer = Whitespace()
    return Tokenizer(fast, "words")


def widened(case: Tiny, rows: int) -> Transformer:
    """The model with rows of noise added to its vocabulary, as padding."""
    model = case.load()
    weight = model.embedding.weight
    assert model.head is None
    noise = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(2))
    model.embedding.weight = nn.Parameter(torch.cat([weight, noise]), requires_grad=False)
    model.config = dataclasses.replace(model.config, vocab_size=len(model.embedding.weight))
    return model


@pytest.mark.parametrize(("known", "added"), [(80, 0), (97, 40), (120, 40), (200, 0)])
def test_candidates_are_the_tokens_that_both_have(tiny: TinyFactory, known: int, added: int) -> None:
    """Neither padding of the embedding nor tokens without an embedding count."""
    cases, both = (tiny("llama"), tiny("gpt2")), min(known, VOCAB)
    tokenizer, ids = words(known), [id % 80 for id in IDS]
    pair = [loaded(cases[0]), loaded(cases[1], widened(cases[1], added))]
    report = compare(*(dataclasses.replace(one, tokenizer=tokenizer) for one in pair), " ".join(f"w{id}" for id in ids))
    assert report.check.ok
    with torch.no_grad():
        logits = [case.reference(torch.tensor([ids])).logits[0, :-1, :both].double() for case in cases]
    a, b = (rows.log_softmax(-1) for rows in logits)
    kl = (a.exp() * (a - b)).sum(-1) / math.log(2)
    for n, token in enumerate(report.tokens):
        assert token.delta == pytest.approx(float(b[n, ids[n + 1]] - a[n, ids[n + 1]]), abs=2 * CLOSE)
        assert token.kl == pytest.approx(float(kl[n]), abs=5 * CLOSE)
        assert [piece.id for piece in token.favourites] == [int(a[n].argmax()), int(b[n].argmax())]


@pytest.mark.parametrize("length", [CONTEXT + 2, 3 * CONTEXT])
def test_a_text_longer_than_the_context_is_compared_in_step(tiny: TinyFactory, length: int) -> None:
    """Each token has the surprisal that ``surprisals`` gives, whose windows have their own tests."""
    pair, ids = (loaded(tiny("qwen3")), loaded(tiny("llama"))), random_ids(length, seed=5)[0].tolist()
    report = compare(*pair, " ".join(f"w{id}" for id in ids))
    assert report.check.ok
    assert [token.piece.id for token in report.tokens] == ids[1:]
    for n, one in enumerate(pair):
        assert one.model.config.max_position_embeddings == CONTEXT
        found = torch.tensor([-token.logprobs[n] for token in report.tokens])
        assert torch.allclose(found, surprisals(one.model, ids), atol=CLOSE)


def test_few_logits_are_in_memory_at_a_time(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the logits of a whole text, of either model."""
    monkeypatch.setattr(engine, "MAX_LOGITS", VOCAB * 5)
    sizes: list[tuple[str, int]] = []
    pair = loaded(tiny("llama")), loaded(tiny("gpt2"))
    for one in pair:
        right = one.model.unembed

        def watched(x: torch.Tensor, name: str = one.name, right: Callable[..., torch.Tensor] = right) -> torch.Tensor:
            logits = right(x)
            sizes.append((name, logits.numel()))
            return logits

        monkeypatch.setattr(one.model, "unembed", watched)
    compare(*pair, TEXT)
    assert max(size for _, size in sizes) == VOCAB * 5
    assert [name for name, _ in sizes[:6]] == ["llama", "gpt2"] * 3


@pytest.mark.parametrize("kind", [None, "int8"])
def test_other_dtypes_pass_the_check(tiny: TinyFactory, kind: Quantization | None) -> None:
    case = tiny("qwen2-windows")
    model = case.load().to(torch.bfloat16)
    if kind is not None:
        quantize(model, kind)
    assert compare(loaded(case), loaded(case, model), TEXT).check.ok
    same = compare(loaded(case, model), loaded(case, model), TEXT)
    assert all(token.delta == token.kl == 0 for token in same.tokens)


# Mistakes that the check must catch.


@pytest.mark.parametrize(
    "mistake",
    [
        lambda a, b: kl_divergence(b, a),
        lambda a, b: kl_divergence(a, b) * math.log(2),
        lambda a, b: kl_divergence(a, b).clamp_max(0.1),
        lambda a, b: kl_divergence(a, b) * math.nan,
    ],
    ids=["the other way round", "in nats", "too small", "no number"],
)
def test_a_wrong_divergence_fails_the_check(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., torch.Tensor]
) -> None:
    from llmcli.explain.models import comparison as module

    monkeypatch.setattr(module, "kl_divergence", mistake)
    assert not compare(loaded(tiny("llama")), loaded(tiny("gpt2")), TEXT).check.ok


def test_rows_out_of_step_fail_the_check(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.explain.models import comparison as module

    right = module._predictions

    def late(opened: LoadedModel, *rest: Any) -> list[tuple[torch.Tensor, float]]:
        rows = list(right(opened, *rest))
        return [rows[0], *rows[:-1]] if opened.name == "gpt2" else rows

    monkeypatch.setattr(module, "_predictions", late)
    report = compare(loaded(tiny("llama")), loaded(tiny("gpt2")), TEXT)
    assert [claim.holds for claim in report.check.claims] == [True, False, False]
