"""A token as a view names it: id, text and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; ``text`` is its bytes as UTF-8, U+FFFD for parts of characters."""

    id: int
    text: str
    bytes: bytes


def piece(tokenizer: Tokenizer, id: int) -> Piece:
    """The entry of an id."""
    return Piece(id, tokenizer.token_text(id), tokenizer.token_bytes(id))
