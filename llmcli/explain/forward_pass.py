"""An observed forward pass over a text, which most views start from, and the rounding error to expect in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.generation.distribution import check_finite
from llmcli.generation.reading import next_logits
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

DTYPE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Rounding can decide which expert a router chooses, and then another expert's output is added. For comparison: the
# logits of two unrelated texts differ by about 1.4.
ROUTER_TOLERANCE = 3e-1


@dataclass(frozen=True)
class ForwardPass:
    """One pass over ``ids``: the ``logits`` [V], fp32, of the token after them, and what ``trace`` recorded."""

    ids: tuple[int, ...]
    logits: Tensor
    trace: Trace


def observe(model: Transformer, ids: Sequence[int], rows: int = 1) -> ForwardPass:
    """Run the model over ``ids`` and record a trace of the last ``rows`` positions.

    Raises LlmcliError if there are no ids, or more than the model's context.
    """
    check_length(model, len(ids))
    trace = Trace(rows=slice(-rows, None))
    logits = next_logits(model, ids, model.new_cache(), trace)
    check_finite(logits)
    return ForwardPass(tuple(ids), logits, trace)


def check_length(model: Transformer, length: int) -> None:
    """Raise LlmcliError unless the model can read a text of ``length`` tokens."""
    if not length:
        raise usage_error("the text is empty, and the model has no BOS token to start from", "give a text")
    context = model.config.max_position_embeddings
    if length > context:
        raise usage_error(
            f"the text up to that position is {length} tokens long, but the model's context is {context}",
            kind="position-beyond-context",
        )


def tolerance(model: Transformer, dtype: torch.dtype | None = None) -> float:
    """Return how much two correct computations of the model's numbers may differ, relative to the numbers' size.

    It depends on the dtype to which they round, by default the model's, and on whether the model routes between
    experts. Quantized weights are restored exactly, so they allow no more.
    """
    dtype = dtype or model.dtype
    if model.config.moe is not None and dtype != torch.float32:
        return ROUTER_TOLERANCE
    return DTYPE_TOLERANCE[dtype]
