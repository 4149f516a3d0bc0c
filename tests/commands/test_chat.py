"""``llmcli chat`` through a pipe: each line is a turn, stdout has only the replies, and an error ends only its turn."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.generation.loaded import load
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import find_template
from tests.text.test_chat_template import BROKEN

Run = Callable[..., Result]
Chat = Callable[..., tuple[list[str], list[str]]]  # lines of stdout and stderr; see the fixture ``chat``


@pytest.fixture
def chat(run: Run, chat_model: Path) -> Chat:
    """Return a function that runs a chat with short greedy replies.

    It takes the lines to type, and returns the lines of stdout, and those of stderr after the first.
    """

    def call(*lines: str, args: tuple[object, ...] = ()) -> tuple[list[str], list[str]]:
        options = ("-m", chat_model, "-n", 6, "--temperature", 0, *args)
        result = run("chat", *options, input="\n".join(lines) + "\n")
        assert result.exit_code == ("\nllmcli: " in result.stderr), result.stderr
        assert "\x1b" not in result.stdout + result.stderr
        return result.stdout.splitlines(), result.stderr.splitlines()[1:]

    return call


def saved(path: Path) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in json.loads(path.read_text(encoding="utf-8"))["messages"]]


# --- turns ---


def test_each_line_is_a_turn_and_each_reply_ends_with_a_newline(run: Run, chat_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    options = ("-m", chat_model, "-n", 5, "--seed", 3, "--chat", file)
    result = run("chat", *options, input="The fox\r\nsang\n\nthe end")
    assert result.exit_code == 0
    messages = saved(file)
    assert [m for m in messages if m[0] == "user"] == [("user", "The fox"), ("user", "sang"), ("user", "the end")]
    replies = [content for role, content in messages if role == "assistant"]
    assert result.stdout == "".join(reply if reply.endswith("\n") else reply + "\n" for reply in replies)
    assert "seed 3" in result.stderr
    assert "> " not in result.stdout + result.stderr
    again = run("chat", *options[:-2], input="The fox\nsang\nthe end\n")
    assert again.stdout == result.stdout


def test_a_reply_is_what_transformers_generates(chat: Chat, chat_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = load(chat_model, dtype="float32")
    template = find_template(chat_model)
    assert template is not None
    chat_format = TemplateFormat(template, loaded.tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    ids: list[int] = []
    replies = []
    for text in ("The fox", "sang"):
        ids += loaded.tokenizer.encode(
            f"<|begin_of_text|>user: {text}<|end_of_text|><|begin_of_text|>assistant: ",
            parse_special=True,
            add_special=False,
        )
        out = theirs.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=list(chat_format.end_ids)
        )
        new = out[0, len(ids) :].tolist()
        replies.append(loaded.tokenizer.decode(new))
        ids += [id for id in new if id not in chat_format.end_ids] + list(chat_format.end_ids)
    shown, _ = chat("The fox", "sang", args=("--dtype", "float32"))
    assert shown == [line for reply in replies for line in reply.splitlines() or [""]]


def test_messages_of_several_lines(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    typed = [
        "a\\",
        "b",
        '"""one',
        "",
        '  two"""',
        '/system """be',
        'brief"""',
        '"""',
        "x",
        '"""',
        "//slash",
        "/quit",
        "no",
    ]
    chat(*typed, args=("--chat", file))
    messages = [content for role, content in saved(file) if role != "assistant"]
    assert messages == ["be\nbrief", "a\nb", "one\n\n  two", "x", "/slash"]


