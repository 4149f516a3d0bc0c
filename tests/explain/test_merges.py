"""`tokenize` and `merges`: their checks hold, and catch mistakes."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from llmcli.explain.tokens import bpe_merges as merges_view
from llmcli.explain.tokens.bpe_merges import MergesReport, merges
from llmcli.explain.tokens.tokenization import tokenize
from llmcli.render.views.tokens import print_merges
from llmcli.text import bpe as bpe_module
from llmcli.text.bpe import Bpe, Merge, Symbols
from llmcli.text.tokenizer import Token, Tokenizer
from llmcli.text.words import words
from tests.text.test_tokenizer import SENTENCES, TEXTS, tokenizer

TEXT = "the cat sat on the mat, the cat's mat, once upon a time 日本語 🙂"
KINDS = ["byte-level", "sentencepiece"]


def assert_whole(report: MergesReport, ids: list[int]) -> None:
    """Assert that each word's merges lead from its symbols to its tokens, and that the words hold all tokens."""
    for word in report.words:
        symbols = Symbols(word.symbols)
        for merge in word.merges:
            assert symbols.pair(merge.at) == (merge.left, merge.right)
            assert merge.result.bytes == merge.left.bytes + merge.right.bytes
            symbols.merge(merge.at, merge.result)
        assert tuple(symbols.remaining()[1]) == word.tokens
        assert word.bytes == b"".join(token.bytes for token in word.tokens)
    counted = Counter(dict.fromkeys(ids, 0))
    for word in report.words:
        for token in word.tokens:
            counted[token.id] += word.count
    assert counted == Counter(ids)
    assert report.tokens == len(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(TEXTS, st.booleans())
def test_words_hold_every_token_once(kind: str, text: str, parse_special: bool) -> None:
    report = merges(tokenizer(kind), text, parse_special=parse_special)
    assert report.check.ok
    ids = tokenizer(kind).encode(text, parse_special=parse_special)
    assert report.around == 1
    assert_whole(report, ids[1:])
    keys = [(word.kind, word.symbols, word.tokens) for word in report.words]
    assert len(keys) == len(set(keys))


def spaced() -> Tokenizer:
    """As Llama 2's tokenizer: it learned merges within words but does not split a text into words."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    fast.pre_tokenizer = None  # type: ignore[assignment]
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Metaspace()
    return Tokenizer(fast, "spaced")


@pytest.mark.parametrize("made", [tokenizer("byte-level"), spaced()], ids=["byte-level", "one word to the tokenizer"])
def test_equal_words_are_shown_once(made: Tokenizer) -> None:
    report = merges(made, "on the mat, the cat and the café")
    assert report.check.ok
    counts = {word.text.strip(): word.count for word in report.words}
    assert counts["the"] == 3
    assert counts["cat"] == counts["and"] == 1
    for word in report.words:  # each part gets the same tokens as the word alone
        (alone,) = merges(made, word.text.removeprefix(" ") if made.name == "spaced" else word.text).words
        assert (alone.symbols, alone.merges, alone.tokens) == (word.symbols, word.merges, word.tokens)


def test_a_rank_is_lower_than_the_last_only_if_that_join_made_the_pair() -> None:
    """The lowest rank is merged first, so a rank lower than the last one needs its result."""
    for word in merges(tokenizer("byte-level"), TEXT).words:
        for before, after in zip(word.merges, word.merges[1:], strict=False):
            assert after.rank >= before.rank or before.result in (after.left, after.right)


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_long_word_makes_no_long_lines(kind: str) -> None:
    report = merges(tokenizer(kind), "日本語の" * 500)
    stream = io.StringIO()
    print_merges(report, stream)
    assert report.check.ok
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) < 500
    first = next(line for line in lines if line.count("\t") == 6 and "more)" in line)
    shown, hidden = first.split("\t")[6].rsplit(" (", 1)
    assert len(shown.split()) + int(hidden.split()[0]) == len(report.words[0].symbols)


def test_added_tokens_have_no_merges() -> None:
    report = merges(tokenizer("byte-level"), "<|end_of_text|>the", parse_special=True)
    assert [(word.kind, len(word.merges) > 0) for word in report.words] == [("added", False), ("merged", True)]


# Mistakes that the checks must catch.


def wrong_order(symbols: Any, ranks: Any) -> list[Merge]:
    """The merges with the highest rank first."""
    done = bpe_module.merge_symbols(symbols, {pair: (-rank, new) for pair, (rank, new) in ranks.items()})
    return [replace(join, rank=-join.rank) for join in done]


def swapped(symbols: Any, ranks: Any) -> list[Merge]:
    """The results of two pairs exchanged: "t" + "h" and "h" + "e"."""
    pairs = sorted(ranks, key=lambda pair: ranks[pair][0])
    first, second = pairs[0], pairs[1]
    changed = {**ranks, first: (ranks[first][0], ranks[second][1]), second: (ranks[second][0], ranks[first][1])}
    return bpe_module.merge_symbols(symbols, changed)


def one_short(symbols: Any, ranks: Any) -> list[Merge]:
    return bpe_module.merge_symbols(symbols, ranks)[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sabotage", [wrong_order, swapped, one_short])
def test_a_wrong_replay_fails_the_check(kind: str, sabotage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert merges(tokenizer(kind), TEXT).check.ok
    monkeypatch.setattr(merges_view, "merge_symbols", sabotage)
    assert not merges(tokenizer(kind), TEXT).check.ok


def test_a_missing_byte_fallback_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_byte_fallback(given: Tokenizer) -> Bpe:
        return replace(bpe_module.read_bpe(given), byte_fallback=False)

    monkeypatch.setattr(merges_view, "read_bpe", without_byte_fallback)
    assert not merges(tokenizer("sentencepiece"), "the 🐙").check.ok


@pytest.mark.parametrize("kind", [*KINDS, "unigram"])
@settings(max_examples=60)
@given(TEXTS, st.booleans())
def test_a_tokenization_passes_its_check(kind: str, text: str, parse_special: bool) -> None:
    found = tokenize(tokenizer(kind), text, parse_special=parse_special)
    assert found.check.ok, found.check
    joined = b"".join(
        word.text.encode() if word.added else tokenizer(kind).vocabulary_bytes(word.text)
        for word in words(tokenizer(kind), text, parse_special=parse_special)
    )
    if found.exact and not found.unknown:
        assert joined in (text.encode(), b" " + text.encode())
        assert len(found.check.claims) == 2


def test_unknown_tokens_are_counted() -> None:
    found = tokenize(tokenizer("unigram"), "the ǃ")
    assert found.unknown == 1
    assert "except for unknown tokens" in found.check.claims[0].what
    assert tokenize(tokenizer("sentencepiece"), "the ǃ").unknown == 0


def test_a_lost_or_doubled_token_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Tokenizer.tokens

    def lost(self: Tokenizer, text: str, *, parse_special: bool = False) -> list[Token]:
        return true(self, text, parse_special=parse_special)[:-1]

    def doubled(self: Tokenizer, text: str, *, parse_special: bool = False) -> list[Token]:
        found = true(self, text, parse_special=parse_special)
        return [*found, found[-1]]

    for sabotage in (lost, doubled):
        monkeypatch.setattr(Tokenizer, "tokens", sabotage)
        assert not tokenize(tokenizer("byte-level"), TEXT).check.ok


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_bytes_fail_the_check(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Tokenizer.token_bytes
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, id: true(self, id).replace(b"\xf0", b"?"))
    assert not tokenize(tokenizer(kind), TEXT).check.ok
