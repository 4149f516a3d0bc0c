"""The view of tokens: what does the model receive?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmcli.explain.report import Check, Claim, Report, check
from llmcli.text.tokenizer import Token, Tokenizer
from llmcli.text.words import words


@dataclass(frozen=True)
class Tokenization(Report):
    """A text as one tokenizer sees it. ``exact`` says that the tokens' bytes, joined, are the text.

    ``unknown`` counts the tokens that stand for what the tokenizer does not know.
    """

    model: str
    tokens: tuple[Token, ...]
    text_bytes: int
    exact: bool
    unknown: int
    check: Check

    @property
    def bytes_per_token(self) -> float:
        """Over the tokens that stand for text, so without BOS and the like."""
        return self.text_bytes / max(1, sum(token.end > token.start for token in self.tokens))


def tokenization(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> Tokenization:
    """Tokenize ``text`` and check that nothing was lost on the way through the tokenizer's words."""
    tokens = tuple(tokenizer.tokens(text, parse_special=parse_special))
    source = text.encode()
    placed = [token for token in tokens if token.end > token.start]
    exact = b"".join(source[token.start : token.end] for token in placed) == source and all(
        token.bytes.endswith(source[token.start : token.end]) for token in placed
    )
    unknown = sum(token.id == tokenizer.unknown_id for token in placed)
    claims = _claims(tokenizer, text, placed, unknown, parse_special)
    return Tokenization(tokenizer.name, tokens, len(source), exact, unknown, check(*claims))


def _claims(
    tokenizer: Tokenizer, text: str, placed: Sequence[Token], unknown: int, parse_special: bool
) -> Iterator[Claim]:
    """By the words, which are found without the tokens: each one's bytes; and where they are the text's, the places."""
    source, lost, spelt = text.encode(), 0, b""
    for word in words(tokenizer, text, parse_special=parse_special):
        data = word.text.encode() if word.added else tokenizer.spelt(word.text)
        spelt += data
        if tokenizer.unknown_id not in word.ids and b"".join(map(tokenizer.token_bytes, word.ids)) != data:
            lost += len(data)
    as_is = spelt in (source, b" " + source)
    what = "the tokens' bytes, joined, are the text" + ("" if as_is else " as the tokenizer normalised it")
    yield Claim(what + (", but for the unknown" if unknown else ""), lost, 0.0)
    if as_is and not unknown:
        yield Claim("each byte of it is in one token", _misplaced(placed, len(source)), 0.0)


def _misplaced(placed: Sequence[Token], size: int) -> int:
    """How many bytes of a text are in no token, or in more than one."""
    place = error = 0
    for token in placed:
        error += abs(token.start - place)
        place = token.end
    return error + abs(size - place)
