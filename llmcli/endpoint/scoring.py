"""A text's probability as a server's model sees it: what it gives back when it is to repeat its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmcli.endpoint.failures import ServerError
from llmcli.endpoint.halves import whole
from llmcli.endpoint.reply import read_piece
from llmcli.endpoint.server import Ask, Server
from llmcli.endpoint.tokens import Rated, Token
from llmcli.errors import usage_error
from llmcli.explain.report import Claim, RemoteVocabEntry, ScoredToken, ScoreReport, check

RIVALS = 5  # the most that plain OpenAI allows
ROUNDING = 1e-3  # by which probabilities may be more than 1 together


def server_score(server: Server, text: str) -> ScoreReport:
    """Score a text that fits into the model's context.

    Errors: the server does not repeat prompts, or tells nothing of them; fewer than two tokens.
    """
    ask = Ask(text, 1, {"temperature": 0}, rivals=RIVALS)  # of no token, some servers write as many as they can
    try:
        piece = read_piece(server.answer(ask, {"echo": True}), RIVALS)
    except ServerError as error:
        if error.status in (400, 422, 500, 501):
            error.hint = "not every server tells the probabilities of a given text: vLLM and llama-cpp-python do"
        raise
    first, end = own(piece.tokens, text)
    tokens = piece.tokens[:end]
    if not whole(piece.text).startswith(text) or any(token.logprob is None for token in tokens[1:]):
        raise ServerError(
            f"{server.client.address.host} does not tell the probabilities of a given text",
            "vLLM and llama-cpp-python do (the latter with --logits_all true); or score it here, without --endpoint",
        )
    if len(tokens) < 2:
        raise usage_error("the text is too short: its first token is predicted from nothing", "give a longer one")
    return _report(server.name, text, tokens, first)


def own(tokens: Sequence[Token], text: str) -> tuple[int, int]:
    """Where the tokens of ``text`` begin and end: what stands before is BOS, what comes behind was written.

    Some servers lose parts of characters, so that no place fits: then all but the last token are the text's.
    """
    data = text.encode()
    for first in (0, 1):
        joined = b""
        for end, token in enumerate(tokens[first:], start=first + 1):
            joined += token.bytes
            if joined == data:
                return first, end
    return 0, len(tokens) - 1


def _report(name: str, text: str, tokens: Sequence[Token], first: int) -> ScoreReport:
    scored = tuple(_scored(token, place) for place, token in enumerate(tokens[1:], start=1))
    bits = sum(token.surprisal for token in scored)
    mean, size = bits / len(scored), len(text.encode()) - (0 if first else len(tokens[0].bytes))
    joined = b"".join(token.bytes for token in tokens[first:]).decode("utf-8", "replace")
    excess = max(sum(rival.prob or 0.0 for rival in token.top) - 1 for token in tokens)
    return ScoreReport(
        model=name,
        first=_piece(tokens[0]),
        tokens=scored,
        bits=bits,
        bits_per_token=mean,
        bits_per_byte=bits / max(size, 1),
        perplexity=2.0**mean if mean < 1024 else math.inf,
        bytes=size,
        check=check(
            Claim("the tokens' ASCII characters are the text's", float(_ascii(joined) != _ascii(text)), 0.0),
            Claim("nowhere do probabilities make more than 1", max(excess, 0.0), ROUNDING),
        ),
    )


def _ascii(text: str) -> str:
    """The text without the characters that a server may have lost."""
    return "".join(char for char in text if char.isascii())


def _scored(token: Token, place: int) -> ScoredToken:
    assert token.logprob is not None
    best = token.top[0] if token.top else None
    return ScoredToken(
        position=place,
        piece=_piece(token),
        chunk=token.text,
        logprob=token.logprob,
        surprisal=-token.logprob / math.log(2) + 0.0,  # no -0.0
        rank=token.rank,
        entropy=None,
        favourite=None if best is None else _piece(best),
        p_favourite=None if best is None else best.prob,
    )


def _piece(rated: Rated) -> RemoteVocabEntry:
    return RemoteVocabEntry(rated.id, rated.text, rated.bytes)
