"""A chat as it goes on: turns and their replies, shown and saved, and errors told."""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from llmcli.commands.shell.hints import describe
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import LlmcliError, out_of_memory

if TYPE_CHECKING:
    from llmcli.commands.chat.settings import SamplerSettings, Settings
    from llmcli.explain.report import GeneratedToken
    from llmcli.generation.conversation import Conversation, Messages, Reply

RIVALS = 5  # of a token in the table of /probs
TOP = 10  # candidates that /explain lists


class Talk(Protocol):
    """What a session needs of a conversation, wherever the model runs."""

    messages: Messages

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def context(self) -> int:
        """How many tokens the model can read and write in all."""

    def check(self, messages: Messages) -> None:
        """Raise where they cannot be told to the model."""

    def sizes(self) -> list[int]:
        """Tokens of each message."""


T = TypeVar("T", bound=Talk)
S = TypeVar("S", bound="Settings")


@dataclass
class Session(ABC, Generic[T, S]):
    """``raw`` chats have no template; ``probs`` is whether probabilities are shown; ``file`` is kept up to date.

    ``interrupted`` is whether Ctrl-C stopped the last reply, ``failed`` whether any line came to nothing.
    """

    conversation: T
    settings: S
    raw: bool
    file: Path | None
    verbose: bool
    probs: bool = False
    interrupted: bool = False
    failed: bool = False

    def tell(self, error: Exception) -> None:
        """One line for what went wrong; raises what is nobody's to mend."""
        from llmcli.render.terminal import note
        from llmcli.render.text import one_line

        told = error if isinstance(error, LlmcliError) else out_of_memory(error)
        if told is None:
            raise error
        self.failed = True
        if self.verbose:
            traceback.print_exception(error)
        note(one_line(f"llmcli: {describe(told)}"), sys.stderr)

    def say(self, text: str) -> None:
        """A turn of the user's, and its reply."""
        from llmcli.text.chat_template import Message

        self.answer((*self.conversation.messages, Message("user", text)))

    @abstractmethod
    def answer(self, messages: Messages) -> None:
        """The reply to ``messages``; they are the conversation only if something was written."""

    @abstractmethod
    def explain(self, index: int) -> None:
        """Show how the index-th token of the last reply was chosen. Errors: there is none."""

    def save(self) -> None:
        """Bring --chat's file up to date, if there is one."""
        from llmcli.text.transcript import write_transcript

        if self.file is not None:
            write_transcript(self.file, self.conversation.name, self.conversation.messages)


AnySession = Session[Any, Any]
if TYPE_CHECKING:
    Local = Session[Conversation, SamplerSettings]
else:
    Local = Session  # the names of its types would bring torch


class LocalSession(Local):
    """Replies come from a model that runs here."""

    def answer(self, messages: Messages) -> None:
        from llmcli.render.generation import ENDINGS, print_summary
        from llmcli.render.terminal import note

        sampler = self.settings.sampler()
        reply = self.conversation.answer(messages, sampler, self.settings.max_tokens)
        self._write(reply)
        done = reply.generation
        self.interrupted = done.finish == "interrupted"
        if not reply.choices:
            note("interrupted before the first token: the chat is as it was", sys.stderr)
            return
        self.conversation.keep(reply)
        if self.verbose:
            print_summary(done, sys.stderr, seed=sampler.seed, context=self.conversation.context)
        elif done.finish != "stop_token":
            note(f"stopped: {ENDINGS[done.finish]}", sys.stderr)

    def explain(self, index: int) -> None:
        from llmcli.explain.sampling_step import step_report
        from llmcli.render.step import print_step

        chat = self.conversation
        step, context = chat.step(index)
        assert chat.last is not None
        report = step_report(
            step, chat.last.sampler, chat.loaded.tokenizer, prompt_ids=chat.last.prompt, context_ids=context, top=TOP
        )
        print_step(report, sys.stderr)

    def _write(self, reply: Reply) -> None:
        """The reply as it comes; then the table of its probabilities, if they are shown."""
        from llmcli.explain.sampling_step import generated_token_of
        from llmcli.render.generation import TextWriter, print_probabilities

        writer = TextWriter(sys.stdout, by_probability=self.probs)
        reports: list[GeneratedToken] = []
        with Interrupt() as interrupt:
            try:
                for step, text in reply:
                    writer.write(text, step.choice.prob)
                    if self.probs:
                        reports.append(generated_token_of(step, self.conversation.loaded.tokenizer, RIVALS))
                    interrupt.point()
            except KeyboardInterrupt:
                writer.write(reply.generation.interrupt())
        if not reply.generation.text:
            writer.write("\n")  # so that there is one line at least for each reply
        writer.end_line()
        if reports:
            print_probabilities(reports, sys.stderr)
