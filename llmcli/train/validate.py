"""How well a model predicts held-out text: nats per token, and bits per byte, which tokenizers do not sway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmcli.errors import usage_error
from llmcli.generation.score import surprisals
from llmcli.model.transformer import Transformer
from llmcli.train.batches import Encoded


@dataclass(frozen=True)
class Validation:
    """``bits_per_byte`` counts the bits of every token, EOS included, over the bytes of the text alone."""

    nats_per_token: float
    bits_per_byte: float

    def more_perplexity(self, before: Validation) -> float:
        """By what part the perplexity is higher than it was ``before``."""
        return math.expm1(self.nats_per_token - before.nats_per_token)


def validate(
    model: Transformer, examples: Sequence[Encoded], bytes_of_text: int, *, precision: torch.dtype
) -> Validation:
    """Score what is to be learnt of each example, computing in ``precision``."""
    nats, tokens = 0.0, 0
    with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
        for example in examples:
            if len(example.ids) <= example.first:
                continue  # a token alone is predicted from nothing
            scores = surprisals(model, example.ids)[example.first - 1 :]
            nats += float(scores.sum(dtype=torch.float64))
            tokens += len(scores)
    if not tokens:
        raise usage_error("the text is too short to be predicted", "give a longer one")
    return Validation(nats / tokens, nats / math.log(2) / bytes_of_text)
