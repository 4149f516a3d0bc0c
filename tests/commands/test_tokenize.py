"""``llmcli tokenize``: its output formats, inputs and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.text import bpe
from llmcli.text.tokenizer import Tokenizer, load_tokenizer
from tests.commands.conftest import records
from tests.text.test_tokenizer import unigram

Run = Callable[..., Result]
TEXT = "The old fox\n sang \U0001f642 é!"


def test_output_formats_agree(run: Run, model: Path) -> None:
    expected = load_tokenizer(model).encode(TEXT)
    assert run("tokenize", TEXT, "-m", model, "--ids").stdout.split() == [str(id) for id in expected]
    assert run("tokenize", TEXT, "-m", model, "--count").stdout == f"{len(expected)}\n"
    (record,) = records(run("tokenize", TEXT, "-m", model, "--json"))
    assert list(record) == ["model", "count", "tokens", "unknown", "check"]
    assert record["count"] == len(expected)
    assert record["check"]["ok"]
    assert [token["id"] for token in record["tokens"]] == expected
    table = [line.split("\t") for line in run("tokenize", TEXT, "-m", model).stdout.splitlines()]
    assert table[0] == ["#", "id", "token", "bytes", "start", "end"]
    assert [row[1] for row in table[1:]] == [str(id) for id in expected]


def test_json_fields_and_offsets(run: Run, model: Path) -> None:
    (record,) = records(run("tokenize", TEXT, "-m", model, "--json"))
    first, *rest = record["tokens"]
    assert list(first) == ["id", "text", "bytes", "start", "end", "special"]
    assert (first["special"], first["start"], first["end"]) == (True, 0, 0)
    source = TEXT.encode()
    assert b"".join(bytes.fromhex(token["bytes"]) for token in rest) == source
    assert all(source[t["start"] : t["end"]].hex() == t["bytes"] for t in rest)


def test_labels_show_invisible_characters(run: Run, model: Path) -> None:
    tokens = [line.split("\t")[2] for line in run("tokenize", " \n\x1b\U0001f642", "-m", model).stdout.splitlines()[1:]]
    shown = "".join(tokens)
    assert "·" in shown
    assert "⏎" in shown
    assert "␛" in shown
    assert "\x1b" not in shown


def test_decode(run: Run, model: Path) -> None:
    ids = load_tokenizer(model).encode(TEXT)
    spaced = run("tokenize", "-m", model, "--decode", " ".join(map(str, ids[1:])))
    assert spaced.stdout == TEXT + "\n"
    assert run("tokenize", "-m", model, "--decode", ",".join(map(str, ids[1:]))).stdout == TEXT + "\n"


@pytest.mark.parametrize("ids", ["1 x", "-1", "999999", "1.5"])
def test_decode_errors(run: Run, model: Path, ids: str) -> None:
    result = run("tokenize", "-m", model, f"--decode={ids}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_several_models(run: Run, model: Path) -> None:
    result = run("tokenize", "The fox", "-m", model, "-m", model)
    header = result.stdout.splitlines()[0].split("\t")
    assert header == ["#", "id", model.name, "id", model.name]
    assert len(records(run("tokenize", "The fox", "-m", model, "-m", model, "--json"))) == 2


def test_inputs(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("The fox\r\n", encoding="utf-8")
    expected = run("tokenize", "The fox", "-m", model, "--ids").stdout
    assert run("tokenize", "--prompt-file", tmp_path / "t.txt", "-m", model, "--ids").stdout == expected
    assert run("tokenize", "-m", model, "--ids", input="The fox\n").stdout == expected
    assert run("tokenize", "", "-m", model, "--count").stdout == "1\n"


def test_special_tokens(run: Run, model: Path) -> None:
    text = "<|end_of_text|>"
    assert run("tokenize", text, "-m", model, "--parse-special", "--ids").stdout == "0 1\n"
    assert "1" not in run("tokenize", text, "-m", model, "--ids").stdout.split()


def test_exclusive_options(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("tokenize", "x", "-m", model, "--ids", "--json").exit_code == 2
    assert run("tokenize", "x", "-m", model, "--decode", "1").exit_code == 2
    assert run("tokenize", "x", "-m", model, "--count", "--merges").exit_code == 2
    assert run("tokenize", "x", "-m", model, "-m", model, "--merges").exit_code == 2
    assert run("tokenize", "x", "-m", model, "--ids", "--save", tmp_path / "x.svg").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_table_in_a_file_has_no_text_around_it(run: Run, model: Path) -> None:
    result = run("tokenize", TEXT, "-m", model)
    assert all(line.count("\t") == 5 for line in result.stdout.splitlines())
    lines = result.stderr.splitlines()
    assert "tokens" in lines[0]
    assert lines[1].startswith("check: ok")


def test_the_picture_has_the_check_line(run: Run, model: Path, tmp_path: Path) -> None:
    for name, more in (("one.svg", []), ("two.html", ["-m", model]), ("merges.svg", ["--merges"])):
        result = run("tokenize", TEXT, "-m", model, *more, "--save", tmp_path / name)
        assert result.exit_code == 0
        picture = (tmp_path / name).read_text(encoding="utf-8").replace("&#160;", " ")
        assert picture.count("check: ok") == (2 if name == "two.html" else 1)


def test_merges(run: Run, model: Path) -> None:
    result = run("tokenize", "The fox, the fox \U0001f642", "-m", model, "--merges")
    lines = result.stdout.splitlines()
    table = [line.split("\t") for line in lines if line.count("\t") == 6]
    assert table[0] == ["word", "count", "rank", "kind", "left", "right", "symbols"]
    fox = [row for row in table if row[0] == "·fox"]
    assert fox[0] == ["·fox", "2", "", "merged", "", "", "· f o x"]
    assert all(row[2].isdecimal() and row[4] + row[5] in row[6].split() for row in fox[1:])
    assert fox[-1][6] == "·fox"  # a single token in this vocabulary
    assert lines[-1].startswith("check: ok; replaying")


def test_merges_as_json(run: Run, model: Path) -> None:
    (record,) = records(run("tokenize", "The fox", "-m", model, "--merges", "--json"))
    assert list(record) == ["model", "words", "tokens", "around", "ranks", "check"]
    word = record["words"][1]
    assert list(word) == ["text", "bytes", "count", "kind", "symbols", "merges", "tokens"]
    assert list(word["merges"][0]) == ["rank", "left", "right", "result", "at"]
    ids = load_tokenizer(model).encode("The fox")
    assert [token["id"] for word in record["words"] for token in word["tokens"]] == ids[1:]


@pytest.mark.parametrize("option", ["--json", "--merges"])
def test_a_text_too_long_to_show_can_be_counted(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr("llmcli.explain.tokens.tokenization.MAX_CHARACTERS", 20)
    text = "a" * 21
    result = run("tokenize", text, "-m", str(model), option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the text has 21 characters, and at most 20 can be shown" in result.stderr
    assert "--count" in result.stderr
    assert run("tokenize", text, "-m", str(model), "--count").exit_code == 0
    assert run("tokenize", text[1:], "-m", str(model), option).exit_code == 0


def test_a_tokenizer_without_merges_is_an_error(run: Run, tmp_path: Path) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    result = run("tokenize", "the cat", "-m", tmp_path, "--merges")
    assert result.exit_code == 1
    assert "Unigram" in result.stderr
    assert result.stderr.count("\n") == 1
    assert run("tokenize", "the cat", "-m", tmp_path).exit_code == 0


def test_a_failed_check_is_exit_code_1(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe.Bpe, "symbols", lambda self, word: [5] * len(word))
    result = run("tokenize", "The fox", "-m", model, "--merges")
    assert result.exit_code == 1
    assert "check: FAILED" in result.stdout
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, id: b"x")
    result = run("tokenize", "The fox", "-m", model)
    assert result.exit_code == 1
    assert "check: FAILED" in result.stderr


def test_a_chat_is_what_the_chat_command_reads(run: Run, chat_model: Path, tmp_path: Path) -> None:
    chat, template = tmp_path / "chat.json", tmp_path / "t.jinja"
    talk = [{"role": "user", "content": "The <|end_of_text|> fox"}, {"role": "assistant", "content": "sang"}]
    chat.write_text(json.dumps({"messages": [*talk, {"role": "user", "content": "a hen"}]}), encoding="utf-8")
    template.write_text("{% for m in messages %}{{ m.content }}{{ ending or '!' }}{% endfor %}", encoding="utf-8")
    options = ("tokenize", "--chat", chat, "-m", chat_model)

    (record,) = records(run(*options, "--json"))
    assert record["text"].endswith("<|begin_of_text|>user: a hen<|end_of_text|><|begin_of_text|>assistant: ")
    assert [(m["role"], m["found"]) for m in record["messages"]] == [
        ("user", True),
        ("assistant", True),
        ("user", True),
    ]
    assert record["lookalikes"] == [{"message": 0, "text": "<|end_of_text|>"}]
    ids = [token["id"] for token in record["tokens"]]
    assert run(*options, "--ids").stdout.split() == [str(id) for id in ids]
    saved = chat.read_text(encoding="utf-8")
    chat.write_text(json.dumps(json.loads(saved)["messages"]), encoding="utf-8")  # the list alone
    assert run(*options, "--count").stdout == f"{len(ids)}\n"

    plain = run(*options)
    rows = [line.split("\t") for line in plain.stdout.splitlines()]
    assert rows[0] == ["#", "id", "token", "message", "role", "part", "start", "end"]
    assert [row[1] for row in rows[1:]] == [str(id) for id in ids]
    assert [row[5] for row in rows[1:]].count("special") == 7
    assert "message 0 contains “<|end_of_text|>”" in plain.stderr
    assert "check: ok" in plain.stderr

    (other,) = records(run(*options, "--template", template, "--template-arg", 'ending="."', "--json"))
    assert other["text"] == "The <|end_of_text|> fox.sang.a hen."
    both = run(*options, "-m", chat_model)
    assert both.stdout.splitlines()[0].split("\t") == ["role", "id", chat_model.name, "id", chat_model.name]
    unread = run(*options, "--template", template, "--template-arg", "endin=.")
    assert (unread.exit_code, unread.stdout) == (2, "")
    assert "does not read the variable endin (did you mean ending?)" in unread.stderr
    doubled = run(*options, "--template", template, "--template-arg", "messages=1")
    assert doubled.exit_code == 2


def test_options_for_a_chat(run: Run, model: Path, chat_model: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text('{"messages": []}', encoding="utf-8")
    for words in (["--template", "x"], ["--template-arg", "a=1"]):
        assert "need --chat" in run("tokenize", "x", "-m", model, *words).stderr
    for words in (["x"], ["--merges"], ["--decode", "1"], ["--parse-special"], ["--template-arg", "a b=1"]):
        result = run("tokenize", "--chat", chat, "-m", chat_model, *words)
        assert (result.exit_code, result.stdout) == (2, ""), words
    assert "the conversation is empty" in run("tokenize", "--chat", chat, "-m", chat_model).stderr
    chat.write_text('{"messages": [{"role": "user", "content": "x"}]}', encoding="utf-8")
    assert "has no chat template" in run("tokenize", "--chat", chat, "-m", model).stderr
