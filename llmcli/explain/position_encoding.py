"""The view of position: how does the model know where a token stands, and what does the order of words change?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.forward_pass import observe, tolerance
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.generation.distribution import probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.model.config import RopeConfig
from llmcli.model.positions import inverse_frequencies, rotate, rotation, span
from llmcli.model.transformer import Transformer


@dataclass(frozen=True)
class Turn:
    """By how much one pair of a head's features is turned for each position, and how many make a full turn."""

    pair: int
    degrees: float
    period: float


@dataclass(frozen=True)
class Answer:
    """The token that the model holds most probable, and how probable."""

    piece: VocabEntry
    p: float


@dataclass(frozen=True)
class PositionReport(Report):
    """``turns`` of the fastest, the middle and the slowest pair; none where positions are learned vectors.

    ``in_order`` follows the text, ``reversed`` the same tokens in reverse order (BOS stays in front).
    """

    model: str
    turns: tuple[Turn, ...]
    in_order: Answer
    reversed: Answer
    check: Check


def position_report(loaded: LoadedModel, ids: Sequence[int]) -> PositionReport:
    """How the model tells places apart, and its answers to ``ids`` in both orders."""
    model, rope = loaded.model, loaded.model.config.rope
    start = 1 if ids[0] == model.config.bos_token_id else 0
    backwards = [*ids[:start], *reversed(ids[start:])]
    turns: tuple[Turn, ...] = ()
    claim = _learned_claim(model, ids)
    if rope is not None:
        frequencies = inverse_frequencies(rope, model.config.head_dim, span(rope, len(ids)))
        pairs = sorted({0, len(frequencies) // 2, len(frequencies) - 1})
        turns = tuple(_turn(pair, float(frequencies[pair])) for pair in pairs)
        claim = _distance_claim(frequencies, rope)
    return PositionReport(
        model=loaded.name,
        turns=turns,
        in_order=_answer(loaded, ids),
        reversed=_answer(loaded, backwards),
        check=check(claim),
    )


def _turn(pair: int, radians: float) -> Turn:
    return Turn(pair, math.degrees(radians), 2 * math.pi / radians)


def _answer(loaded: LoadedModel, ids: Sequence[int]) -> Answer:
    probs = probabilities(observe(loaded.model, ids).logits)
    best = int(probs.argmax())
    return Answer(vocab_entry(loaded.tokenizer, best), float(probs[best]))


def _distance_claim(frequencies: Tensor, rope: RopeConfig) -> Claim:
    """Turned queries and keys match by their distance, wherever they stand (Su et al. 2021)."""
    size, generator = 2 * len(frequencies), torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, size, generator=generator).unbind()

    def score(at: int, of: int) -> float:
        turned = [
            rotate(x, *rotation(frequencies, place, 1, torch.float32, rope.attention_factor))
            for x, place in ((q, at), (k, of))
        ]
        return float((turned[0] * turned[1]).sum()) / size

    error = max(abs(score(7, 3) - score(7 + shift, 3 + shift)) for shift in (1, 10, 100))
    return Claim("how well a query and a key match depends on their distance alone", error, 1e-4)


def _learned_claim(model: Transformer, ids: Sequence[int]) -> Claim:
    """A learned position is a vector that is added to the token's."""
    with torch.inference_mode():
        tensor = torch.tensor([ids], device=model.device)
        added = model.embed(tensor, 0) - model.embed_tokens(tensor)
        rows = torch.zeros_like(added[0]) if model.positions is None else model.positions.weight[: len(ids)]
    return Claim(
        "what is added to a token's vector is its position's", float((added[0] - rows).abs().max()), tolerance(model)
    )
