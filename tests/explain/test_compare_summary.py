"""`compare --summary`: against transformers and numpy by brute force, and mistakes that its check must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from llmcli.errors import LlmcliError
from llmcli.explain.models import divergence as module
from llmcli.explain.models.comparison import compare
from llmcli.explain.models.divergence import compare_summary
from llmcli.explain.scoring import score
from llmcli.generation import score as engine
from tests.explain.reference import IDS, loaded
from tests.explain.test_compare import TEXT, expected, widened, words
from tests.parity import CLOSE
from tests.tiny import CONTEXT, VOCAB, TinyFactory, random_ids


@pytest.mark.parametrize("block", [VOCAB * 7, 2**20])
def test_every_number_matches_transformers(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    cases = tiny("llama"), tiny("gpt2")
    seen: list[tuple[int, int]] = []
    pair = [loaded(case) for case in cases]
    report = compare_summary(pair[0], pair[1], TEXT, progress=lambda done, total: seen.append((done, total)))
    assert report.check.ok
    assert seen[-1] == (len(IDS) - 1, len(IDS) - 1)
    a, b = (expected(case).numpy() for case in cases)
    for found, (p, q) in ((report.kl, (a, b)), (report.reverse_kl, (b, a))):
        kl = (np.exp(p) * (p - q)).sum(-1) / np.log(2)
        wanted = (kl.mean(), np.median(kl), np.percentile(kl, 99), kl.max())
        assert dataclasses.astuple(found) == pytest.approx(wanted, abs=5 * CLOSE)
    kl = (np.exp(a) * (a - b)).sum(-1)
    peak = int(kl.argmax())
    assert report.largest.position == peak + 1
    assert report.largest.piece.id == IDS[peak + 1]
    assert [piece.id for piece in report.largest.favourites] == [int(rows[peak].argmax()) for rows in (a, b)]
    assert report.largest.kl == report.kl.largest
    assert report.largest.context.split() == [f"w{id}" for id in IDS[max(peak - 11, 0) : peak + 1]]
    assert report.same_favourite == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).mean()))
    means = [-float(rows[np.arange(len(rows)), IDS[1:]].mean()) for rows in (a, b)]
    assert report.perplexities == pytest.approx(np.exp(means), rel=1e-4)
    assert report.perplexity_ratio == pytest.approx(np.exp(means[1] - means[0]), rel=1e-4)
    for one, perplexity, size in zip(pair, report.perplexities, report.disk_bytes, strict=True):
        assert perplexity == pytest.approx(score(one, TEXT).perplexity, rel=1e-6)
        files = sum(file.stat().st_size for file in one.folder.glob("*.safetensors"))
        assert 0.5 * files < size < files, "all of the file but its header"


def test_a_model_is_not_apart_from_itself(tiny: TinyFactory) -> None:
    report = compare_summary(loaded(tiny("llama")), loaded(tiny("llama")), TEXT)
    assert report.check.ok
    assert (report.kl.largest, report.reverse_kl.largest) == (0, 0)
    shown = (*dataclasses.astuple(report.kl), *dataclasses.astuple(report.reverse_kl), report.largest.reverse_kl)
    assert "-0.0" not in map(str, shown)
    assert (report.same_favourite, report.perplexity_ratio) == (1, 1)


@pytest.mark.parametrize("added", [0, 40])
def test_a_long_text_has_the_windows_and_candidates_of_compare(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, added: int
) -> None:
    """Also where one model has more rows, and so yields fewer positions at a time."""
    monkeypatch.setattr(engine, "MAX_LOGITS", VOCAB * 5)
    cases = tiny("llama"), tiny("gpt2")
    pair = [loaded(cases[0]), loaded(cases[1], widened(cases[1], added))]
    first, second = (dataclasses.replace(one, tokenizer=words(80)) for one in pair)
    text = " ".join(f"w{id % 80}" for id in random_ids(2 * CONTEXT, seed=5)[0].tolist())
    report, each = compare_summary(first, second, text), compare(first, second, text)
    assert report.check.ok
    assert report.windows == each.windows is not None
    assert report.positions == len(each.tokens)
    assert report.kl.mean == pytest.approx(each.mean_kl, abs=1e-9)
    assert report.kl.largest == pytest.approx(max(token.kl for token in each.tokens), abs=1e-9)
    assert report.bits_per_byte == pytest.approx(each.bits_per_byte, rel=1e-6)
    assert report.same_favourite == pytest.approx(1 - each.other_favourite)


def test_models_with_different_tokenizers_are_an_error(tiny: TinyFactory) -> None:
    one = loaded(tiny("llama"))
    with pytest.raises(LlmcliError, match="different tokenizers"):
        compare_summary(one, dataclasses.replace(one, tokenizer=words(50)), TEXT)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda kl: kl.flip(0),
        lambda kl: kl * np.log(2),
        lambda kl: kl.clamp_max(0.01),
        lambda kl: kl - 1,
        lambda kl: kl * torch.nan,
    ],
    ids=["the other way round", "in nats", "too small", "negative", "no number"],
)
def test_a_wrong_divergence_fails_the_check(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    right = module._both_ways
    monkeypatch.setattr(module, "_both_ways", lambda logps: mistake(right(logps)))
    assert not compare_summary(loaded(tiny("llama")), loaded(tiny("gpt2")), TEXT).check.ok
