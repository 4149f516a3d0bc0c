"""``llmcli chat`` with models that think: thoughts on stderr, answers on stdout, and switches where there are any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.commands.test_endpoint import talk
from tests.endpoint_server import Endpoint, Handler

Run = Callable[..., Result]
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{{ bos_token }}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)


@pytest.fixture
def thinks(run: Run, chat_model: Path, tmp_path: Path) -> Callable[..., Result]:
    """Return a function that chats with a model whose template has a switch for thinking; replies have 30 tokens."""
    (tmp_path / "think.jinja").write_text(TEMPLATE, encoding="utf-8")

    def call(*lines: str, args: tuple[object, ...] = ()) -> Result:
        options = ("-m", chat_model, "--template", tmp_path / "think.jinja", "-n", 30, "--logit-bias", "1=-inf")
        return run("chat", *options, "--seed", 1, *args, input="\n".join(lines) + "\n")

    return call


def messages(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["messages"]
    return found


def test_thoughts_go_to_stderr_and_are_saved_apart(thinks: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    result = thinks("The fox", "/think off", "a hen", args=("--think-budget", 4, "--chat", file, "--verbose"))
    assert result.exit_code == 0, result.stderr
    _, first, _, second = messages(file)
    assert list(first) == ["role", "content", "reasoning_content"]
    assert list(second) == ["role", "content"]
    assert result.stdout == "".join(m["content"].rstrip("\n") + "\n" for m in (first, second))
    assert first["reasoning_content"] in result.stderr
    assert "<think>" not in result.stdout + result.stderr
    assert "30 tokens (4 of thoughts)" in result.stderr
    assert "thinking: off" in result.stderr
    again = thinks("The fox", "/think off", "a hen", args=("--think-budget", 4))
    assert again.stdout == result.stdout
    answers = thinks("The fox", args=("--no-think",)).stdout
    assert answers.count("\n") >= 1
    assert answers != result.stdout


def test_a_reply_that_only_thinks(thinks: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    result = thinks("The fox", "/think 3", "/regenerate", args=("--think", "--chat", file))
    assert result.stdout.startswith("\n")
    assert "stopped: --max-tokens reached while thinking\n" in result.stderr
    assert "thinking: on, at most 3 tokens" in result.stderr
    assert messages(file)[1]["content"]


def test_models_without_a_switch(run: Run, chat_model: Path) -> None:
    for option in ("--think", "--think-budget=3"):
        result = run("chat", "-m", chat_model, option, input="hi\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        raw = run("chat", "-m", chat_model, "--raw", option, input="hi\n")
        assert raw.exit_code == 2
        assert "--raw uses no chat template" in raw.stderr
    options = ("-m", chat_model, "-n", 3, "--temperature", 0)
    result = run("chat", *options, "--no-think", input="The fox\n/think\n/think on\n/think x\n")
    assert result.stdout == run("chat", *options, input="The fox\n").stdout
    assert result.stderr.count("no switch for thinking") == 2
    assert "/think takes on, off or a number of tokens" in result.stderr
    assert run("chat", *options, "--no-think", "--think-budget", 1, input="x\n").exit_code == 2


def reasoned(*names: str) -> Callable[[Handler], None]:
    """A response with thoughts in each of the fields ``names``, then an answer."""
    deltas: list[dict[str, Any]] = [{name: f" {name}?"} for name in names] + [{"content": "Yes"}, {"content": "."}]

    def respond(handler: Handler) -> None:
        ends = [None] * (len(deltas) - 1) + ["stop"]
        handler.stream(
            iter([{"choices": [{"delta": d, "finish_reason": e}]} for d, e in zip(deltas, ends, strict=True)])
        )

    return respond


def test_a_server_is_told_to_think_and_its_thoughts_are_read(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.owner, file = "llamacpp", tmp_path / "chat.json"
    endpoint.next_responders = [reasoned("reasoning_content", "reasoning"), reasoned()]
    typed = ("hi", "/think off", "ho")
    result = talk(run, endpoint, *typed, args=("-n", 9, "--think", "--think-budget", 5, "--chat", file))
    assert (result.exit_code, result.stdout) == (0, "Yes.\nYes.\n"), result.stderr
    assert " reasoning_content? reasoning?\n" in result.stderr
    assert messages(file)[1]["reasoning_content"] == " reasoning_content? reasoning?"
    first, second = endpoint.posts
    assert first["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}
    assert second["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert first["thinking_budget_tokens"] == 5
    assert second["messages"][1] == {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(("owner", "effort"), [("library", "none"), ("somebody", None), ("me", None)])
def test_servers_that_take_a_word_or_nothing(run: Run, endpoint: Endpoint, owner: str, effort: str | None) -> None:
    endpoint.owner = owner
    result = talk(run, endpoint, "hi", args=("--no-think",))
    assert result.exit_code == (0 if effort else 2)
    assert [body["reasoning_effort"] for body in endpoint.posts] == ([effort] if effort else [])
    assert ("is not known to turn thinking on or off" in result.stderr) == (effort is None)
    assert "is not known to limit thoughts" in talk(run, endpoint, "hi", args=("--think-budget", 5)).stderr


def test_a_batch_replies_as_a_chat_does(
    thinks: Callable[..., Result], run: Run, chat_model: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    source, target, file = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "chat.json"
    talk = [{"role": "user", "content": "The fox"}]
    lines = [{"messages": talk, "seed": 1}, {"prompt": "The fox"}, {"messages": []}, {"messages": [{"role": "x"}]}]
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"messages": talk, "prompt": "x"}]))
    thinks("The fox", args=("--think-budget", 4, "--chat", file))
    options = ("-m", chat_model, "--template", tmp_path / "think.jinja", "-n", 30, "--logit-bias", "1=-inf")
    result = run("batch", source, target, *options, "--think-budget", 4)
    assert result.exit_code == 1
    assert "in.jsonl:3: messages must not be empty" in result.stderr
    assert "in.jsonl:5: prompt and messages exclude each other" in result.stderr
    reply, plain = (json.loads(line) for line in target.read_text(encoding="utf-8").splitlines())
    (_, expected) = messages(file)
    assert (reply["text"], reply["reasoning_content"]) == (expected["content"], expected["reasoning_content"])
    assert (reply["reasoning_tokens"], reply["tokens"]) == (4, 30)
    assert "reasoning_content" not in plain
    other = run("batch", source, target, *options, "--no-think")
    assert "from another prompt, model or settings" in other.stderr
    source.write_text('{"prompt": "x"}\n')
    assert run("batch", source, tmp_path / "new", "-m", chat_model, "--no-think").exit_code == 2

    source.write_text(json.dumps({"messages": talk, "max_tokens": 9}) + "\n")
    message = {"content": "Yes.", "reasoning_content": "Is it?"}
    endpoint.next_responders = [lambda handler: handler.json({"choices": [{"message": message}]})]
    assert run("batch", source, tmp_path / "s", "--endpoint", endpoint.url, "--no-think").exit_code == 0
    (record,) = [json.loads(line) for line in (tmp_path / "s").read_text(encoding="utf-8").splitlines()]
    assert (record["text"], record["reasoning_content"], record["reasoning_tokens"]) == ("Yes.", "Is it?", None)
    (body,) = endpoint.posts
    assert (body["messages"], body["chat_template_kwargs"]["enable_thinking"]) == (talk, False)
