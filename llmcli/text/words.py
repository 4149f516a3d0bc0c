"""The words of a text: the pieces that a tokenizer splits it into before it makes each of them tokens, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as FastTokenizer

from llmcli.text.tokenizer import Tokenizer

BYTES = 256


@dataclass(frozen=True)
class Word:
    """``text`` is written as the vocabulary writes, after all normalising; ``ids`` are its tokens.

    ``added``: one of the tokens that were added to the vocabulary, which are cut out of a text before all else.
    """

    text: str
    ids: tuple[int, ...]
    added: bool


def words(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[Word]:
    """The words of ``text``, in order. What the tokenizer puts around every text is in none."""
    found = tokenizer.encoded(text, parse_special)
    speller = _speller(tokenizer.fast)
    speller.encode_special_tokens = not parse_special
    spelt = speller.encode(text)
    spellings, ids = _by_word(spelt.word_ids, spelt.ids), _by_word(found.word_ids, found.ids)
    result = []
    for number in sorted({*spellings, *ids}):
        letters = spellings.get(number, [])
        added = any(letter >= BYTES for letter in letters)
        written = speller.id_to_token(letters[0]) if added else bytes(letters).decode()
        result.append(Word(written or "", tuple(ids.get(number, ())), added))
    return result


def _speller(fast: FastTokenizer) -> FastTokenizer:
    """A tokenizer that splits and normalises as ``fast`` does, but then knows no token longer than a byte."""
    speller = FastTokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(BYTES)}, [], byte_fallback=True))
    if fast.normalizer is not None:
        speller.normalizer = fast.normalizer
    if fast.pre_tokenizer is not None:
        speller.pre_tokenizer = fast.pre_tokenizer
    for _, token in sorted(fast.get_added_tokens_decoder().items()):
        _add(speller, token)
    return speller


def _add(speller: FastTokenizer, token: AddedToken) -> None:
    if token.special:
        speller.add_special_tokens([token])
    else:
        speller.add_tokens([token])


def _by_word(numbers: Sequence[int | None], ids: Sequence[int]) -> dict[int, list[int]]:
    """The ids of each word, by its number; those of no word are left out."""
    found: dict[int, list[int]] = {}
    for number, id in zip(numbers, ids, strict=True):
        if number is not None:
            found.setdefault(number, []).append(id)
    return found
