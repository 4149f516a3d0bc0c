"""Byte-pair encoding, replayed: the merges within each word, in order (Sennrich et al. 2016)."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from llmcli.errors import LlmcliError
from llmcli.text.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Merge:
    """One applied merge: the adjacent ``left`` and ``right`` became ``result``, all ids.

    ``rank`` is the merge's index in the tokenizer's list, ``at`` the index of the word's initial symbol with which the
    result begins.
    """

    rank: int
    left: int
    right: int
    result: int
    at: int


@dataclass(frozen=True)
class Bpe:
    """A vocabulary and its merges. The fields are those of ``model`` in tokenizer.json.

    ``ranks`` maps a pair of ids to its rank and the merged id. ``ignore_merges``: a word that is a token is not split
    into symbols first.
    """

    vocab: Mapping[str, int]
    ranks: Mapping[tuple[int, int], tuple[int, int]]
    ignore_merges: bool = False
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    continuing_subword_prefix: str = ""
    end_of_word_suffix: str = ""

    def whole_word(self, word: str) -> int | None:
        """Return the id of ``word`` if it becomes one token without merges."""
        return self.vocab.get(word) if self.ignore_merges else None

    def symbols(self, word: str) -> list[int]:
        """Return the ids that merging starts from: one per character, or its bytes, or the unknown token.

        A character without any of these is dropped, as ``tokenizers`` does.
        """
        found: list[int] = []
        unknown = None if self.unk_token is None else self.vocab.get(self.unk_token)
        fusing = False  # whether the last symbol is an unknown token that absorbs further unknown characters
        for n, char in enumerate(word):
            first, last = n == 0, n == len(word) - 1
            written = (
                ("" if first else self.continuing_subword_prefix) + char + (self.end_of_word_suffix if last else "")
            )
            ids = self._known_ids(written)
            if ids is None and unknown is not None and not fusing:
                found.append(unknown)
            found += ids or ()
            fusing = ids is None and self.fuse_unk
        return found

    def _known_ids(self, symbol: str) -> list[int] | None:
        if symbol in self.vocab:
            return [self.vocab[symbol]]
        names = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        if self.byte_fallback and all(name in self.vocab for name in names):
            return [self.vocab[name] for name in names]
        return None


def read_bpe(tokenizer: Tokenizer) -> Bpe:
    """Return the merges of a tokenizer.

    Raises LlmcliError if it is not BPE, uses BPE dropout, or has ids that no model has.
    """
    _ = tokenizer.size  # raises for ids over which the next line would take minutes
    state: dict[str, Any] = json.loads(tokenizer.fast.model.__getstate__())
    kind = state.get("type")
    if kind != "BPE":
        raise LlmcliError(
            f"{tokenizer.name}: the tokenizer is {kind}, which has no merges", "only BPE tokenizers have merges"
        )
    if state["dropout"]:
        raise LlmcliError(
            f"{tokenizer.name}: the tokenizer skips merges at random (BPE dropout)", "random merges cannot be shown"
        )
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


class Symbols(Generic[T]):
    """A word's symbols while pairs of them are merged. A symbol is named by the initial symbol with which it begins.

    The time of a merge grows with the logarithm of the word's length: some tokenizers treat a whole text as one word.
    """

    def __init__(self, symbols: Sequence[T]) -> None:
        self.size = len(symbols)
        self._symbols = list(symbols)
        self._previous, self._following = list(range(-1, self.size - 1)), list(range(1, self.size + 1))
        self._gone = [0] * (self.size + 1)  # a Fenwick tree (Fenwick 1994): how many of the first n were merged away

    def pair(self, at: int) -> tuple[T, T] | None:
        """Return the symbol ``at`` and the next one; None if there is no next one or ``at`` was merged away."""
        after = self._following[at]
        return None if after == self.size else (self._symbols[at], self._symbols[after])

    def before(self, at: int) -> int:
        """Return where the symbol before ``at`` begins; -1 if ``at`` is the first."""
        return self._previous[at]

    def merge(self, at: int, result: T) -> None:
        """Replace the symbol ``at`` and the next one by ``result``."""
        gone = self._following[at]
        after = self._following[gone]
        self._symbols[at] = result
        self._following[at], self._following[gone] = after, self.size
        if after < self.size:
            self._previous[after] = at
        n = gone + 1
        while n <= self.size:
            self._gone[n] += 1
            n += n & -n

    def around(self, at: int, count: int) -> tuple[int, list[T], int]:
        """Return the symbol ``at`` with up to ``count`` on either side, and how many others come before and after."""
        earlier = [self._symbols[n] for n in islice(self._walk(at, self._previous), 1, count + 1)]
        shown = [*reversed(earlier), *(self._symbols[n] for n in islice(self._walk(at, self._following), count + 1))]
        before = at - self._gone_before(at) - len(earlier)
        return before, shown, self.size - self._gone_before(self.size) - before - len(shown)

    def remaining(self) -> tuple[list[int], list[T]]:
        """Return where each symbol begins, and the symbols."""
        starts = list(self._walk(0, self._following))
        return starts, [self._symbols[n] for n in starts]

    def _walk(self, at: int, links: Sequence[int]) -> Iterator[int]:
        while 0 <= at < self.size:
            yield at
            at = links[at]

    def _gone_before(self, n: int) -> int:
        found = 0
        while n:
            found += self._gone[n]
            n -= n & -n
        return found


def merge_symbols(initial: Sequence[int], ranks: Mapping[tuple[int, int], tuple[int, int]]) -> list[Merge]:
    """Return the merges of a word, in order.

    Each joins the adjacent pair of lowest rank, the leftmost of several, until no pair has a rank.
    """
    symbols = Symbols(initial)
    queue: list[tuple[int, int, tuple[int, int], int]] = []  # rank, at, pair, result

    def offer(at: int) -> None:
        pair = symbols.pair(at) if at >= 0 else None
        if pair is not None and pair in ranks:
            rank, result = ranks[pair]
            heapq.heappush(queue, (rank, at, pair, result))

    for at in range(symbols.size):
        offer(at)
    merges = []
    while queue:
        rank, at, pair, result = heapq.heappop(queue)
        if symbols.pair(at) != pair:  # one of the two was merged in the meantime
            continue
        symbols.merge(at, result)
        merges.append(Merge(rank, *pair, result, at))
        offer(symbols.before(at))
        offer(at)
    return merges
