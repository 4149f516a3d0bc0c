"""``--context-overflow``: what to do where a text is longer than the model's context."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from llmcli.generate.loaded import LoadedModel
    from llmcli.generate.overflow import Overflow

OVERFLOWS = ("error", "truncate-start", "shift")

overflow_option = click.option(
    "--context-overflow",
    "overflow",
    type=click.Choice(OVERFLOWS),
    default="error",
    show_default=True,
    help="What a prompt longer than the context does: error, or lose its beginning (truncate-start). With shift the "
    "context also rolls while the text is written: when full, it loses its older half but for 4 tokens.",
)


def fit(loaded: LoadedModel, ids: list[int], overflow: Overflow) -> list[int]:
    """The prompt, or what is left of it where it was too long, which is then said. Errors: it is to be one."""
    from llmcli.generate.overflow import fitted
    from llmcli.render.generation import note

    limit = loaded.model.config.max_position_embeddings
    front = int(ids[:1] == loaded.tokenizer.encode("")[:1])  # a BOS token stays
    left = fitted(ids, limit, overflow, front=front)
    if len(left) < len(ids):
        gone = len(ids) - len(left)
        note(
            f"the prompt is {len(ids)} tokens long, the context {limit}: {gone} from its beginning are cut", sys.stderr
        )
    return left
