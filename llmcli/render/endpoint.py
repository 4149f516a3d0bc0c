"""What a server wrote, for the eye: the line that sums it up, and the one that says what cannot be known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.generation import ENDINGS, note
from llmcli.render.terminal import one_line

if TYPE_CHECKING:
    from llmcli.endpoint.writing import Writing
    from llmcli.explain.rivals import TokenReport


def ending(finish: str | None) -> str:
    """Why a server's text ended; an unknown reason is told in its own word."""
    return ENDINGS.get(finish or "", one_line(f"the server says “{(finish or '')[:40]}”"))


def print_answer_summary(writing: Writing, stream: TextIO, *, seed: int | None) -> None:
    """Counts, speed, why it stopped, and the seed if one was asked for."""
    about = "" if writing.counted else "about "
    decoded, seconds = writing.tokens - 1, writing.seconds - writing.first_seconds
    speed = f"{decoded / seconds:.0f} tokens/s" if decoded > 0 and seconds > 0 else "-"
    prompt = "" if writing.usage.prompt is None else f"prompt {writing.usage.prompt} tokens | "
    note(
        f"{about}{writing.tokens} tokens, {speed} | {prompt}first token after {writing.first_seconds:.2f} s | "
        f"stopped: {ending(writing.finish)} | seed {'not set' if seed is None else seed}",
        stream,
    )


def print_unknown(told: Sequence[TokenReport], stream: TextIO) -> None:
    """What a table of a server's tokens cannot hold."""
    if all(report.logprob is None for report in told):
        note("this server tells no probabilities", stream)
        return
    note(
        "p is as the server tells it, before or after its temperature. From outside nobody knows the entropy, "
        "final p, the draw, nor the rank and p of tokens that it does not list.",
        stream,
    )
