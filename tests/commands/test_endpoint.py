"""``--endpoint``: the five commands that support it, from the request to the output."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Condition, Event
from typing import Any

import pytest
from click.testing import Result

from llmcli.cli import cli
from llmcli.commands.options.endpoint import LOCAL_OPTIONS, UNSUPPORTED_OPTIONS
from llmcli.endpoint import batch as endpoint_batch
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from tests.commands.conftest import records
from tests.commands.test_views import on_terminal
from tests.endpoint_server import VOCABULARY, Endpoint, Handler, ReceivedRequest, event, logprob, ranked

Run = Callable[..., Result]
SECRET = "sk-Very/Secret+0123456789="
FIVE = ("generate", "chat", "batch", "score", "explain-step")
TEXT = " one two 🙂 [bold] \x1b[31m six"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of 20 lines, one of which is not a valid prompt."""
    file = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": n, "prompt": f"Zero {n}", "max_tokens": 1 + n % 5, "stop": ["!"]}) for n in range(20)]
    lines[7] = "{}"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def words(command: str, tmp_path: Path) -> tuple[object, ...]:
    """A command line for each of the five commands, without the endpoint."""
    return {
        "generate": ("generate", "Zero", "-n", 5),
        "chat": ("chat", "-n", 5, "--chat", tmp_path / "chat.json"),
        "batch": ("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl"),
        "score": ("score", "Zero one two"),
        "explain-step": ("explain-step", "Zero", "--step", 2),
    }[command]


# --- generate ---


def test_the_text_alone_goes_to_stdout(run: Run, endpoint: Endpoint) -> None:
    result = run("generate", "Zero", "--endpoint", endpoint.url, "-n", 6, input="")
    assert result.exit_code == 0
    assert result.stdout == TEXT + "\n"
    assert endpoint.posts == [{"model": "toy", "max_tokens": 6, "prompt": "Zero", "stream": True}]
    assert "about 6 tokens" in result.stderr
    assert "stopped: --max-tokens reached" in result.stderr
    assert "seed not set" in result.stderr
    assert run("generate", "Zero", "--endpoint", endpoint.url, "-n", 1, "--echo", input="").stdout == "Zero one\n"


def test_only_given_options_are_sent(run: Run, endpoint: Endpoint) -> None:
    options = ("--temperature", 0, "--top-p", 0.5, "--top-k", 3, "--seed", 7, "--stop", "!", "--stop", "?")
    options += ("--repeat-penalty", 2, "--logit-bias", "262=-inf", "-m", "other")
    assert run("generate", "Zero", "--endpoint", endpoint.url + "/v1/", *options, input="").exit_code == 0
    assert endpoint.posts == [
        {
            "model": "other",
            "max_tokens": 512,
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 3,
            "repetition_penalty": 2.0,
            "seed": 7,
            "logit_bias": {"262": -100.0},
            "prompt": "Zero",
            "stop": ["!", "?"],
            "stream": True,
        }
    ]


def test_json_has_the_same_names_and_null_for_unknown_values(run: Run, endpoint: Endpoint, model: Path) -> None:
    options = ("--endpoint", endpoint.url, "--seed", 8, "--repetition-penalty", 2)
    there = records(run("generate", "Zero", *options, "-n", 5, "--json", input=""))
    here = records(run("generate", "The old", "-m", model, "-n", 5, "--json", input=""))
    assert [list(record) for record in (there[0], there[1], there[-1])] == [
        list(record) for record in (here[0], here[1], here[-1])
    ]
    start, *tokens, end = there
    assert (start["prompt_ids"], start["seed"], start["sampler"]) == (
        None,
        8,
        [{"name": "repetition-penalty", "value": 2.0}],
    )
    assert end["text"] == "".join(token["text"] for token in tokens) == " one two \x1b[31m [bold] \x1b[31m"
    for place, token in enumerate(tokens):
        rank = 2 if place == 2 else 0
        assert token["logprob"] == pytest.approx(logprob(rank))
        assert token["prob"] == pytest.approx(0.5 ** (rank + 1))
        assert (token["index"], token["rank"]) == (place, rank)
        assert {token[name] for name in ("id", "final_prob", "entropy", "u")} == {None}
        assert [rival["text"] for rival in token["top"]] == [text for text, _ in ranked(place)[:5]]
        assert bytes.fromhex(token["bytes"]).decode() == token["text"]


