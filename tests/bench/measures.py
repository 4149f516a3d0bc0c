"""Measures of texts: how much one repeats itself, and how much of another it recites. Words are their letters alone."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that hashes of all lengths spread over all of 64 bits


def words(text: str) -> list[str]:
    """The words of a text in lower case; what stands between them does not count."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())


def repeated(text: Sequence[str], n: int) -> float:
    """Which share of the n-grams of a text stood in it before."""
    grams = list(zip(*(text[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_well(text: str) -> bool:
    """Whether a text ends as a sentence does."""
    return re.search(r"[.!?…][\"'”’)*_]*$", text.strip()) is not None


def packed_bits(texts: Sequence[str]) -> dict[str, float]:
    """Bits a byte of all texts in one stream, by the programs that everybody has."""
    data = "\n".join(texts).encode()
    sizes = {"gzip -9": len(gzip.compress(data, 9)), "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))}
    return {name: 8 * size / len(data) for name, size in sizes.items()}


class Training:
    """A large text, in which the n-grams of others are looked for by a hash of 64 bits."""

    def __init__(self, documents: Iterator[str]) -> None:
        self._ids: dict[str, int] = {}
        found = [self._learnt(document) for document in documents]
        self._words = np.concatenate([*found, np.zeros(0, np.uint64)])
        self._ends = np.cumsum([len(one) for one in found])

    def recited(self, texts: Sequence[Sequence[str]], n: int) -> float:
        """Which share of the texts' n-grams stands in the training text too."""
        hashes = [_hashes(self._numbers(text), n) for text in texts]
        every = np.concatenate([*hashes, np.zeros(0, np.uint64)])
        return float(np.isin(every, self._among(every, n)).mean()) if len(every) else 0.0

    def longest(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """How many words in a row each text has from the training text, at the most."""
        numbers, found, n = [self._numbers(text) for text in texts], [0] * len(texts), 1
        while True:
            hashes = [
                _hashes(one, n) if found[place] == n - 1 else _hashes(one, 0) for place, one in enumerate(numbers)
            ]
            known = self._among(np.concatenate(hashes), n)
            matched = [place for place, one in enumerate(hashes) if np.isin(one, known).any()]
            if not matched:
                return found
            for place in matched:
                found[place] = n
            n += 1

    def _among(self, hashes: Hashes, n: int) -> Hashes:
        """Those of the hashes that an n-gram of the training text has too."""
        wanted, grams = np.unique(hashes), self._grams(n)
        if not len(wanted):
            return wanted
        places = np.searchsorted(wanted, grams) % len(wanted)
        return np.unique(grams[wanted[places] == grams])

    def _grams(self, n: int) -> Hashes:
        """The hashes of all n-grams within a document."""
        hashes = _hashes(self._words, n)
        within = np.ones(len(hashes), dtype=bool)
        for end in self._ends[:-1]:
            within[max(end - n + 1, 0) : end] = False
        return hashes[within]

    def _numbers(self, text: Sequence[str]) -> Hashes:
        return np.array([self._ids.get(word, 0) for word in text], dtype=np.uint64)

    def _learnt(self, document: str) -> Hashes:
        return np.array([self._ids.setdefault(word, len(self._ids) + 1) for word in words(document)], dtype=np.uint64)


def _hashes(numbers: Hashes, n: int) -> Hashes:
    """A hash of each n-gram; none of any for n of 0. A word of 0 is unknown, and its n-grams are in no other text."""
    if n == 0 or len(numbers) < n:
        return np.zeros(0, np.uint64)
    with np.errstate(over="ignore"):
        mixed = numbers * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
        hashes = np.zeros(len(numbers) - n + 1, np.uint64)
        for place in range(n):
            hashes = hashes * BASE + mixed[place : len(numbers) - n + 1 + place]
    return hashes
