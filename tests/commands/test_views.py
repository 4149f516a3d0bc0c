"""What all views share: their forms, their errors, and hostile texts."""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llmcli.cli import COMMANDS, cli
from llmcli.errors import EXIT_FAILURE, EXIT_USAGE, LlmcliError
from llmcli.explain import report as checks
from tests.commands.conftest import records

Run = Callable[..., Result]
PROMPT = "The old fox met a hen"
# The command line of each view; {text} is replaced by a text, {chat} by a saved chat of it, {template} by a template.
VIEWS: dict[str, list[str]] = {
    "tokenize": ["{text}"],
    "tokenize --merges": ["{text}", "--merges"],
    "tokenize --chat": ["--chat", "{chat}", "--template", "{template}"],
    "neighbours": ["fox"],
    "attend": ["{text}"],
    "attend --head": ["{text}", "--head", "1.2"],
    "heads": ["{text}"],
    "lens": ["{text}"],
    "why": ["{text}"],
    "patch": ["{text}7", "{text}8", "--token", "70", "--vs", "80"],
    "steer": ["{positive}", "{negative}", "{out}"],
    "explain-step": ["{text}", "--seed", "1"],
    "branch": ["{text}", "--depth", "2"],
    "decide": ["{text}", "--choices", "and,or,and the fox"],
    "score": ["{text}"],
    "compare": ["{text}"],
    "compare --summary": ["{text}", "--summary"],
    "inspect": [],
    "verify": ["{text}"],
    "tour": ["{text}"],
}
TEXTS = [name for name, words in VIEWS.items() if "{text}" in words]
SLOW = {"verify"}  # its own tests check its forms
HOSTILE = {
    "controls": "The old \x1b[31mfox\x1b[0m \x07 met\r a \x00 hen \x9b2J",
    "markup": "The [bold]old[/bold] fox [/] met [link=x] :smile: a hen",
    "wide": "The 狐 met 🙂‍🙂 a hen e\u0301",
    "lines": "The old fox\n\n\tmet\u2028a hen\n",
    "right to left": "The \u202eold fox\u202c met אבג a hen",
}
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def words(view: str, model: Path, text: str = PROMPT) -> list[str]:
    models = ["-m", str(model)] * (2 if view.startswith("compare") else 1)
    chat, template = model.parent / "views.json", model.parent / "views.jinja"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": text}]}), encoding="utf-8")
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", encoding="utf-8")
    positive, negative = model.parent / "positive.txt", model.parent / "negative.txt"
    positive.write_text(f"{PROMPT}\nA fox\n", encoding="utf-8")
    negative.write_text("The hen\nA hen\n", encoding="utf-8")
    out = model.parent / "direction.safetensors"
    given = {
        "text": text,
        "chat": chat,
        "template": template,
        "positive": positive,
        "negative": negative,
        "out": out,
    }
    return [view.split()[0], *(word.format(**given) for word in VIEWS[view]), *models]


ONE_OF_MANY = re.compile(
    r"(?<![\d.,])1 (?:distinct )?(?:tokens|words|merges|prompts|messages|heads|bytes|others)\b(?!/s)"
)


def test_a_count_of_one_is_singular(run: Run, model: Path, chat_model: Path, tmp_path: Path) -> None:
    source, chat = tmp_path / "in.jsonl", tmp_path / "chat.json"
    source.write_text('{"prompt": "", "max_tokens": 1}\n')
    chat.write_text(json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}))
    calls = {
        "1 token, decode - | prompt 1 token,": ("generate", "", "-n", 1),
        "prompt 1 token,": ("generate", "", "-n", 1, "--num-samples", 2),
        "0 of 1 token reused": ("generate", "", "-n", 1, "--prompt-cache", tmp_path / "cache"),
        "2 tokens, 1 byte of text": ("tokenize", "a"),
        "1 word became 1 token": ("tokenize", "a", "--merges"),
        "context 1 token, ": ("explain-step", ""),
        "1 token, ": ("score", "a"),
        "1 of 1 prompt written | 1 token, ": ("batch", source, tmp_path / "out.jsonl"),
        "1 message\n": ("chat",),
    }
    run("generate", "The", "-m", model, "-n", 1, "--prompt-cache", tmp_path / "cache")
    for expected, (command, *rest) in calls.items():
        used = chat_model if command == "chat" else model
        result = run(command, *rest, "-m", used, input=f"/load {chat}\n" if command == "chat" else "")
        assert expected in result.output, result.output
        assert not ONE_OF_MANY.search(result.output), result.output
    assert ONE_OF_MANY.search("prompt 1 tokens, prefill 1 tokens/s")


