"""The API key never appears in a server's text or tokens, however the server splits it between events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.endpoint.address import ApiKey, parse_address
from llmcli.endpoint.client import Client
from llmcli.endpoint.errors import ServerError
from llmcli.endpoint.key_filter import KeyFilter
from llmcli.endpoint.response import ResponseChunk
from llmcli.endpoint.server import Request, Server
from llmcli.endpoint.server_kinds import UNKNOWN_KIND
from llmcli.endpoint.tokens import ServerToken
from tests.endpoint_server import Endpoint, Handler, event

SECRET = "sk-abcabc-sk-abcabd"  # begins with its own beginning several times


def chunk(text: str, size: int = 0) -> ResponseChunk:
    """A chunk with a token for every ``size`` characters, or without tokens."""
    parts = [text[n : n + size] for n in range(0, len(text), size)] if size else []
    tokens = tuple(ServerToken(part, part.encode(), None, -1.0, ()) for part in parts)
    return ResponseChunk(text, tokens, None, None)


def filtered(texts: list[str], size: int = 0) -> tuple[str, str]:
    """What the filter returns for chunks with these texts: the joined text, and the joined text of the tokens."""
    key_filter = KeyFilter(ApiKey(SECRET))
    chunks = [*(key_filter.feed(chunk(text, size)) for text in texts), key_filter.finish()]
    tokens = [token.text for each in chunks for token in each.tokens]
    return "".join(each.text for each in chunks), "".join(tokens)


pieces = st.sampled_from([SECRET, SECRET[:-1], SECRET[:8], SECRET[3:], "s", "k-", "a🙂", " "])


@given(st.lists(pieces, max_size=6).map("".join), st.lists(st.integers(0, 99)), st.integers(1, 5))
def test_a_key_is_replaced_wherever_the_text_is_cut(text: str, cuts: list[int], size: int) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    shown, tokens = filtered([text[a:b] for a, b in pairwise(edges)], size)
    rest = text.replace(SECRET, "[key]")
    held = next((n for n in range(len(SECRET), 7, -1) if rest.endswith(SECRET[:n])), 0)
    assert shown == (rest[: len(rest) - held] + "[key]" if held else rest)
    assert SECRET not in tokens
    assert tokens.endswith(SECRET[:8]) is False
    if "sk-" not in text:
        assert tokens == text


def test_text_without_the_beginning_of_a_key_is_not_delayed() -> None:
    key_filter = KeyFilter(ApiKey(SECRET))
    assert key_filter.feed(chunk("words ", 2)) == chunk("words ", 2)
    assert key_filter.feed(chunk("sk")).text == ""
    assert key_filter.feed(chunk("i")).text == "ski"
    for key in (None, ApiKey("EMPTY")):
        assert KeyFilter(key).feed(chunk("EMPTY", 1)) == chunk("EMPTY", 1)


@pytest.mark.parametrize("end", ["finish", "length", "early"])
@pytest.mark.parametrize("form", ["chat", "completion"])
def test_a_server_that_spells_the_key_shows_nothing(endpoint: Endpoint, form: str, end: str) -> None:
    letters = ["x", *SECRET, "y", "s"]

    def spell(handler: Handler) -> None:
        handler.begin_stream()
        for letter in letters:
            entry = {"token": letter, "bytes": list(letter.encode()), "logprob": -1.0}
            inner = {"delta": {"content": letter}} if form == "chat" else {"text": letter}
            handler.wfile.write(event({"choices": [{**inner, "logprobs": {"content": [entry]}}]}))
        if end == "finish":
            handler.wfile.write(event({"choices": [{"text": "", "finish_reason": "stop"}]}))

    endpoint.responder = spell
    server = Server(Client(parse_address(endpoint.url), ApiKey(SECRET)), "m", UNKNOWN_KIND)
    limit = len(letters) - 3 if end == "length" else 99
    generation = server.stream(Request("p", limit, {}, top_logprobs=1))
    texts, tokens = [], []
    try:
        for piece in generation:
            texts.append(piece.text)
            tokens += piece.tokens
    except ServerError:
        assert end == "early"
    expected = "x[key]" if end == "length" else "x[key]ys"
    assert generation.text == expected
    assert "".join(texts) == (expected[:-1] if end == "early" else expected)
    assert "".join(token.text for token in tokens) == "".join(texts)
    assert SECRET.encode() not in b"".join(token.bytes for token in tokens)


def test_a_server_that_only_says_continue_does_not_hold_the_client(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmcli.endpoint.client.READ_TIMEOUT", 0.2)

    def repeat(handler: Handler) -> None:
        while True:
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    endpoint.responder = repeat
    client = Client(parse_address(endpoint.url), None)
    with pytest.raises(ServerError, match="did not respond in time"):
        client.post("/completions", {})
    endpoint.responder = None
    assert client.post("/completions", {"prompt": "x", "max_tokens": 1})["choices"]
