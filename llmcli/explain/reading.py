"""A text read by the model and watched at its last position: what most views begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from llmcli.errors import usage_error
from llmcli.generation.steps import next_logits
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer


@dataclass(frozen=True)
class Reading:
    """``logits`` [V], fp32, are what follows the last of ``ids``; ``trace`` is of the pass that gave them."""

    ids: tuple[int, ...]
    logits: Tensor
    trace: Trace


def read(model: Transformer, ids: Sequence[int], rows: int = 1) -> Reading:
    """Read ``ids`` and keep what passed through the last ``rows`` positions.

    Errors: no ids, or more than the context holds.
    """
    check_length(model, len(ids))
    trace = Trace(rows=slice(-rows, None))
    logits = next_logits(model, ids, model.new_cache(), trace)
    return Reading(tuple(ids), logits, trace)


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
