"""The client of an OpenAI-compatible server: addresses, keys, streams, log probabilities, options and retries."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.endpoint import batch, client
from llmcli.endpoint.address import ApiKey, find_key, parse_address
from llmcli.endpoint.client import Client
from llmcli.endpoint.errors import ServerError
from llmcli.endpoint.response import parse_chunk, server_sent_events, split_lines
from llmcli.endpoint.server import Request, Server, open_server
from llmcli.endpoint.server_kinds import KINDS, OPENAI, UNKNOWN_KIND, request_fields
from llmcli.endpoint.tokens import ServerToken, parse_tokens
from llmcli.endpoint.views import locate_text
from llmcli.errors import EXIT_USAGE, LlmcliError
from llmcli.generation.filters import OPTIONS
from llmcli.text.chat_template import Message
from llmcli.text.surrogates import SurrogateJoiner
from tests.endpoint_server import Endpoint, Handler, event

SECRET = "sk-Very/Secret+0123456789="


# --- addresses and keys ---


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api/v1"),
        ("https://models.example/v1beta/openai/", "https://models.example/v1beta/openai"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_the_base_url_of_an_address(typed: str, base: str) -> None:
    assert parse_address(typed).base == base


@pytest.mark.parametrize(
    "typed",
    [
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://x:99999",
        f"http://me:{SECRET}@x",
        f"http://x/?key={SECRET}",
        f"http://x#{SECRET}",
        "http://a b",
        "http://x\x1b[31m",
        "http://[::1",
    ],
)
def test_an_invalid_address_is_an_error_that_does_not_quote_it(typed: str) -> None:
    with pytest.raises(LlmcliError) as caught:
        parse_address(typed)
    assert caught.value.exit_code == EXIT_USAGE
    assert SECRET not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_only_addresses_of_this_machine_are_loopback() -> None:
    loopback = ("http://localhost", "http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:5", "http://x.localhost")
    remote = ("http://192.168.0.1", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://0.0.0.0")
    assert all(parse_address(url).is_loopback for url in loopback)
    assert not any(parse_address(url).is_loopback for url in remote)


@pytest.mark.parametrize(
    ("url", "variables", "sent"),
    [
        ("http://localhost:1", {"LLMCLI_API_KEY": "a"}, "a"),
        ("https://x.example", {"LLMCLI_API_KEY": "a", "OPENAI_API_KEY": "b"}, "a"),
        ("https://api.openai.com", {"OPENAI_API_KEY": "b"}, "b"),
        ("https://eu.api.openai.com", {"OPENAI_API_KEY": "b"}, "b"),
        ("https://x.example", {"OPENAI_API_KEY": "b"}, None),
        ("https://api.openai.com.evil.example", {"OPENAI_API_KEY": "b"}, None),
        ("https://notopenai.com", {"OPENAI_API_KEY": "b"}, None),
        ("http://api.openai.com", {"OPENAI_API_KEY": "b"}, None),
        ("http://localhost:1", {"OPENAI_API_KEY": "b"}, None),
        ("http://x.example", {}, None),
    ],
)
def test_which_key_is_sent_to_which_server(
    url: str, variables: dict[str, str], sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLMCLI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    key = find_key(parse_address(url), None)
    assert (key and key.value) == sent


def test_a_key_is_not_sent_unencrypted_over_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMCLI_API_KEY", raising=False)
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    key = find_key(parse_address("https://x.example"), file)
    assert key is not None
    assert key.value == SECRET
    with pytest.raises(LlmcliError, match="unencrypted"):
        find_key(parse_address("http://192.168.0.1:8000"), file)
    monkeypatch.setenv("LLMCLI_API_KEY", SECRET)
    with pytest.raises(LlmcliError, match="unencrypted"):
        find_key(parse_address("http://x.example"), None)
    for invalid in (b"", b"two words", b"\xff\xfe", b"a\nb", "schl\u00fcssel".encode()):
        file.write_bytes(invalid)
        with pytest.raises(LlmcliError, match="does not contain an API key"):
            find_key(parse_address("https://x.example"), file)


def test_a_key_is_never_shown() -> None:
    key = ApiKey(SECRET)
    assert SECRET not in repr(key) + str(key) + repr(vars(Request("x", 1, {})))
    content = {"a": [f"x{SECRET}y", {SECRET: SECRET}], "b": 3}
    assert SECRET not in json.dumps(key.redact(content))
    assert ApiKey("EMPTY").redact("EMPTY words") == "EMPTY words"


# --- streams ---


TEXT = "Grüße 🙂 日本 \u2028 end"
STREAM = b": hello\r\n\r\n" + b"".join(event({"n": n, "t": TEXT}) for n in range(3)) + b"data: [DONE]\n\nnonsense"


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(edges)]
    assert list(server_sent_events(chunks)) == [{"n": n, "t": TEXT} for n in range(3)]


def test_an_incomplete_last_line_is_dropped() -> None:
    assert list(split_lines([b"one\ntw"])) == [b"one"]


def test_an_endless_line_is_an_error() -> None:
    def endless() -> Any:
        while True:
            yield b"x" * 65536

    with pytest.raises(ServerError, match="endless line"):
        list(split_lines(endless()))


@pytest.mark.parametrize("data", [b"<html>\n", b"data: {\n\n", b"data: [1]\n\n", b"data: " + b"[" * 10**5 + b"\n"])
def test_an_invalid_event_is_an_error(data: bytes) -> None:
    with pytest.raises(ServerError, match="invalid response"):
        list(server_sent_events([data]))


@given(st.text("a🙂日\ud83d\ude42", min_size=1), st.lists(st.integers(0, 20)))
def test_surrogate_pairs_split_between_chunks_are_joined(text: str, cuts: list[int]) -> None:
    units = text.encode("utf-16-le", "surrogatepass")
    halves = "".join(chr(int.from_bytes(units[n : n + 2], "little")) for n in range(0, len(units), 2))
    edges = [0, *sorted(cut for cut in cuts if cut <= len(halves)), len(halves)]
    joiner = SurrogateJoiner()
    joined = "".join(joiner.feed(halves[a:b]) for a, b in pairwise(edges)) + joiner.finish()
    assert joined == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- log probabilities ---


def test_logprobs_of_completions_and_of_chats_are_parsed() -> None:
    completion = {
        "tokens": [" a", "bytes:\\xf0\\x9f"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{" b": -2, " a": -0.5}, None],
    }
    first, second = parse_tokens(completion, 2)
    assert (first.text, first.bytes, first.logprob, first.rank) == (" a", b" a", -0.5, 0)
    assert [rival.text for rival in first.top] == [" a", " b"]
    assert (second.bytes, second.logprob, second.rank, second.top) == (b"\xf0\x9f", None, None, ())
    chat = {
        "content": [
            {
                "token": "\ufffd",
                "id": 5,
                "bytes": [240, 159],
                "logprob": -3,
                "top_logprobs": [{"token": "x", "logprob": -1}],
            }
        ]
    }
    (only,) = parse_tokens(chat, 2)
    assert (only.id, only.bytes, only.rank, only.top[0].text) == (5, b"\xf0\x9f", None, "x")


def test_a_generated_token_added_below_the_top_tokens_has_no_rank() -> None:
    body = {"tokens": ["z"], "token_logprobs": [-9], "top_logprobs": [{"a": -0.5, "b": -1, "z": -9}]}
    assert parse_tokens(body, 2)[0].rank is None
    assert parse_tokens(body, 3)[0].rank == 2


@pytest.mark.parametrize(
    ("number", "problem"),
    [(math.nan, "not a number"), ("x", "not a number"), (True, "not a number"), (10**400, "above 0")],
)
def test_a_log_probability_that_cannot_be_one_is_an_error(number: object, problem: str) -> None:
    with pytest.raises(ServerError, match=f"a log probability is {problem}"):
        parse_tokens({"content": [{"token": "a", "logprob": number}]}, 2)


def test_without_all_the_top_tokens_there_is_no_list() -> None:
    body = {"tokens": ["z"], "token_logprobs": [-9], "top_logprobs": [{"": -0.5, "b": -1}]}
    assert [rival.text for rival in parse_tokens(body, 2)[0].top] == ["", "b"]
    assert parse_tokens(body, 3)[0].top == ()
    body["top_logprobs"] = [{"": -0.5, "z": -9}]  # one of the top two is missing; the generated token was added to them
    assert parse_tokens(body, 2)[0].top == ()
    body = {"tokens": [""], "token_logprobs": [-9], "top_logprobs": [{"": -9, "b": -1}]}
    assert parse_tokens(body, 2)[0].top == ()


NAMES = ["choices", "delta", "message", "text", "content", "logprobs", "tokens", "token_logprobs", "top_logprobs"]
NAMES += ["token", "logprob", "bytes", "id", "finish_reason", "usage", "prompt_tokens", "error"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(JSON)
def test_any_response_is_parsed_or_an_error(content: Any) -> None:
    bodies = (content, {"choices": content}, {"choices": [content]}, {"choices": [{"text": "", "logprobs": content}]})
    for body in bodies:
        if not isinstance(body, dict):
            continue
        try:
            chunk = parse_chunk(body, 3)
        except ServerError:
            continue
        assert isinstance(chunk.text, str)
        for token in chunk.tokens:
            assert token.prob is None or 0 <= token.prob <= 1


def test_the_tokens_of_a_text_are_those_between_bos_and_the_generated_token() -> None:
    def tokens(*texts: str) -> list[ServerToken]:
        return [ServerToken(text, text.encode(), None, -1.0, ()) for text in texts]

    assert locate_text(tokens("The", " king", " ran"), "The king") == (0, 2)
    assert locate_text(tokens("<s>", "The", " king", " ran"), "The king") == (1, 3)
    assert locate_text(tokens("The", " king"), "The king") == (
        0,
        2,
    )  # the model generated an end token, which the server does not report
    assert locate_text(tokens("The", "", "", " king", " ran"), "The 🙂 king") == (0, 4)


# --- options ---


def test_every_server_gets_the_standard_fields_and_no_others() -> None:
    standard = {"temperature": 0.5, "top-p": 0.9, "presence-penalty": 1.0, "frequency-penalty": 1.0}
    names = {name: name.replace("-", "_") for name in standard}
    for kind in (UNKNOWN_KIND, *KINDS):
        fields = request_fields(kind, standard, seed=3)
        assert fields == {**{names[name]: value for name, value in standard.items()}, "seed": 3}
    assert request_fields(UNKNOWN_KIND, {}) == {}


def test_an_option_that_a_server_may_not_support_is_an_error() -> None:
    fields = {"vLLM": "repetition_penalty", "SGLang": "repetition_penalty", "llama.cpp": "repeat_penalty"}
    fields |= {"llama-cpp-python": "repeat_penalty", "llmcli": "repetition_penalty"}
    for kind in (UNKNOWN_KIND, *KINDS):
        if kind.name in fields:
            assert request_fields(kind, {"repetition-penalty": 1.5}) == {fields[kind.name]: 1.5}
            continue
        with pytest.raises(LlmcliError, match="repetition-penalty") as caught:
            request_fields(kind, {"repetition-penalty": 1.5})
        assert "vLLM" in caught.value.hint
    others = {"seed", "logit-bias", "repeat-last-n", "dry-sequence-breaker"}
    assert {name for kind in KINDS for name in kind.fields} - others == set(OPTIONS)


def test_mirostat_is_a_number_a_version_and_dry_has_texts() -> None:
    fields = {kind.name: kind for kind in KINDS}
    values = {"mirostat-tau": 5.0, "dry-allowed-length": 3.0}
    requested = request_fields(fields["llama.cpp"], values, breakers=(";",))
    assert requested == {
        "mirostat_tau": 5.0,
        "mirostat": 2,
        "dry_allowed_length": 3,
        "dry_sequence_breakers": [";"],
    }
    assert type(requested["dry_allowed_length"]) is int
    off = request_fields(fields["llama-cpp-python"], {"mirostat-tau": 0.0})
    assert off == {"mirostat_tau": 0.0, "mirostat_mode": 0}
    for setting in ({"xtc-threshold": 0.2}, {"top-n-sigma": 1.0}, {"mirostat-tau": 1.0}):
        with pytest.raises(LlmcliError, match="vLLM is not known to support") as caught:
            request_fields(fields["vLLM"], setting)
        assert "llama.cpp" in caught.value.hint


def test_top_k_0_keeps_all_tokens_on_every_server() -> None:
    fields = {kind.name: request_fields(kind, {"top-k": 0.0}) for kind in KINDS if "top-k" in kind.fields}
    assert {name: field["top_k"] for name, field in fields.items()} == {
        "llmcli": 0,
        "vLLM": -1,
        "SGLang": -1,
        "llama.cpp": 0,
        "llama-cpp-python": 0,
    }


def test_biases_need_token_ids_and_the_range_of_the_openai_api() -> None:
    assert request_fields(UNKNOWN_KIND, {}, biases=(("262", 5.0), ("7", -math.inf))) == {
        "logit_bias": {"262": 5.0, "7": -100.0}
    }
    for invalid in ((" Paris", 5.0), ("262", 1e3)):
        with pytest.raises(LlmcliError):
            request_fields(UNKNOWN_KIND, {}, biases=(invalid,))


def test_a_conversation_is_a_chat_request() -> None:
    request = Request((Message("user", "hi"),), 5, {"top_p": 0.5}, ("x",), 3)
    body = request.body("m", OPENAI)
    assert ("max_tokens" in body, body["max_completion_tokens"]) == (False, 5)
    assert Request("x", 5, {}).body("m", OPENAI) == {"model": "m", "prompt": "x", "max_tokens": 5}
    assert (request.path, request.body("m", UNKNOWN_KIND)) == (
        "/chat/completions",
        {
            "model": "m",
            "max_tokens": 5,
            "top_p": 0.5,
            "messages": [{"role": "user", "content": "hi"}],
            "logprobs": True,
            "top_logprobs": 3,
            "stop": ["x"],
        },
    )


# --- retries ---


def test_retries_wait_longer_each_time_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Event, "wait", lambda self, seconds: waits.append(seconds))
    attempts = 0

    def fails() -> None:
        nonlocal attempts
        attempts += 1
        raise ServerError("busy", retryable=True, retry_after=7.0 if attempts == 2 else None)

    with pytest.raises(ServerError):
        batch.with_retries(fails, Event())
    assert attempts == batch.ATTEMPTS
    assert len(waits) == batch.ATTEMPTS - 1
    expected = [min(0.5 * 2**n, 30) + (7 if n == 1 else 0) for n in range(len(waits))]
    assert all(
        most - min(0.5 * 2**n, 30) / 2 <= wait <= most
        for n, (wait, most) in enumerate(zip(waits, expected, strict=True))
    )
    assert batch.retry_delay(0, 1e9) <= batch.MAX_RETRY_AFTER + 1
    with pytest.raises(ServerError):
        batch.with_retries(lambda: (_ for _ in ()).throw(ServerError("no")), Event())
    assert len(waits) == batch.ATTEMPTS - 1


# --- failing servers ---


def generate(endpoint: Endpoint, tokens: int = 5) -> str:
    stream = open_server(endpoint.url, None, None).stream(Request("Zero", tokens, {}))
    for _ in stream:
        pass
    return stream.text


def test_a_stream_in_single_bytes_is_the_same_text(endpoint: Endpoint) -> None:
    expected = generate(endpoint, 3)
    chunks = [{"choices": [{"text": text, "finish_reason": None}]} for text in (" one", " two", " 🙂")]
    data = b"".join(map(event, [*chunks, {"choices": [{"text": "", "finish_reason": "length"}]}]))
    endpoint.next_responders = [lambda handler: handler.stream_slowly(data, 1)]
    assert generate(endpoint, 3) == expected == " one two 🙂"
    endpoint.next_responders = [lambda handler: handler.stream_slowly(data[: data.index("🙂".encode()) + 2], 7)]
    with pytest.raises(ServerError, match="ended early"):
        generate(endpoint)


def test_a_server_without_streaming_sends_the_whole_text(endpoint: Endpoint) -> None:
    endpoint.next_responders = [
        lambda handler: handler.json({"choices": [{"text": "all of it", "finish_reason": "stop"}]})
    ]
    assert generate(endpoint) == "all of it"


def test_a_surrogate_pair_in_two_events(endpoint: Endpoint) -> None:
    parts = ["a\ud83d", "\ude42b\ud83d"]
    events = [event({"choices": [{"text": text, "finish_reason": None}]}, ascii=True) for text in parts]
    last = event({"choices": [{"text": "", "finish_reason": "stop"}]})
    endpoint.next_responders = [lambda handler: handler.raw(b"".join(events) + last)]
    assert generate(endpoint) == "a🙂b\ufffd"


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (lambda h: h.raw(b"<html>Welcome</html>", kind="text/html"), "invalid response"),
        (lambda h: h.raw(b'data: {"choices": \n\n'), "not JSON"),
        (lambda h: h.raw(event({"choices": [{"text": 5}]})), "invalid response"),
        (lambda h: h.raw(event({"choices": {"text": ""}})), "no choices"),
        (lambda h: h.raw(event({"error": {"message": "out of\nmemory"}})), "out of memory"),
        (lambda h: h.raw(b""), "ended early"),
        (lambda h: h.raw(b"data: [DONE]\n\n"), "ended early"),
        (lambda h: h.raw(b"", 302, Location="http://elsewhere.example/v1"), "elsewhere.example"),
        (lambda h: h.raw(b"", 204), "status 204"),
        (lambda h: h.raw(b"x" * 10**6, 500), "status 500"),
        (lambda h: h.json({"error": {"message": "too long"}}, 400), "too long"),
        (lambda h: h.json({"detail": [{"msg": "bad \x1b[31m field"}]}, 422), "bad"),
        (lambda h: h.json({}, 429, Retry_After="7"), "status 429"),
        (lambda h: h.raw(b"\x1f\x8b" + b"\0" * 99, Content_Encoding="gzip"), "compressed"),
        (lambda h: h.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"), "broke"),
        (lambda h: h.wfile.write(b"hello?\r\n\r\n"), "broke"),
        (lambda h: h.connection.close(), "broke"),
    ],
)
def test_each_failure_is_a_one_line_error(endpoint: Endpoint, respond: Any, message: str) -> None:
    def once(handler: Handler) -> None:
        handler.close_connection = True
        respond(handler)

    endpoint.next_responders = [once]
    with pytest.raises(ServerError, match=message) as caught:
        generate(endpoint)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.__cause__ is None
    assert len(endpoint.posts) == 1  # redirects are not followed


def test_the_retry_after_header(endpoint: Endpoint) -> None:
    for header, seconds in (("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("-1", 0.0), ("nan", None)):
        endpoint.next_responders = [lambda handler, header=header: handler.json({}, 429, Retry_After=header)]
        with pytest.raises(ServerError) as caught:
            generate(endpoint)
        assert (caught.value.retryable, caught.value.retry_after) == (True, seconds)


def endless(handler: Handler, data: bytes) -> None:
    handler.begin_stream()
    while True:
        handler.wfile.write(data)


def test_an_endless_text_is_cut_at_the_requested_length(endpoint: Endpoint) -> None:
    data = event({"choices": [{"text": "x", "finish_reason": None}]})
    endpoint.next_responders = [lambda handler: endless(handler, data)]
    stream = open_server(endpoint.url, None, None).stream(Request("Zero", 9, {}))
    assert [chunk.text for chunk in stream][-1] == ""
    assert (stream.text, stream.tokens, stream.finish) == ("x" * 9, 9, "length")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 65536, "endless line"),
        (event({"choices": []}) * 100, "without text"),
        (event({"choices": [{"text": "x" * 10**5}]}), "longer"),
    ],
)
def test_other_endless_responses_are_errors(endpoint: Endpoint, data: bytes, message: str) -> None:
    endpoint.next_responders = [lambda handler: endless(handler, data)]
    with pytest.raises(ServerError, match=message):
        generate(endpoint)


def silent(handler: Handler) -> None:
    """Send nothing until the client closes the connection."""
    handler.rfile.read(1)


def test_keep_alive_comments_do_not_reset_the_timeout(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT", 0.2)
    endpoint.next_responders = [lambda handler: endless(handler, b": still here\n\n"), silent]
    for _ in range(2):
        with pytest.raises(ServerError, match="in time") as caught:
            generate(endpoint)
        assert caught.value.retryable


def test_a_response_without_streaming_is_limited_in_size(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_RESPONSE_BYTES", 10**6)
    server = open_server(endpoint.url, None, None)
    endpoint.next_responders = [lambda handler: endless(handler, b" " * 65536)]
    with pytest.raises(ServerError, match="does not end"):
        server.complete(Request("Zero", 1, {}))


def test_an_unreachable_server(endpoint: Endpoint) -> None:
    with pytest.raises(ServerError, match="cannot connect") as caught:
        open_server("http://127.0.0.1:1", None, None)
    assert caught.value.retryable


def test_loopback_addresses_bypass_the_proxy(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert generate(endpoint, 2) == " one two"


# --- models ---


def test_a_single_model_is_the_default_and_several_are_listed(endpoint: Endpoint) -> None:
    assert open_server(endpoint.url, None, None).model == "toy"
    endpoint.models = ["a", "b"]
    with pytest.raises(LlmcliError, match="has 2 models") as caught:
        open_server(endpoint.url, None, None)
    assert "a, b" in caught.value.message
    assert open_server(endpoint.url, "c", None).model == "c"
    endpoint.models = ["a", "x\x1b[31m", "y" * 10**6, ""]
    assert open_server(endpoint.url, None, None).model == "a"
    endpoint.models = []
    with pytest.raises(LlmcliError, match="has no models"):
        open_server(endpoint.url, None, None)


@pytest.mark.parametrize(("owner", "name"), [(kind.owner, kind.name) for kind in KINDS] + [("acme", "this server")])
def test_the_kind_of_server_follows_from_the_owner_of_its_models(endpoint: Endpoint, owner: str, name: str) -> None:
    endpoint.owner = owner
    assert open_server(endpoint.url, None, None).kind.name == name


def test_a_client_hides_its_key(endpoint: Endpoint) -> None:
    server = Server(Client(parse_address(endpoint.url), ApiKey(SECRET)), "m", UNKNOWN_KIND)
    assert SECRET not in repr(server) + repr(vars(server.client))
