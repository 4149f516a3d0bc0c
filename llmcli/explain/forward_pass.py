"""A text read by the model and watched at its last position: what most views begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.generation.steps import next_logits
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import rounding


@dataclass(frozen=True)
class ForwardPass:
    """``logits`` [V], fp32, are what follows the last of ``ids``; ``trace`` is of the pass that gave them."""

    ids: tuple[int, ...]
    logits: Tensor
    trace: Trace


def observe(model: Transformer, ids: Sequence[int], rows: int = 1) -> ForwardPass:
    """Read ``ids`` and keep what passed through the last ``rows`` positions.

    Errors: no ids, or more than the context holds.
    """
    check_length(model, len(ids))
    trace = Trace(rows=slice(-rows, None))
    logits = next_logits(model, ids, model.new_cache(), trace)
    return ForwardPass(tuple(ids), logits, trace)


def check_length(model: Transformer, length: int) -> None:
    """Raise unless a text of ``length`` tokens can be read."""
    if not length:
        raise usage_error("the text is empty, and the model has no BOS token to start from", "give a text")
    limit = model.config.max_position_embeddings
    if length > limit:
        raise usage_error(
            f"the text up to that position is {length} tokens long, but the model's context is {limit}",
            f"shorten it, or ask for a position before {limit} with --at",
        )


BY_DTYPE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Rounded weights round activations to 8 bits too: a last bit moves one to the next of 255 steps. And 4-bit weights
# round only those of many tokens together.
ROUNDED = 1e-1
# Where a last bit can tip the choice between two experts, what they say is exchanged. Another text's logits are at 1.4.
TIPPED = 3e-1


def tolerance(model: Transformer) -> float:
    """What to allow the model, by its dtype and by how its weights are kept."""
    rounded = rounding(model) is not None
    if model.config.moe is not None and (rounded or model.dtype != torch.float32):
        return TIPPED
    return max(BY_DTYPE[model.dtype], ROUNDED if rounded else 0.0)
