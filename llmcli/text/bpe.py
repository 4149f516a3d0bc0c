"""Byte-pair encoding, replayed: the merges within each word, in order (Sennrich et al. 2016)."""

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


def merge_symbols(symbols: Sequence[int], ranks: Mapping[tuple[int, int], tuple[int, int]]) -> list[Merge]:
    """Return the merges of a word, in order.

    Each joins the adjacent pair of lowest rank, the leftmost of several, until no pair has a rank.
    """
    ids: list[int | None] = list(symbols)
    previous, following = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))  # a doubly linked list
    queue: list[tuple[int, int, int, int, int, int]] = []  # rank; left and right index; left, right and merged id

    def offer(left: int) -> None:
        right = following[left] if left >= 0 else len(ids)
        if right == len(ids):
            return
        a, b = ids[left], ids[right]
        assert a is not None
        assert b is not None
        if (a, b) in ranks:
            rank, result = ranks[a, b]
            heapq.heappush(queue, (rank, left, right, a, b, result))

    for left in range(len(ids)):
        offer(left)
    merges = []
    while queue:
        rank, left, right, a, b, result = heapq.heappop(queue)
        if (ids[left], ids[right], following[left]) != (a, b, right):  # one of the two was merged in the meantime
            continue
        ids[left], ids[right] = result, None
        following[left] = following[right]
        if following[left] < len(ids):
            previous[following[left]] = left
        merges.append(Merge(rank, a, b, result, left))
        offer(previous[left])
        offer(left)
    return merges


def replay_merges(symbols: Sequence[T], merges: Iterable[tuple[int, T]]) -> Iterator[tuple[list[int], list[T]]]:
    """Yield a word's symbols at first and after each of ``merges``, given as ``Merge.at`` and the merged symbol.

    Yields (starts, symbols): each symbol's start is the index of the initial symbol with which it begins. The yielded
    lists are reused and change with the next step.
    """
    starts, current = list(range(len(symbols))), list(symbols)
    yield starts, current
    for at, result in merges:
        n = bisect.bisect_left(starts, at)
        current[n : n + 2] = [result]
        del starts[n + 1]
        yield starts, current
