"""Measures of texts: how much one repeats itself, and how much of another it recites. Words are their letters alone."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]  # a text: each word or character a number
Places = npt.NDArray[np.int64]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
INVERSE = pow(BASE, -1, 2**64)
OF_TRAINING, OF_OTHERS = 2**40, 2**40 + 1  # the number behind each text: no word's, no character's, and not the same
BLOCK = 2**22  # places that are looked at together
SIEVE_BITS = 24


def words(text: str) -> list[str]:
    """The words of a text in lower case; what stands between them does not count."""
    return WORD.findall(text.lower())


def repeated(text: Sequence[str], n: int) -> float:
    """Which share of the n-grams of a text stood in it before."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """How many different n-grams all texts have together, over how many they have. It falls as texts grow longer."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ends_well(text: str) -> bool:
    """Whether a text ends as a sentence does."""
    return re.search(r"[.!?…][\"'”’)*_]*$", text.strip()) is not None


def names(text: str, thing: str) -> bool:
    """Whether ``thing`` is among the words of a text, or its plural, or what is its own: moon, moons, moon's."""
    return re.search(rf"(?<![^\W_]){re.escape(thing)}s?(?![^\W_])", text.lower()) is not None


def packed_bits(texts: Sequence[str]) -> dict[str, float]:
    """Bits for each byte of the texts, all in one stream a line end apart, by the programs that everybody has."""
    data, size = "\n".join(texts).encode(), sum(len(text.encode()) for text in texts)
    packed = {"gzip -9": gzip.compress(data, 9), "xz -9e": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)}
    return {name: 8 * len(found) / size for name, found in packed.items()}


class Words:
    """Texts as the numbers of their words, the same number for the same word."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def __call__(self, text: str) -> Numbers:
        return np.array([self._ids.setdefault(word, len(self._ids)) for word in words(text)], dtype=np.uint64)


def characters(text: str) -> Numbers:
    """A text as the numbers of its characters."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)


class Training:
    """A large text, in which parts of others are looked for by a hash of 64 bits.

    The hash of the numbers x from place i on is the sum of mixed(x[i + k]) BASE^k: the difference of two running sums,
    divided by BASE^i, so that any length takes as long (Karp and Rabin 1987).
    """

    def __init__(self, documents: Iterable[Numbers]) -> None:
        self._laid = _Laid(documents, OF_TRAINING)

    def recited(self, texts: Sequence[Numbers], n: int) -> float:
        """Which share of the texts' n-grams stands in the training text too."""
        laid = _Laid(texts, OF_OTHERS)
        places = laid.places(n)
        return len(self._shared(laid, n, places, None)[0]) / len(places) if len(places) else 0.0

    def longest(self, texts: Sequence[Numbers]) -> list[int]:
        """How many numbers in a row each text has from the training text, at the most."""
        laid = _Laid(texts, OF_OTHERS)
        found = np.zeros(len(texts), dtype=np.int64)
        n, (ours, theirs) = 1, self._shared(laid, 1, laid.places(1), None)
        while len(ours):  # as long as every text has twice as much, what is between needs no look
            further = self._shared(laid, 2 * n, ours, theirs)
            if len(np.unique(laid.owner(further[0]))) < len(np.unique(laid.owner(ours))):
                break
            n, (ours, theirs) = 2 * n, further
        while len(ours):
            found[laid.owner(ours)] = n
            n += 1
            ours, theirs = self._shared(laid, n, ours, theirs)
        return found.tolist()

    def _shared(self, laid: _Laid, n: int, ours: Places, theirs: Places | None) -> tuple[Places, Places]:
        """Those of the places in ``laid`` and here (None: all) at which an n-gram of both begins."""
        ours = ours[laid.fits(ours, n)]
        hashes = laid.hashes(ours, n)
        wanted = np.unique(hashes)
        if not len(wanted):
            return ours, np.zeros(0, np.int64)
        sieve = np.zeros(2**SIEVE_BITS, dtype=bool)
        sieve[_short(wanted)] = True
        known, kept = np.zeros(len(wanted), dtype=bool), [np.zeros(0, np.int64)]
        for block in _blocks(len(self._laid.numbers) if theirs is None else theirs):
            block = block[self._laid.fits(block, n)]
            there = self._laid.hashes(block, n)
            near = sieve[_short(there)]
            block, there = block[near], there[near]
            at = np.searchsorted(wanted, there) % len(wanted)
            same = wanted[at] == there
            known[at[same]] = True
            kept.append(block[same])
        return ours[known[np.searchsorted(wanted, hashes)]], np.concatenate(kept)


class _Laid:
    """Texts end to end, ``border`` behind each of them."""

    def __init__(self, texts: Iterable[Numbers], border: int) -> None:
        parts = [np.append(text, np.uint64(border)) for text in texts]
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.numbers = np.concatenate([*parts, np.zeros(0, np.uint64)])
        del parts  # as large as all of them together
        size = len(self.numbers)
        self._sums = np.zeros(size + 1, np.uint64)
        terms = _mixed(self.numbers)
        terms *= _powers(BASE, size)
        np.cumsum(terms, out=self._sums[1:])
        del terms
        self._inverse = _powers(INVERSE, size)

    def places(self, n: int) -> Places:
        """Where n numbers of one text begin."""
        every = np.arange(len(self.numbers), dtype=np.int64)
        return every[every + n < self._ends[self.owner(every)]] if len(every) else every

    def owner(self, places: Places) -> Places:
        """Which text each place is in."""
        return np.searchsorted(self._ends, places, side="right")

    def fits(self, places: Places, n: int) -> npt.NDArray[np.bool_]:
        """Whether n numbers follow, whosever they are: a border is in none that are looked for."""
        return places + n <= len(self.numbers)

    def hashes(self, places: Places, n: int) -> Numbers:
        """Of the n numbers from each place on."""
        return (self._sums[places + n] - self._sums[places]) * self._inverse[places]


def _grams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[start:] for start in range(n)), strict=False))


def _blocks(of: int | Places) -> Iterator[Places]:
    size = of if isinstance(of, int) else len(of)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        yield np.arange(start, end, dtype=np.int64) if isinstance(of, int) else of[start:end]


def _short(hashes: Numbers) -> Places:
    """Their first bits."""
    return (hashes >> np.uint64(64 - SIEVE_BITS)).astype(np.int64)


def _powers(base: int, count: int) -> Numbers:
    """base^0, base^1, ... of 64 bits."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)


def _mixed(numbers: Numbers) -> Numbers:
    """Numbers that look drawn at random, others of others (Steele et al. 2014, the last step of SplitMix64)."""
    mixed = numbers + np.uint64(BASE)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    return mixed
