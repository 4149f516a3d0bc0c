"""The view of tokens: what does the model receive?"""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.text.tokenizer import Token, Tokenizer


@dataclass(frozen=True)
class Tokenization:
    """A text as one tokenizer sees it. ``exact`` says that the tokens' bytes, joined, are the text."""

    model: str
    tokens: tuple[Token, ...]
    text_bytes: int
    exact: bool

    @property
    def bytes_per_token(self) -> float:
        """Over the tokens that stand for text, so without BOS and the like."""
        return self.text_bytes / max(1, sum(token.end > token.start for token in self.tokens))


def tokenization(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> Tokenization:
    """Tokenize ``text`` and check that nothing was lost: each token's place in the text holds its bytes."""
    tokens = tuple(tokenizer.tokens(text, parse_special=parse_special))
    source = text.encode()
    placed = [token for token in tokens if token.end > token.start]
    exact = b"".join(source[token.start : token.end] for token in placed) == source and all(
        token.bytes.endswith(source[token.start : token.end]) for token in placed
    )
    return Tokenization(tokenizer.name, tokens, len(source), exact)
