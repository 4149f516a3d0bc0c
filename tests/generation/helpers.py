"""Functions shared by the tests of generation."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import Any

from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Continuation, Proposer, Step, decode_steps
from llmcli.model.transformer import Transformer


def speculative_steps(
    model: Transformer,
    prompt_ids: Sequence[int],
    proposer: Proposer | None,
    *,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    rolls: bool = False,
    **options: Any,
) -> Generator[Step, int | None, None]:
    """As ``steps``, with a proposer."""
    context = model.config.max_position_embeddings
    text = Continuation(list(prompt_ids), sampler, max_new_tokens, context, stop_ids, rolls)
    return decode_steps(model, text, proposer=proposer, **options)
