"""Constrained output: the sampler may choose only tokens with which the text can still fit a grammar.

A grammar is a JSON schema, a regular expression that matches the whole text, or a list of choices. The library
llguidance follows the bytes of the text and computes which tokens of the model's vocabulary may come next, however they
divide the text: it never removes a token that could lead to a valid text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.choice_texts import check_choices
from llmcli.generation.filters import CUT

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llmcli.generation.loaded import LoadedModel
    from llmcli.text.tokenizer import Tokenizer

Ending = Literal["not yet", "may", "must"]

# By default, where the next bytes are certain, the library allows only the tokens that the tokenizer would choose.
NO_FORCING = '%llguidance {"no_forcing": true}\nstart: '
# The format of Python's json.dumps, which models have often seen. The library's default allows whitespace of any
# length, which a model may never stop generating.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MAX_TOKEN_BYTES = 1024  # the library's limit


def json_rules(schema: object) -> str:
    """The grammar of the JSON values that fit ``schema``, on one line unless its "x-guidance" sets another format.

    Raises LlmcliError if the schema is invalid, has an unsupported keyword, or nothing fits it.
    """
    if schema is False:
        raise usage_error("the JSON schema false allows nothing", "true allows any JSON value")
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise usage_error("a JSON schema must be an object, true or false", 'for example {"type": "integer"}')
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict):
        raise usage_error(
            '"x-guidance" in the JSON schema must be an object', 'for example {"whitespace_flexible": true}'
        )
    return _checked(f"%json {json.dumps({**schema, 'x-guidance': {**ONE_LINE, **options}})}", "the JSON schema")


def regex_rules(pattern: str) -> str:
    """The grammar of the texts that ``pattern`` matches as a whole, in Rust's syntax (\\d is 0-9).

    Raises LlmcliError if llguidance does not support the pattern.
    """
    if not pattern:
        raise usage_error("the regular expression is empty", "for example '[A-Z][a-z]+'")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # the library would silently drop it
        raise usage_error("the regular expression ends with a single backslash", r"write \\ for a backslash")
    try:
        written = library().regex_to_lark(pattern, "d")
    except UnicodeEncodeError:
        raise usage_error("the regular expression is not valid Unicode", "use UTF-8") from None
    hint = "it must match the whole text; lookaround and backreferences are not supported"
    return _checked(f"/{written}/", "the regular expression", hint)


def choice_rules(choices: Sequence[str]) -> str:
    """The grammar of exactly these texts.

    Raises LlmcliError if there are none, or a choice is empty, repeated or not valid Unicode.
    """
    check_choices(choices)
    return _checked("/" + "|".join(map(_escaped, choices)) + "/", "the choices")


def _escaped(text: str) -> str:
    """A pattern that matches only ``text``."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _checked(body: str, what: str, hint: str = "") -> str:
    """The grammar with the start rule ``body``. Raises LlmcliError if the library does not fully support it."""
    rules = NO_FORCING + body
    _, messages = library().LLMatcher.validate_grammar_with_warnings(rules)
    if messages:
        raise usage_error(f"{what} cannot be used: {_reason(messages[0])}", hint)
    return rules


def _reason(message: str) -> str:
    """The library's error message, without its picture of the location. It may quote the schema: make it printable."""
    lines = message.splitlines()
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    place = r"at \d+\(\d+\): (failed to compile JSON schema: |invalid regex .* \(in regex\): )?"
    reason = named[-1] if named else re.sub(place, "", lines[0]).split(". ")[0]
    return "".join(char if char.isprintable() else "?" for char in reason)


def library() -> ModuleType:
    """The module llguidance. Raises LlmcliError if it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise LlmcliError("the library llguidance is not installed", kind="no-llguidance") from None
    return llguidance


class Grammar:
    """A grammar compiled for one model's vocabulary; ``filter`` makes the sampler's filter for one text."""

    def __init__(self, loaded: LoadedModel, rules: str) -> None:
        """Raises LlmcliError if the bytes of the tokenizer's tokens, joined, are not the text."""
        self.tokenizer = loaded.tokenizer
        self.rows = loaded.model.config.vocab_size
        known = min(self.rows, loaded.tokenizer.size)
        self.stops = torch.tensor(sorted(id for id in loaded.stop_ids if id < known), dtype=torch.long)
        pieces = spelling(loaded.tokenizer, self.rows)
        for id in self.stops.tolist():
            pieces[id] = b""  # stop tokens end a text and are not part of it, whatever they spell
        self._pieces = pieces
        self._fresh: LLMatcher = library().LLMatcher(_vocabulary(pieces), rules, log_level=0)

    def filter(self, start: int) -> GrammarFilter:
        """The filter for a text that begins after ``start`` prompt tokens."""
        return GrammarFilter(self, start)

    def matcher(self) -> LLMatcher:
        """A matcher at the beginning of a text."""
        return self._fresh.deep_copy()

    @cached_property
    def spaced(self) -> Tensor:
        """Which tokens begin with a space [V]."""
        return torch.tensor([piece.startswith(b" ") for piece in self._pieces])

    @cached_property
    def drops_space(self) -> bool:
        """Whether the tokenizer drops a space at the beginning of a text."""
        first = next((id for id, piece in enumerate(self._pieces) if piece.startswith(b" ")), None)
        return first is not None and not self.tokenizer.decode([first]).startswith(" ")


