"""One token of a server's and its rivals: as much of ``explain-step`` as can be seen from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.endpoint.failures import ServerError
from llmcli.endpoint.server import Ask, Server
from llmcli.endpoint.tokens import Rated, Token
from llmcli.errors import usage_error
from llmcli.explain.report import Check, Claim, Report, check

ROUNDING = 1e-3  # by which probabilities may be more than 1 together


@dataclass(frozen=True)
class ServerCandidate:
    """``rank`` is None for a token that was written, but is not among those the server lists."""

    rank: int | None
    rated: Rated
    chosen: bool


@dataclass(frozen=True)
class ServerStep(Report):
    """``rest`` is the probability of all tokens that the server did not list; ``surprisal`` in bits."""

    model: str
    step: int
    context: str
    candidates: tuple[ServerCandidate, ...]
    chosen: Token
    surprisal: float
    rest: float
    seed: int | None
    check: Check


def server_step(server: Server, ask: Ask, index: int) -> ServerStep:
    """The index-th token of the answer. Errors: it ends before that; the server tells no probabilities."""
    writing, tokens = server.write(ask), list[Token]()
    for piece in writing:
        tokens += piece.tokens
    if not tokens and writing.text:
        raise ServerError(
            f"{server.client.address.host} tells no probabilities", "explain-step needs a server with logprobs"
        )
    if index >= len(tokens):
        raise usage_error(
            f"there is no step {index}: the text ended after {len(tokens)} tokens ({writing.finish})",
            "ask for an earlier step",
        )
    assert isinstance(ask.prompt, str)
    return step_of(server.name, ask.prompt, tokens, index, ask.fields.get("seed"))


def step_of(model: str, prompt: str, tokens: Sequence[Token], index: int, seed: int | None) -> ServerStep:
    """The index-th of ``tokens``, which were written behind ``prompt``. Errors: nothing is told of it."""
    chosen = tokens[index]
    if chosen.logprob is None:
        raise ServerError(f"the server tells no probability of token {index}", "ask for another step")
    rows = [ServerCandidate(n, rival, n == chosen.rank) for n, rival in enumerate(chosen.top)]
    if chosen.rank is None:
        rows.append(ServerCandidate(None, chosen, True))
    listed = sum(row.rated.prob or 0.0 for row in rows)
    before = b"".join(token.bytes for token in tokens[:index]).decode("utf-8", "replace")
    return ServerStep(
        model=model,
        step=index,
        context=prompt + before,
        candidates=tuple(rows),
        chosen=chosen,
        surprisal=-chosen.logprob / math.log(2) + 0.0,  # no -0.0
        rest=max(1 - listed, 0.0),
        seed=seed,
        check=check(Claim("the probabilities make no more than 1", max(listed - 1, 0.0), ROUNDING)),
    )