def test_probs_are_a_table_with_a_line_about_missing_values(run: Run, endpoint: Endpoint) -> None:
    result = run("generate", "Zero", "--endpoint", endpoint.url, "-n", 3, "--probs=2", "--seed", 5, input="")
    rows = [line.split("\t") for line in result.stderr.splitlines() if "\t" in line]
    assert rows[0] == ["#", "id", "token", "p", "sign", "rank", "final p", "top 1", "p 1", "top 2", "p 2"]
    assert [row[1:7:5] for row in rows[1:]] == [["", ""]] * 3
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([0.5, 0.5, 0.5**6])
    assert [row[5] for row in rows[1:]] == [
        "0",
        "0",
        "",
    ]  # the rank of the last token is unknown: it is not among the top 5
    assert "before or after its temperature" in result.stderr
    assert endpoint.posts[0]["logprobs"] == 2


def test_control_characters_of_a_server_do_not_reach_the_terminal(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = on_terminal(
        ["generate", "Zero", "--endpoint", endpoint.url, "-n", "6", "--probs"], width=200, monkeypatch=monkeypatch
    )
    assert "[bold]" in shown
    assert "␛[31m" in shown
    assert "\x1b[31m" not in shown
    head = next(line for line in shown.splitlines() if "most probable" in line)
    assert "final p" not in head  # a server does not report it
    assert " id" not in head


def test_without_logprobs_json_works_and_probs_reports_it(run: Run, endpoint: Endpoint) -> None:
    endpoint.forbidden = ("logprobs",)
    lines = records(run("generate", "Zero", "--endpoint", endpoint.url, "-n", 3, "--json", input=""))
    assert [record.get("logprob", 0) for record in lines] == [0, None, None, None, 0]
    assert "logprobs" not in endpoint.posts[-1]
    result = run("generate", "Zero", "--endpoint", endpoint.url, "-n", 3, "--probs", input="")
    assert (result.exit_code, result.stdout) == (EXIT_FAILURE, "")
    assert "logprobs is not supported" in result.stderr
    endpoint.forbidden = ()
    pieces = [{"text": " one", "finish_reason": "stop"}]
    endpoint.responder = lambda handler: handler.stream(iter({"choices": [piece]} for piece in pieces))
    result = run("generate", "Zero", "--endpoint", endpoint.url, "--probs", input="")
    assert result.stdout == " one\n"
    assert "this server does not send probabilities" in result.stderr
    assert "\t" not in result.stderr


@pytest.mark.parametrize(
    ("reason", "stop", "summary"),
    [
        ("stop", (), "stopped: end of text |"),
        ("stop", ("--stop", "x"), "end of text or a --stop string"),
        ("content_filter\x1b", (), "“content_filter␛”"),
    ],
)
def test_the_summary_shows_why_the_text_ended(
    run: Run, endpoint: Endpoint, reason: str, stop: tuple[str, ...], summary: str
) -> None:
    endpoint.responder = lambda handler: handler.stream(iter([{"choices": [{"text": "x", "finish_reason": reason}]}]))
    result = run("generate", "Zero", "--endpoint", endpoint.url, *stop, input="")
    assert summary in result.stderr


def test_an_interrupted_text_is_kept(run: Run, endpoint: Endpoint) -> None:
    pieces = b"".join(event({"choices": [{"text": text}]}) for text in (" one", " two"))
    endpoint.responder = lambda handler: handler.stream_slowly(pieces + b'data: {"choi', 20)
    result = run("generate", "Zero", "--endpoint", endpoint.url, input="")
    assert (result.exit_code, result.stdout) == (EXIT_FAILURE, " one two\n")
    assert result.stderr.count("\n") == 1
    assert "ended early" in result.stderr


# --- which options ---


def test_exactly_five_commands_have_endpoint() -> None:
    knowing = [
        name
        for name in cli.list_commands(None)  # type: ignore[arg-type]
        if any(option.name == "endpoint_url" for option in cli.get_command(None, name).params)  # type: ignore[arg-type,union-attr]
    ]
    assert sorted(knowing) == sorted(FIVE)


VALUES = {
    "adapter": "x",
    "device": "cpu",
    "dtype": "float32",
    "quantize": "int8",
    "threads": 1,
    "tensor-parallel": 1,
    "prompt-cache": "x",
    "draft-model": "x",
    "context-overflow": "error",
    "json-schema": "true",
    "regex": "x",
    "choices": "a,b",
    "num-samples": 2,
    "best-of": 2,
    "temperatures": "1",
    "samplers": "top-k",
    "ablate": "0.0",
    "template": "x.jinja",
    "template-arg": "a=1",
    "steer": "x",
}


@pytest.mark.parametrize("command", FIVE)
def test_options_that_no_server_supports_are_an_error(
    run: Run, endpoint: Endpoint, command: str, tmp_path: Path, prompts: Path
) -> None:
    found = cli.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    tried = 0
    for option in found.params:
        if option.name in (*LOCAL_OPTIONS, *UNSUPPORTED_OPTIONS) and option.name != "interactive":
            name = next(name for name in option.opts if name.startswith("--"))
            value = (VALUES[name[2:]],) if not getattr(option, "is_flag", False) else ()
            result = run(*words(command, tmp_path), "--endpoint", endpoint.url, name, *value, input="hi\n")
            assert (result.exit_code, result.stdout) == (EXIT_USAGE, ""), name
            assert f"{name} does not work with --endpoint" in result.stderr
            assert result.stderr.count("\n") == 1
            tried += 1
    assert tried >= 7
    assert endpoint.requests == []


def test_settings_for_this_machine_are_ignored_with_endpoint(
    run: Run, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('device = "cpu"\nmodel = "mine"\n', encoding="utf-8")
    monkeypatch.setenv("LLMCLI_CONFIG", str(config))
    monkeypatch.setenv("LLMCLI_DTYPE", "float32")
    assert run("generate", "Zero", "--endpoint", endpoint.url, "-n", 1, input="").stdout == " one\n"
    assert endpoint.posts[0]["model"] == "toy"  # the model in the config file is for this machine
    config.write_text(f'endpoint = "{endpoint.url}"\nmodel = "theirs"\nregex = "x"\n', encoding="utf-8")
    result = run("generate", "Zero", "-n", 1, input="")
    assert result.exit_code == EXIT_USAGE
    assert "regex is from" in result.stderr
    config.write_text(f'endpoint = "{endpoint.url}"\nmodel = "theirs"\n', encoding="utf-8")
    assert run("generate", "Zero", "-n", 1, input="").exit_code == 0
    assert endpoint.posts[1]["model"] == "theirs"
    monkeypatch.setenv("LLMCLI_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot connect" in run("generate", "Zero", "-n", 1, input="").stderr


def test_an_empty_address_runs_the_model_here(
    run: Run, endpoint: Endpoint, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCLI_ENDPOINT", endpoint.url)
    assert run("generate", "The", "--endpoint", "", "-m", model, "-n", 1, input="").exit_code == 0
    assert endpoint.requests == []


def test_fields_that_a_kind_of_server_does_not_take_are_an_error(run: Run, endpoint: Endpoint) -> None:
    endpoint.owner = "somebody"
    result = run("generate", "Zero", "--endpoint", endpoint.url, "--top-k", 3, input="")
    assert result.exit_code == EXIT_USAGE
    assert "this server is not known to support top-k (omit it; supported by: llmcli, vLLM, SGLang" in result.stderr
    assert endpoint.posts == []


# --- keys ---


def echo_key(handler: Handler) -> None:
    """A server that repeats the key in an error and a header, as a hostile or careless one might."""
    sent = str(handler.headers.get("Authorization"))
    status = (401, 400, 500)[len(handler.endpoint.posts) % 3]
    handler.json({"error": {"message": f"cannot use {sent}", "param": sent}}, status, X_Key=sent)


def write_key(handler: Handler) -> None:
    """A server that repeats the key in its text, and then in an error."""
    sent = str(handler.headers.get("Authorization"))
    choice = {"text": sent, "delta": {"content": sent}, "message": {"content": sent}, "finish_reason": None}
    handler.stream(iter([{"choices": [choice]}, {"error": {"message": sent}}]))


@pytest.mark.parametrize("command", FIVE)
@pytest.mark.parametrize("act", [None, echo_key, write_key])
@pytest.mark.parametrize("source", ["variable", "file"])
def test_the_key_is_sent_and_appears_nowhere(
    run: Run,
    endpoint: Endpoint,
    command: str,
    act: Any,
    source: str,
    tmp_path: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_batch, "ATTEMPTS", 1)
    endpoint.key, endpoint.responder = SECRET, act
    more: tuple[object, ...] = ()
    if source == "variable":
        monkeypatch.setenv("LLMCLI_API_KEY", SECRET)
    else:
        (tmp_path / "key").write_text(SECRET, encoding="utf-8")
        more = ("--api-key-file", tmp_path / "key")
    result = run(
        *words(command, tmp_path), "--endpoint", endpoint.url, "--verbose", *more, input="hi\n/probs\n/regenerate\n"
    )
    assert endpoint.posts
    assert {request.headers["Authorization"] for request in endpoint.requests} == {f"Bearer {SECRET}"}
    written = [file.read_text(encoding="utf-8") for file in tmp_path.glob("*.json*")]
    for text in (result.stdout, result.stderr, *written):
        assert SECRET not in text
        assert SECRET[3:20] not in text
    if act is echo_key:
        assert "[key]" in result.stderr or "in.jsonl" in result.stderr


def test_a_missing_key_is_an_error(run: Run, endpoint: Endpoint) -> None:
    endpoint.key = SECRET
    result = run("generate", "Zero", "--endpoint", endpoint.url, input="")
    assert result.exit_code == EXIT_FAILURE
    assert "requires an API key" in result.stderr
    assert "LLMCLI_API_KEY" in result.stderr


def test_a_key_does_not_follow_a_redirection(run: Run, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_API_KEY", SECRET)
    place = endpoint.url.replace("127.0.0.1", "127.0.0.2") + "/v1/completions"
    endpoint.responder = lambda handler: handler.raw(b"", 307, Location=place)
    result = run("generate", "Zero", "--endpoint", endpoint.url, input="")
    assert result.exit_code == EXIT_FAILURE
    assert f"redirects to {place}" in result.stderr
    assert len(endpoint.posts) == 1


# --- explain-step and score ---


@pytest.mark.parametrize("step", [0, 2])
def test_a_step_is_the_token_that_generate_wrote(run: Run, endpoint: Endpoint, step: int) -> None:
    common = ("Zero", "--endpoint", endpoint.url, "--seed", 4)
    _, *tokens, _ = records(run("generate", *common, "-n", 3, "--json", input=""))
    (found,) = records(run("explain-step", *common, "--step", step, "--top", 3, "--json", input=""))
    assert found["chosen"]["text"] == tokens[step]["text"]
    assert found["chosen"]["surprisal"] == pytest.approx(-tokens[step]["logprob"] / math.log(2), rel=1e-5)
    assert found["model"].startswith("toy at ")
    assert found["dtype"] is None
    listed = found["candidates"]
    assert [row["p"] for row in listed[:3]] == pytest.approx([0.5, 0.25, 0.125])
    assert [row["rank"] for row in listed] == ([0, 1, 2] if step == 0 else [0, 1, 2, None])
    assert found["rest"] == pytest.approx(1 - sum(row["p"] for row in listed))
    assert found["check"]["ok"]
    assert found["seed"] == 4


def test_a_step_has_the_names_of_a_local_one(run: Run, endpoint: Endpoint, model: Path) -> None:
    (there,) = records(run("explain-step", "Zero", "--endpoint", endpoint.url, "--json", input=""))
    (here,) = records(run("explain-step", "The", "-m", model, "--json", input=""))
    assert set(here) <= set(there)
    assert set(here["candidates"][0]) <= set(there["candidates"][0])
    assert set(here["chosen"]) <= set(there["chosen"])


def test_the_table_of_a_step(run: Run, endpoint: Endpoint) -> None:
    result = run("explain-step", "Zero", "--endpoint", endpoint.url, "--step", 1, "--top", 2, input="")
    assert "what follows “Zero one”?" in result.stdout
    assert [line.split("\t")[3] for line in result.stdout.splitlines() if "\t" in line] == ["token", "·two", "·🙂"]
    assert "all tokens not listed: p 0.2500 in total" in result.stdout
    late = run("explain-step", "Zero", "--endpoint", endpoint.url, "--step", 3, input="")
    assert late.exit_code == 0
    endpoint.responder = lambda handler: handler.stream(iter([{"choices": [{"text": "", "finish_reason": "stop"}]}]))
    ended = run("explain-step", "Zero", "--endpoint", endpoint.url, input="")
    assert ended.exit_code == EXIT_USAGE
    assert "there is no step 0" in ended.stderr


def test_a_score_is_the_sum_of_the_server_s_logprobs(run: Run, endpoint: Endpoint, model: Path) -> None:
    text = "Zero one six two"  # tokens of ranks 0, 4 and 5
    (found,) = records(run("score", text, "--endpoint", endpoint.url, "--json", input=""))
    (here,) = records(run("score", "The old fox", "-m", model, "--json", input=""))
    assert list(found) == list(here)
    assert list(found["tokens"][0]) == list(here["tokens"][0])
    assert [token["surprisal"] for token in found["tokens"]] == pytest.approx([1, 5, 6])
    assert [token["rank"] for token in found["tokens"]] == [0, 4, None]
    assert [token["favourite"]["text"] for token in found["tokens"]] == list(VOCABULARY[:3])
    assert found["bits"] == pytest.approx(12)
    assert found["bits_per_byte"] == pytest.approx(12 / len(" one six two"))
    assert found["perplexity"] == pytest.approx(2**4)
    assert found["check"]["ok"]
    assert endpoint.posts[-1]["echo"]
    table = run("score", text, "--endpoint", endpoint.url, input="")
    assert "3 tokens, 12.0 bits" in table.stdout
    assert "before or after its temperature" in table.stdout


def test_a_server_without_prompt_logprobs_is_an_error(run: Run, endpoint: Endpoint) -> None:
    endpoint.forbidden = ("echo",)
    refused = run("score", "Zero one", "--endpoint", endpoint.url, input="")
    endpoint.forbidden = ()
    endpoint.responder = lambda handler: handler.json({"choices": [{"text": " one", "finish_reason": "length"}]})
    silent = run("score", "Zero one", "--endpoint", endpoint.url, input="")
    for result in (refused, silent):
        assert (result.exit_code, result.stdout) == (EXIT_FAILURE, "")
        assert "vLLM and llama-cpp-python do" in result.stderr


def test_a_score_of_another_text_fails_its_check(run: Run, endpoint: Endpoint) -> None:
    logprobs = {"tokens": ["Zero", " two", " x"], "token_logprobs": [None, -1, -1], "top_logprobs": [None, {}, {}]}
    choice = {"text": "Zero one x", "logprobs": logprobs, "finish_reason": "length"}
    endpoint.responder = lambda handler: handler.json({"choices": [choice]})
    result = run("score", "Zero one", "--endpoint", endpoint.url, input="")
    assert result.exit_code == EXIT_FAILURE
    assert "check: FAILED" in result.stdout


# --- chat ---


def talk(run: Run, endpoint: Endpoint, *typed: str, args: tuple[object, ...] = ()) -> Result:
    return run("chat", "--endpoint", endpoint.url, "-n", 2, *args, input="\n".join(typed) + "\n")


def contents(body: dict[str, Any]) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in body["messages"]]


def test_a_chat_sends_all_messages(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    typed = (
        "hi",
        "/undo",
        "/system Be brief",
        "ho",
        "/set seed 5",
        "/regenerate",
        "ha",
        "/save " + str(tmp_path / "s"),
    )
    result = talk(run, endpoint, *typed, args=("--chat", file, "--temperature", 0.5))
    assert result.exit_code == 0
    assert result.stdout == " one two\n" * 4
    first, second, third, fourth = endpoint.posts
    assert contents(first) == ["user: hi"]
    assert contents(second) == contents(third) == ["system: Be brief", "user: ho"]
    assert contents(fourth) == ["system: Be brief", "user: ho", "assistant:  one two", "user: ha"]
    assert [body.get("seed") for body in endpoint.posts] == [None, None, 5, 6]
    assert {body["temperature"] for body in endpoint.posts} == {0.5}
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["content"] for message in saved["messages"]] == ["Be brief", "ho", " one two", "ha", " one two"]
    assert saved == json.loads((tmp_path / "s").read_text(encoding="utf-8"))
    assert saved["model"] == f"toy at {endpoint.url.removeprefix('http://')}"
    talk(run, endpoint, "again", args=("--chat", file))
    assert len(endpoint.posts[-1]["messages"]) == 6


def test_a_raw_chat_is_one_text(run: Run, endpoint: Endpoint) -> None:
    talk(run, endpoint, "Zero", "more", args=("--raw",))
    assert [body["prompt"] for body in endpoint.posts] == ["Zero", "Zero one two\nmore"]


def test_a_chat_shows_probabilities(run: Run, endpoint: Endpoint) -> None:
    result = talk(
        run, endpoint, "hi", "/explain", "/probs", "/regenerate", "/explain 1", "/explain 9", "/tokens", "/set top-k x"
    )
    assert "no probabilities were requested for this reply" in result.stderr
    assert "step 1: what follows “hi one”?" in result.stderr
    assert "has no token 9" in result.stderr
    assert "only the server can count" in result.stderr
    assert "top-k: 'x' is not a whole number" in result.stderr
    assert endpoint.posts[1]["top_logprobs"] == 5


def test_a_rejected_setting_is_not_changed(run: Run, endpoint: Endpoint) -> None:
    endpoint.owner = "somebody"
    result = talk(run, endpoint, "/set top-k 5", "/set top-p 0.5", "hi")
    assert "not known to support top-k" in result.stderr
    assert (endpoint.posts[0]["top_p"], "top_k" in endpoint.posts[0]) == (0.5, False)


def test_an_error_ends_only_its_turn_and_keeps_the_text(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    cut = event({"choices": [{"delta": {"content": " half"}}]})
    endpoint.next_responders = [lambda handler: handler.json({}, 500), lambda handler: handler.raw(cut)]
    file = tmp_path / "chat.json"
    result = talk(run, endpoint, "a", "b", "c", args=("--chat", file))
    assert result.exit_code == 1
    assert result.stdout == " half\n one two\n"
    assert "status 500" in result.stderr
    assert "ended early" in result.stderr
    saved = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in saved] == ["b", " half", "c", " one two"]


# --- batch ---


def batch(run: Run, endpoint: Endpoint, prompts: Path, *more: object) -> tuple[Result, list[dict[str, Any]]]:
    out = prompts.with_name("out.jsonl")
    result = run("batch", prompts, out, "--endpoint", endpoint.url, *more)
    return result, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def busy(handler: Handler) -> None:
    handler.json({"error": "busy"}, (429, 500, 503)[len(handler.endpoint.next_responders) % 3], Retry_After="0")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without waiting."""
    monkeypatch.setattr(endpoint_batch, "FIRST_WAIT", 1e-6)


def test_each_prompt_gets_its_line(run: Run, endpoint: Endpoint, prompts: Path, model: Path) -> None:
    result, found = batch(run, endpoint, prompts, "--seed", 5, "--batch-size", 4)
    assert result.exit_code == EXIT_FAILURE  # because of the invalid line
    assert f"{prompts}:8: prompt is missing" in result.stderr
    assert [record["id"] for record in found] == [n for n in range(20) if n != 7]
    for record in found:
        count = 1 + record["id"] % 5
        assert (record["tokens"], record["prompt_tokens"], record["finish"]) == (count, 7, "length")
        assert record["seed"] == 5 + record["id"]
        assert record["text"].startswith(VOCABULARY[0])
    sent = {body["prompt"]: body for body in endpoint.posts}
    assert sent["Zero 3"] == {"model": "toy", "max_tokens": 4, "seed": 8, "prompt": "Zero 3", "stop": ["!"]}
    here = prompts.with_name("here.jsonl")
    run("batch", prompts, here, "-m", model)
    assert list(found[0]) == list(json.loads(here.read_text(encoding="utf-8").splitlines()[0]))


@pytest.mark.parametrize("size", [1, 6])
def test_batch_size_is_the_number_of_parallel_requests(run: Run, endpoint: Endpoint, prompts: Path, size: int) -> None:
    """The server answers no request until ``size`` have come, and counts one until it begins to answer it."""
    changed, busy, peak = Condition(), 0, 0

    def together(handler: Handler) -> None:
        nonlocal busy, peak
        with changed:
            busy += 1
            peak = max(peak, busy)
            changed.notify_all()
            changed.wait_for(lambda: peak >= size, timeout=60)
        time.sleep(0.02)  # for requests beyond the size
        with changed:
            busy -= 1
        handler.respond(handler.body)

    endpoint.responder = together
    _, found = batch(run, endpoint, prompts, "--batch-size", size)
    assert len(found) == 19
    assert peak == size


@pytest.mark.parametrize("order", ["input", "finished"])
def test_temporary_errors_are_retried(run: Run, endpoint: Endpoint, prompts: Path, at_once: None, order: str) -> None:
    def gone(handler: Handler) -> None:
        handler.close_connection = True
        handler.connection.close()

    _, usual = batch(run, endpoint, prompts)
    prompts.with_name("out.jsonl").unlink()
    endpoint.next_responders = [busy] * 12 + [gone] * 3
    result, found = batch(run, endpoint, prompts, "--order", order, "--batch-size", 8)
    assert sorted(found, key=lambda record: record["id"]) == usual
    assert "1 skipped" in result.stderr


def test_rejected_prompts_are_reported_and_skipped(run: Run, endpoint: Endpoint, prompts: Path) -> None:
    def picky(handler: Handler) -> None:
        if handler.body["prompt"] == "Zero 3":
            handler.json({"error": {"message": "too long"}}, 400)
        else:
            handler.respond(handler.body)

    endpoint.responder = picky
    result, found = batch(run, endpoint, prompts, "--batch-size", 1)
    assert [record["id"] for record in found] == [n for n in range(20) if n not in (3, 7)]
    assert f"{prompts}:4: 127.0.0.1" in result.stderr
    assert "too long" in result.stderr


def test_a_lost_server_ends_the_batch_which_can_be_resumed(
    run: Run, endpoint: Endpoint, prompts: Path, at_once: None
) -> None:
    _, usual = batch(run, endpoint, prompts)
    out = prompts.with_name("out.jsonl")
    out.unlink()
    sent = len(endpoint.posts)

    def dies(handler: Handler) -> None:
        if len(handler.endpoint.posts) > sent + 6:
            handler.json({}, 503)
        else:
            handler.respond(handler.body)

    endpoint.responder = dies
    result, some = batch(run, endpoint, prompts, "--batch-size", 1)
    assert result.exit_code == EXIT_FAILURE
    assert "status 503" in result.stderr
    assert some == usual[:6]
    endpoint.responder = None
    out.write_bytes(out.read_bytes()[:-5])  # the last result is incomplete
    _, found = batch(run, endpoint, prompts)
    assert found == usual
    done = len(endpoint.posts)
    batch(run, endpoint, prompts)
    assert len(endpoint.posts) == done


@pytest.mark.parametrize("more", [("--temperature", 1), ("-m", "other"), ("--seed", 1)])
def test_results_of_other_settings_are_kept(
    run: Run, endpoint: Endpoint, prompts: Path, more: tuple[object, ...]
) -> None:
    _, usual = batch(run, endpoint, prompts)
    result, found = batch(run, endpoint, prompts, *more)
    assert result.exit_code == EXIT_USAGE
    assert "has a result for 0 from another prompt, model or settings" in result.stderr
    assert found == usual


# --- interrupted ---


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("command", ["generate", "json", "chat", "batch"])
def test_ctrl_c_keeps_the_text_and_closes_the_connection(
    endpoint: Endpoint, command: str, tmp_path: Path, prompts: Path
) -> None:
    hung, left = Event(), Event()

    def hangs(handler: Handler) -> None:
        handler.begin_stream()
        key = "delta" if command == "chat" else "text"
        piece: Any = {"content": " one"} if command == "chat" else " one"
        handler.wfile.write(event({"choices": [{key: piece}]}))
        handler.wfile.flush()
        hung.set()
        with suppress(ConnectionError):
            assert handler.rfile.read(1) == b""  # until the client closes the connection
        left.set()

    endpoint.responder = hangs
    name = "generate" if command == "json" else command
    options = [*words(name, tmp_path), "--endpoint", endpoint.url, *(["--json"] if command == "json" else [])]
    if command == "batch":
        endpoint.next_responders = [lambda handler: handler.respond(handler.body)] * 2
        options += ["--batch-size", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "llmcli", *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(b"hi\n")
    process.stdin.close()
    process.stdin = None
    while not hung.wait(0.1):
        assert process.poll() is None
    assert process.stdout is not None
    out = b""
    while command != "batch" and b"one" not in out:
        out += os.read(process.stdout.fileno(), 4096)
        assert out
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate()
    out += rest
    assert process.returncode == EXIT_INTERRUPTED, err
    assert b"Traceback" not in err
    left.wait()
    if command == "generate":
        assert out == b" one\n"
    elif command == "json":
        assert [json.loads(line)["type"] for line in out.splitlines()] == ["start", "token", "end"]
        assert json.loads(out.splitlines()[-1])["finish"] == "interrupted"
    elif command == "chat":
        saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
        assert [message["content"] for message in saved["messages"]] == ["hi", " one"]
    else:
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["id"] for line in lines] == [0, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("order", ["input", "finished"])
def test_a_killed_batch_can_be_resumed(run: Run, endpoint: Endpoint, prompts: Path, order: str) -> None:
    _, usual = batch(run, endpoint, prompts)
    out = prompts.with_name("out.jsonl")
    out.unlink()

    killed, sent = Event(), len(endpoint.posts)

    def respond_to_some(handler: Handler) -> None:
        if len(endpoint.posts) > sent + 8:
            killed.wait()
        handler.respond(handler.body)

    endpoint.responder = respond_to_some
    arguments = ["batch", prompts, out, "--endpoint", endpoint.url, "--batch-size", 1, "--order", order]
    with subprocess.Popen(
        [sys.executable, "-m", "llmcli", *map(str, arguments)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        while len(endpoint.posts) <= sent + 8:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    killed.set()
    endpoint.responder = None
    some = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert 0 < len(some) < len(usual)
    _, found = batch(run, endpoint, prompts)
    assert found == usual


def test_the_server_records_requests(run: Run, endpoint: Endpoint) -> None:
    """The test server works: otherwise a test that expects no request would prove nothing."""
    run("generate", "Zero", "--endpoint", endpoint.url, "-n", 1, input="")
    assert [type(request) for request in endpoint.requests] == [ReceivedRequest, ReceivedRequest]
    assert [request.path for request in endpoint.requests] == ["/v1/models", "/v1/completions"]
    assert {request.headers["Accept-Encoding"] for request in endpoint.requests} == {"identity"}
