"""A conversation reads each token once: a turn reads only new tokens, even after messages were removed or changed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.generation.conversation import Conversation, Reply
from llmcli.generation.filters import LogitBias, Temperature
from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.transformer import Transformer
from llmcli.text.chat_format import PlainFormat, TemplateFormat
from llmcli.text.chat_template import ChatTemplate, Message
from llmcli.text.thinking import KNOWN_TAGS, Thinking
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import BOS, EOS, EOS_ID, train_tokenizer

TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LATE = TURNS.replace("{{ m.content }}", "{{ m.content | trim }}").replace("assistant: {%", "assistant:\n{%")
WORDS = ["once upon a time", "the old cat", "user: assistant: system:", "sat on the mat, 🙂 naïve"]


@cache
def loaded(context: int = 512, **changed: Any) -> LoadedModel:
    """A random model with a byte-level tokenizer, which ends a text only if it is made to."""
    torch.manual_seed(0)
    fast = train_tokenizer(WORDS * 3, 300)
    config = ModelConfig(
        "llama",
        fast.get_vocab_size(),
        16,
        24,
        2,
        2,
        1,
        8,
        context,
        rope=RopeConfig(),
        eos_token_ids=(EOS_ID,),
        bos_token_id=0,
    )
    model = Transformer(replace(config, **changed)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return LoadedModel("random", Path(), model, Tokenizer(fast, "random"), Defaults((), {}, {}))


def conversation(source: str | None = TURNS, **changed: Any) -> Conversation:
    model = loaded(**changed)
    if source is None:
        return Conversation(model, PlainFormat(model.tokenizer))
    template = ChatTemplate(source, {"bos_token": BOS, "eos_token": EOS}, Path("x"))
    return Conversation(model, TemplateFormat(template, model.tokenizer))


def warm(seed: int = 0, stop_at: int | None = None) -> Sampler:
    """Filters that ban the token that ends a reply, or allow only that token."""
    bias = {EOS_ID: -float("inf")} if stop_at is None else {EOS_ID: 1e9}
    return Sampler([LogitBias(bias), Temperature(1.0)], seed)


def answer(chat: Conversation, messages: tuple[Message, ...], count: int = 6, seed: int = 0) -> Reply:
    """Add a reply of ``count`` tokens to the conversation."""
    reply = chat.answer(messages, warm(seed), count)
    for _ in reply:
        pass
    chat.keep(reply)
    return reply


def say(chat: Conversation, text: str, **options: Any) -> Reply:
    return answer(chat, (*chat.messages, Message("user", text)), **options)


def fresh(ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return loaded().model(torch.tensor([ids]))[0, -1].float()


# --- which tokens are read ---


def test_a_turn_reads_only_new_tokens(forwards: list[int]) -> None:
    chat = conversation()
    first = say(chat, "the old cat")
    assert forwards == [len(first.prompt), 1, 1, 1, 1, 1]
    for text in ("sat", "", "on the mat 🙂"):
        before, forwards[:] = [*chat.last.prompt, *chat.last.ids], []  # type: ignore[union-attr]
        reply = say(chat, text)
        # The last token of the reply was generated but not read yet.
        assert forwards == [len(reply.prompt) - len(before) + 1, 1, 1, 1, 1, 1]
        assert list(reply.prompt[: len(before)]) == before


def test_a_reply_that_the_model_ended_is_read_to_its_end(forwards: list[int]) -> None:
    chat = conversation()
    say(chat, "the cat", count=3)
    messages = (*chat.messages, Message("user", "sat"))
    reply = chat.answer(messages, warm(stop_at=0), 9)
    assert [step.finish for step, _ in reply] == ["stop_token"]
    chat.keep(reply)
    assert (reply.ids, reply.message.content) == ([], "")
    forwards.clear()
    after = say(chat, "on the mat")
    assert forwards[0] == len(after.prompt) - len(reply.prompt)
    assert list(after.prompt[: len(reply.prompt) + 1]) == [*reply.prompt, EOS_ID]


def test_regenerating_reads_one_position(forwards: list[int]) -> None:
    chat = conversation()
    say(chat, "the old cat")
    first = say(chat, "sat")
    forwards.clear()
    second = answer(chat, chat.messages[:-1], seed=7)
    assert forwards == [1] * 6
    assert second.prompt == first.prompt
    assert second.ids != first.ids
    forwards.clear()
    again = answer(chat, chat.messages[:-1], seed=0)
    assert (forwards, again.ids) == ([1] * 6, first.ids)


def test_after_undo_only_the_new_turn_is_read(forwards: list[int]) -> None:
    chat = conversation()
    first = say(chat, "the old cat")
    say(chat, "sat on the mat")
    chat.messages = chat.messages[:2]
    forwards.clear()
    reply = say(chat, "time")
    assert list(reply.prompt[: len(first.prompt) + 6]) == [*first.prompt, *first.ids]
    shared = len(first.prompt) + len(first.ids)
    new = len(reply.prompt) - shared
    # The removed turn began with the same few tokens.
    common = len(chat.form.encode(chat.form.render((Message("user", ""),), add_generation_prompt=False))) - 1
    assert new - common <= forwards[0] <= new
    assert forwards[1:] == [1] * 5


def test_after_a_new_system_prompt_everything_is_read_again(forwards: list[int]) -> None:
    chat = conversation()
    say(chat, "the old cat")
    chat.messages = (Message("system", "time"), *chat.messages)
    forwards.clear()
    reply = say(chat, "sat")
    assert len(reply.prompt) - 3 <= forwards[0] < len(reply.prompt)  # <s> is the same
    assert forwards[1:] == [1] * 5


def test_a_turn_has_the_logits_of_a_model_without_a_cache() -> None:
    chat = conversation()
    for n, text in enumerate(("the old cat", "sat", "on the mat")):
        reply = chat.answer((*chat.messages, Message("user", text)), warm(n), 5)
        ids = list(reply.prompt)
        for step, _ in reply:
            torch.testing.assert_close(step.logits, fresh(ids), rtol=1e-3, atol=1e-3)
            ids.append(step.token)
        chat.keep(reply)
        if n == 1:
            chat.messages = chat.messages[:2]


@pytest.mark.parametrize("interrupted", [1, 3])
def test_an_interrupted_reply_is_kept(forwards: list[int], interrupted: int) -> None:
    chat = conversation()
    reply = chat.answer((Message("user", "the cat"),), warm(), 50)
    steps = iter(reply)
    for _ in range(interrupted):
        next(steps)
    reply.generation.interrupt()
    chat.keep(reply)
    forwards.clear()
    after = say(chat, "sat")
    assert list(after.prompt[: len(reply.prompt) + interrupted]) == [*reply.prompt, *reply.ids]
    assert forwards[0] == len(after.prompt) - len(reply.prompt) - interrupted + 1
    del steps, reply  # Python deletes the interrupted loop, which must not change the cache
    forwards.clear()
    last = say(chat, "mat")
    assert forwards[0] == len(last.prompt) - len(after.prompt) - 6 + 1


def test_a_failed_pass_keeps_the_cache(forwards: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    chat = conversation()
    first = say(chat, "the cat")
    failing = chat.answer((*chat.messages, Message("user", "sat")), warm(), 5)
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "unembed", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            next(iter(failing))
    assert chat.messages == (*failing.messages[:-1],)
    forwards.clear()
    reply = say(chat, "sat")
    assert forwards[0] <= len(reply.prompt) - len(first.prompt) - 5
    torch.testing.assert_close(chat.step(0)[0].logits, fresh(list(reply.prompt)), rtol=1e-3, atol=1e-3)


# --- the reply's own ids ---


def test_the_ids_of_a_reply_are_the_models_own_not_its_texts() -> None:
    chat = conversation()
    split = next(
        reply for seed in range(50)
        if (reply := say(conversation(), "the cat", count=12, seed=seed))
        and loaded().tokenizer.encode(reply.message.content, add_special=False) != reply.ids
    )  # fmt: skip
    chat.keep(split)
    after = say(chat, "sat")
    assert list(after.prompt[: len(split.prompt) + 12]) == [*split.prompt, *split.ids]


def test_a_reply_that_the_template_changes_is_read_again() -> None:
    chat = conversation(LATE)
    say(chat, "the cat", count=12)
    chat.messages = (*chat.messages[:-1], Message("assistant", " other \n"))
    after = say(chat, "sat")
    assert list(after.prompt) == chat.form.encode(chat.form.render(after.messages))
    assert "other</s>" in loaded().tokenizer.decode(list(after.prompt), skip_special=False).replace(EOS, "</s>")


def test_without_a_template_all_is_one_text() -> None:
    chat = conversation(None)
    for text in ("the ol", "d cat", "", "sat"):
        reply = say(chat, text)
        assert list(reply.prompt) == loaded().prompt_ids(chat.form.render(reply.messages).text)


def test_a_token_that_ends_the_turn_in_the_template_ends_a_reply() -> None:
    silent = replace(loaded(), model=Transformer(replace(loaded().model.config, eos_token_ids=())).eval())
    template = ChatTemplate(TURNS, {"bos_token": BOS, "eos_token": EOS}, Path("x"))
    chat = Conversation(silent, TemplateFormat(template, silent.tokenizer))
    assert silent.stop_ids == set()
    assert chat.loaded.stop_ids == {EOS_ID}


# --- limits ---


def test_a_conversation_that_does_not_fit_is_an_error_and_stays_unchanged() -> None:
    chat = conversation(context=64)
    say(chat, "the old cat", count=4)
    kept = chat.messages
    with pytest.raises(LlmcliError, match=r"\d+ tokens, but the model's context holds 64") as caught:
        say(chat, "on the mat " * 30)
    assert caught.value.kind == "conversation-too-long"
    assert chat.messages == kept
    with pytest.raises(LlmcliError, match="the conversation has more than 128 tokens"):  # without reading all of it
        say(chat, "on the mat " * 50_000)
    assert chat.messages == kept
    reply = say(chat, "sat", count=1000)
    assert reply.generation.finish == "context"
    assert len(reply.prompt) + len(reply.choices) == 64


def test_a_window_that_has_moved_on_is_read_again() -> None:
    layers = {"sliding_window": 8, "layer_types": ("sliding_attention", "full_attention")}
    chat = conversation(**layers)
    say(chat, "the old cat sat on the mat", count=80)
    chat.messages = ()
    reply = say(chat, "the old cat sat on the mat", count=80)
    other = say(conversation(**layers), "the old cat sat on the mat", count=80)
    assert reply.ids == other.ids


# --- sizes, and recomputed steps ---


@pytest.mark.parametrize("source", [TURNS, None])
def test_sizes_are_all_tokens_of_the_conversation(source: str | None) -> None:
    chat = conversation(source)
    for text in ("the old cat", "sat 🙂"):
        say(chat, text)
    sizes = chat.sizes()
    assert len(sizes) == len(chat.messages) + 1
    assert sum(sizes) == len(chat.form.encode(chat.form.render(chat.messages, add_generation_prompt=False)))
    assert all(size > 0 for size in sizes[:-1])


def test_a_recomputed_step_equals_the_original() -> None:
    chat = conversation()
    say(chat, "the cat")
    reply = chat.answer((*chat.messages, Message("user", "sat")), warm(3), 5)
    steps = [step for step, _ in reply]
    chat.keep(reply)
    for index in (4, 0, 2, -1):
        step, context = chat.step(index)
        then = steps[index]
        assert (step.index, step.position, step.token, step.choice) == (
            then.index, then.position, then.token, then.choice,
        )  # fmt: skip
        assert context == [*reply.prompt, *(s.token for s in steps[: then.index])]
        torch.testing.assert_close(step.logits, then.logits, rtol=1e-3, atol=1e-3)
    with pytest.raises(LlmcliError, match="from 0 to 4"):
        chat.step(5)
    chat.messages = chat.messages[:2]
    with pytest.raises(LlmcliError, match="no reply"):
        chat.step(0)


# --- thoughts ---

THINKS = TURNS.replace("assistant: {%", "assistant: <think>\n{%")
OPEN = THINKS.replace("{{ m.content }}", "{{ m.reasoning_content }}|{{ m.content }}")
TALK = (Message("user", "the old cat"),)


def thinking(source: str, count: int, budget: int | None, seed: int = 0) -> tuple[Conversation, Reply]:
    """A conversation with one reply of ``count`` tokens by a random model, which never ends its thoughts itself."""
    chat = conversation(source)
    chat.thinking = Thinking(KNOWN_TAGS[0])
    reply = chat.answer(TALK, warm(seed), count, budget)
    assert reply.message == Message("assistant", "")
    pieces = [piece for _, piece in reply]
    assert reply.message.reasoning == "".join(piece.thoughts for piece in pieces)
    chat.keep(reply)
    return chat, reply


@pytest.mark.parametrize("budget", [0, 5])
def test_thoughts_end_at_their_budget_and_the_answer_follows(budget: int) -> None:
    _, endless = thinking(THINKS, 40, None)
    assert (endless.message.content, endless.thought_tokens) == ("", 40)
    _, reply = thinking(THINKS, 40, budget)
    assert reply.thought_tokens == budget
    assert reply.ids[:budget] == endless.ids[:budget]
    tokenizer = loaded().tokenizer
    ending = tokenizer.encode("\n</think>\n\n", add_special=False)
    answer = reply.ids[budget + len(ending) :]
    assert reply.ids[budget : -len(answer)] == ending
    assert reply.message.content == tokenizer.decode(answer).lstrip("\n")
    assert bool(reply.message.reasoning) == bool(budget)
    # What follows is drawn with the numbers that follow, as if everything before were the prompt.
    sampler = warm()
    sampler._upcoming.extend(choice.u for choice in reply.choices[-len(answer) :] if choice.u is not None)
    context = [*reply.prompt, *reply.ids[: -len(answer)]]
    alone = [step.token for step in steps(loaded().model, context, sampler=sampler, max_new_tokens=len(answer))]
    assert alone == answer
    assert [choice.u for choice in reply.choices] == [choice.u for choice in endless.choices]


@pytest.mark.parametrize(("source", "kept"), [(THINKS, False), (OPEN, True)])
def test_thoughts_stay_in_the_next_turn_only_if_the_template_asks(source: str, kept: bool) -> None:
    chat, reply = thinking(source, 24, 5)
    assert chat.messages[-1] == reply.message
    ids = chat.ids((*chat.messages, Message("user", "sat")))
    assert ids == loaded().readable(chat.form.encode(chat.form.render((*chat.messages, Message("user", "sat")))))
    assert (reply.message.reasoning in loaded().tokenizer.decode(ids)) == kept
    step, _ = chat.step(9)  # a forced token is explained, too
    assert (step.token, step.choice.final_prob) == (reply.choices[9].id, 1.0)


def test_a_budget_needs_tags() -> None:
    chat = conversation(THINKS)
    with pytest.raises(LlmcliError, match="no tags for thoughts"):
        chat.answer(TALK, warm(), 5, 3)


def test_an_interrupted_thought_is_kept_so_far() -> None:
    chat = conversation(THINKS)
    chat.thinking = Thinking(KNOWN_TAGS[0])
    reply = chat.answer(TALK, warm(), 40)
    pieces = [next(iter(reply))[1], reply.interrupt()]
    assert reply.message.content == ""
    assert reply.message.reasoning == "".join(piece.thoughts for piece in pieces)
