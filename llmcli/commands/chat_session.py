"""A chat as it goes on: turns and their replies, shown and saved, and errors told."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.commands.interrupt import Interrupt
from llmcli.errors import LlmcliError, out_of_memory

if TYPE_CHECKING:
    from llmcli.commands.chat_settings import Settings
    from llmcli.explain.rivals import TokenReport
    from llmcli.generate.conversation import Conversation, Messages, Reply

RIVALS = 5  # of a token in the table of /probs


@dataclass
class Session:
    """``raw`` chats have no template; ``probs`` is whether probabilities are shown; ``file`` is kept up to date.

    ``interrupted`` is whether Ctrl-C stopped the last reply.
    """

    conversation: Conversation
    settings: Settings
    raw: bool
    file: Path | None
    verbose: bool
    probs: bool = False
    interrupted: bool = False

    def tell(self, error: Exception) -> None:
        """One line for what went wrong; raises what is nobody's to mend."""
        from llmcli.render.generation import note
        from llmcli.render.terminal import one_line

        told = error if isinstance(error, LlmcliError) else out_of_memory(error)
        if told is None:
            raise error
        if self.verbose:
            traceback.print_exception(error)
        note(one_line(f"llmcli: {told}"), sys.stderr)

    def say(self, text: str) -> None:
        """A turn of the user's, and its reply."""
        from llmcli.text.chat import Message

        self.answer((*self.conversation.messages, Message("user", text)))

    def answer(self, messages: Messages) -> None:
        """The reply to ``messages``; they are the conversation only if something was written."""
        from llmcli.render.generation import ENDINGS, note, print_summary

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

    def _write(self, reply: Reply) -> None:
        """The reply as it comes; then the table of its probabilities, if they are shown."""
        from llmcli.explain.generated import token_report
        from llmcli.render.generation import TextWriter
        from llmcli.render.tokens import print_probabilities

        writer = TextWriter(sys.stdout, by_probability=self.probs)
        reports: list[TokenReport] = []
        with Interrupt() as interrupt:
            try:
                for step, text in reply:
                    writer.write(text, step.choice.prob)
                    if self.probs:
                        reports.append(token_report(step, self.conversation.loaded.tokenizer, RIVALS))
                    interrupt.point()
            except KeyboardInterrupt:
                writer.write(reply.generation.interrupt())
        if not reply.generation.text:
            writer.write("\n")  # so that there is one line at least for each reply
        writer.end_line()
        if reports:
            print_probabilities(reports, sys.stderr)

    def save(self) -> None:
        """Bring --chat's file up to date, if there is one."""
        from llmcli.text.transcript import write_transcript

        if self.file is not None:
            write_transcript(self.file, self.conversation.loaded.name, self.conversation.messages)