class GrammarFilter:
    """Cut every token after which the text could no longer fit the grammar.

    A pure function of logits and ids. It remembers how far it has read the text, so that a longer text costs only its
    new tokens; a text that differs (after a rejected proposal) is read from the beginning.
    """

    name = "grammar"
    value = None

    def __init__(self, grammar: Grammar, start: int) -> None:
        self._grammar = grammar
        self._start = start
        self._matcher = grammar.matcher()
        self._read: list[int] = []  # the tokens that the matcher has consumed
        self._known: tuple[Tensor, bool] | None = None  # the tokens that may follow, and whether the text may end

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """Raises LlmcliError if the text does not fit, or no token of this model can continue it."""
        allowed, may_end = self._after(ids)
        if may_end:
            allowed = allowed.index_fill(0, self._grammar.stops, True)
        if not bool(allowed.any()):
            raise LlmcliError(
                "the grammar allows no token of this model at this point",
                "the tokenizer cannot spell the text that must follow, or no text can follow",
            )
        return logits.masked_fill(~allowed.to(logits.device), CUT)

    def copy(self, start: int) -> GrammarFilter:
        """The same filter for another text, which begins after ``start`` prompt tokens."""
        return self._grammar.filter(start)

    def ending(self, ids: Sequence[int]) -> Ending:
        """Whether the text may end after ``ids``; "must" if nothing may follow."""
        allowed, may_end = self._after(ids)
        if not may_end:
            return "not yet"
        return "may" if bool(allowed.any()) else "must"

    def _after(self, ids: Sequence[int]) -> tuple[Tensor, bool]:
        """The tokens that may follow, bool [V], and whether the text may end. Nothing follows a stop token."""
        text = list(ids[self._start :])
        stopped = self._follow(text)
        if self._known is None:
            self._known = self._allowed()
        allowed, may_end = self._known
        if stopped:
            allowed = torch.zeros_like(allowed)
        elif not text and self._grammar.drops_space and not self._grammar.tokenizer.decode(list(ids)):
            allowed = allowed & ~self._grammar.spaced  # the tokenizer would drop their space
        return allowed, may_end

    def _follow(self, text: list[int]) -> bool:
        """Advance the matcher to the end of ``text``, or to a stop token in it. Returns whether there is one."""
        if text[: len(self._read)] != self._read:
            # The library's own rollback may return the tokens that followed the discarded text.
            self._matcher, self._read, self._known = self._grammar.matcher(), [], None
        stops = self._grammar.stops.tolist()
        new = text[len(self._read) :]
        end = next((index for index, token in enumerate(new) if token in stops), len(new))
        if end:
            consumed = self._matcher.try_consume_tokens(new[:end])
            self._read += new[:consumed]
            self._known = None
            if consumed < end:
                raise LlmcliError("the text does not fit the grammar", "it contains a token that the grammar removed")
        return end < len(new)

    def _allowed(self) -> tuple[Tensor, bool]:
        """The tokens that the matcher allows next, bool [V], and whether the text may end."""
        may_end = self._matcher.is_accepting()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        fault = self._matcher.get_error()
        if fault and not fault.startswith("NoExtension"):  # the caller handles the case that no token may follow
            raise LlmcliError(f"the grammar is too complex: {_reason(fault)}", "simplify it")
        allowed = np.unpackbits(bits, count=self._grammar.rows, bitorder="little")
        return torch.from_numpy(allowed).view(torch.bool), may_end


def spelling(tokenizer: Tokenizer, rows: int) -> list[bytes]:
    """The bytes that each of the model's ``rows`` tokens adds to a text; empty for special and unused tokens.

    Raises LlmcliError if tokens spell differently depending on their neighbors.
    """
    pieces = [b""] * rows
    for id in tokenizer.ids:
        if id < rows and id not in tokenizer.special_ids:
            pieces[id] = tokenizer.token_bytes(id)
    whole = [id for id, piece in enumerate(pieces) if piece and _is_text(piece)]
    joined = b"".join(pieces[id] for id in whole).decode()
    if tokenizer.decode(whole) not in (joined, joined.removeprefix(" ")):
        raise LlmcliError(
            f"grammars do not work with the tokenizer of {tokenizer.name}: its tokens, joined, are not the text",
            "use another model",
        )
    return [piece if len(piece) <= MAX_TOKEN_BYTES else b"" for piece in pieces]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _vocabulary(pieces: list[bytes]) -> LLTokenizer:
    """The vocabulary for llguidance: our tokens, and an extra one as the end-of-text token that it requires."""
    tokenizer = SimpleNamespace(tokens=[*pieces, b""], eos_token_id=len(pieces), bos_token_id=None)
    wrapped: LLTokenizer = library().LLTokenizer(library().TokenizerWrapper(tokenizer))
    return wrapped
