"""The view of merges: how does a word become tokens?"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.text.bpe import Bpe, Join, joins, read_bpe, replayed
from llmcli.text.tokenizer import Tokenizer
from llmcli.text.words import Word, words

SPACE = "\u2581"  # SentencePiece's, which begins a word


@dataclass(frozen=True)
class MergeRow:
    """``left`` and ``right`` become ``result``, which begins with the word's symbol ``at``. Rank 0 was learnt first."""

    rank: int
    left: VocabEntry
    right: VocabEntry
    result: VocabEntry
    at: int


@dataclass(frozen=True)
class WordMerges:
    """A word that the text holds ``count`` times: from ``symbols`` through ``merges`` to ``tokens``.

    Of an "added" token, and of a word that is taken "whole" because it is a token itself, there is no merge.
    """

    text: str
    bytes: bytes
    count: int
    kind: Literal["merged", "whole", "added"]
    symbols: tuple[VocabEntry, ...]
    merges: tuple[MergeRow, ...]
    tokens: tuple[VocabEntry, ...]


@dataclass(frozen=True)
class MergesReport(Report):
    """The different words of a text, in the order of their first places.

    ``tokens`` counts those of all words, ``around`` those that are put around every text, ``ranks`` the merges
    that the tokenizer has.
    """

    model: str
    words: tuple[WordMerges, ...]
    tokens: int
    around: int
    ranks: int
    check: Check


@dataclass(frozen=True)
class _Way:
    """How a word became tokens, in ids."""

    kind: Literal["merged", "whole", "added"]
    symbols: tuple[int, ...]
    done: tuple[Join, ...]
    tokens: tuple[int, ...]


def merges_report(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> MergesReport:
    """Every merge that built the words of ``text``. Errors: a tokenizer that is not BPE."""
    bpe = read_bpe(tokenizer)
    found = words(tokenizer, text, parse_special=parse_special)
    ways = [_way(tokenizer, bpe, word) for word in found]
    wrong = sum(_different(way.tokens, word.ids) for way, word in zip(ways, found, strict=True))
    counts = Counter(part for way in ways for part in _parts(tokenizer, way))
    return MergesReport(
        model=tokenizer.name,
        words=tuple(_word(tokenizer, way, count) for way, count in counts.items()),
        tokens=sum(len(way.tokens) for way in ways),
        around=len(tokenizer.encode(text, parse_special=parse_special)) - sum(len(word.ids) for word in found),
        ranks=len(bpe.ranks),
        check=check(
            Claim("replaying the merges gives the tokenizer's own ids", wrong, 0.0),
            Claim("pairs of lower rank came first,", sum(_late(way.done) for way in ways), 0.0),
        ),
    )


def _way(tokenizer: Tokenizer, bpe: Bpe, word: Word) -> _Way:
    whole = tokenizer.fast.token_to_id(word.text) if word.added else bpe.whole(word.text)
    if whole is not None:
        return _Way("added" if word.added else "whole", (whole,), (), (whole,))
    symbols = bpe.symbols(word.text)
    done = joins(symbols, bpe.ranks)
    return _Way("merged", tuple(symbols), tuple(done), tuple(_after(symbols, done)[1]))


def _after(symbols: Sequence[int], done: Iterable[Join]) -> tuple[list[int], list[int]]:
    """Places and ids once all is joined."""
    *_, last = replayed(symbols, ((join.at, join.result) for join in done))
    return last


def _parts(tokenizer: Tokenizer, way: _Way) -> Iterator[_Way]:
    """The word cut before tokens that begin with a space: some tokenizers take a whole text for one word.

    No merge reaches over a cut, and none within depends on what is outside: each part became what it is by itself.
    """
    if way.kind != "merged":
        yield way
        return
    places, ids = _after(way.symbols, way.done)
    cuts = [n for n, id in enumerate(ids) if n and (tokenizer.fast.id_to_token(id) or "").startswith(SPACE)]
    starts = [places[n] for n in cuts]
    inside: list[list[Join]] = [[] for _ in (0, *cuts)]
    for join in way.done:
        inside[bisect.bisect_right(starts, join.at)].append(join)
    for n, (first, last) in enumerate(itertools.pairwise((0, *cuts, len(ids)))):
        start, end = (0, *starts)[n], (*starts, len(way.symbols))[n]
        done = tuple(replace(join, at=join.at - start) for join in inside[n])
        yield _Way(way.kind, way.symbols[start:end], done, tuple(ids[first:last]))


def _word(tokenizer: Tokenizer, way: _Way, count: int) -> WordMerges:
    data = b"".join(tokenizer.token_bytes(id) for id in way.tokens)
    rows = (
        MergeRow(
            rank=join.rank,
            left=vocab_entry(tokenizer, join.left),
            right=vocab_entry(tokenizer, join.right),
            result=vocab_entry(tokenizer, join.result),
            at=join.at,
        )
        for join in way.done
    )
    return WordMerges(
        text=data.decode("utf-8", "replace"),
        bytes=data,
        count=count,
        kind=way.kind,
        symbols=tuple(vocab_entry(tokenizer, id) for id in way.symbols),
        merges=tuple(rows),
        tokens=tuple(vocab_entry(tokenizer, id) for id in way.tokens),
    )


def _late(done: Sequence[Join]) -> int:
    """How many joins came behind one of higher rank that did not make their pair."""
    return sum(
        after.rank < before.rank and before.result not in (after.left, after.right)
        for before, after in itertools.pairwise(done)
    )


def _different(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids of two lists are not the same at the same place."""
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
