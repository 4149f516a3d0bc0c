"""Models that think: switches and tags of templates, and replies split into thoughts and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.errors import LlmcliError
from llmcli.text.chat_template import ChatTemplate, Message, find_template
from llmcli.text.stream import TextStream
from llmcli.text.thinking import KNOWN_TAGS, SplitReply, Tags, Thinking, ThoughtSplitter, switched, thinking_of
from llmcli.text.tokenizer import Tokenizer
from tests.text.test_chat_format import SHARED, added, byte_level

TEMPLATES = SHARED.parent / "chat-templates"
BEGIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
# How published templates switch thinking.
SWITCHED = {
    "off on request": "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}",
    "on on request": "{% if enable_thinking is defined and enable_thinking %}"
    "<think>\n{% else %}<think></think>{% endif %}",
    "thinking": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "effort": "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'none' %}{% endif %}"
    "{% if reasoning_effort == 'none' %}[no]{% else %}[THINK]{% endif %}",
}
HARMONY = "{% set reasoning_effort = reasoning_effort or 'medium' %}{{ reasoning_effort }}" + KNOWN_TAGS[-1].open


def template(source: str) -> ChatTemplate:
    return ChatTemplate(BEGIN + source, {}, Path("x"))


@pytest.mark.parametrize("kind", SWITCHED)
def test_a_switch_is_found_and_used(kind: str) -> None:
    tokenizer, source = Tokenizer(byte_level(), "small"), template(SWITCHED[kind])
    thinking = thinking_of(source, tokenizer)
    talk = [Message("user", "x")]
    on, off = (switched(source, thinking, on=on).render(talk) for on in (True, False))
    assert source.render(talk) in (on, off)
    states = [thinking.state_after(text) for text in (on, off)]
    expected = {"off on request": ["start", "answer"], "effort": ["thoughts", "start"]}
    assert states == expected.get(kind, ["thoughts", "answer"])


def test_templates_without_a_switch() -> None:
    tokenizer = Tokenizer(byte_level(), "small")  # its added token <think> has no counterpart
    plain = template("")
    thinking = thinking_of(plain, tokenizer)
    assert thinking.tags is None
    assert switched(plain, thinking, on=False) is plain
    with pytest.raises(LlmcliError, match="has no switch for thinking"):
        switched(plain, thinking, on=True)
    unused = template("{% if enable_thinking %}{% endif %}")  # it reads the variable, to no effect
    assert thinking_of(unused, tokenizer).on is None
    for source in (template("<think>\n"), template(HARMONY)):  # they always think
        thinking = thinking_of(source, tokenizer)
        assert thinking.tags in KNOWN_TAGS
        with pytest.raises(LlmcliError, match="cannot turn thinking off"):
            switched(source, thinking, on=False)


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="needs files of real models")
@pytest.mark.parametrize(
    ("name", "switch"), [("qwen3", True), ("smollm3", True), ("gemma-3", False), ("phi-4-mini", False)]
)
def test_templates_of_real_models(name: str, switch: bool) -> None:
    found, talk = find_template(TEMPLATES / name), [Message("user", "x")]
    assert found is not None
    thinking = thinking_of(found, Tokenizer(byte_level(), "small"))
    assert (thinking.on == ("enable_thinking", True)) == (thinking.tags == KNOWN_TAGS[0]) == switch
    if switch:
        on, off = (switched(found, thinking, on=on).render(talk) for on in (True, False))
        assert [thinking.state_after(text) for text in (on, off)] == ["start", "answer"]
        assert on == found.render(talk)  # both think unless they are told not to
    kept = Message("assistant", "The answer", "The thoughts")
    assert "The thoughts" not in found.render([*talk, kept, *talk])


@given(
    st.sampled_from(KNOWN_TAGS),
    st.sampled_from(["", "\n", "\n\n"]),
    st.text("a <thinkof/>|[]\n", max_size=12).map(str.strip),
    st.text("a <thinkof/>|[]\n", max_size=12).map(str.strip),
    st.lists(st.integers(1, 5), min_size=1),
    st.sampled_from(["start", "thoughts", "answer"]),
)
def test_a_reply_is_split_wherever_its_text_arrives(
    tags: Tags, line: str, thoughts: str, answer: str, sizes: list[int], state: str
) -> None:
    if tags.close in thoughts + tags.close[:-1] or (state == "start" and tags.open.startswith(answer)):
        return
    text = thoughts + line + tags.close + line + answer
    text = {"start": line + tags.open + line + text, "thoughts": line + text, "answer": answer}[state]
    splitter, pieces, rest = ThoughtSplitter(tags, state), [], text  # type: ignore[arg-type]
    for size in sizes * len(text):
        pieces.append(splitter.feed(rest[:size]))
        rest = rest[size:]
    pieces.append(splitter.finish())
    assert "".join(piece.answer for piece in pieces) == answer
    assert "".join(piece.thoughts for piece in pieces) == ("" if state == "answer" else thoughts)


def test_a_reply_without_thoughts_or_without_their_end() -> None:
    for tags, text, expected in [
        (KNOWN_TAGS[0], "\n<b>x</think>", ("", "\n<b>x</think>")),
        (KNOWN_TAGS[0], " <thi", ("", " <thi")),
        (KNOWN_TAGS[0], "<think>\na</thin", ("a</thin", "")),
        (KNOWN_TAGS[-1], "<|channel|>final<|message|>x", ("", "x")),
        (None, "<think>x</think>", ("", "<think>x</think>")),
    ]:
        splitter = ThoughtSplitter(tags, "start")
        pieces = [*map(splitter.feed, text), splitter.finish()]
        assert ("".join(p.thoughts for p in pieces), "".join(p.answer for p in pieces)) == expected


def test_the_channels_of_special_tokens_are_tags() -> None:
    fast = byte_level()
    fast.add_special_tokens(added("<|channel|>", "<|message|>", "<|start|>"))
    tokenizer, thinking = Tokenizer(fast, "small"), Thinking(KNOWN_TAGS[-1])
    text = f"{thinking.tags.open}The cat{thinking.tags.close}sat" if thinking.tags else ""
    ids = tokenizer.encode(text, parse_special=True, add_special=False)
    stream, reply = TextStream(tokenizer, shown=thinking.tag_ids(tokenizer)), SplitReply(thinking, "start")
    for id in ids:
        reply.add(stream.feed(id), ended=False)
    reply.add(stream.finish(), ended=True)
    assert (reply.thoughts, reply.answer) == ("The cat", "sat")
    assert reply.thought_tokens == len(tokenizer.encode("The cat", add_special=False))
