"""Chat templates that compute, write or remember too much end in an error, and the next template works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcli.errors import LlmcliError
from llmcli.text import template_process
from llmcli.text.chat_template import ChatTemplate, Message, find_template
from llmcli.text.template_process import TemplateProcess

NEST = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDLESS = {
    "nested loops": NEST + "{% endfor %}{% endfor %}{% endfor %}",
    "slices": "{{ range(99999) | slice(100000000) | list | length }}",
    "a huge number": "{{ (9 ** (9 ** (messages | length + 8))) > 0 }}",
}
TOO_LARGE = {
    "repeated": "{{ messages[0].content * 10000000000 }}",
    "a constant": "{{ 'a' * 10000000000 }}",
    "indent": "{{ messages[0].content | indent(10000000000, true) }}",
    "doubled": "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a rejection": "{{ raise_exception('a' * 10000000000) }}",
}
TOO_LONG = {
    "a loop": "{% for a in range(99999) %}{{ 'ten chars.' * 30 }}{% endfor %}",
    "at once": "{{ 'ten chars.' * 2000000 }}",
    "the messages": "{% for a in range(2000) %}{{ messages[0].content * 10 }}{% endfor %}",
}


def render(source: str, content: str = "hi" * 50) -> str:
    return ChatTemplate(source, {}, Path("x")).render([Message("user", content)])


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_computes_too_long_is_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    render("")
    monkeypatch.setattr(template_process, "SECONDS", 0.2)
    with pytest.raises(LlmcliError, match=r"x: the chat template cannot be used: it takes more than 0\.2 seconds"):
        render(ENDLESS[name])
    monkeypatch.undo()
    assert render("{{ messages[0].content }}", "next") == "next"


def test_a_template_that_took_too_long_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(ENDLESS["slices"], {}, Path("x"))
    monkeypatch.setattr(template_process, "SECONDS", 0.2)
    with pytest.raises(LlmcliError, match="cannot be used"):
        template.render([Message("user", "hi")])
    monkeypatch.setattr(template_process.PROCESS, "ask", lambda request: pytest.fail("it was asked again"))
    with pytest.raises(LlmcliError, match="cannot be used"):
        template.render([Message("user", "hello")])


@pytest.mark.skipif(os.name == "nt", reason="Windows does not limit the memory of a process")
@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_template_that_needs_too_much_memory_is_an_error(name: str) -> None:
    with pytest.raises(LlmcliError, match="memory"):
        render(TOO_LARGE[name])
    assert render("{{ messages[0].content }}", "next") == "next"


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_template_that_writes_too_much_is_an_error(name: str) -> None:
    with pytest.raises(LlmcliError, match="writes too much"):
        render(TOO_LONG[name])


def test_long_messages_are_not_too_much() -> None:
    content = "long text " * 200_000
    assert render("<{{ messages[0].content }}>{{ messages[0].content | length }}", content) == f"<{content}>2000000"


def test_any_text_passes_unchanged() -> None:
    content = 'a\n\r\x00\x1b\u2028\udc80\U0001f642\\u0041"'
    assert render("{{ messages[0].content }}", content) == content


def test_a_file_that_is_no_template(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    with path.open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(LlmcliError, match="larger than"):
        find_template(tmp_path)


def test_the_process_imports_nothing_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2", "json", "llmcli"):
        (tmp_path / f"{name}.py").write_text(f"import pathlib; pathlib.Path('ran {name}').touch()\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    process = TemplateProcess()
    variables = {"messages": [{"role": "user", "content": "x"}]}
    try:
        assert process.ask({"source": "{{ messages[0].content }}", "variables": variables}) == {"text": "x"}
    finally:
        process.end()
    assert not list(tmp_path.glob("ran *"))


def test_a_process_that_was_killed_is_started_again() -> None:
    assert render("a") == "a"
    assert template_process.PROCESS._process is not None
    template_process.PROCESS._process.kill()
    template_process.PROCESS._process.wait()
    assert render("b") == "b"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_a_process_of_its_own() -> None:
    assert render("a") == "a"
    child = os.fork()
    if child == 0:
        texts = [render("{{ messages[0].content }}", str(n)) for n in range(50)]
        template_process.PROCESS.end()
        os._exit(texts != [str(n) for n in range(50)])
    texts = [render("{{ messages[0].content }}", str(n)) for n in range(100, 150)]
    assert os.waitpid(child, 0)[1] == 0
    assert texts == [str(n) for n in range(100, 150)]
    assert render("b") == "b"
