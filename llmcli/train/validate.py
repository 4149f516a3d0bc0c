"""How well a model predicts held-out text: nats per token, and bits per byte, which tokenizers do not sway."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llmcli.model.transformer import Transformer


@dataclass(frozen=True)
class Validation:
    """``bits_per_byte`` counts the bits of every token, EOS included, over the bytes of the text alone."""

    nats_per_token: float
    bits_per_byte: float


def validate(
    model: Transformer, documents: list[list[int]], bytes_of_text: int, *, precision: torch.dtype
) -> Validation:
    """Score each document from its BOS; one longer than the context in windows that overlap by half.

    So each token is predicted from all that comes before it, or at least from half a context.
    """
    nats, tokens = 0.0, 0
    context = model.config.max_position_embeddings
    with torch.inference_mode(), torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
        for ids in documents:
            for start, first in windows(len(ids), context):
                window = torch.tensor([ids[start : start + context + 1]], device=model.device)
                logits = model(window[:, :-1])[0, first - start :].float()
                nats += float(F.cross_entropy(logits, window[0, first - start + 1 :], reduction="sum"))
                tokens += len(logits)
    return Validation(nats / tokens, nats / math.log(2) / bytes_of_text)


def windows(length: int, context: int) -> list[tuple[int, int]]:
    """(start, first position that counts) of windows of ``context`` inputs that score each token of ``length`` once."""
    places = [(0, 0)]
    while places[-1][0] + context < length - 1:
        start = places[-1][0] + context // 2
        places.append((start, places[-1][0] + context))
    return places
