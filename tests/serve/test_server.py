"""A real server: OpenAI's client, llmcli's own client, many at once, faults, and its end."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from llmcli import explain
from llmcli.cli import cli
from llmcli.engine.native import variant
from llmcli.generation import Conversation, LoadedModel
from llmcli.generation.generate import generate, sampler_of
from llmcli.text import Message, TemplateFormat, find_template, thinking_of
from tests.serve.conftest import post, server

STORY = "Once upon a time there was a fox who lived in a forest with a very old owl. " * 16

PRIVATE = "".join(map(chr, range(0xF0000, 0xFFFFE)))
USER = [{"role": "user", "content": "Hi"}]


def lines(*words: object) -> list[dict[str, Any]]:
    """What a command prints with --json."""
    result = CliRunner().invoke(cli, [str(word) for word in (*words, "--json")], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_openai_client(url: str, loaded: LoadedModel, folder: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    (name,) = [model.id for model in client.models.list()]
    local = generate(loaded, "The old king", max_new_tokens=12, seed=3, temperature=1.2, min_p=0.05)
    expected = "".join(text for _, text in local)

    options: dict[str, Any] = {"model": name, "prompt": "The old king", "max_tokens": 12, "seed": 3, "temperature": 1.2}
    more = {"extra_body": {"min_p": 0.05}}
    two = client.completions.create(**options, **more, n=2, logprobs=3)
    assert two.choices[0].text == expected
    assert two.choices[1].text != expected, "its seed is the next one"
    logprobs = two.choices[0].logprobs
    assert "".join(logprobs.tokens) == expected
    assert [logprobs.text_offset[n] for n in (0, 1)] == [0, len(logprobs.tokens[0])]
    assert all(len(top) == 3 for top in logprobs.top_logprobs)
    assert two.usage.completion_tokens == 24

    stream = client.completions.create(**options, **more, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert (chunks[-1].choices[0].finish_reason, last.usage.completion_tokens) == ("length", 12)

    template = find_template(folder)
    assert template is not None
    conversation = Conversation(loaded, TemplateFormat(template, loaded.tokenizer))
    messages = [{"role": "system", "content": "Tell tales."}, {"role": "user", "content": "Who is he?"}]
    reply = conversation.answer(tuple(Message(**each) for each in messages), sampler_of(loaded, 5), 9)
    said = "".join(piece.answer for _, piece in reply)
    chat: dict[str, Any] = {"model": name, "messages": messages, "max_completion_tokens": 9, "seed": 5}
    whole = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2, tools=[], user="me")
    assert whole.choices[0].message.content == said
    assert whole.warnings == ["ignored: tools (this server does not support tools)"]
    assert [entry.id for entry in whole.choices[0].logprobs.content] == [choice.id for choice in reply.choices]
    parts = list(client.chat.completions.create(**chat, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == said
    with pytest.raises(openai.BadRequestError, match="embeddings are not supported"):
        client.embeddings.create(model=name, input="x")
    with pytest.raises(openai.NotFoundError, match="unknown model 'gpt'"):
        client.completions.create(model="gpt", prompt="x")

    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = client.chat.completions.create(**{**chat, "max_completion_tokens": 40}, response_format=form)
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(made.choices[0].message.content)["age"], int)


def test_an_echoed_prompt_has_alternatives(url: str, loaded: LoadedModel) -> None:
    report = explain.score(loaded, "The old fox ran.")
    body = {"prompt": "The old fox ran.", "echo": True, "max_tokens": 1, "temperature": 0}
    status, answer = post(f"{url}/v1/completions", {**body, "logprobs": 3})
    assert status == 200, answer
    first, *scored, new = answer["choices"][0]["logprobs"]["content"]
    assert (first["id"], first["logprob"], first["top_logprobs"]) == (report.first.id, None, [])
    assert [entry["logprob"] for entry in scored] == pytest.approx([token.logprob for token in report.tokens], rel=1e-3)
    for entry, token in zip([*scored, new], [*report.tokens, None], strict=True):
        found = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(found) == 3
        assert found == sorted(found, reverse=True)
        if token is not None:
            assert entry["id"] == token.piece.id
            assert token.favourite is not None
            assert entry["top_logprobs"][0]["id"] == token.favourite.id
            assert entry["rank"] == token.rank
            assert entry["rank"] >= 3 or entry["top_logprobs"][entry["rank"]]["id"] == entry["id"]
    none = post(f"{url}/v1/completions", {**body, "logprobs": 0})[1]["choices"][0]["logprobs"]
    assert none["top_logprobs"] == [None] * len(none["tokens"])


def test_thoughts_are_apart_from_answers(url: str, loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    template = find_template(folder)
    assert template is not None
    thinking = thinking_of(template, loaded.tokenizer)
    form = TemplateFormat(template.with_arguments({"enable_thinking": True}), loaded.tokenizer)
    question = [{"role": "user", "content": "Who is the fox?"}]
    local = Conversation(loaded, form, thinking).answer((Message(**question[0]),), sampler_of(loaded, 5), 30, 4)
    steps = [step for step, _ in local]
    assert local.message.reasoning
    assert local.message.content
    body = {"messages": question, "seed": 5, "max_tokens": 30, "think_budget": 4}
    asked = {**body, "chat_template_kwargs": {"enable_thinking": True}, "logprobs": True}
    status, answer = post(f"{url}/v1/chat/completions", asked)
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert choice["message"]["reasoning_content"] == local.message.reasoning
    assert choice["message"]["content"] == local.message.content
    assert [entry["id"] for entry in choice["logprobs"]["content"]] == [step.token for step in steps]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
    for switch in ({"reasoning_effort": "high"}, {"chat_template_kwargs": {"thinking": True}}):
        assert post(f"{url}/v1/chat/completions", {**body, **switch})[1]["choices"][0]["message"] == choice["message"]
    silent, plain = (
        post(f"{url}/v1/chat/completions", {**body, **off})[1]["choices"][0]["message"]
        for off in ({"reasoning_effort": "none"}, {})
    )
    assert silent == plain
    assert "reasoning_content" not in plain

    file = tmp_path / "chat.json"
    words = [
        "chat",
        "--endpoint",
        url,
        "--chat",
        str(file),
        "--think",
        "--think-budget",
        "4",
        "--seed",
        "5",
        "-n",
        "30",
    ]
    result = CliRunner().invoke(cli, words, input="Who is the fox?\n", catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    streamed = json.loads(file.read_text(encoding="utf-8"))["messages"][-1]
    assert streamed == local.message.record(), "the same in pieces"


def test_llmcli_generates_the_same_tokens_through_the_server(url: str, folder: Path) -> None:
    options = ["-n", 10, "--seed", 7, "--dry-multiplier", 0.8, "--top-n-sigma", 1.5, "--logit-bias", "262=-2"]
    for prompt in ("The fox", STORY[:700]):
        local, remote = (
            [line["id"] for line in lines("generate", prompt, *options, *where) if "id" in line]
            for where in (["-m", folder], ["--endpoint", url])
        )
        assert local == remote
        assert len(local) == 10
    (here,), (there,) = (lines("score", "The old fox ran.", *where) for where in (["-m", folder], ["--endpoint", url]))
    assert there["bits"] == pytest.approx(here["bits"], rel=1e-3)


def test_texts_are_the_same_in_company_and_alone(url: str, loaded: LoadedModel) -> None:
    """Also beside long prompts, clients that hang up, repeated prompts and requests for several texts."""
    prompts = [
        STORY + "Then",
        "A hen",
        STORY[:500],
        STORY + "But",
        "The",
        STORY + "Then",
        "One day",
        "Two",
        STORY[:520],
    ]

    def request(n: int) -> tuple[str, int]:
        body = {"prompt": prompts[n], "max_tokens": 12, "seed": n, "stream": n % 4 == 3}
        if n % 4 == 3:
            hang_up(url, body)
            return "", 0
        status, answer = post(f"{url}/v1/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(request, range(len(prompts))))
    again, cached = request(5)
    for n, (text, _) in enumerate(found):
        if n % 4 != 3:
            assert text == "".join(part for _, part in generate(loaded, prompts[n], max_new_tokens=12, seed=n)), n
    assert again == found[5][0]
    assert cached >= 128, "a prompt that was read before is not read again"
    with urlopen(f"{url}/metrics") as answer:
        numbers = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    running, waiting, reused = (
        numbers[f'llmcli_{name}{{model="tales"}}']
        for name in ("running_texts", "waiting_requests", "cached_prompt_tokens_total")
    )
    assert (running, waiting) == ("0", "0")
    assert float(reused) >= cached


@pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")
def test_a_conversation_is_that_of_a_local_chat(url: str, loaded: LoadedModel, folder: Path) -> None:
    """Every turn reads only what is new, also after a turn was edited, and tokens continue a reply."""
    template = find_template(folder)
    assert template is not None
    chat = Conversation(loaded, TemplateFormat(template, loaded.tokenizer))
    messages: list[dict[str, str]] = []
    known = 0
    for seed, said in enumerate(["Who is there?", STORY, "And then?"]):
        messages.append({"role": "user", "content": said})
        found = post(f"{url}/tokenize", {"messages": messages})[1]
        status, answer = post(f"{url}/v1/chat/completions", {"messages": messages, "max_tokens": 30, "seed": seed})
        assert status == 200, answer
        content, usage = answer["choices"][0]["message"]["content"], answer["usage"]
        reply = chat.answer((*chat.messages, Message("user", said)), sampler_of(loaded, seed), 30)
        list(reply)
        chat.keep(reply)
        assert content == reply.message.content
        assert list(reply.prompt) == found["tokens"]
        replies = [loaded.tokenizer.decode(found["tokens"][start:end]) for start, end in found["generated_spans"]]
        assert replies == [message["content"] for message in messages if message["role"] == "assistant"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == known
        known = len(reply.prompt) + len(reply.choices) - 1  # the last token was chosen, but not read
        messages.append({"role": "assistant", "content": content})

    half = len(reply.ids) // 2
    prompt, end = [*reply.prompt, *reply.ids[:half]], len(reply.prompt) + half
    body = {"prompt": prompt, "generated_spans": [*found["generated_spans"], [len(reply.prompt), end]], "logprobs": 0}
    status, answer = post(f"{url}/v1/completions", {**body, "max_tokens": 1})
    assert status == 200, answer
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == end - 1
    (token,) = answer["choices"][0]["logprobs"]["content"]
    expected = reply.choices[half].softmax.logprob(token["id"])
    assert token["logprob"] == pytest.approx(expected, abs=1e-12), "the bits of the reply"


def hang_up(url: str, body: dict[str, Any]) -> None:
    """Close the connection after the first bytes of the answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", "/v1/completions", json.dumps({**body, "max_tokens": 500}))
    connection.getresponse().read(20)
    connection.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("completions", {"prompt": "x", "tempurature": 1}, 400, "tempurature"),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature"),
        ("completions", {"prompt": "x", "top_p": "1"}, 400, "top_p"),
        ("completions", {"prompt": "x", "n": 1000}, 400, "n"),
        ("completions", {"prompt": {"a": 1}}, 400, "prompt"),
        ("completions", {"prompt": [5, 6], "generated_spans": [[1, 3]]}, 400, "generated_spans"),
        ("completions", {"prompt": [5, 6], "generated_spans": [[1, 2], [0, 1]]}, 400, "generated_spans"),
        ("completions", {"prompt": [5, 6], "generated_spans": [1]}, 400, "generated_spans"),
        ("completions", {"prompt": [10**9]}, 400, None),
        ("completions", {"prompt": "fox " * 3000}, 400, None),
        ("completions", {"prompt": "x", "logit_bias": {"no such token": 1}}, 400, "logit_bias"),
        ("completions", {"prompt": "x", "stop": [""]}, 400, "stop"),
        ("completions", {"prompt": "x", "seed": 1.5}, 400, "seed"),
        ("completions", b'{"prompt": ', 400, None),
        ("completions", b"[" * 100_000, 400, None),
        ("completions", b"[]", 400, None),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages"),
        ("chat/completions", {"messages": [], "echo": True}, 400, "messages"),
        ("chat/completions", {"messages": USER, "chat_template_kwargs": {"nope": 1}}, 400, "chat_template_kwargs"),
        ("chat/completions", {"messages": [USER[0], {"role": "system", "content": ""}]}, 400, "messages"),
        ("completions", {"prompt": "x", "samplers": ["nope"]}, 400, "samplers"),
        ("completions", {"prompt": "x", "\ud800": 1}, 400, "?"),
        ("completions", {"prompt": ["x"] * 200_000}, 400, "prompt"),
        ("completions", {"prompt": "x", "dry_sequence_breaker": ["b"] * 100}, 400, "dry_sequence_breaker"),
        ("chat/completions", {"messages": USER, "chat_template_kwargs": {"\ud800": 1}}, 400, "chat_template_kwargs"),
        ("chat/completions", {"messages": [{"role": "user", "content": PRIVATE}]}, 400, "messages"),
        ("chat/completions", {"messages": USER * 20_000}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "ab" * 200_000}]}, 400, "messages"),
        ("explain", {"view": "lense", "text": "x"}, 400, "view"),
        ("explain", {"view": "lens"}, 400, "text"),
        ("explain", {"view": "lens", "text": "x", "layer": 1}, 400, "layer"),
        ("explain", {"view": "attend", "text": 5}, 400, "text"),
        ("explain", {"view": "tokenize", "text": [5]}, 400, "text"),
        ("explain", {"view": "explain-step", "text": "x", "index": 10**6}, 400, "index"),
        ("explain", {"view": "explain-step", "text": "x", "temperatures": [1] * 500}, 400, "temperatures"),
        ("explain", {"view": "why", "text": "x", "head": [1, 2, 3]}, 400, "head"),
        ("explain", {"view": "patch", "clean": "x", "corrupt": "y", "part": "all"}, 400, "part"),
        ("explain", {"view": "tokenize-chat", "messages": "x"}, 400, "messages"),
        ("explain", {"view": "verify"}, 400, "view"),
        ("explain/page", {"prompt": "x"}, 400, "token"),
        ("explain/page", {"prompt": "x", "token": 5, "mirostat_tau": 5}, 400, None),
        ("completions", {"prompt": "x", "stop_token_ids": [-1]}, 400, "stop_token_ids"),
        ("nowhere", {}, 404, None),
    ],
)
def test_wrong_requests(url: str, path: str, body: Any, status: int, param: str | None) -> None:
    code, answer = post(f"{url}/v1/{path}", body)
    assert (code, answer["error"]["param"]) == (status, param), answer
    assert answer["error"]["message"]
    assert ".jinja" not in answer["error"]["message"], "no file of the server"
    assert post(f"{url}/v1/completions", {"prompt": "The", "max_tokens": 1})[0] == 200


