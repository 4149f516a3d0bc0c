"""The difference between llmcli's logits and transformers', for ids read in any chunks."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from llmcli.model.transformer import Transformer
from tests.tiny import CONTEXT, Tiny, chunks, random_ids

CLOSE = 1e-4
WRONG = 1e-3  # a mistake must exceed this, ten times what rounding may cause
IDS = random_ids(CONTEXT, seed=0, batch=2)
DECODED = list(range(1, CONTEXT))  # cuts: one token at a time


@cache
def expected(case: Tiny) -> Tensor:
    """transformers' logits for ``IDS``."""
    with torch.no_grad():
        logits: Tensor = case.reference(IDS).logits
    return logits


def logits_of(model: Transformer, ids: Tensor, cuts: list[int] | None = None) -> Tensor:
    """The model's logits for ``ids``, read with a cache in chunks cut before the positions ``cuts``."""
    cache = model.new_cache(batch=ids.shape[0])
    cache.planned = ids.shape[1]
    with torch.no_grad():
        return torch.cat([model(part, cache) for part in chunks(ids, cuts or [])], dim=1)


def parity_error(model: Transformer, case: Tiny, cuts: list[int] | None = None) -> float:
    """The largest difference between the model's logits for ``IDS`` and transformers'; infinite for NaN."""
    difference = logits_of(model, IDS, cuts) - expected(case)
    return float(difference.abs().nan_to_num(nan=float("inf")).max())
