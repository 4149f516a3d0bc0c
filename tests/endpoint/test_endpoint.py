"""What lies between a server and the commands: addresses, keys, streams, numbers, options, and asking again."""

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
from llmcli.endpoint.response import SurrogateJoiner, parse_chunk, server_sent_events, split_lines
from llmcli.endpoint.server import Request, Server, open_server
from llmcli.endpoint.server_kinds import KINDS, OPENAI, UNKNOWN_KIND, request_fields
from llmcli.endpoint.tokens import ServerToken, parse_tokens
from llmcli.endpoint.views import locate_text
from llmcli.errors import EXIT_USAGE, LlmcliError
from llmcli.generation.filters import FILTERS
from llmcli.text.chat_template import Message
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
def test_an_address_is_completed(typed: str, base: str) -> None:
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
def test_what_is_no_address_is_an_error_that_quotes_nothing(typed: str) -> None:
    with pytest.raises(LlmcliError) as caught:
        parse_address(typed)
    assert caught.value.exit_code == EXIT_USAGE
    assert SECRET not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_only_this_machine_is_here() -> None:
    here = ("http://localhost", "http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:5", "http://x.localhost")
    there = ("http://192.168.0.1", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://0.0.0.0")
    assert all(parse_address(url).is_loopback for url in here)
    assert not any(parse_address(url).is_loopback for url in there)


@pytest.mark.parametrize(
    ("url", "known", "sent"),
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
def test_which_key_goes_where(
    url: str, known: dict[str, str], sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLMCLI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    found = find_key(parse_address(url), None)
    assert (found and found.value) == sent


def test_no_key_goes_where_everybody_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMCLI_API_KEY", raising=False)
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    found = find_key(parse_address("https://x.example"), file)
    assert found is not None
    assert found.value == SECRET
    with pytest.raises(LlmcliError, match="unencrypted"):
        find_key(parse_address("http://192.168.0.1:8000"), file)
    monkeypatch.setenv("LLMCLI_API_KEY", SECRET)
    with pytest.raises(LlmcliError, match="unencrypted"):
        find_key(parse_address("http://x.example"), None)
    for wrong in (b"", b"two words", b"\xff\xfe", b"a\nb", "schl\u00fcssel".encode()):
        file.write_bytes(wrong)
        with pytest.raises(LlmcliError, match="does not contain an API key"):
            find_key(parse_address("https://x.example"), file)


def test_a_key_shows_itself_nowhere() -> None:
    key = ApiKey(SECRET)
    assert SECRET not in repr(key) + str(key) + repr(vars(Request("x", 1, {})))
    found = {"a": [f"x{SECRET}y", {SECRET: SECRET}], "b": 3}
    assert SECRET not in json.dumps(key.redact(found))
    assert ApiKey("EMPTY").redact("EMPTY words") == "EMPTY words"


# --- streams ---


TEXT = "Grüße 🙂 日本 \u2028 end"
STREAM = b": hello\r\n\r\n" + b"".join(event({"n": n, "t": TEXT}) for n in range(3)) + b"data: [DONE]\n\nnonsense"


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(places)]
    assert list(server_sent_events(chunks)) == [{"n": n, "t": TEXT} for n in range(3)]


def test_of_a_line_that_was_cut_nothing_is_told() -> None:
    assert list(split_lines([b"one\ntw"])) == [b"one"]


def test_a_line_without_end_is_given_up() -> None:
    def endless() -> Any:
        while True:
            yield b"x" * 65536

    with pytest.raises(ServerError, match="endless line"):
        list(split_lines(endless()))


@pytest.mark.parametrize("data", [b"<html>\n", b"data: {\n\n", b"data: [1]\n\n", b"data: " + b"[" * 10**5 + b"\n"])
def test_what_is_no_event_is_told(data: bytes) -> None:
    with pytest.raises(ServerError, match="invalid response"):
        list(server_sent_events([data]))


@given(st.text("a🙂日\ud83d\ude42", min_size=1), st.lists(st.integers(0, 20)))
def test_halves_of_characters_find_each_other(text: str, cuts: list[int]) -> None:
    units = text.encode("utf-16-le", "surrogatepass")
    halves = "".join(chr(int.from_bytes(units[n : n + 2], "little")) for n in range(0, len(units), 2))
    places = [0, *sorted(cut for cut in cuts if cut <= len(halves)), len(halves)]
    whole = SurrogateJoiner()
    found = "".join(whole.feed(halves[a:b]) for a, b in pairwise(places)) + whole.finish()
    assert found == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- numbers ---


def test_both_forms_of_logprobs_are_read() -> None:
    older = {
        "tokens": [" a", "bytes:\\xf0\\x9f"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{" b": -2, " a": -0.5}, None],
    }
    first, second = parse_tokens(older, 2)
    assert (first.text, first.bytes, first.logprob, first.rank) == (" a", b" a", -0.5, 0)
    assert [rival.text for rival in first.top] == [" a", " b"]
    assert (second.bytes, second.logprob, second.rank, second.top) == (b"\xf0\x9f", None, None, ())
    newer = {
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
    (only,) = parse_tokens(newer, 2)
    assert (only.id, only.bytes, only.rank, only.top[0].text) == (5, b"\xf0\x9f", None, "x")


def test_a_written_token_that_is_added_to_its_rivals_has_no_rank() -> None:
    said = {"tokens": ["z"], "token_logprobs": [-9], "top_logprobs": [{"a": -0.5, "b": -1, "z": -9}]}
    assert parse_tokens(said, 2)[0].rank is None
    assert parse_tokens(said, 3)[0].rank == 2


def test_where_rivals_without_text_are_lost_there_is_no_list() -> None:
    said = {"tokens": ["z"], "token_logprobs": [-9], "top_logprobs": [{"": -0.5, "b": -1}]}
    assert [rival.text for rival in parse_tokens(said, 2)[0].top] == ["", "b"]
    assert parse_tokens(said, 3)[0].top == ()
    said["top_logprobs"] = [{"": -0.5, "z": -9}]  # of the best two one is lost, and the one written is an extra
    assert parse_tokens(said, 2)[0].top == ()
    said = {"tokens": [""], "token_logprobs": [-9], "top_logprobs": [{"": -9, "b": -1}]}
    assert parse_tokens(said, 2)[0].top == ()


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
def test_any_answer_is_read_or_refused(found: Any) -> None:
    for said in (found, {"choices": found}, {"choices": [found]}, {"choices": [{"text": "", "logprobs": found}]}):
        if not isinstance(said, dict):
            continue
        try:
            piece = parse_chunk(said, 3)
        except ServerError:
            continue
        assert isinstance(piece.text, str)
        for token in piece.tokens:
            assert token.prob is None or 0 <= token.prob <= 1


def test_the_tokens_of_a_text_are_found_between_bos_and_what_was_written() -> None:
    def rated(*texts: str) -> list[ServerToken]:
        return [ServerToken(text, text.encode(), None, -1.0, ()) for text in texts]

    assert locate_text(rated("The", " king", " ran"), "The king") == (0, 2)
    assert locate_text(rated("<s>", "The", " king", " ran"), "The king") == (1, 3)
    assert locate_text(rated("The", " king"), "The king") == (0, 2)  # what was written ended the text, and is not told
    assert locate_text(rated("The", "", "", " king", " ran"), "The 🙂 king") == (0, 4)


# --- options ---


def test_plain_fields_go_to_every_server_and_no_field_is_guessed() -> None:
    plain = {"temperature": 0.5, "top-p": 0.9, "presence-penalty": 1.0, "frequency-penalty": 1.0}
    names = {name: name.replace("-", "_") for name in plain}
    for kind in (UNKNOWN_KIND, *KINDS):
        fields = request_fields(kind, plain, seed=3)
        assert fields == {**{names[name]: value for name, value in plain.items()}, "seed": 3}
    assert request_fields(UNKNOWN_KIND, {}) == {}


def test_what_a_server_is_not_known_to_take_is_refused() -> None:
    known = {"vLLM": "repetition_penalty", "SGLang": "repetition_penalty", "llama.cpp": "repeat_penalty"}
    known["llama-cpp-python"] = "repeat_penalty"
    for kind in (UNKNOWN_KIND, *KINDS):
        if kind.name in known:
            assert request_fields(kind, {"repetition-penalty": 1.5}) == {known[kind.name]: 1.5}
            continue
        with pytest.raises(LlmcliError, match="repetition-penalty") as caught:
            request_fields(kind, {"repetition-penalty": 1.5})
        assert "vLLM" in caught.value.hint
    assert {name for kind in KINDS for name in kind.fields} - {"seed", "logit-bias", "repeat-last-n"} == set(FILTERS)


def test_top_k_0_keeps_all_tokens_everywhere() -> None:
    fields = {kind.name: request_fields(kind, {"top-k": 0.0}) for kind in KINDS if "top-k" in kind.fields}
    assert {name: field["top_k"] for name, field in fields.items()} == {
        "vLLM": -1,
        "SGLang": -1,
        "llama.cpp": 0,
        "llama-cpp-python": 0,
    }


def test_biases_are_by_id_and_within_what_openai_takes() -> None:
    assert request_fields(UNKNOWN_KIND, {}, biases=(("262", 5.0), ("7", -math.inf))) == {
        "logit_bias": {"262": 5.0, "7": -100.0}
    }
    for wrong in ((" Paris", 5.0), ("262", 1e3)):
        with pytest.raises(LlmcliError):
            request_fields(UNKNOWN_KIND, {}, biases=(wrong,))


def test_a_conversation_is_asked_as_chats_are() -> None:
    ask = Request((Message("user", "hi"),), 5, {"top_p": 0.5}, ("x",), 3)
    newer = ask.body("m", OPENAI)
    assert ("max_tokens" in newer, newer["max_completion_tokens"]) == (False, 5)
    assert Request("x", 5, {}).body("m", OPENAI) == {"model": "m", "prompt": "x", "max_tokens": 5}
    assert (ask.path, ask.body("m", UNKNOWN_KIND)) == (
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


# --- asking again ---


def test_asking_again_takes_longer_each_time_and_never_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Event, "wait", lambda self, seconds: waits.append(seconds))
    tries = 0

    def fails() -> None:
        nonlocal tries
        tries += 1
        raise ServerError("busy", retryable=True, retry_after=7.0 if tries == 2 else None)

    with pytest.raises(ServerError):
        batch.with_retries(fails, Event())
    assert tries == batch.ATTEMPTS
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


# --- a server that fails ---


def text_of(endpoint: Endpoint, tokens: int = 5) -> str:
    writing = open_server(endpoint.url, None, None).stream(Request("Zero", tokens, {}))
    for _ in writing:
        pass
    return writing.text


def test_a_stream_in_single_bytes_is_the_same_text(endpoint: Endpoint) -> None:
    usual = text_of(endpoint, 3)
    found = [{"choices": [{"text": text, "finish_reason": None}]} for text in (" one", " two", " 🙂")]
    data = b"".join(map(event, [*found, {"choices": [{"text": "", "finish_reason": "length"}]}]))
    endpoint.acts = [lambda handler: handler.slowly(data, 1)]
    assert text_of(endpoint, 3) == usual == " one two 🙂"
    endpoint.acts = [lambda handler: handler.slowly(data[: data.index("🙂".encode()) + 2], 7)]
    with pytest.raises(ServerError, match="ended early"):
        text_of(endpoint)


def test_a_server_that_knows_no_streams_answers_at_once(endpoint: Endpoint) -> None:
    endpoint.acts = [lambda handler: handler.json({"choices": [{"text": "all of it", "finish_reason": "stop"}]})]
    assert text_of(endpoint) == "all of it"


def test_halves_of_a_character_in_two_events(endpoint: Endpoint) -> None:
    parts = ["a\ud83d", "\ude42b\ud83d"]
    found = [event({"choices": [{"text": text, "finish_reason": None}]}, ascii=True) for text in parts]
    last = event({"choices": [{"text": "", "finish_reason": "stop"}]})
    endpoint.acts = [lambda handler: handler.raw(b"".join(found) + last)]
    assert text_of(endpoint) == "a🙂b\ufffd"


@pytest.mark.parametrize(
    ("act", "told"),
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
def test_each_failure_is_one_line(endpoint: Endpoint, act: Any, told: str) -> None:
    def once(handler: Handler) -> None:
        handler.close_connection = True
        act(handler)

    endpoint.acts = [once]
    with pytest.raises(ServerError, match=told) as caught:
        text_of(endpoint)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.__cause__ is None
    assert len(endpoint.posts) == 1  # nothing is sent on to where a server points


def test_a_refusal_says_how_long_to_wait(endpoint: Endpoint) -> None:
    for after, wait in (("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("-1", 0.0), ("nan", None)):
        endpoint.acts = [lambda handler, after=after: handler.json({}, 429, Retry_After=after)]
        with pytest.raises(ServerError) as caught:
            text_of(endpoint)
        assert (caught.value.retryable, caught.value.retry_after) == (True, wait)


def endless(handler: Handler, data: bytes) -> None:
    handler.begin()
    while True:
        handler.wfile.write(data)


def test_an_endless_text_is_cut_where_it_was_to_end(endpoint: Endpoint) -> None:
    piece = event({"choices": [{"text": "x", "finish_reason": None}]})
    endpoint.acts = [lambda handler: endless(handler, piece)]
    writing = open_server(endpoint.url, None, None).stream(Request("Zero", 9, {}))
    assert [piece.text for piece in writing][-1] == ""
    assert (writing.text, writing.tokens, writing.finish) == ("x" * 9, 9, "length")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"x" * 65536, "endless line"),
        (event({"choices": []}) * 100, "without text"),
        (event({"choices": [{"text": "x" * 10**5}]}), "longer"),
    ],
)
def test_other_endless_answers_are_given_up(endpoint: Endpoint, data: bytes, told: str) -> None:
    endpoint.acts = [lambda handler: endless(handler, data)]
    with pytest.raises(ServerError, match=told):
        text_of(endpoint)


def test_signs_of_life_alone_are_no_answer(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT", 0.2)
    endpoint.acts = [lambda handler: endless(handler, b": still here\n\n"), lambda handler: Event().wait(2)]
    for _ in range(2):
        with pytest.raises(ServerError, match="in time") as caught:
            text_of(endpoint)
        assert caught.value.retryable


def test_a_whole_answer_is_bounded_too(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_RESPONSE_BYTES", 10**6)
    server = open_server(endpoint.url, None, None)
    endpoint.acts = [lambda handler: endless(handler, b" " * 65536)]
    with pytest.raises(ServerError, match="does not end"):
        server.complete(Request("Zero", 1, {}))


def test_nobody_there(endpoint: Endpoint) -> None:
    with pytest.raises(ServerError, match="cannot connect") as caught:
        open_server("http://127.0.0.1:1", None, None)
    assert caught.value.retryable


def test_to_this_machine_no_proxy_is_asked(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert text_of(endpoint, 2) == " one two"


# --- which model ---


def test_the_only_model_is_taken_and_several_are_listed(endpoint: Endpoint) -> None:
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
def test_a_server_is_known_by_what_it_says_of_its_models(endpoint: Endpoint, owner: str, name: str) -> None:
    endpoint.owner = owner
    assert open_server(endpoint.url, None, None).kind.name == name


def test_a_client_hides_its_key(endpoint: Endpoint) -> None:
    server = Server(Client(parse_address(endpoint.url), ApiKey(SECRET)), "m", UNKNOWN_KIND)
    assert SECRET not in repr(server) + repr(vars(server.client))