def test_an_invalid_line_is_skipped(run: Run, chat_model: Path) -> None:
    options = ("-m", chat_model, "-n", 3, "--temperature", 0)
    result = run("chat", *options, input=b"The fox\nb\xffd\nThe fox\n")
    assert result.exit_code == 1  # stdout alone does not show the error
    assert "not valid UTF-8 at byte 1" in result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_without_a_template(run: Run, model: Path) -> None:
    result = run("chat", "-m", model, input="hi\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "has no chat template" in result.stderr
    assert "--raw" in result.stderr
    raw = run("chat", "-m", model, "--raw", "-n", 4, "--temperature", 0, input="The old\n\n")
    text = run("generate", "The old", "-m", model, "-n", 8, "--temperature", 0).stdout
    assert raw.stdout.replace("\n", "") == text.replace("\n", "")


def test_raw_continues_a_text_with_a_chat_model(run: Run, chat_model: Path) -> None:
    raw = run("chat", "-m", chat_model, "--raw", "-n", 4, "--temperature", 0, input="The old\n").stdout
    assert raw == run("generate", "The old", "-m", chat_model, "-n", 4, "--temperature", 0).stdout


@pytest.mark.parametrize("name", sorted(BROKEN.keys() - {"a constant that fails"}))  # it fails only when rendered
def test_an_invalid_template_is_a_one_line_error_before_the_model_loads(
    name: str, run: Run, chat_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(chat_model / "config.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": BROKEN[name]}))
    result = run("chat", "-m", folder, input="hi\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "chat" in result.stderr


def test_a_message_the_template_rejects_ends_only_its_turn(run: Run, chat_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    refuse = "{% if 'no' in messages[-1].content or messages[0].role == 'system' %}{{ raise_exception('not this') }}"
    (folder / "chat_template.jinja").write_text(refuse + "{% endif %}" + template)
    lines = ("The fox", "no", "/system x", "/tokens", "sang")
    result = run("chat", "-m", folder, "-n", 3, "--temperature", 0, input="\n".join(lines))
    assert result.exit_code == 1
    assert result.stderr.count("not this") == 1
    assert result.stderr.count("model has no system prompt (put the instructions") == 1
    assert len(result.stdout.splitlines()) == 2
    assert "you\t" in result.stderr


@pytest.mark.parametrize("words", ["{{ raise_exception('System role not supported') }}", "{{ 1 + 'x' }}"])
def test_a_template_without_a_system_prompt(run: Run, chat_model: Path, tmp_path: Path, words: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    refuse = f"{{% if messages[0].role == 'system' %}}{words}{{% endif %}}"
    (folder / "chat_template.jinja").write_text(refuse + template)
    result = run("chat", "-m", folder, "-s", "Be kind.", input="hi\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "llmcli: model has no system prompt (put the instructions into your first turn)\n"
    (folder / "chat_template.jinja").write_text(words)  # it rejects every conversation
    result = run("chat", "-m", folder, "-s", "Be kind.", input="hi\n")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "chat_template.jinja: the chat template" in result.stderr
    assert "--raw chats without it" in result.stderr


def test_a_duplicate_bos_is_a_warning(run: Run, chat_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template)
    result = run("chat", "-m", folder, "-n", 3, input="hi\n")
    assert "with <|begin_of_text|> twice" in result.stderr


def test_invalid_options(run: Run, model: Path) -> None:
    for args in (("--raw", "-s", "x"), ("-n", 0), ("--temperature", -1), ("--top-p", 0)):
        result = run("chat", "-m", model, *args, input="")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), args
        assert "Traceback" not in result.stderr


# --- commands ---


def test_undo_and_regenerate(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    first, stderr = chat("The fox", "sang", "/undo", "/undo", "/undo", "/regenerate", args=("--chat", file))
    assert saved(file) == []
    assert sum("undone" in line for line in stderr) == 2
    assert "llmcli: there is no turn to undo (send a message first)" in stderr
    assert any("no reply to regenerate" in line for line in stderr)
    again, _ = chat("The fox", "/regenerate", args=("--chat", file))
    assert again[0] == again[-1] == first[0]
    assert [role for role, _ in saved(file)] == ["user", "assistant"]


def test_each_reply_is_a_new_sample_and_the_seed_reproduces_it(run: Run, chat_model: Path) -> None:
    def replies(seed: int, *lines: str) -> list[str]:
        options = ("-m", chat_model, "-n", 8, "--temperature", 2, "--seed", seed)
        return run("chat", *options, input="\n".join(lines)).stdout.splitlines()

    assert replies(1, "The", "/regenerate", "/regenerate") == replies(1, "The", "/regenerate", "/regenerate")
    assert len({*replies(1, "The", "/regenerate", "/regenerate")}) > 1
    assert replies(9, "The", "/set seed 1", "/regenerate")[-1] == replies(1, "The")[0]


def test_system_prompts(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    chat("The fox", "/system Be  brief.", "sang", args=("--chat", file, "-s", "old"))
    assert [m for m in saved(file) if m[0] != "assistant"] == [
        ("system", "Be  brief."),
        ("user", "The fox"),
        ("user", "sang"),
    ]
    _, stderr = chat("/system", args=("--chat", file))
    assert stderr == ["system prompt: Be  brief."]
    assert saved(file)[0] == ("system", "Be  brief.")
    _, stderr = chat('/system ""', "/system", args=("--chat", file))
    assert saved(file)[0] == ("user", "The fox")
    assert stderr == ["system prompt removed", "no system prompt; /system TEXT sets one"]
    _, stderr = chat("/system x", args=("--raw",))
    assert "--raw does not use a system prompt" in stderr[0]


def test_settings(chat: Chat) -> None:
    _, stderr = chat("The", "/set max-tokens 1", "The", args=("--verbose",))
    assert [line.split(" token")[0] for line in stderr if "decode " in line] == ["6", "1"]
    wrong = [
        ("/set temperatur", "did you mean temperature?"),
        ("/set temperatur 1", "did you mean temperature?"),
        ("/set temperature warm", "'warm' is not a number"),
        ("/set temperature nan", "must be a number, not nan"),
        ("/set temperature -1", "temperature must be"),
        ("/set top-p 0", "must not be 0"),
        ("/set top-k 1.5", "not a whole number"),
        ("/set max-tokens 0", "not in the range"),
        ("/set samplers top-q", "unknown sampler"),
        ("/set logit-bias no=such=token", "token"),
    ]
    for line, expected in wrong:
        _, (error,) = chat(line)
        assert expected in error, error
        assert error.startswith("llmcli: ")
    biased, stderr = chat("The", '/set logit-bias "X=+1000"', "The")
    assert "logit-bias set to X=+1000" in stderr
    assert biased[-1] == "XXXXXX"
    # Invalid settings are not kept.
    kept, _ = chat("/set temperature -1", "/set logit-bias no=such=token", "The")
    assert kept == [biased[0]]


def test_set_without_a_value_shows_it(chat: Chat, chat_model: Path) -> None:
    path = chat_model / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"do_sample": True, "top_k": 7}))
    try:
        lines = (
            "/set temperature",
            "/set --temp 0.5",
            "/set temperature",
            "/set top-k",
            "/set min-p",
            "/set logit-bias",
        )
        _, stderr = chat(*lines, args=("--temperature", "1.25", "--seed", "3"))
        assert [line for line in stderr if not line.startswith(("from generation_config.json", "chatty"))] == [
            "temperature: 1.25",
            "temp set to 0.5",
            "temperature: 0.5",
            "top-k: 7 (the model's)",
            "min-p: 0",
            "logit-bias: none",
        ]
        _, every = chat("The", "/set", args=("--seed", "3"))
        assert {"seed: 4", "max-tokens: 6", "temperature: 0", "repeat-last-n: -1"} <= set(every)
    finally:
        path.write_text(before)


def test_exit_is_quit(run: Run, chat_model: Path) -> None:
    for command in ("/exit", "/quit"):
        result = run("chat", "-m", chat_model, "-n", 2, input=f"{command}\nThe\n")
        assert (result.exit_code, result.stdout) == (0, "")


def test_an_empty_pipe_is_an_error(run: Run, chat_model: Path) -> None:
    result = run("chat", "-m", chat_model, input="")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "stdin is empty" in result.stderr


def test_probs_explain_and_tokens(chat: Chat, chat_model: Path) -> None:
    shown, stderr = chat(
        "/explain", "The fox", "/explain", "/explain 0", "/explain 6", "/explain x", "/undo", "/explain"
    )
    assert "no reply" in stderr[0]
    assert [line.split(":")[0] for line in stderr if line.startswith("step")] == ["step 5", "step 0"]
    assert sum("check: ok" in line for line in stderr) == 2
    assert any("numbered from 0 to 5" in line for line in stderr)
    assert any("'x' is not a number" in line for line in stderr)
    assert "no reply" in stderr[-1]
    assert len(shown) == 1
    _, stderr = chat("/probs", "The fox", "/probs", "The fox")
    tables = [line for line in stderr if line.startswith("#\tid")]
    assert len(tables) == 1
    loaded = load(chat_model)
    _, stderr = chat("The fox", "/tokens", args=("-s", "Be brief."))
    assert "context is 4096 tokens" in chat("/tokens")[1][0]
    rows = dict(line.split("\t")[:2] for line in stderr if "\t" in line and not line.startswith("who"))
    expected = loaded.tokenizer.encode("<|begin_of_text|>system: Be brief.", parse_special=True, add_special=False)
    assert int(rows["system"]) == len(expected)
    assert list(rows) == ["system", "you", "reply", "end"]
    total = sum(map(int, rows.values()))
    assert stderr[-1] == f"{total} of 4096 tokens used, {4096 - total} left"


def test_saving_and_loading(chat: Chat, tmp_path: Path) -> None:
    file, other = tmp_path / "a b.json", tmp_path / "other.json"
    other.write_text("mine")
    _, stderr = chat(
        "The fox", f"/save {file}", f"/save {other}", "/save", "/load", f"/load {tmp_path}/none", f"/load {other}"
    )
    assert f"saved {file}" in stderr
    assert other.read_text() == "mine"
    assert sum(line.startswith("llmcli: ") for line in stderr) == 5
    straight, _ = chat("The fox", "sang")
    _, stderr = chat(f"/load {file}", "/tokens")
    assert f"loaded {file}: 2 messages" in stderr
    resumed, _ = chat(f"/load {file}", "sang")
    assert resumed == straight[-len(resumed) :]
    begun = json.loads(file.read_text()) | {"messages": [{"role": "user", "content": "The fox"}]}
    file.write_text(json.dumps(begun))
    resumed, stderr = chat(f"/load {file}", "/regenerate")
    assert any("/regenerate generates one" in line for line in stderr)
    assert resumed == straight[: len(resumed)]


def test_unusable_paths_are_errors_of_their_command_only(chat: Chat, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    with contextlib.suppress(OSError):  # Windows may not allow it
        loop.symlink_to(loop)
    names = (loop, tmp_path / ("x" * 300), f"{tmp_path}/a\0b", "~no-such-user/x")
    replies, stderr = chat("The fox", *(f"/{do} {name}" for do in ("save", "load") for name in names), "The fox")
    assert sum(line.startswith("llmcli: ") for line in stderr) == 2 * len(names) - (not loop.is_symlink())
    assert len(replies) == 2


@pytest.mark.parametrize("name", ["no/x.json", "x" * 300, ""])
def test_an_unwritable_chat_file_is_an_error_before_the_chat(run: Run, tmp_path: Path, name: str) -> None:
    result = run("chat", "-m", "no such model", "--chat", tmp_path / name, input="The\n")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "--chat" in result.stderr


def test_the_chat_file_is_saved_after_each_turn_and_other_files_are_never_overwritten(
    run: Run, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.json"
    file.write_text("mine")
    result = run("chat", "-m", chat_model, "--chat", file, input="hi\n")
    assert (result.exit_code, file.read_text()) == (1, "mine")
    assert result.stderr.count("\n") == 1

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    options = ("-m", chat_model, "-n", 3, "--temperature", 0, "--chat", tmp_path / "y.json")
    run("chat", *options, input="The\n")
    before = (tmp_path / "y.json").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    result = run("chat", *options, input="The\nThe\n")
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 2)
    assert result.stderr.count("no space left (free some space") == 2
    assert (tmp_path / "y.json").read_bytes() == before
    result = run("chat", *options[:-1], tmp_path / "z.json", input="The\n")
    assert (result.exit_code, result.stdout) == (1, "")  # a new chat that cannot be saved does not begin
    assert result.stderr.count("no space left (free some space") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "y.json"]


def test_a_chat_without_turns_leaves_no_file(run: Run, chat_model: Path, tmp_path: Path) -> None:
    assert run("chat", "-m", chat_model, "--chat", tmp_path / "x.json", input="/help\n").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_mistyped_commands(chat: Chat) -> None:
    _, stderr = chat("/hlep", "/", "/etc/passwd", "/UNDO", "/help")
    assert stderr[0] == "llmcli: there is no command /hlep (did you mean /help?)"
    assert all("there is no command" in line for line in stderr[:4])
    assert all(f"/{name}" in "\n".join(stderr[4:]) for name in ("system", "undo", "set", "probs", "quit"))


# --- limits ---


def test_a_conversation_longer_than_the_context_and_a_reply_that_fills_it(
    run: Run, chat_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 48}))
    file = tmp_path / "x.json"
    options = ("-m", folder, "--temperature", 0, "--chat", file)
    lines = ("/set logit-bias <|end_of_text|>=-inf", "The fox " * 30, "The", "/undo", "The")
    result = run("chat", *options, input="\n".join(lines))
    assert result.exit_code == 1
    assert "but the model's context holds 48 (" in result.stderr
    assert "the context is full" in result.stderr
    assert [role for role, _ in saved(file)] == ["user", "assistant"]


def test_running_out_of_memory_ends_only_the_turn(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.generation.conversation import Conversation

    answer, calls = Conversation.answer, iter((True, False))

    def failing(self: Conversation, *args: object) -> object:
        if next(calls):
            raise RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried")
        return answer(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Conversation, "answer", failing)
    shown, stderr = chat("The", "The")
    assert len(shown) == 1
    assert "out of memory" in stderr[0]


def test_help_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom llmcli.cli import main\nsys.argv[1:] = ['chat', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'jinja2', 'prompt_toolkit', 'tokenizers', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_shipped_model_says_what_it_is(run: Run, chat_model: Path) -> None:
    note = "This model writes short stories and often misses details."
    assert note in run("chat", input="").stderr
    assert note not in run("chat", "-m", chat_model, input="").stderr
