"""Position: how the model knows where a token is, and what the order of the words changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.forward_pass import observe, tolerance
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.explain.selection import Text, token_ids
from llmcli.generation.distribution import probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.model.config import RopeConfig
from llmcli.model.positions import inverse_frequencies, rotate, rotation, span
from llmcli.model.transformer import Transformer

ROTATION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Turn:
    """How fast rotary positions turn one pair of a head's features: ``degrees`` per token, tokens per full turn."""

    pair: int
    degrees: float
    period: float


@dataclass(frozen=True)
class Answer:
    """The most probable next token and its probability."""

    piece: VocabEntry
    p: float


@dataclass(frozen=True)
class PositionReport(Report):
    """``turns`` has the fastest, the middle and the slowest pair; it is empty for a model with learned positions.

    ``in_order`` is the answer to the text, ``reversed`` the answer to its tokens in reverse order (BOS stays first).
    """

    model: str
    turns: tuple[Turn, ...]
    in_order: Answer
    reversed: Answer
    check: Check


def position(loaded: LoadedModel, text: Text, *, parse_special: bool = False) -> PositionReport:
    """Return how the model encodes positions, and its answers to ``text`` forwards and backwards.

    Raises LlmcliError if the text is empty or longer than the context.
    """
    ids = token_ids(loaded, text, parse_special=parse_special)
    model, rope = loaded.model, loaded.model.config.rope
    start = 1 if ids[0] == model.config.bos_token_id else 0
    in_order, backwards = _answer(loaded, ids), _answer(loaded, [*ids[:start], *reversed(ids[start:])])
    if rope is None:
        return PositionReport(loaded.name, (), in_order, backwards, check(_learned_claim(model, ids)))
    head_dim = model.config.head_dim
    frequencies = inverse_frequencies(rope, head_dim, span(rope, len(ids)))[: rope.moving(head_dim) // 2]
    pairs = sorted({0, len(frequencies) // 2, len(frequencies) - 1})
    turns = tuple(_turn(pair, float(frequencies[pair])) for pair in pairs)
    return PositionReport(loaded.name, turns, in_order, backwards, check(_distance_claim(frequencies, rope)))


def _turn(pair: int, radians: float) -> Turn:
    return Turn(pair, math.degrees(radians), 2 * math.pi / radians)


def _answer(loaded: LoadedModel, ids: Sequence[int]) -> Answer:
    probs = probabilities(observe(loaded.model, ids).logits)
    top = int(probs.argmax())
    return Answer(vocab_entry(loaded.tokenizer, top), float(probs[top]))


def _distance_claim(frequencies: Tensor, rope: RopeConfig) -> Claim:
    """Claim that the score of a rotated query and key depends on their distance only (Su et al. 2021)."""
    size, generator = 2 * len(frequencies), torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, size, generator=generator).unbind()

    def score(query_position: int, key_position: int) -> float:
        query, key = (
            rotate(x, *rotation(frequencies, at, 1, rope.attention_factor))
            for x, at in ((q, query_position), (k, key_position))
        )
        return float((query * key).sum()) / size

    error = max(abs(score(7, 3) - score(7 + shift, 3 + shift)) for shift in (1, 10, 100))
    return Claim("the score of a query and a key depends on their distance only", error, ROTATION_TOLERANCE)


def _learned_claim(model: Transformer, ids: Sequence[int]) -> Claim:
    """Claim that the model adds a learned vector for each position to the token's embedding."""
    with torch.inference_mode():
        tensor = torch.tensor([ids], device=model.device)
        added = model.embed(tensor, 0) - model.embed_tokens(tensor)
        rows = torch.zeros_like(added[0]) if model.positions is None else model.positions.weight[: len(ids)]
    error = float((added[0] - rows).abs().max())
    return Claim("what is added to a token's embedding is its position's vector", error, tolerance(model))
