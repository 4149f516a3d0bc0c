"""The measures of tests/bench/judge.py against brute force on small texts."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.bench import measures
from tests.bench.judge import cut
from tests.bench.measures import (
    Numbers,
    Training,
    Words,
    characters,
    compressed_bits,
    distinct,
    ends_well,
    names,
    repeated,
    words,
)


def test_words_exclude_punctuation() -> None:
    assert words("“Don't!” said the_fox, 12 times—twice…") == ["don't", "said", "the", "fox", "12", "times", "twice"]


def test_a_text_is_cut_after_a_word() -> None:
    assert cut("“Don't!” said the fox.", 2) == "“Don't!” said"
    assert cut("Hello.", 5) == "Hello"
    assert cut("…", 5) == cut("Hello.", 0) == ""


def test_repetition_by_hand() -> None:
    assert repeated(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(3 / 5)
    assert repeated(["a", "b", "c", "d"], 2) == 0
    assert repeated(["a"], 2) == 0


def test_variety_by_hand() -> None:
    assert distinct([["a", "b", "c"], ["a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct([["a"]], 2) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The end.", True), ('"Yes!"\n', True), ("*fin.*", True), ("and then", False), ("", False), ("Mr. Fox", False)],
)
def test_ends_well(text: str, expected: bool) -> None:
    assert ends_well(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("An OWL.", True), ("two owls", True), ("the_owl’s nest", True), ("a howling", False), ("a growl; bowls", False)],
)
def test_a_thing_is_named_by_a_whole_word(text: str, expected: bool) -> None:
    assert names(text, "owl") is expected


def test_a_repetitive_text_compresses_well() -> None:
    assert max(compressed_bits(["the same again"] * 200).values()) < 0.5
    assert min(compressed_bits([random.Random(0).randbytes(2000).hex()]).values()) > 3.5


def test_compression_is_relative_to_the_bytes_of_the_texts() -> None:
    size = len(gzip.compress(b"\n".join([b"\xc3\xa9"] * 500), 9))
    assert compressed_bits(["é"] * 500)["gzip -9"] == pytest.approx(8 * size / 1000)


def random_texts(seed: int) -> tuple[list[str], list[str]]:
    """Return documents, and texts that occur in one of them, across the border of two, or in none."""
    rng = random.Random(seed)
    documents = ["".join(rng.choice("abcd") for _ in range(rng.randint(0, 60))) for _ in range(6)]
    texts = ["".join(rng.choice("abcde") for _ in range(rng.randint(0, 20))) for _ in range(8)]
    return documents, [*texts, documents[0][3:25], documents[1][-9:] + documents[2][:9], documents[3][::-1], "", "eee"]


def agrees(documents: list[str], texts: list[str], numbers: Callable[[str], Numbers]) -> bool:
    """Return whether ``Training`` agrees with a brute-force search for every substring of every text."""
    joined = " ".join if isinstance(numbers, Words) else "".join
    training = Training(numbers(joined(document)) for document in documents)
    rows = [numbers(joined(text)) for text in texts]
    substrings = {n: {d[i : i + n] for d in documents for i in range(len(d) - n + 1)} for n in range(1, 30)}

    def shared(text: str, n: int) -> list[bool]:
        return [text[i : i + n] in substrings[n] for i in range(len(text) - n + 1)]

    every = {n: [known for text in texts for known in shared(text, n)] for n in (1, 2, 3, 5, 8)}
    longest = [max((n for n in range(1, 30) if any(shared(text, n))), default=0) for text in texts]
    return training.longest(rows) == longest and all(
        training.recited(rows, n) == pytest.approx(np.mean(known)) for n, known in every.items()
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["words", "characters"])
@pytest.mark.parametrize("block", [7, measures.BLOCK_SIZE])
def test_recited_and_longest_agree_with_brute_force(
    seed: int, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "BLOCK_SIZE", block)
    assert agrees(*random_texts(seed), Words() if kind == "words" else characters)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("TRAINING_SEPARATOR", 0),  # the separator between documents equals a word
        ("INVERSE", 1),  # the hash depends on the position
        ("_powers", lambda base, count: np.ones(count, dtype=np.uint64)),  # the hash ignores the order
    ],
)
def test_the_brute_force_test_detects_mistakes(name: str, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, name, mistake)
    assert not all(agrees(*random_texts(seed), Words()) for seed in range(5))


def test_empty_texts() -> None:
    some = characters("some text")
    assert Training([]).longest([some, some]) == [0, 0]
    assert Training([some]).longest([]) == []
    assert Training([some]).recited([characters("")], 3) == 0