def test_a_body_that_is_too_long_is_not_read(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", "100000000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]["code"]) == (413, "body_too_large")


def test_views_are_those_of_the_commands(url: str, folder: Path) -> None:
    calls: list[tuple[list[object], dict[str, Any]]] = [
        (["lens", "The old fox", "--at", 1], {"view": "lens", "position": 1}),
        (["attend", "The old fox"], {"view": "attend"}),
        (["explain-step", "The old fox", "--seed", 3, "--step", 1], {"view": "explain-step", "seed": 3, "index": 1}),
    ]
    for words, body in calls:
        (expected,) = lines(*words, "-m", folder)
        assert post(f"{url}/v1/explain", {**body, "text": "The old fox"}) == (200, expected)
    assert {view for view in explain.__all__ if view[0].islower()} >= {"lens", "attend", "step"}


def test_tokens_and_texts(url: str, loaded: LoadedModel) -> None:
    status, answer = post(f"{url}/tokenize", {"content": "The fox \U0001f642"})
    assert (status, answer["tokens"]) == (200, loaded.tokenizer.encode("The fox \U0001f642"))
    assert post(f"{url}/detokenize", {"tokens": answer["tokens"]})[1]["content"].endswith("The fox \U0001f642")
    assert post(f"{url}/detokenize", {"tokens": [10**9]})[0] == 400
    messages = {"messages": [{"role": "user", "content": "Who?"}]}
    status, found = post(f"{url}/tokenize", messages)
    assert (status, loaded.tokenizer.decode(found["tokens"])) == (200, "user:\nWho?\nassistant:\n")
    ids = [token["id"] for token in chat_tokens(url, **messages, max_tokens=4)]
    assert len(ids) == 4
    rest = {"prompt": [*found["tokens"], *ids[:2]], "stop_token_ids": [ids[2]], "temperature": 0, "logprobs": 0}
    choice = post(f"{url}/v1/completions", rest)[1]["choices"][0]
    assert [token["id"] for token in choice["logprobs"]["content"]] == ids[2:3]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")


