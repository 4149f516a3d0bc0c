"""Constrained output: only tokens may come with which the text can still become what was asked for.

That is a JSON value of a schema, a text that a regular expression matches as a whole, or one of several choices. The
library llguidance follows the bytes of the text and tells which tokens of the model's vocabulary may be next, however
they cut it: no token is removed that could have led to a valid text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.filters import CUT

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llmcli.generation.loaded import LoadedModel
    from llmcli.text.tokenizer import Tokenizer

Ending = Literal["not yet", "may", "must"]

# Left to itself, the library allows no token but the tokenizer's own where the bytes that follow are certain.
FREE = '%llguidance {"no_forcing": true}\nstart: '
# As Python's json.dumps writes, which models have often read. The library's own default is any whitespace at any
# length, in which a model may lose itself.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LONGEST = 1024  # bytes of a token: the library's limit


def json_rules(schema: object) -> str:
    """The grammar of the JSON values that fit ``schema``, on one line unless its "x-guidance" says otherwise.

    Errors: no schema, a keyword that the library lacks, a schema that nothing fits.
    """
    if schema is False:
        raise usage_error("the JSON schema false allows nothing", "true allows every JSON value")
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise usage_error("a JSON schema is an object, true or false", 'as in {"type": "integer"}')
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict):
        raise usage_error('"x-guidance" of the JSON schema is no object', 'as in {"whitespace_flexible": true}')
    return _checked(f"%json {json.dumps({**schema, 'x-guidance': {**ONE_LINE, **options}})}", "the JSON schema")


def regex_rules(pattern: str) -> str:
    """The grammar of the texts that ``pattern`` (Rust's syntax; \\d is 0-9) matches as a whole.

    Errors: an unusable one.
    """
    if not pattern:
        raise usage_error("the regular expression is empty", "as in '[A-Z][a-z]+'")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # the library would drop it in silence
        raise usage_error("the regular expression ends in a lone backslash", r"write \\ for a backslash")
    try:
        written = library().regex_to_lark(pattern, "d")
    except UnicodeEncodeError:
        raise usage_error("the regular expression is not valid Unicode", "UTF-8 is wanted") from None
    hint = "it must match the whole text; it cannot look around or refer back"
    return _checked(f"/{written}/", "the regular expression", hint)


def choice_rules(choices: Sequence[str]) -> str:
    """The grammar of exactly these texts. Errors: none, an empty one, one that is given twice, one not Unicode."""
    if not choices or "" in choices:
        raise usage_error("a choice is empty", "as in yes,no,maybe")
    twice = next((choice for choice, count in Counter(choices).items() if count > 1), None)
    if twice is not None:
        raise usage_error(f"the choice {twice!r} is given twice", "give each once")
    if any(0xD800 <= ord(char) <= 0xDFFF for choice in choices for char in choice):
        raise usage_error("a choice is not valid Unicode", "UTF-8 is wanted")
    return _checked("/" + "|".join(map(_literally, choices)) + "/", "the choices")


def _literally(text: str) -> str:
    """A pattern that matches ``text`` and nothing else."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _checked(body: str, what: str, hint: str = "") -> str:
    """The grammar whose start is ``body``. Errors: the library cannot follow it to the letter."""
    rules = FREE + body
    _, messages = library().LLMatcher.validate_grammar_with_warnings(rules)
    if messages:
        raise usage_error(f"{what} cannot be used: {_reason(messages[0])}", hint)
    return rules


def _reason(message: str) -> str:
    """What the library says is wrong, without its picture of the place; it may quote what a schema's file holds."""
    lines = message.splitlines()
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    place = r"at \d+\(\d+\): (failed to compile JSON schema: |invalid regex .* \(in regex\): )?"
    told = named[-1] if named else re.sub(place, "", lines[0]).split(". ")[0]
    return "".join(char if char.isprintable() else "?" for char in told)


def library() -> ModuleType:
    """llguidance. Errors: it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise LlmcliError(
            "--json-schema, --regex and --choices need the library llguidance", "pip install llguidance"
        ) from None
    return llguidance


class Grammar:
    """Rules compiled for one model; ``filter`` makes the sampler's stage of one text."""

    def __init__(self, loaded: LoadedModel, rules: str) -> None:
        """Errors: a tokenizer whose tokens do not spell the text one after the other."""
        self.tokenizer = loaded.tokenizer
        self.rows = loaded.model.config.vocab_size
        known = min(self.rows, loaded.tokenizer.size)
        self.stops = torch.tensor(sorted(id for id in loaded.stop_ids if id < known), dtype=torch.long)
        pieces = spelling(loaded.tokenizer, self.rows)
        for id in self.stops.tolist():
            pieces[id] = b""  # they end a text, and are no part of it, whatever they are called
        self._pieces = pieces
        self._fresh: LLMatcher = library().LLMatcher(_vocabulary(pieces), rules, log_level=0)

    def filter(self, start: int) -> GrammarFilter:
        """The stage for a text that begins behind ``start`` tokens of prompt."""
        return GrammarFilter(self, start)

    def matcher(self) -> LLMatcher:
        """One at the beginning of a text."""
        return self._fresh.deep_copy()

    @cached_property
    def spaced(self) -> Tensor:
        """Which tokens begin with a space [V]."""
        return torch.tensor([piece.startswith(b" ") for piece in self._pieces])

    @cached_property
    def drops_space(self) -> bool:
        """Whether the tokenizer leaves out a space with which a whole text begins."""
        first = next((id for id, piece in enumerate(self._pieces) if piece.startswith(b" ")), None)
        return first is not None and not self.tokenizer.decode([first]).startswith(" ")


class GrammarFilter:
    """Cuts every token with which the text cannot become what was asked for; see ``Grammar``.

    A pure function of logits and ids. It remembers how far it has read the text, so that a text that goes on costs
    only its new tokens; one that parts from it (after a wrong guess) is read anew.
    """

    name = "grammar"
    value = None

    def __init__(self, grammar: Grammar, start: int) -> None:
        self._grammar = grammar
        self._start = start
        self._matcher = grammar.matcher()
        self._read: list[int] = []  # what the matcher has been told
        self._known: tuple[Tensor, bool] | None = None  # what may come behind that, and whether it may end

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """Errors: a text that does not fit, or one that no token of this model can continue."""
        allowed, may_end = self._behind(ids)
        if may_end:
            allowed = allowed.index_fill(0, self._grammar.stops, True)
        if not bool(allowed.any()):
            raise LlmcliError(
                "the grammar allows no token of this model here",
                "its tokenizer cannot spell what must come, or nothing can",
            )
        return logits.masked_fill(~allowed.to(logits.device), CUT)

    def copy(self, start: int) -> GrammarFilter:
        """The same for another text, which begins behind ``start`` tokens of prompt."""
        return self._grammar.filter(start)

    def ending(self, ids: Sequence[int]) -> Ending:
        """Whether the text may end behind ``ids``: "must" where nothing may follow."""
        allowed, may_end = self._behind(ids)
        if not may_end:
            return "not yet"
        return "may" if bool(allowed.any()) else "must"

    def _behind(self, ids: Sequence[int]) -> tuple[Tensor, bool]:
        """The tokens that may go on with the text, bool [V], and whether it may end; behind a stop token none may."""
        text = list(ids[self._start :])
        stopped = self._follow(text)
        if self._known is None:
            self._known = self._ask()
        allowed, may_end = self._known
        if stopped:
            allowed = torch.zeros_like(allowed)
        elif not text and self._grammar.drops_space and not self._grammar.tokenizer.decode(list(ids)):
            allowed = allowed & ~self._grammar.spaced  # the space that they write would not be there
        return allowed, may_end

    def _follow(self, text: list[int]) -> bool:
        """Bring the matcher to the end of ``text``, or to the stop token in it; whether there is one."""
        if text[: len(self._read)] != self._read:
            # The library's own way back may answer with what followed the text that was given up.
            self._matcher, self._read, self._known = self._grammar.matcher(), [], None
        stops = self._grammar.stops.tolist()
        new = text[len(self._read) :]
        end = next((place for place, token in enumerate(new) if token in stops), len(new))
        if end:
            taken = self._matcher.try_consume_tokens(new[:end])
            self._read += new[:taken]
            self._known = None
            if taken < end:
                raise LlmcliError("the text does not fit the grammar", "a token was taken that the grammar had cut")
        return end < len(new)

    def _ask(self) -> tuple[Tensor, bool]:
        may_end = self._matcher.is_accepting()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        fault = self._matcher.get_error()
        if fault and not fault.startswith("NoExtension"):  # that no token may come is for the caller to see
            raise LlmcliError(f"the grammar is too complex: {_reason(fault)}", "make it simpler")
        allowed = np.unpackbits(bits, count=self._grammar.rows, bitorder="little")
        return torch.from_numpy(allowed).view(torch.bool), may_end


def spelling(tokenizer: Tokenizer, rows: int) -> list[bytes]:
    """What each of the model's ``rows`` tokens writes into a text, in bytes; nothing for special and unused ones.

    Errors: a tokenizer that writes tokens otherwise where others stand beside them (as WordPiece does).
    """
    pieces = [b""] * rows
    for id in tokenizer.ids:
        if id < rows and id not in tokenizer.special_ids:
            pieces[id] = tokenizer.token_bytes(id)
    whole = [id for id, piece in enumerate(pieces) if piece and _is_text(piece)]
    joined = b"".join(pieces[id] for id in whole).decode()
    if tokenizer.decode(whole) not in (joined, joined.removeprefix(" ")):
        raise LlmcliError(
            f"{tokenizer.name}: its tokenizer does not write tokens one behind the other",
            "a grammar cannot follow it: use another model",
        )
    return [piece if len(piece) <= LONGEST else b"" for piece in pieces]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _vocabulary(pieces: list[bytes]) -> LLTokenizer:
    """The library's form of a vocabulary: our tokens, and one more as the end of the text that it wants."""
    told = SimpleNamespace(tokens=[*pieces, b""], eos_token_id=len(pieces), bos_token_id=None)
    made: LLTokenizer = library().LLTokenizer(library().TokenizerWrapper(told))
    return made
