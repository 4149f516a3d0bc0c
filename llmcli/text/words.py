"""The words of a text: the parts into which a tokenizer's pre-tokenizer splits it before encoding each separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from llmcli.text.tokenizer import Tokenizer
from llmcli.text.tokenizer_errors import tokenizer_errors

BYTES = 256


@dataclass(frozen=True)
class Word:
    """A word of a text. ``text`` is normalized and in the vocabulary's notation; ``ids`` are its tokens.

    ``added``: it is one of the tokens added to the vocabulary, which are split off before everything else.
    """

    text: str
    ids: tuple[int, ...]
    added: bool


def words(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[Word]:
    """Return the words of ``text`` in order, without the tokens that the post-processor inserts."""
    encoding = tokenizer.encoding(text, parse_special)
    with tokenizer_errors(f"the tokenizer of {tokenizer.name} cannot split this text"):
        speller = _speller(tokenizer.fast)
        speller.encode_special_tokens = not parse_special
        spelled = speller.encode(text)
    spellings, ids = _by_word(spelled.word_ids, spelled.ids), _by_word(encoding.word_ids, encoding.ids)
    result = []
    for number in sorted({*spellings, *ids}):
        letters = spellings.get(number, [])
        added = any(letter >= BYTES for letter in letters)
        written = speller.id_to_token(letters[0]) if added else bytes(letters).decode()
        result.append(Word(written or "", tuple(ids.get(number, ())), added))
    return result


def _speller(fast: FastTokenizer) -> FastTokenizer:
    """A tokenizer that normalizes and splits as ``fast`` does, with a vocabulary of single bytes."""
    speller = FastTokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(BYTES)}, [], byte_fallback=True))
    if fast.normalizer is not None:
        speller.normalizer = fast.normalizer
    if fast.pre_tokenizer is not None:
        speller.pre_tokenizer = fast.pre_tokenizer
    added = sorted(fast.get_added_tokens_decoder().items())
    speller.add_tokens([token for _, token in added])  # all at once: each call builds the whole matcher again
    return speller


def _by_word(numbers: Sequence[int | None], ids: Sequence[int]) -> dict[int, list[int]]:
    """The ids of each word by its number, without ids that belong to no word."""
    found: dict[int, list[int]] = {}
    for number, id in zip(numbers, ids, strict=True):
        if number is not None:
            found.setdefault(number, []).append(id)
    return found