def test_every_view_is_tested() -> None:
    others = {"generate", "chat", "batch", "bench", "quantize", "train", "export", "models", "config", "completion"}
    others |= {"pull", "rm", "log", "explain", "fit-lens", "serve"}
    assert {view.split()[0] for view in VIEWS} == set(COMMANDS) - others


@pytest.mark.parametrize("view", [view for view in VIEWS if view not in SLOW])
def test_plain_json_and_pictures(model: Path, run: Run, view: str, tmp_path: Path) -> None:
    plain = run(*words(view, model))
    assert plain.exit_code == 0, plain.stderr
    assert "\x1b" not in plain.stdout
    assert "\t" in plain.stdout
    assert "check: ok" in plain.stdout + plain.stderr
    if re.search(r"\t\+{2,3}(\t|$)", plain.stdout, re.MULTILINE):  # marks have a legend
        assert "p: 0.5 or more +++" in plain.stdout or "surprisal, bits: up to 1 +++" in plain.stdout
    saved = {suffix: tmp_path / f"view.{suffix}" for suffix in ("svg", "html")}
    for path in saved.values():
        result = run(*words(view, model), "--json", "--save", path)
        assert result.exit_code == 0, result.stderr
        assert str(path) in result.stderr
        (record,) = records(result)
        assert record["check"]["ok"] is True
    svg = saved["svg"].read_text(encoding="utf-8")
    assert not re.search(r"url\(['\"]?http|@font-face|href=", svg)  # no external resources
    html = saved["html"].read_text(encoding="utf-8")
    for text in ("".join(ET.fromstring(svg).itertext()), unescape(re.sub("<[^>]*>", "", html))):
        text = re.sub(r"\s+", " ", text)
        assert "check:" in text
        # A picture stands alone: it has the command, the prompt, and the model with its dtype.
        assert f"$ llmcli {view.split()[0]} " in text
        assert "--json" in text
        assert "--save" not in text
        assert PROMPT in text or "{text}" not in VIEWS[view]
        assert f"model: {model.name}" in text
        assert "float32" in text or "bfloat16" in text or view.split()[0] in ("tokenize", "inspect")


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_the_prompt_of_a_picture_can_come_from_a_pipe(model: Path, run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    assert run("lens", "-m", model, "--save", path, input=PROMPT).exit_code == 0
    text = unescape(re.sub("<[^>]*>", "", path.read_text(encoding="utf-8"))).replace("\xa0", " ")
    assert f"prompt: {PROMPT}" in text


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_a_picture_is_dark_or_light(model: Path, run: Run, tmp_path: Path, suffix: str) -> None:
    """The brightness of the background and of the text is read from the file."""
    for theme, options in (("dark", []), ("dark", ["--theme", "dark"]), ("light", ["--theme", "light"])):
        path = tmp_path / f"x.{suffix}"
        assert run("lens", PROMPT, "-m", model, "--save", path, *options).exit_code == 0
        text = path.read_text(encoding="utf-8")
        background = re.search(r'<rect fill="#(\w{6})"|background-color: #(\w{6})', text)
        assert background is not None
        light = int((background[1] or background[2])[:2], 16) > 200
        assert light == (theme == "light")
        color = re.search(r"\.terminal-\d+-r1 { fill: #(\w{6})|[^-]color: #(\w{6})", text)
        assert color is not None
        assert (int((color[1] or color[2])[:2], 16) < 100) == light


def test_attend_ends_with_what_the_token_looks_at_most(model: Path, run: Run) -> None:
    (record,) = records(run("attend", PROMPT, "-m", model, "--json"))
    lines = run("attend", PROMPT, "-m", model).stdout.splitlines()
    first, *others, own = record["sources"]
    most = max(others, key=lambda source: source["mean"])
    (sentence,) = [line for line in lines if "looks most at" in line]
    assert lines.index(sentence) == len(lines) - 3  # before the check and the model
    assert f"(position {most['position']}): mean weight {most['mean']:.4f}" in sentence
    assert f"L{most['layer']}.H{most['head']} gives it {most['weight']:.2f}." in sentence
    assert (f"the first token ({first['mean']:.4f})" in sentence) == (first["mean"] > most["mean"])
    assert (f"itself ({own['mean']:.4f})" in sentence) == (own["mean"] > most["mean"])
    is_sink = first["mean"] > 1.5 / len(record["sources"])
    assert ("attention sink" in sentence) == ("--no-sink" in sentence) == is_sink
    assert "--no-sink" not in run("attend", PROMPT, "-m", model, "--no-sink").stdout
    assert "can only look at itself" in run("attend", PROMPT, "-m", model, "--at", 0).stdout


def test_a_pattern_ends_with_where_its_head_looks(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["attend", PROMPT, "-m", str(model), "--head", "1.2"]
    (record,) = records(run(*arguments, "--json"))
    rows = [row["weights"] for row in record["rows"] if row["position"] >= 2]
    shares = [sum(row[at] for row in rows) / len(rows) for at in (-1, -2, 0)]
    shares.append(1 - sum(shares))
    names = ["the token itself", "the previous token", "the first token", "other tokens"]
    sentence = run(*arguments).stdout.splitlines()[-3]
    assert f"L1.H2 looks most at {names[shares.index(max(shares))]}." in sentence
    assert all(f"{name} {share:.2f}" in sentence for name, share in zip(names, shares, strict=True))
    triangle = ESCAPE.sub("", on_terminal(arguments, 80, monkeypatch)).split("Weights in percent")[0]
    assert "·" not in re.sub("·(?=\\w)", "", triangle)  # it stands only for a space


@pytest.mark.parametrize("token", [" fox", " hen", "e"])
def test_why_ends_with_the_strongest_component(model: Path, run: Run, token: str) -> None:
    call = ("why", PROMPT, "-m", model, "--token", token, "--vs", " crow")
    (record,) = records(run(*call, "--json"))
    total = record["total"]["difference"]
    parts = [part for part in record["parts"] if part["name"] != "rounding"]
    best = max(parts, key=lambda part: part["difference"] * (1 if total >= 0 else -1))
    sentence = run(*call).stdout.splitlines()[-3]
    assert sentence.startswith(f"{best['name']} gives {best['difference']:+.2f} of {total:+.2f}")
    assert record["strongest"]["name"] == best["name"]
    heads = [part for part in parts if ".H" in part["name"]]
    head = max(heads, key=lambda part: part["difference"] * (1 if total >= 0 else -1))
    assert (f"Of the heads, {head['name']} gives the most: {head['difference']:+.2f}" in sentence) == (head != best)
    (of_head,) = records(run(*call, "--head", head["name"].replace("L", "").replace("H", ""), "--json"))
    source = max(of_head["sources"], key=lambda source: source["difference"] * (1 if total >= 0 else -1))
    assert f"{source['difference']:+.2f} of it by reading" in sentence
    assert f"(position {source['position']})" in sentence


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("view", [view for view in VIEWS if view not in SLOW])
def test_no_line_is_wider_than_the_terminal(
    model: Path, view: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = on_terminal(words(view, model), width, monkeypatch)
    lines = ESCAPE.sub("", shown).splitlines()
    assert len(lines) > 3
    if width >= 80:
        assert max(cells(line) for line in lines) <= width, max(lines, key=cells)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("view", [*(view for view in TEXTS if view not in SLOW), "tokenize --chat"])
def test_no_text_can_break_a_terminal(model: Path, view: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(words(view, model, HOSTILE[kind]), 80, monkeypatch)
    left = ESCAPE.sub("", shown)
    if view not in ("score", "compare", "tour"):  # these show the text itself
        assert not set("\u2028\u202e\u202c") & set(left)
    assert not [char for char in left if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    if kind == "markup" and view in ("tokenize", "score", "tour"):
        assert "[" in left


def on_terminal(arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a color terminal of ``width`` columns receives."""
    from tests.render.test_terminal import Tty

    screen = Tty()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdin", Tty("\n" * 10))
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments, prog_name="llmcli")
    assert ended.value.code == 0, screen.getvalue()
    return screen.getvalue()


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line)


@pytest.mark.parametrize("view", [view for view in TEXTS if view not in SLOW])
def test_the_text_can_come_from_a_file_or_a_pipe(model: Path, run: Run, view: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(PROMPT, encoding="utf-8")
    without = [word for word in words(view, model) if word != PROMPT]
    given = [run(*words(view, model)), run(*without, "--prompt-file", file), run(*without, input=PROMPT)]
    assert len({result.stdout for result in given}) == 1
    assert all(result.exit_code == 0 for result in given)


@pytest.mark.parametrize(
    "view", [view for view in TEXTS if view not in ("tokenize", "tokenize --merges", "tour", *SLOW)]
)
def test_a_text_longer_than_the_context(model: Path, run: Run, view: str) -> None:
    """Views of whole texts score it in windows; the others print a one-line error with a hint and exit with 2."""
    result = run(*words(view, model, "The old fox met a hen by the river. " * 30))
    if view.split()[0] in ("score", "compare"):
        assert result.exit_code == 0, result.stderr
        return
    assert result.exit_code == EXIT_USAGE or view == "explain-step"
    assert "64" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("view", ["score", "compare"])
def test_a_bar_counts_the_tokens_of_a_long_text(model: Path, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.render.progress.PATIENCE", 0.0)
    shown = on_terminal(words(view, model, "The old fox met a hen by the river. " * 30), 80, monkeypatch)
    assert (total := re.search(r"scoring.* (\d+)/(\d+) tokens", shown)) is not None
    assert int(total[1]) <= int(total[2])
    assert total[2] in shown.split("scoring")[-1].split("\n", 1)[1], "the number of tokens in the report"


@pytest.mark.parametrize("view", ["attend", "lens", "why", "branch"])
@pytest.mark.parametrize("at", ["3", "-2", "fox", "+1"])
def test_every_view_selects_positions_the_same_way(model: Path, run: Run, view: str, at: str) -> None:
    (record,) = records(run(*words(view, model), "--at", at, "--json"))
    (tokens,) = records(run("tokenize", PROMPT, "-m", model, "--json"))
    texts = [token["text"] for token in tokens["tokens"]]
    expected = {"3": 3, "-2": len(texts) - 2, "+1": 1}.get(at)
    assert record["position"] == (texts.index(" fox") if expected is None else expected)
    assert record["at"]["text"] == texts[record["position"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lens", PROMPT, "--at", "99"], "no position 99"),
        (["lens", PROMPT, "--at", "-99"], "no position -99"),
        (["lens", PROMPT, "--at", "wolf"], "no token"),
        (["lens", "a fox a fox a fox", "--at", "fox"], "several positions"),
        (["lens", PROMPT, "--layer", "7"], "no layer 7"),
        (["lens", PROMPT, "--layer", "x"], "names no layers"),
        (["lens", PROMPT, "--layer", "1-0"], "names no layers"),
        (["lens", PROMPT, "--layer", ""], "names no layers"),
        (["lens", PROMPT, "--token", "zebra crossing"], "not one token"),
        (["lens", PROMPT, "--token", ""], "token"),
        (["lens", PROMPT, "--token", "99999"], "no token id"),
        (["why", PROMPT, "--head", "1"], "names no head"),
        (["why", PROMPT, "--head", "1.9"], "no head 9"),
        (["why", PROMPT, "--head", "9.1"], "no layer 9"),
        (["why", PROMPT, "--token", " fox", "--vs", " fox"], "same"),
        (["attend", PROMPT, "--head", "0.0", "--no-sink"], "--head"),
        (["attend", PROMPT, "--head", "0.0", "--layer", "1"], "--head"),
        (["branch", PROMPT, "--width", "200", "--depth", "9"], "1000"),
        (["branch", PROMPT, "--depth", "0"], "depth"),
        (["score", "fox", "--top", "-1"], "top"),
        (["neighbours", "zebra"], "not one token"),
        (["neighbours", " "], "neither a word"),
        (["tour", "a"], "few words"),
        (["lens", PROMPT, "--save", "x.png"], ".svg"),
        (["lens", PROMPT, "--save", "nowhere/x.svg"], "no folder"),
        (["lens", ""], "empty"),
    ],
)
def test_errors_are_one_line(model: Path, run: Run, arguments: list[str], expected: str) -> None:
    if expected == "empty":
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        assert config["bos_token_id"] is not None
        return  # this model has a BOS token, so an empty text can be read
    result = run(*arguments, "-m", model)
    assert result.exit_code == EXIT_USAGE, result.stderr
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("models", [[], ["a"], ["a", "b", "c"]])
def test_compare_needs_two_models(model: Path, run: Run, models: list[str]) -> None:
    result = run("compare", PROMPT, *(word for _ in models for word in ("-m", model)))
    assert result.exit_code == EXIT_USAGE
    assert "two models" in result.stderr


@pytest.mark.parametrize("view", ["lens", "why", "score", "attend --head", "compare", "explain-step"])
def test_a_failed_check_exits_with_1(model: Path, run: Run, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if view == "explain-step":
        monkeypatch.setattr("llmcli.explain.sampling_step.Replay.ok", False, raising=False)
        monkeypatch.setattr("llmcli.explain.sampling_step._check", lambda *_: _failed_replay())
    else:
        monkeypatch.setattr(checks.Claim, "holds", False)
    result = run(*words(view, model))
    assert result.exit_code == EXIT_FAILURE
    assert "check: FAILED" in result.stdout
    assert "check: FAILED" not in run(*words(view, model), "--json").stdout


def _failed_replay() -> Any:
    from llmcli.explain.sampling_step import Replay

    return Replay(False, -1, 0.5)


def test_a_picture_that_cannot_be_written_is_an_error(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.svg").mkdir()
    early = run("lens", PROMPT, "-m", "no such model", "--save", tmp_path / "x.svg")
    assert (early.exit_code, early.stdout) == (EXIT_USAGE, "")
    assert "x.svg: that is a folder" in early.stderr

    def full(path: Path, text: str) -> None:
        raise LlmcliError(f"{path}: no space left")

    monkeypatch.setattr("llmcli.render.picture.replace_text", full)
    late = run("lens", PROMPT, "-m", model, "--save", tmp_path / "y.svg")
    assert late.exit_code == EXIT_FAILURE
    assert "y.svg: no space left" in late.stderr
    assert "check: ok" in late.stdout  # the view itself is still printed


def test_an_adapter_can_be_compared_with_its_base(model: Path, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    result = run("compare", PROMPT, "-m", model, "-m", other, "--json")
    (record,) = records(result)
    assert record["models"] == [model.name, "other"]
    assert record["mean_kl"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
@pytest.mark.parametrize("stops", [9, 3])
def test_the_tour_pauses_at_every_stop_and_can_be_quit(model: Path, stops: int) -> None:
    import pexpect

    child = pexpect.spawn(
        sys.executable,
        ["-m", "llmcli", "tour", PROMPT, "-m", str(model)],
        dimensions=(40, 80),
        encoding="utf-8",
        timeout=None,
    )
    for number in range(1, stops + 1):
        child.expect(f"{number}/9  ")
        if number < 9:
            child.expect("Press Enter to continue, q to quit")
            answer = "x" if number < stops else "q"
            child.sendline(answer)
            child.expect_exact(f" {answer}\r\n")
            assert child.before == ""  # nothing came after the question
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
