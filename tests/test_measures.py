"""The measures by which a model is judged, beside brute force on small texts."""

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
    distinct,
    ends_well,
    names,
    packed_bits,
    repeated,
    words,
)


def test_words_are_their_letters() -> None:
    assert words("“Don't!” said the_fox, 12 times—twice…") == ["don't", "said", "the", "fox", "12", "times", "twice"]


def test_a_text_is_cut_behind_a_word() -> None:
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
    ("text", "well"),
    [("The end.", True), ('"Yes!"\n', True), ("*fin.*", True), ("and then", False), ("", False), ("Mr. Fox", False)],
)
def test_ends(text: str, well: bool) -> None:
    assert ends_well(text) is well


@pytest.mark.parametrize(
    ("text", "named"),
    [("An OWL.", True), ("two owls", True), ("the_owl’s nest", True), ("a howling", False), ("a growl; bowls", False)],
)
def test_a_thing_is_named_by_its_own_word(text: str, named: bool) -> None:
    assert names(text, "owl") is named


def test_a_text_that_repeats_itself_packs_well() -> None:
    assert max(packed_bits(["the same again"] * 200).values()) < 0.5
    assert min(packed_bits([random.Random(0).randbytes(2000).hex()]).values()) > 3.5


def test_the_bytes_of_what_is_packed_are_those_of_the_texts() -> None:
    packed = len(gzip.compress(b"\n".join([b"\xc3\xa9"] * 500), 9))
    assert packed_bits(["é"] * 500)["gzip -9"] == pytest.approx(8 * packed / 1000)


def drawn(seed: int) -> tuple[list[str], list[str]]:
    """Documents, and texts of which some stand in one of them, some in two together, and some in none."""
    rng = random.Random(seed)
    documents = ["".join(rng.choice("abcd") for _ in range(rng.randint(0, 60))) for _ in range(6)]
    texts = ["".join(rng.choice("abcde") for _ in range(rng.randint(0, 20))) for _ in range(8)]
    return documents, [*texts, documents[0][3:25], documents[1][-9:] + documents[2][:9], documents[3][::-1], "", "eee"]


def right(documents: list[str], texts: list[str], numbers: Callable[[str], Numbers]) -> bool:
    """Whether all is found as by looking for every part of every text."""
    joined = " ".join if isinstance(numbers, Words) else "".join
    training = Training(numbers(joined(document)) for document in documents)
    rows = [numbers(joined(text)) for text in texts]
    parts = {n: {d[i : i + n] for d in documents for i in range(len(d) - n + 1)} for n in range(1, 30)}

    def shared(text: str, n: int) -> list[bool]:
        return [text[i : i + n] in parts[n] for i in range(len(text) - n + 1)]

    every = {n: [known for text in texts for known in shared(text, n)] for n in (1, 2, 3, 5, 8)}
    longest = [max((n for n in range(1, 30) if any(shared(text, n))), default=0) for text in texts]
    return training.longest(rows) == longest and all(
        training.recited(rows, n) == pytest.approx(np.mean(known)) for n, known in every.items()
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["words", "characters"])
@pytest.mark.parametrize("block", [7, measures.BLOCK])
def test_recited_and_longest_by_brute_force(seed: int, kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "BLOCK", block)
    assert right(*drawn(seed), Words() if kind == "words" else characters)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("OF_TRAINING", 0),  # what stands between the documents looks like a word
        ("INVERSE", 1),  # the same words elsewhere have another hash
        ("_powers", lambda base, count: np.ones(count, dtype=np.uint64)),  # their order does not count
    ],
)
def test_the_test_sees_mistakes(name: str, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, name, mistake)
    assert not all(right(*drawn(seed), Words()) for seed in range(5))


def test_nothing_to_look_in_or_for() -> None:
    some = characters("some text")
    assert Training([]).longest([some, some]) == [0, 0]
    assert Training([some]).longest([]) == []
    assert Training([some]).recited([characters("")], 3) == 0
