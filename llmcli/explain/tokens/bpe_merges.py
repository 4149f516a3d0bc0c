"""Merges: how byte-pair encoding (BPE) turns each word into tokens. Imports no torch."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.explain.tokens.tokenization import check_length, tokenizer_of
from llmcli.text.bpe import Bpe, Merge, Symbols, merge_symbols, read_bpe
from llmcli.text.tokenizer import Tokenizer
from llmcli.text.words import Word, words

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel

SPACE = "\u2581"  # how SentencePiece writes the space that starts a word

Kind = Literal["merged", "whole", "added"]


@dataclass(frozen=True)
class MergeRow:
    """One merge: ``left`` and ``right`` become ``result``, which starts at the word's symbol number ``at``.

    ``rank`` is the merge's number in the order of training; 0 was learned first.
    """

    rank: int
    left: VocabEntry
    right: VocabEntry
    result: VocabEntry
    at: int


@dataclass(frozen=True)
class WordMerges:
    """A word that occurs ``count`` times in the text: ``symbols``, joined by ``merges``, become ``tokens``.

    Two kinds of words have no merges: "added" tokens, and words that are "whole" because they are a token themselves.
    """

    text: str
    bytes: bytes
    count: int
    kind: Kind
    symbols: tuple[VocabEntry, ...]
    merges: tuple[MergeRow, ...]
    tokens: tuple[VocabEntry, ...]


@dataclass(frozen=True)
class MergesReport(Report):
    """The distinct words of a text, in order of first occurrence.

    ``tokens`` counts the tokens of all words, ``around`` the tokens that are added around every text (such as BOS),
    ``ranks`` the merges of the tokenizer.
    """

    model: str
    words: tuple[WordMerges, ...]
    tokens: int
    around: int
    ranks: int
    check: Check


@dataclass(frozen=True)
class _Derivation:
    """How one word became tokens; all but ``kind`` in ids."""

    kind: Kind
    symbols: tuple[int, ...]
    merge_symbols: tuple[Merge, ...]
    tokens: tuple[int, ...]


def merges(tokenizer: Tokenizer | LoadedModel, text: str, *, parse_special: bool = False) -> MergesReport:
    """Replay every merge that built the words of ``text``.

    Raises LlmcliError if the tokenizer is not BPE, and the errors of ``tokenize``.
    """
    tokenizer = tokenizer_of(tokenizer)
    check_length(text)
    bpe = read_bpe(tokenizer)
    found = words(tokenizer, text, parse_special=parse_special)
    derivations = [_derive(tokenizer, bpe, word) for word in found]
    wrong = sum(_differences(own.tokens, word.ids) for own, word in zip(derivations, found, strict=True))
    counts = Counter(part for own in derivations for part in _split_at_spaces(tokenizer, own))
    return MergesReport(
        model=tokenizer.name,
        words=tuple(_word_merges(tokenizer, own, count) for own, count in counts.items()),
        tokens=sum(len(own.tokens) for own in derivations),
        around=len(tokenizer.encode(text, parse_special=parse_special)) - sum(len(word.ids) for word in found),
        ranks=len(bpe.ranks),
        check=check(
            Claim("replaying the merges gives the tokenizer's own ids", wrong, 0.0),
            Claim("merges of lower rank come first", sum(_out_of_order(own.merge_symbols) for own in derivations), 0.0),
        ),
    )


def _derive(tokenizer: Tokenizer, bpe: Bpe, word: Word) -> _Derivation:
    whole = tokenizer.added_ids.get(word.text) if word.added else bpe.whole_word(word.text)
    if whole is not None:
        return _Derivation("added" if word.added else "whole", (whole,), (), (whole,))
    symbols = bpe.symbols(word.text)
    done = merge_symbols(symbols, bpe.ranks)
    return _Derivation("merged", tuple(symbols), tuple(done), tuple(_after(symbols, done)[1]))


def _after(symbols: Sequence[int], done: Iterable[Merge]) -> tuple[list[int], list[int]]:
    """The start of each token, as a symbol's number, and its id, after all merges."""
    current = Symbols(symbols)
    for join in done:
        current.merge(join.at, join.result)
    return current.remaining()


def _split_at_spaces(tokenizer: Tokenizer, own: _Derivation) -> Iterator[_Derivation]:
    """Split a word before each token that starts with a space: some tokenizers treat a whole text as one word.

    No merge crosses such a split, and no merge within a part depends on the other parts.
    """
    if own.kind != "merged":
        yield own
        return
    positions, ids = _after(own.symbols, own.merge_symbols)
    cuts = [n for n, id in enumerate(ids) if n and (tokenizer.fast.id_to_token(id) or "").startswith(SPACE)]
    starts = [positions[n] for n in cuts]
    inside: list[list[Merge]] = [[] for _ in (0, *cuts)]
    for join in own.merge_symbols:
        inside[bisect.bisect_right(starts, join.at)].append(join)
    parts = zip(
        itertools.pairwise((0, *cuts, len(ids))),
        itertools.pairwise((0, *starts, len(own.symbols))),
        inside,
        strict=True,
    )
    for (first, last), (start, end), joins in parts:
        done = tuple(replace(join, at=join.at - start) for join in joins)
        yield _Derivation(own.kind, own.symbols[start:end], done, tuple(ids[first:last]))


def _word_merges(tokenizer: Tokenizer, own: _Derivation, count: int) -> WordMerges:
    entry = lru_cache(maxsize=None)(partial(vocab_entry, tokenizer))
    data = b"".join(tokenizer.token_bytes(id) for id in own.tokens)
    rows = (
        MergeRow(
            rank=join.rank,
            left=entry(join.left),
            right=entry(join.right),
            result=entry(join.result),
            at=join.at,
        )
        for join in own.merge_symbols
    )
    return WordMerges(
        text=data.decode("utf-8", "replace"),
        bytes=data,
        count=count,
        kind=own.kind,
        symbols=tuple(entry(id) for id in own.symbols),
        merges=tuple(rows),
        tokens=tuple(entry(id) for id in own.tokens),
    )


def _out_of_order(done: Sequence[Merge]) -> int:
    """How many merges follow one of higher rank that did not create their pair."""
    return sum(
        after.rank < before.rank and before.result not in (after.left, after.right)
        for before, after in itertools.pairwise(done)
    )


def _differences(a: Sequence[int], b: Sequence[int]) -> int:
    """In how many places two lists of ids differ."""
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
