"""The views of a server's model: ``explain-step`` and ``score``, as far as log probabilities in responses allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.endpoint.errors import ServerError
from llmcli.endpoint.response import parse_chunk
from llmcli.endpoint.server import Request, Server
from llmcli.endpoint.tokens import TOLERANCE, ServerToken, TokenLogprob
from llmcli.errors import usage_error
from llmcli.explain.report import Check, Claim, Report, ScoredToken, ScoreReport, check
from llmcli.text.surrogates import join_surrogates

TOP_LOGPROBS = 5  # OpenAI's maximum for completions


@dataclass(frozen=True)
class ServerCandidate:
    """A candidate for one step. ``rank`` is None for a chosen token that is not among those the server lists."""

    rank: int | None
    token: TokenLogprob
    chosen: bool


@dataclass(frozen=True)
class ServerStep(Report):
    """One generated token. ``rest`` is the probability of all unlisted tokens; ``surprisal`` is in bits."""

    model: str
    step: int
    context: str
    candidates: tuple[ServerCandidate, ...]
    chosen: ServerToken
    surprisal: float
    rest: float
    seed: int | None
    check: Check


def server_step(server: Server, request: Request, index: int) -> ServerStep:
    """Explain the token with number ``index`` of the generated text.

    Raises LlmcliError if the text ends before it, or the server sends no log probabilities.
    """
    generation, tokens = server.stream(request), list[ServerToken]()
    for chunk in generation:
        tokens += chunk.tokens
    if not tokens and generation.text:
        raise ServerError(
            f"{server.client.address.host} sends no log probabilities", "explain-step needs a server that does"
        )
    if index >= len(tokens):
        raise usage_error(
            f"there is no step {index}: the text ended after {len(tokens)} tokens ({generation.finish})",
            "choose an earlier step",
        )
    assert isinstance(request.prompt, str)
    return explain_token(server.name, request.prompt, tokens, index, request.fields.get("seed"))


def explain_token(model: str, prompt: str, tokens: Sequence[ServerToken], index: int, seed: int | None) -> ServerStep:
    """Explain ``tokens[index]``, where ``tokens`` continue ``prompt``.

    Raises LlmcliError if its log probability is unknown.
    """
    chosen = tokens[index]
    if chosen.logprob is None:
        raise ServerError(f"the server sent no log probability for token {index}", "choose another step")
    rows = [ServerCandidate(n, token, n == chosen.rank) for n, token in enumerate(chosen.top)]
    if chosen.rank is None:
        rows.append(ServerCandidate(None, chosen, True))
    listed = sum(row.token.prob or 0.0 for row in rows)
    before = b"".join(token.bytes for token in tokens[:index]).decode("utf-8", "replace")
    return ServerStep(
        model=model,
        step=index,
        context=prompt + before,
        candidates=tuple(rows),
        chosen=chosen,
        surprisal=chosen.surprisal,
        rest=max(1 - listed, 0.0),
        seed=seed,
        check=check(Claim("the probabilities sum to at most 1", max(listed - 1, 0.0), TOLERANCE)),
    )


def server_score(server: Server, text: str) -> ScoreReport:
    """Score ``text``: the server echoes it as its prompt, with log probabilities.

    Raises LlmcliError if the server does not echo prompts or sends no log probabilities of them, or the text has fewer
    than two tokens.
    """
    # Not max_tokens 0, which some servers take as no limit.
    request = Request(text, 1, {"temperature": 0}, top_logprobs=TOP_LOGPROBS)
    try:
        chunk = parse_chunk(server.complete(request, {"echo": True}), TOP_LOGPROBS)
    except ServerError as error:
        if error.status in (400, 422, 500, 501):
            error.hint = "not every server scores prompts: vLLM and llama-cpp-python do"
        raise
    first, end = locate_text(chunk.tokens, text)
    tokens = chunk.tokens[:end]
    if not join_surrogates(chunk.text).startswith(text) or any(token.logprob is None for token in tokens[1:]):
        raise ServerError(
            f"{server.client.address.host} does not send the log probabilities of a prompt",
            kind="server-without-prompt-logprobs",
        )
    if len(tokens) < 2:
        raise usage_error("the text is too short: its first token has no context", "use a longer text")
    return _score_report(server.name, text, tokens, first)


def locate_text(tokens: Sequence[ServerToken], text: str) -> tuple[int, int]:
    """Return where the tokens of ``text`` begin and end: a BOS token may precede, generated tokens follow.

    Some servers lose parts of characters, so that the bytes match nowhere: then all tokens but the last are the text's.
    """
    data = text.encode()
    for first in (0, 1):
        joined = b""
        for end, token in enumerate(tokens[first:], start=first + 1):
            joined += token.bytes
            if joined == data:
                return first, end
    return 0, len(tokens) - 1


def _score_report(name: str, text: str, tokens: Sequence[ServerToken], first: int) -> ScoreReport:
    scored = tuple(_scored_token(token, position) for position, token in enumerate(tokens[1:], start=1))
    bits = sum(token.surprisal for token in scored)
    mean, size = bits / len(scored), len(text.encode()) - (0 if first else len(tokens[0].bytes))
    joined = b"".join(token.bytes for token in tokens[first:]).decode("utf-8", "replace")
    excess = max(sum(entry.prob or 0.0 for entry in token.top) - 1 for token in tokens)
    return ScoreReport(
        model=name,
        first=tokens[0].vocab_entry,
        tokens=scored,
        bits=bits,
        bits_per_token=mean,
        bits_per_byte=bits / max(size, 1),
        perplexity=2.0**mean if mean < 1024 else math.inf,
        bytes=size,
        windows=None,
        check=check(
            Claim("the tokens' ASCII characters match the text's", float(_ascii(joined) != _ascii(text)), 0.0),
            Claim("all probabilities sum to at most 1", max(excess, 0.0), TOLERANCE),
        ),
    )


def _ascii(text: str) -> str:
    """The ASCII characters of ``text``, which no server loses."""
    return "".join(char for char in text if char.isascii())


def _scored_token(token: ServerToken, position: int) -> ScoredToken:
    assert token.logprob is not None
    best = token.top[0] if token.top else None
    return ScoredToken(
        position=position,
        piece=token.vocab_entry,
        chunk=token.text,
        logprob=token.logprob,
        surprisal=token.surprisal,
        rank=token.rank,
        entropy=None,
        favourite=None if best is None else best.vocab_entry,
        p_favourite=None if best is None else best.prob,
    )
