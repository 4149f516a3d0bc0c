"""Responses in OpenAI's form, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcli.generation.generate import TextFinish
from llmcli.serve.logprobs import Entry, characters, completion_logprobs, token_entry
from llmcli.serve.prompts import prompt_tokens
from llmcli.serve.scheduler import Progress
from llmcli.serve.wanted import Wanted
from llmcli.text.chat_template import REASONING
from llmcli.text.thinking import Piece, SplitReply

REASONS: dict[TextFinish, str] = {  # of ours, in OpenAI's words
    "length": "length",
    "context": "length",
    "stop_token": "stop",
    "stop_string": "stop",
    "grammar": "stop",
    "interrupted": "stop",
}


@dataclass
class Choice:
    """One text of a response, as far as it goes. ``split`` has its thoughts."""

    split: SplitReply
    text: str = ""
    tokens: list[Entry] = field(default_factory=list)
    finish: str | None = None


class Answer:
    """A response to ``wanted`` while its texts are generated; ``echoed`` are the tokens of each prompt, if wanted."""

    def __init__(self, wanted: Wanted, model: str, echoed: Sequence[list[Entry]]) -> None:
        self.wanted = wanted
        self.cached: dict[int, int] = {}  # by prompt
        self.generated = 0
        self.choices = [Choice(wanted.thoughts.split()) for _ in range(len(wanted.prompts) * wanted.count)]
        kind = "chat.completion" if wanted.chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if wanted.chat else "cmpl-") + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._warnings = {"warnings": list(wanted.warnings)} if wanted.warnings else {}
        self._opened: set[int] = set()
        self._ends = [0] * len(self.choices)  # characters before the next token
        for number, choice in enumerate(self.choices if wanted.echo else ()):
            choice.text = wanted.prompts[number // wanted.count].text
            choice.tokens = list(echoed[number // wanted.count])
            if wanted.max_tokens == 0:
                choice.finish = "length"

    def add(self, progress: Progress) -> tuple[Piece, list[Entry]]:
        """Add a step. Returns the thoughts, the answer and the tokens that it adds to its choice."""
        choice = self.choices[progress.key]
        entries = [] if progress.token is None else [token_entry(progress.token)]
        ended, counts = progress.finish is not None, progress.finish != "stop_token"
        piece = choice.split.add(progress.chunk, ended=ended, counts=counts)
        choice.text += piece.answer
        choice.tokens += entries
        choice.finish = None if progress.finish is None else REASONS[progress.finish]
        self.generated += 1
        self.cached[progress.key // self.wanted.count] = progress.cached
        return piece, entries

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens that were read and generated."""
        prompt = prompt_tokens(self.wanted.prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.split.thought_tokens for choice in self.choices)
            },
        }

    def whole(self) -> dict[str, Any]:
        """The response as one object."""
        return {**self._head, "choices": list(map(self._choice, range(len(self.choices)))), "usage": self.usage} | (
            self._warnings
        )

    def _choice(self, number: int) -> dict[str, Any]:
        choice = self.choices[number]
        body: dict[str, Any] = {"index": number, "finish_reason": choice.finish, "logprobs": None}
        if self.wanted.alternatives is not None:
            body["logprobs"] = self._logprobs(number, choice.tokens)
        if self.wanted.chat:
            thoughts = {REASONING: choice.split.thoughts} if choice.split.thoughts else {}
            return body | {"message": {"role": "assistant", "content": choice.text, **thoughts, "refusal": None}}
        return body | {"text": choice.text}

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream: the role of a reply, or the prompt that is echoed."""
        if self.wanted.chat:
            return [
                self._chunk(number, {"role": "assistant", "content": ""}, [], None)
                for number in range(len(self.choices))
            ]
        return [
            self._chunk(number, choice.text, choice.tokens, choice.finish)
            for number, choice in enumerate(self.choices)
            if choice.text or choice.tokens or choice.finish
        ]

    def chunks(self, progress: Progress) -> list[dict[str, Any]]:
        """Add a step. Returns the chunks of a stream that it makes: none while text is held back."""
        piece, entries = self.add(progress)
        finish = self.choices[progress.key].finish
        if not self.wanted.chat:
            needed = piece.answer or entries or finish
            return [self._chunk(progress.key, piece.answer, entries, finish)] if needed else []
        named = ((REASONING, piece.thoughts), ("content", piece.answer))
        deltas = [{name: text} for name, text in named if text] or ([{"content": ""}] if entries else [])
        found = [self._chunk(progress.key, delta, entries * (n == 0), None) for n, delta in enumerate(deltas)]
        return [*found, self._chunk(progress.key, {}, [], finish)] if finish else found

    def closing(self) -> list[dict[str, Any]]:
        """The last chunk of a stream, if it has one: the usage."""
        return [self._framed([]) | {"usage": self.usage}] if self.wanted.include_usage else []

    def _chunk(self, number: int, part: Any, tokens: list[Entry], finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": number, "finish_reason": finish, "logprobs": None}
        if tokens:
            choice["logprobs"] = self._logprobs(number, tokens)
        choice["delta" if self.wanted.chat else "text"] = part
        return self._framed([choice]) | ({"usage": None} if self.wanted.include_usage else {})

    def _framed(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        first, self._warnings = self._warnings, {}
        kind = {"object": "chat.completion.chunk"} if self.wanted.chat else {}
        return {**self._head, **kind, "choices": choices, **first}

    def _logprobs(self, number: int, tokens: list[Entry]) -> dict[str, Any]:
        if self.wanted.chat:
            return {"content": tokens, "refusal": None}
        form = completion_logprobs(tokens, self._ends[number])
        self._ends[number] += sum(map(characters, tokens))
        return form
