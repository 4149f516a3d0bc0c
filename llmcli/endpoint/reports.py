"""A server's tokens as the views show them: what nobody outside can know is None."""

from __future__ import annotations

from collections.abc import Iterator

from llmcli.endpoint.reply import Piece
from llmcli.endpoint.tokens import Token
from llmcli.explain.report import Alternative, GeneratedToken


def reports(piece: Piece, first: int) -> Iterator[GeneratedToken]:
    """Of the tokens of a piece, numbered from ``first``; a text without tokens counts as one."""
    text = piece.text
    tokens = piece.tokens or ((Token(text, text.encode(), None, None, ()),) if text else ())
    for index, token in enumerate(tokens, start=first):
        yield report(token, index)


def report(token: Token, index: int) -> GeneratedToken:
    """Of one token. The rank is known where it is among those told."""
    return GeneratedToken(
        index=index,
        id=token.id,
        text=token.text,
        bytes=token.bytes,
        logprob=token.logprob,
        prob=token.prob,
        final_prob=None,
        rank=token.rank,
        entropy=None,
        u=None,
        top=tuple(Alternative(rival.id, rival.text, rival.bytes, rival.prob or 0.0) for rival in token.top),
    )
