"""`heads` against brute force over transformers' attention weights, hand-made patterns, and mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain.interventions import head_kinds as module
from llmcli.explain.interventions.head_kinds import heads, repeated_texts
from tests.explain.reference import loaded, record_pass
from tests.explain.test_ablate import edited, head_slice, within
from tests.parity import CLOSE
from tests.tiny import TinyFactory

FAMILIES = ("llama", "gpt2", "gemma3_text", "gpt_neox", "gpt_oss", "deepseek_v3", "qwen3_5_text")


def brute_force(weights: Tensor, ids: list[int], kind: str) -> list[float]:
    """The score of each query that counts, by plain loops; weights [T, T] of one head."""
    rows: list[list[float]] = weights.tolist()
    found = []
    for query, row in enumerate(rows):
        left = max(1 - sum(row), 0.0)
        if kind == "previous" and query >= 2:
            found.append(row[query - 1])
        if kind == "sink" and query >= 1:
            found.append(row[0] + left)
        if kind == "entropy" and query >= 1:
            found.append(-sum(p * math.log2(p) for p in [*row, left] if p > 0))
        twins = [key for key in range(query) if ids[key] == ids[query]]
        if kind == "duplicate" and twins:
            found.append(sum(row[key] for key in twins))
        followers = [key + 1 for key in twins if key + 1 < query]
        if kind == "induction" and followers:
            found.append(sum(row[key] for key in followers))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_brute_force_over_transformers_attention(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    ours = loaded(case)
    text = [3, 4, 5, 3, 4, 4, 9, 5, 3, 7]
    report = heads(ours, text)
    assert report.check.ok, report.check
    texts = {"repeated": repeated_texts(ours, 0), "text": [text]}
    layers = ours.model.config.attending
    recorded = {source: [record_pass(case, ids).attention for ids in rows] for source, rows in texts.items()}
    for head in report.heads[:: max(len(report.heads) // 5, 1)]:
        for source, rows in texts.items():
            for kind in module.KINDS:
                seen = [attention[layers.index(head.layer)][head.head] for attention in recorded[source]]
                found = [
                    score for weights, ids in zip(seen, rows, strict=True) for score in brute_force(weights, ids, kind)
                ]
                mine = getattr(getattr(head, source), kind)
                assert mine == pytest.approx(sum(found) / len(found), abs=CLOSE), (source, kind)
    assert len(report.heads) == len(layers) * ours.model.config.num_attention_heads


def test_the_loss_without_a_head_is_that_of_transformers(tiny: TinyFactory) -> None:
    """The change that the view shows for the best head, computed by transformers with a hook."""
    case = tiny("llama")
    ours, ids = loaded(case), [int(id) for id in torch.arange(60) % 23]
    report = heads(ours, ids)

    def bits(logits: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))) / math.log(2)

    best = report.best[0]
    features = head_slice(case, best.layer, best.head)
    whole = bits(edited(case, [], ids))
    without = bits(edited(case, [("heads", best.layer, within(slice(None), features))], ids))
    assert report.text_loss == pytest.approx(whole, abs=CLOSE)
    assert best.text_change == pytest.approx(without - whole, abs=CLOSE)
    assert abs(without - whole) > 1e-3


def test_repeated_texts_repeat(tiny: TinyFactory) -> None:
    ours = loaded(tiny("llama"))
    texts = repeated_texts(ours, 1)
    half = len(texts[0]) // 2
    assert all(ids[-half:] == ids[-2 * half : -half] for ids in texts)
    assert texts == repeated_texts(ours, 1) != repeated_texts(ours, 2)
    assert len({tuple(ids) for ids in texts}) == len(texts)
    assert max(map(len, texts)) <= ours.model.config.max_position_embeddings


def test_a_text_without_repetition_has_no_induction(tiny: TinyFactory) -> None:
    report = heads(loaded(tiny("llama")), [1, 2, 3, 4])
    scores = report.heads[0].text
    assert scores is not None
    assert (scores.duplicate, scores.induction) == (None, None)
    alone = heads(loaded(tiny("llama")), [1])
    assert (alone.text_loss, alone.best[0].text_change) == (None, None)
    assert heads(loaded(tiny("llama"))).text_tokens is None


def test_models_without_attention_are_refused(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="no attention"):
        heads(loaded(tiny("mamba2")))


def _another_head(model: Any, layer: int, head: int) -> Any:
    return module.changed(model, [module.Change(module.Site("heads", layer), unit=head ^ 1)])


def _not_removed(model: Any, layer: int, head: int) -> Any:
    return model


@pytest.mark.parametrize("mistake", [_another_head, _not_removed])
def test_the_check_notices_that_another_head_was_removed(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, mistake: Any
) -> None:
    monkeypatch.setattr(module, "without_head", mistake)
    assert not heads(loaded(tiny("llama"))).check.ok
