"""Tokens: what the model receives instead of a text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli.errors import usage_error
from llmcli.explain.report import Check, Claim, Report, check
from llmcli.text.tokenizer import Token, Tokenizer
from llmcli.text.words import words

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel

MAX_CHARACTERS = 2**20  # of a text: its report takes some 700 MB


@dataclass(frozen=True)
class Tokenization(Report):
    """A text as one tokenizer splits it. ``exact`` if the tokens' bytes, joined, are the bytes of the text.

    ``unknown`` counts tokens for text that the vocabulary lacks.
    """

    model: str
    tokens: tuple[Token, ...]
    text_bytes: int
    exact: bool
    unknown: int
    check: Check

    @property
    def bytes_per_token(self) -> float:
        """The average over tokens that hold text, so without BOS and the like."""
        return self.text_bytes / max(1, sum(token.end > token.start for token in self.tokens))


def tokenize(tokenizer: Tokenizer | LoadedModel, text: str, *, parse_special: bool = False) -> Tokenization:
    """Tokenize ``text`` and check that every byte of it is in exactly one token.

    ``parse_special`` reads special tokens in the text as tokens, not as plain text.
    Raises LlmcliError if the text is not valid Unicode or has more than MAX_CHARACTERS.
    """
    tokenizer = tokenizer_of(tokenizer)
    check_length(text)
    tokens = tuple(tokenizer.tokens(text, parse_special=parse_special))
    source = text.encode()
    with_text = [token for token in tokens if token.end > token.start]
    exact = b"".join(source[token.start : token.end] for token in with_text) == source and all(
        token.bytes.endswith(source[token.start : token.end]) for token in with_text
    )
    unknown = sum(token.id == tokenizer.unknown_id for token in with_text)
    claims = _claims(tokenizer, text, with_text, unknown, parse_special)
    return Tokenization(tokenizer.name, tokens, len(source), exact, unknown, check(*claims))


def check_length(text: str) -> None:
    """Raise LlmcliError if ``text`` is too long for a report on each of its tokens, and TypeError if it is no text."""
    if not isinstance(text, str):
        raise TypeError(f"expected a text, not {text!r:.80}")
    if len(text) > MAX_CHARACTERS:
        raise usage_error(
            f"the text has {len(text)} characters, and at most {MAX_CHARACTERS} can be shown as tokens",
            kind="text-too-long-to-show",
        )


def tokenizer_of(model: Tokenizer | LoadedModel) -> Tokenizer:
    """Return the tokenizer of a model, or the tokenizer given. Raises TypeError for anything else."""
    found = getattr(model, "tokenizer", model)
    if not isinstance(found, Tokenizer):
        raise TypeError(f"expected a tokenizer, or a model that llmcli.load() returned, not {model!r:.80}")
    return found


def _claims(
    tokenizer: Tokenizer, text: str, tokens: Sequence[Token], unknown: int, parse_special: bool
) -> Iterator[Claim]:
    """Check the tokens against the tokenizer's words, which are found without them.

    Each word's tokens must have the word's bytes; and if no normalization changed the text, the tokens' offsets must
    cover it.
    """
    source, lost, joined = text.encode(), 0, b""
    for word in words(tokenizer, text, parse_special=parse_special):
        data = tokenizer.vocabulary_bytes(word.text)
        joined += data
        if tokenizer.unknown_id not in word.ids and b"".join(map(tokenizer.token_bytes, word.ids)) != data:
            lost += len(data)
    unchanged = joined in (source, b" " + source)
    what = "the tokens' bytes, joined, are the text" + ("" if unchanged else " as the tokenizer normalizes it")
    yield Claim(what + (", except for unknown tokens" if unknown else ""), lost, 0.0)
    if unchanged and not unknown:
        yield Claim("each byte is in one token", _misplaced_bytes(tokens, len(source)), 0.0)


def _misplaced_bytes(tokens: Sequence[Token], size: int) -> int:
    """How many of ``size`` bytes are in no token, or in more than one."""
    end = misplaced = 0
    for token in tokens:
        misplaced += abs(token.start - end)
        end = token.end
    return misplaced + abs(size - end)
