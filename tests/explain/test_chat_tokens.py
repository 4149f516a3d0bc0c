"""``tokenize --chat``: the ids are those that a chat reads, and every token is attributed rightly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmcli.explain import tokenize_chat
from llmcli.text import attribution
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import ROLES, ChatTemplate, Message, find_template
from llmcli.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.test_chat_format import SHARED, TEXTS, byte_level

TEMPLATES = SHARED.parent / "chat-templates"
TURNS = (
    "{{ bos_token }}Today is Sunday.\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (  # no system prompt on its own, and turns that alternate
    "{% if messages[-1].role == 'system' %}{{ raise_exception('no turn') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}"
)
TALK = (Message("system", "Be brief."), Message("user", "The <|im_start|> cat"), Message("assistant", "sat"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), "small")


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, Path("x"))


def parts(tokenizer: Tokenizer, source: str, messages: tuple[Message, ...]) -> list[tuple[int | None, str, str]]:
    found = attribution.Attribution(
        TemplateFormat(template_of(source), tokenizer), messages, add_generation_prompt=messages[-1].role == "user"
    )
    text = found.rendered.text
    assert "".join(text[part.start : part.end] for part in found.parts()) == text
    return [(part.message, part.kind, text[part.start : part.end]) for part in found.parts()]


def test_each_part_belongs_to_its_message(tokenizer: Tokenizer) -> None:
    messages = (*TALK[1:], Message("user", " on\n"))
    assert parts(tokenizer, TURNS, messages) == [
        (None, "template", "<s>Today is Sunday.\n"),
        (0, "template", "<|im_start|>user\n"),
        (0, "content", "The <|im_start|> cat"),
        (0, "template", "</s>\n"),
        (1, "template", "<|im_start|>assistant\n"),
        (1, "content", "sat"),
        (1, "template", "</s>\n"),
        (2, "template", "<|im_start|>user\n"),
        (2, "content", " on\n"),
        (2, "template", "</s>\n"),
        (3, "template", "<|im_start|>assistant\n"),
    ]
    assert parts(tokenizer, STRICT, messages)[-3:] == [
        (2, "template", "[user]"),
        (2, "content", "on"),
        (2, "template", "[end]"),
    ]


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("{% for m in messages %}({{ m.content | upper }}){% endfor %}", {0, 1, 2}),
        ("{% for m in messages %}({{ m.content }}|{{ m.content }}){% endfor %}", {0, 1, 2}),
        ("{% for m in messages if m.role != 'system' %}({{ m.content }}){% endfor %}", {0}),
        ("{% for m in messages %}({{ m.content }}:{{ m.content | length }}){% endfor %}", {0, 1, 2}),
        ("{% for m in messages %}({{ m.content.split('.')[-1] or m.content }}){% endfor %}", {0}),
    ],
)
def test_what_a_template_changes_is_not_attributed(tokenizer: Tokenizer, source: str, missing: set[int]) -> None:
    report = tokenize_chat(tokenizer, (Message("system", "a.b"), *TALK[1:]), template_of(source))
    assert {n for n, message in enumerate(report.messages) if not message.found} == missing
    kinds = {token.message for token in report.tokens if token.kind == "content"}
    assert kinds == {0, 1, 2} - missing
    assert report.check.ok


@given(st.lists(st.tuples(st.sampled_from(ROLES), TEXTS), min_size=1, max_size=3), st.sampled_from([TURNS, STRICT]))
def test_the_tokens_of_any_conversation(turns: list[tuple[str, str]], source: str) -> None:
    tokenizer = Tokenizer(byte_level(), "small")
    messages = [Message(role, content) for role, content in turns]
    if source is STRICT and turns[-1][0] == "system":
        return
    report = tokenize_chat(tokenizer, messages, template_of(source))
    form = TemplateFormat(template_of(source), tokenizer)
    rendered = form.render(messages, add_generation_prompt=turns[-1][0] != "assistant")
    assert [token.id for token in report.tokens] == form.encode(rendered)
    assert report.check.ok
    for n, message in enumerate(messages):
        own = [token for token in report.tokens if token.message == n and token.kind in ("content", "mixed")]
        shown = b"".join(token.bytes for token in own).decode("utf-8", "replace")
        assert tokenizer.normalize(message.content.strip()) in tokenizer.normalize(shown)
        assert bool(report.lookalikes) == any(form.lookalikes(m) for m in messages)
    control = [rendered.text[a:b] for a, b in rendered.control_spans]
    assert [token.text for token in report.tokens if token.kind == "special"] == control


def test_a_wrong_encoding_fails_the_check(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TemplateFormat.encode_spans

    def wrong(self: TemplateFormat, rendered: object) -> list[tuple[int, int, int]]:
        found = whole(self, rendered)  # type: ignore[arg-type]
        return found if len(found) < 12 else found[1:]

    assert tokenize_chat(tokenizer, TALK, template_of(TURNS)).check.ok
    monkeypatch.setattr(TemplateFormat, "encode_spans", wrong)
    assert not tokenize_chat(tokenizer, TALK, template_of(TURNS)).check.ok


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="needs files of real models")
def test_ids_and_roles_are_those_of_transformers() -> None:
    """SmolLM3's template marks replies for training, which gives an independent attribution."""
    tokenizer = load_tokenizer(SHARED / "qwen2.5-0.5b-instruct")
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.fast)
    talk = (*TALK[:1], Message("user", "The cat"), TALK[2], Message("user", "on"))
    for name in ("smollm3", "qwen3"):
        template = find_template(TEMPLATES / name)
        assert template is not None
        report = tokenize_chat(tokenizer, talk, template)
        found = theirs.apply_chat_template(
            [message.record() for message in talk],
            chat_template=template.source,
            add_generation_prompt=True,
            return_dict=True,
            return_assistant_tokens_mask=name == "smollm3",
        )
        assert [token.id for token in report.tokens] == found["input_ids"]
        if name == "smollm3":
            assert [int(token.message == 2) for token in report.tokens] == found["assistant_masks"]
