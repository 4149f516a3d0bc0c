"""Proofs that the compiled engine, which decodes on a CPU, gives the numbers of torch for this model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import cycle

import torch
from torch import Tensor

from llmcli.engine.native import MAX_ROWS, NativeStep, variant
from llmcli.engine.transformer import EngineTransformer
from llmcli.explain.forward_pass import tolerance
from llmcli.explain.verification.proof import Finding, Plan, Skipped, compare_logits, largest_difference
from llmcli.explain.verification.subject import Subject, batch
from llmcli.model.transformer import Transformer

SIZES = (MAX_ROWS, 1, 5, 2)  # tokens per step, repeated


def compiled_plans(subject: Subject) -> list[Plan]:
    """Return the plans that compare the compiled engine with torch, and with itself."""
    alone = cache(lambda: decode(subject, (1,)))

    def as_torch() -> Finding:
        native_of(subject)
        # The engine rounds nothing but keys and values.
        allowed = tolerance(subject.model, subject.new_cache().dtype)
        return compare_logits(alone(), exact_logits(subject), allowed, subject.loaded.tokenizer)

    def of_any_size() -> Finding:
        return Finding(largest_difference(decode(subject, SIZES), alone()), 0.0)

    return [
        Plan("native = torch", "the compiled engine gives the logits of torch with the same weights", as_torch),
        Plan(
            f"steps of {MAX_ROWS} = of 1",
            "the compiled engine gives the same bits for tokens decoded together",
            of_any_size,
        ),
    ]


def native_of(subject: Subject) -> NativeStep:
    """Return the compiled engine of the subject's model. Raises ``Skipped`` if it has none."""
    model = subject.model
    if model.device.type != "cpu":
        raise Skipped("the model runs on a GPU, but the compiled engine runs on the CPU only")
    if variant() is None:
        raise Skipped("llmcli was installed without the compiled engine, so torch runs every step")
    native = model.native if isinstance(model, EngineTransformer) else None
    if native is None:
        raise Skipped("torch runs every step of this model")
    return native


def decode(subject: Subject, sizes: Sequence[int]) -> Tensor:
    """Return the logits after every token, fp32 [T, V], decoded by the compiled engine in steps of ``sizes``.

    Raises ``Skipped`` if there is no such engine.
    """
    engine, kept, parts, first = native_of(subject), subject.new_cache(), [], 0
    for size in cycle(sizes):
        ids = subject.ids[first : first + size]
        if not ids:
            break
        parts.append(engine.feed(ids, kept, len(ids)))
        first += len(ids)
    return torch.cat(parts)


def exact_logits(subject: Subject) -> Tensor:
    """Return the logits after every token, fp32 [T, V], computed by torch alone, without rounding to a small dtype."""
    model = subject.model
    with torch.inference_mode():
        return Transformer.unembed(model, model.hidden(batch(model, subject.ids)))[0]
