"""The measures by which a model is judged, beside brute force on small texts."""

from __future__ import annotations

import random

import pytest

from tests.bench.measures import Training, ends_well, packed_bits, repeated, words


def test_words_are_their_letters() -> None:
    assert words("“Don't!” said the_fox, 12 times—twice…") == ["don't", "said", "the", "fox", "12", "times", "twice"]


def test_repetition_by_hand() -> None:
    assert repeated(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(3 / 5)
    assert repeated(["a", "b", "c", "d"], 2) == 0
    assert repeated(["a"], 2) == 0


@pytest.mark.parametrize(
    ("text", "well"),
    [("The end.", True), ('"Yes!"\n', True), ("*fin.*", True), ("and then", False), ("", False), ("Mr. Fox", False)],
)
def test_ends(text: str, well: bool) -> None:
    assert ends_well(text) is well


def test_a_text_that_repeats_itself_packs_well() -> None:
    assert max(packed_bits(["the same again"] * 200).values()) < 0.5
    assert min(packed_bits([random.Random(0).randbytes(2000).hex()]).values()) > 3.5


@pytest.mark.parametrize("seed", range(5))
def test_recited_and_longest_by_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    documents = [[rng.choice("abcd") for _ in range(rng.randint(0, 40))] for _ in range(6)]
    texts = [[rng.choice("abcde") for _ in range(rng.randint(0, 20))] for _ in range(8)]
    texts[0] = documents[0][3:15]  # word for word
    training = Training(iter([" ".join(document) for document in documents]))

    def grams(text: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]

    for n in (1, 2, 3, 5):
        known = {gram for document in documents for gram in grams(document, n)}
        every = [gram for text in texts for gram in grams(text, n)]
        assert training.recited(texts, n) == pytest.approx(sum(gram in known for gram in every) / len(every))
    for text, found in zip(texts, training.longest(texts), strict=True):
        known = [{gram for document in documents for gram in grams(document, n)} for n in range(21)]
        longest = max((n for n in range(1, 21) if any(gram in known[n] for gram in grams(text, n))), default=0)
        assert found == longest
