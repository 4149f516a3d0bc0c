"""Byte-pair encoding, replayed: which neighbours are joined in a word, and in which order (Sennrich et al. 2016)."""

from __future__ import annotations

import bisect
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llmcli.errors import LlmcliError
from llmcli.text.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Join:
    """The neighbours ``left`` and ``right`` became ``result``, all ids.

    ``rank`` says how early the pair was learnt, ``at`` with which of the word's first symbols the result begins.
    """

    rank: int
    left: int
    right: int
    result: int
    at: int


@dataclass(frozen=True)
class Bpe:
    """A vocabulary and its merges. Fields are those of tokenizer.json's ``model``.

    ``ranks``: a pair of ids -> its rank and the id that it becomes. ``ignore_merges``: a word that is a token
    itself is taken whole.
    """

    vocab: Mapping[str, int]
    ranks: Mapping[tuple[int, int], tuple[int, int]]
    ignore_merges: bool = False
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    continuing_subword_prefix: str = ""
    end_of_word_suffix: str = ""

    def whole(self, word: str) -> int | None:
        """The token that a word is at once, if it is."""
        return self.vocab.get(word) if self.ignore_merges else None

    def symbols(self, word: str) -> list[int]:
        """What the merges begin with: a symbol a character, or its bytes, or the unknown token, where there are such.

        A character that is none of these is left out, as ``tokenizers`` does.
        """
        found: list[int] = []
        unknown = None if self.unk_token is None else self.vocab.get(self.unk_token)
        fusing = False  # whether the last symbol is an unknown one that the next may be part of
        for n, char in enumerate(word):
            first, last = n == 0, n == len(word) - 1
            written = (
                ("" if first else self.continuing_subword_prefix) + char + (self.end_of_word_suffix if last else "")
            )
            ids = self._known(written)
            if ids is None and unknown is not None and not fusing:
                found.append(unknown)
            found += ids or ()
            fusing = ids is None and self.fuse_unk
        return found

    def _known(self, symbol: str) -> list[int] | None:
        if symbol in self.vocab:
            return [self.vocab[symbol]]
        names = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        if self.byte_fallback and all(name in self.vocab for name in names):
            return [self.vocab[name] for name in names]
        return None


def read_bpe(tokenizer: Tokenizer) -> Bpe:
    """The merges of a tokenizer. Errors: it has none, being of another kind; or it joins at random."""
    state: dict[str, Any] = json.loads(tokenizer.fast.model.__getstate__())
    kind = state.get("type")
    if kind != "BPE":
        raise LlmcliError(
            f"{tokenizer.name}: the tokenizer is {kind}, which has no merges", "only BPE tokenizers join pairs by rank"
        )
    if state["dropout"]:
        raise LlmcliError(f"{tokenizer.name}: the tokenizer leaves merges out at random", "they cannot be shown")
    vocab: dict[str, int] = state["vocab"]
    prefix = state["continuing_subword_prefix"] or ""
    ranks = {}
    for rank, merge in enumerate(state["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks[vocab[left], vocab[right]] = rank, vocab[left + right[len(prefix) :]]
    return Bpe(
        vocab=vocab,
        ranks=ranks,
        ignore_merges=bool(state.get("ignore_merges")),
        unk_token=state["unk_token"],
        fuse_unk=bool(state["fuse_unk"]),
        byte_fallback=bool(state["byte_fallback"]),
        continuing_subword_prefix=prefix,
        end_of_word_suffix=state["end_of_word_suffix"] or "",
    )


def joins(symbols: Sequence[int], ranks: Mapping[tuple[int, int], tuple[int, int]]) -> list[Join]:
    """Join the neighbours of the lowest rank, the leftmost of equal ones, until no neighbours have a rank."""
    ids: list[int | None] = list(symbols)
    before, behind = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
    waiting: list[tuple[int, int, int, int, int, int]] = []  # rank, place left and right, ids left, right and joined

    def offer(left: int) -> None:
        right = behind[left] if left >= 0 else len(ids)
        if right == len(ids):
            return
        a, b = ids[left], ids[right]
        assert a is not None
        assert b is not None
        if (a, b) in ranks:
            rank, result = ranks[a, b]
            heapq.heappush(waiting, (rank, left, right, a, b, result))

    for left in range(len(ids)):
        offer(left)
    done = []
    while waiting:
        rank, left, right, a, b, result = heapq.heappop(waiting)
        if (ids[left], ids[right], behind[left]) != (a, b, right):  # one of them has become part of another since
            continue
        ids[left], ids[right] = result, None
        behind[left] = behind[right]
        if behind[left] < len(ids):
            before[behind[left]] = left
        done.append(Join(rank, a, b, result, left))
        offer(before[left])
        offer(left)
    return done


def replayed(symbols: Sequence[T], changes: Iterable[tuple[int, T]]) -> Iterator[tuple[list[int], list[T]]]:
    """The places and symbols of a word, at first and after each of ``changes``: the place of a join and its result.

    A symbol's place is that of the first symbol it begins with. The lists yielded are the same ones, changed.
    """
    places, now = list(range(len(symbols))), list(symbols)
    yield places, now
    for at, result in changes:
        n = bisect.bisect_left(places, at)
        now[n : n + 2] = [result]
        del places[n + 1]
        yield places, now