def chat_tokens(url: str, **options: Any) -> list[dict[str, Any]]:
    """The most probable reply."""
    body = {**options, "temperature": 0, "logprobs": True}
    tokens: list[dict[str, Any]] = post(f"{url}/v1/chat/completions", body)[1]["choices"][0]["logprobs"]["content"]
    assert {token["rank"] for token in tokens} == {0}
    return tokens


def test_only_files_of_the_page_are_served(url: str) -> None:
    for name, kind in (("", "text/html"), ("page/main.js", "text/javascript"), ("page/page.css", "text/css")):
        with urlopen(f"{url}/{name}") as answer:
            assert answer.headers["Content-Type"].startswith(kind)
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    for name in ("page/", "page/none.js", "page/..%2fapp.py", "page/%2e%2e/app.py", "page/../app.py"):
        assert post(f"{url}/{name}", {})[0] in (404, 405)
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("GET", f"/{name}")
        assert connection.getresponse().status == 404


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_finishes_what_runs(folder: Path) -> None:
    with server("-m", str(folder), "--threads", "1") as (address, process):
        idle = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port))
        idle.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")  # and never ends
        gone = http.client.HTTPConnection(urlsplit(address).netloc)
        gone.request("POST", "/v1/completions", json.dumps({"prompt": "The", "max_tokens": 900}))
        gone.close()
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        body = {"prompt": "The", "max_tokens": 60, "stream": True, "logit_bias": {"0": -100, "1": -100}}
        connection.request("POST", "/v1/completions", json.dumps(body))
        answer = connection.getresponse()
        start = answer.read(10)
        process.send_signal(signal.SIGTERM)
        rest = (start + answer.read()).decode()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"finish_reason": "' in rest
        idle.close()
        assert process.stderr is not None
        log = process.stderr.read()
        process.wait()
        assert process.returncode == 0, log
        assert "Traceback" not in log
        assert " 499 0 bytes " in log
        assert "The" not in log


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for another process")
def test_a_second_ctrl_c_ends_at_once(folder: Path) -> None:
    with server("-m", str(folder), "--threads", "1") as (address, process):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        body = {"prompt": "The", "max_tokens": 900, "stream": True, "logit_bias": {"0": -100, "1": -100}}
        connection.request("POST", "/v1/completions", json.dumps(body))
        connection.getresponse().read(10)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("finishing what runs" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert "Traceback" not in process.stderr.read()
