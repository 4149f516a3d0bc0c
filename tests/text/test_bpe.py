"""Replaying BPE merges and splitting into words, against ``tokenizers`` and a plain double loop."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError
from llmcli.text.bpe import Bpe, Merge, Symbols, merge_symbols, read_bpe
from llmcli.text.tokenizer import Tokenizer, load_tokenizer
from llmcli.text.words import words
from tests.text.test_tokenizer import FRAGMENTS, REAL, SENTENCES, TEXTS, tokenizer

STORIES = Path(__file__).parents[3] / "shared" / "checkpoints" / "stories260K"


def replay(bpe: Bpe, word: str) -> list[int]:
    """Return the ids of a word, by replaying its merges."""
    whole = bpe.whole_word(word)
    if whole is not None:
        return [whole]
    symbols = bpe.symbols(word)
    return after(symbols, merge_symbols(symbols, bpe.ranks)).remaining()[1]


def after(initial: Sequence[int], merges: Sequence[Merge]) -> Symbols[int]:
    symbols = Symbols(initial)
    for join in merges:
        symbols.merge(join.at, join.result)
    return symbols


def plain(symbols: list[int], ranks: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Merge one pair at a time, as in the algorithm of Sennrich et al. (2016)."""
    ids = list(symbols)
    while True:
        pairs = [(ranks[pair], n) for n, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]
        if not pairs:
            return ids
        (_, result), n = min(pairs, key=lambda pair: (pair[0][0], pair[1]))
        ids[n : n + 2] = [result]


def assert_replays(tokenizer: Tokenizer, bpe: Bpe, text: str, parse_special: bool) -> None:
    parts = words(tokenizer, text, parse_special=parse_special)
    for word in parts:
        if not word.added:
            assert replay(bpe, word.text) == list(word.ids), (word, text)
    tokenizer.fast.encode_special_tokens = not parse_special
    ids = tokenizer.fast.encode(text, add_special_tokens=False).ids
    assert [id for word in parts for id in word.ids] == ids


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@settings(max_examples=150)
@given(TEXTS, st.booleans())
@example("   the  the cat's\n\n\t12345 日本語🙂", False)
def test_a_replay_gives_the_ids_of_tokenizers(kind: str, text: str, parse_special: bool) -> None:
    assert_replays(tokenizer(kind), read_bpe(tokenizer(kind)), text, parse_special)


@pytest.mark.skipif(not REAL, reason="needs tokenizers of real models")
@pytest.mark.parametrize("folder", [*REAL, STORIES], ids=lambda folder: folder.name)
def test_a_replay_gives_the_ids_of_real_tokenizers(folder: Path) -> None:
    real = load_tokenizer(folder)
    bpe = read_bpe(real)
    rng = random.Random(0)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert_replays(real, bpe, readme, False)
    for _ in range(60):
        text = "".join(rng.choice([*FRAGMENTS, *SENTENCES, "naïve ", "3.14159", "  \n "]) for _ in range(8))
        assert_replays(real, bpe, text, rng.random() < 0.5)


@settings(max_examples=150)
@given(st.lists(st.integers(0, 4), max_size=24), st.integers(0, 10_000))
def test_merges_match_a_plain_loop(symbols: list[int], seed: int) -> None:
    """Uses random rank tables, in which a pair may have a lower rank than the merges that produce its parts."""
    rng = random.Random(seed)
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    for new in range(5, 25):
        ranks[rng.randrange(new), rng.randrange(new)] = (0, new)
    order = rng.sample(range(len(ranks)), len(ranks))
    ranks = {pair: (rank, new) for (pair, (_, new)), rank in zip(ranks.items(), order, strict=True)}
    merges = merge_symbols(symbols, ranks)
    positions, ids = after(symbols, merges).remaining()
    assert ids == plain(symbols, ranks)
    assert positions == sorted(positions)
    for n, position in enumerate(positions):
        before, shown, rest = after(symbols, merges).around(position, 2)
        assert (before, rest) == (max(n - 2, 0), max(len(ids) - n - 3, 0))
        assert shown == ids[before : n + 3]
    assert len(merges) == len(symbols) - len(ids)
    for join in merges:
        assert ranks[join.left, join.right] == (join.rank, join.result)


def test_merging_a_long_word_does_not_take_quadratic_time() -> None:
    symbols = [0, 1] * 50_000
    assert len(merge_symbols(symbols, {(0, 1): (0, 2), (2, 2): (1, 3)})) == 75_000


def custom(make: Callable[[], FastTokenizer]) -> Tokenizer:
    return Tokenizer(make(), "custom")


def prefixed() -> FastTokenizer:
    """Return a BPE with "##" before symbols inside a word and "</w>" after symbols that end one."""
    fast = FastTokenizer(models.BPE(unk_token="?", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["?"], continuing_subword_prefix="##", end_of_word_suffix="</w>"
    )
    fast.train_from_iterator(SENTENCES * 3, trainer)
    return fast


def small(**changed: object) -> Callable[[], FastTokenizer]:
    vocab = {"?": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "abc": 6, "aa": 7}
    merges = [("a", "b"), ("a", "a"), ("b", "c"), ("ab", "c")]
    return lambda: FastTokenizer(models.BPE(vocab, merges, **changed))  # type: ignore[arg-type]


def with_added() -> FastTokenizer:
    """Return a tokenizer with added tokens that are not special, include spaces, or are matched after normalization."""
    fast = small(unk_token="?")()
    fast.normalizer = normalizers.Lowercase()
    fast.add_tokens([AddedToken("<x>", normalized=False), AddedToken("CAB", normalized=True)])
    fast.add_special_tokens([AddedToken("<s>", lstrip=True, rstrip=True, normalized=False)])
    return fast


@pytest.mark.parametrize(
    "make",
    [
        prefixed,
        small(),
        small(unk_token="?"),
        small(unk_token="?", fuse_unk=True),
        small(unk_token="?", ignore_merges=True),
        with_added,
    ],
    ids=["prefix and suffix", "drops", "unknown", "fused unknown", "ignore merges", "added tokens"],
)
@settings(max_examples=80)
@given(
    text=st.one_of(
        TEXTS,
        st.text("abc ?zy", max_size=12),
        st.lists(st.sampled_from(["a", "b", "cab", "CAB", "<x>", " <s> ", "z"]), max_size=8).map("".join),
    ),
    parse_special=st.booleans(),
)
def test_every_setting_of_the_model_is_respected(
    make: Callable[[], FastTokenizer], text: str, parse_special: bool
) -> None:
    made = custom(make)
    assert_replays(made, read_bpe(made), text, parse_special)


def test_merges_written_as_text_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of tokenizers before 0.20 write merges as strings."""
    made = custom(small())
    state = json.loads(made.fast.model.__getstate__())  # type: ignore[no-untyped-call]
    expected = read_bpe(made)
    state["merges"] = [" ".join(pair) for pair in state["merges"]]

    class Model:
        def __getstate__(self) -> bytes:
            return json.dumps(state).encode()

    class Fast:
        model = Model()

    made.fast = Fast()  # type: ignore[assignment]
    assert read_bpe(made) == expected


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0, byte_fallback=False), "Unigram"),
        (models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), "WordPiece"),
        (models.WordLevel({"a": 0}, unk_token="a"), "WordLevel"),
        (models.BPE({"a": 0}, [], dropout=0.5), "at random"),
    ],
)
def test_a_model_without_replayable_merges_is_an_error(model: models.Model, kind: str) -> None:
    with pytest.raises(LlmcliError, match=kind):
        read_bpe(Tokenizer(FastTokenizer(model), "other"))
