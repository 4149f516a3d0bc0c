"""Measures of texts: repetition, variety, and recitation of training text. Words exclude punctuation."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]  # a text as one number per word or character
Positions = npt.NDArray[np.int64]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
# Separators after each text, different from each other and from the number of any word or character.
TRAINING_SEPARATOR, SAMPLE_SEPARATOR = 2**40, 2**40 + 1
BLOCK_SIZE = 2**22  # positions processed at a time
SIEVE_BITS = 24


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def repeated(text: Sequence[str], n: int) -> float:
    """Return the share of a text's n-grams that also occur earlier in it."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Return the number of distinct n-grams of all texts divided by the number of n-grams.

    The value falls with the length of the texts.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ends_well(text: str) -> bool:
    """Return whether a text ends with a complete sentence."""
    return re.search(r"[.!?…][\"'”’)*_]*$", text.strip()) is not None


def names(text: str, thing: str) -> bool:
    """Return whether a text contains the word ``thing``, its plural or its possessive: moon, moons, moon's."""
    return re.search(rf"(?<![^\W_]){re.escape(thing)}s?(?![^\W_])", text.lower()) is not None


def compressed_bits(texts: Sequence[str]) -> dict[str, float]:
    """Return bits per byte of the texts, joined by newlines, when compressed with gzip and xz."""
    data, size = "\n".join(texts).encode(), sum(len(text.encode()) for text in texts)
    compressed = {"gzip -9": gzip.compress(data, 9), "xz -9e": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)}
    return {name: 8 * len(result) / size for name, result in compressed.items()}


class Words:
    """Converts texts to the numbers of their words; the same word always has the same number."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def __call__(self, text: str) -> Numbers:
        return np.array([self._ids.setdefault(word, len(self._ids)) for word in words(text)], dtype=np.uint64)


def characters(text: str) -> Numbers:
    """Return a text as the code points of its characters."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)


class Training:
    """A large text in which n-grams of other texts are looked up by a 64-bit rolling hash.

    The hash of n numbers x at position i is the sum of mixed(x[i + k]) BASE^k over k < n. It is computed as the
    difference of two prefix sums divided by BASE^i, so the cost does not depend on n (Karp and Rabin 1987).
    """

    def __init__(self, documents: Iterable[Numbers]) -> None:
        self._hashed = _HashedTexts(documents, TRAINING_SEPARATOR)

    def recited(self, texts: Sequence[Numbers], n: int) -> float:
        """Return the share of the texts' n-grams that occur in the training text."""
        hashed = _HashedTexts(texts, SAMPLE_SEPARATOR)
        positions = hashed.positions(n)
        return len(self._shared(hashed, n, positions, None)[0]) / len(positions) if len(positions) else 0.0

    def longest(self, texts: Sequence[Numbers]) -> list[int]:
        """Return the length of the longest run of each text that occurs in the training text."""
        hashed = _HashedTexts(texts, SAMPLE_SEPARATOR)
        longest = np.zeros(len(texts), dtype=np.int64)
        n, (ours, theirs) = 1, self._shared(hashed, 1, hashed.positions(1), None)
        while len(ours):  # double n as long as every text with a run of n also has one of 2n
            doubled = self._shared(hashed, 2 * n, ours, theirs)
            if len(np.unique(hashed.text_index(doubled[0]))) < len(np.unique(hashed.text_index(ours))):
                break
            n, (ours, theirs) = 2 * n, doubled
        while len(ours):
            longest[hashed.text_index(ours)] = n
            n += 1
            ours, theirs = self._shared(hashed, n, ours, theirs)
        return longest.tolist()

    def _shared(
        self, hashed: _HashedTexts, n: int, ours: Positions, theirs: Positions | None
    ) -> tuple[Positions, Positions]:
        """Return the positions where a shared n-gram begins, in ``hashed`` and in the training text.

        Only positions in ``ours`` and ``theirs`` are considered; ``theirs`` None means all.
        """
        ours = ours[hashed.fits(ours, n)]
        hashes = hashed.hashes(ours, n)
        wanted = np.unique(hashes)
        if not len(wanted):
            return ours, np.zeros(0, np.int64)
        sieve = np.zeros(2**SIEVE_BITS, dtype=bool)
        sieve[_short(wanted)] = True
        known, kept = np.zeros(len(wanted), dtype=bool), [np.zeros(0, np.int64)]
        for block in _blocks(len(self._hashed.numbers) if theirs is None else theirs):
            block = block[self._hashed.fits(block, n)]
            hashes_here = self._hashed.hashes(block, n)
            likely = sieve[_short(hashes_here)]
            block, hashes_here = block[likely], hashes_here[likely]
            at = np.searchsorted(wanted, hashes_here) % len(wanted)
            same = wanted[at] == hashes_here
            known[at[same]] = True
            kept.append(block[same])
        return ours[known[np.searchsorted(wanted, hashes)]], np.concatenate(kept)


class _HashedTexts:
    """Texts laid end to end, each followed by ``separator``, with the prefix sums for their hashes."""

    def __init__(self, texts: Iterable[Numbers], separator: int) -> None:
        parts = [np.append(text, np.uint64(separator)) for text in texts]
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.numbers = np.concatenate([*parts, np.zeros(0, np.uint64)])
        del parts  # frees as much memory as the concatenated texts take
        size = len(self.numbers)
        self._sums = np.zeros(size + 1, np.uint64)
        terms = _mixed(self.numbers)
        terms *= _powers(BASE, size)
        np.cumsum(terms, out=self._sums[1:])
        del terms
        self._inverse = _powers(INVERSE, size)

    def positions(self, n: int) -> Positions:
        """Return the positions where n numbers of a single text begin."""
        every = np.arange(len(self.numbers), dtype=np.int64)
        return every[every + n < self._ends[self.text_index(every)]] if len(every) else every

    def text_index(self, positions: Positions) -> Positions:
        """Return the index of the text that each position belongs to."""
        return np.searchsorted(self._ends, positions, side="right")

    def fits(self, positions: Positions, n: int) -> npt.NDArray[np.bool_]:
        """Return where n numbers follow, possibly across a separator, which no n-gram to be found contains."""
        return positions + n <= len(self.numbers)

    def hashes(self, positions: Positions, n: int) -> Numbers:
        """Return the hash of the n numbers at each position."""
        return (self._sums[positions + n] - self._sums[positions]) * self._inverse[positions]


def _grams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[start:] for start in range(n)), strict=False))


def _blocks(positions: int | Positions) -> Iterator[Positions]:
    """Split an array of positions, or the positions below a number, into blocks."""
    size = positions if isinstance(positions, int) else len(positions)
    for start in range(0, size, BLOCK_SIZE):
        end = min(start + BLOCK_SIZE, size)
        yield np.arange(start, end, dtype=np.int64) if isinstance(positions, int) else positions[start:end]


def _short(hashes: Numbers) -> Positions:
    """Return the first ``SIEVE_BITS`` bits of each hash."""
    return (hashes >> np.uint64(64 - SIEVE_BITS)).astype(np.int64)


def _powers(base: int, count: int) -> Numbers:
    """Return base^0, base^1, … modulo 2^64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)


def _mixed(numbers: Numbers) -> Numbers:
    """Scramble numbers so that they look random, distinct for distinct ones (Steele et al. 2014, SplitMix64)."""
    mixed = numbers + np.uint64(BASE)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    return mixed
