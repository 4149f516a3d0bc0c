"""Streamed chunks join to the whole text, and never contain a partial character or part of a stop string."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import EOS_ID, train_tokenizer

WORDS = ["the", "cat", "sat", "on", "日本", "🙂", "é"]


def byte_level() -> FastTokenizer:
    """Bytes and a few merges; most non-ASCII characters are split over several tokens."""
    return train_tokenizer(["the cat sat on the mat, the cat sat, 日本語 日本語 🙂 🙂"], 300)


def sentencepiece() -> FastTokenizer:
    """Characters and two merges; characters not in the vocabulary become <0x..> bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"\u2581thecasond日é",
        "th",
        "\u2581th",
    ]
    fast = FastTokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(dict.fromkeys(pieces))},
            [("t", "h"), ("\u2581", "th")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    return fast


def unigram() -> FastTokenizer:
    """Words with a leading space, and single characters."""
    letters = dict.fromkeys("".join(WORDS) + ",.")
    scored = [("<unk>", 0.0), ("</s>", -99.0), ("\u2581", -3.0), ("\u2581\u2581", -5.0)]
    scored += [("\u2581" + word, -4.0) for word in WORDS] + [(letter, -6.0) for letter in letters]
    fast = FastTokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "</s>")])
    return fast


KINDS: dict[str, Callable[[], FastTokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind](), kind)


@cache
def pieces_tokenizer(pieces: tuple[str, ...]) -> Tokenizer:
    """Return a tokenizer whose tokens are ``pieces``, so that a test decides where tokens begin and end."""
    fast = FastTokenizer(models.WordLevel({piece: id for id, piece in enumerate(pieces)}, unk_token=pieces[0]))
    fast.decoder = decoders.Fuse()
    return Tokenizer(fast, "pieces")


def stream(tok: Tokenizer, prompt: Sequence[int], ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    """Return every chunk, the last one from ``finish``."""
    streaming = TextStream(tok, prompt, stop)
    return [*(streaming.feed(id) for id in ids), streaming.finish()]


def decoded(tok: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    whole, before = tok.decode(prompt + ids), tok.decode(prompt)
    assert whole.startswith(before)
    return whole[len(before) :]


TEXTS = st.lists(
    st.sampled_from(
        [*WORDS, " ", "  ", " the", ",", "語", "🦊", "👩‍👩‍👧", "👍🏽", "e\u0301", "\n", "\x00", "ü", "\U0010ffff"]
    ),
    max_size=14,
).map("".join)


# --- chunks ---


@every_kind
@settings(max_examples=150)
@given(TEXTS, TEXTS)
@example("", "the cat")
@example("the", " cat")
@example("🙂", "🙂🙂")
@example(" ", "  ")
def test_chunks_join_to_the_text(kind: str, prompt: str, text: str) -> None:
    tok = tokenizer(kind)
    prompt_ids, ids = tok.encode(prompt), tok.encode(text)
    chunks = stream(tok, prompt_ids, ids)
    assert "".join(chunks) == decoded(tok, prompt_ids, ids)
    assert "\ufffd" not in "".join(chunks)


@settings(max_examples=200)
@given(st.data(), TEXTS)
def test_any_byte_level_ids_stream_as_they_decode(data: st.DataObject, prompt: str) -> None:
    tok = tokenizer("byte-level")
    ids = data.draw(st.lists(st.integers(0, tok.size - 1), max_size=40))
    prompt_ids = tok.encode(prompt)
    chunks = stream(tok, prompt_ids, ids)
    assert "".join(chunks) == decoded(tok, prompt_ids, ids)


@every_kind
@settings(max_examples=200)
@given(st.data())
def test_any_ids_that_make_whole_characters_stream_as_they_decode(kind: str, data: st.DataObject) -> None:
    tok = tokenizer(kind)
    any_id = st.integers(0, tok.size - 1)
    whole_text = st.lists(TEXTS.map(tok.encode), max_size=3).map(lambda parts: [id for part in parts for id in part])
    ids = data.draw(st.one_of(st.lists(any_id, max_size=30), whole_text))
    text = tok.decode(ids)
    chunks = stream(tok, [], ids)
    if "\ufffd" not in text:
        assert "".join(chunks) == text
        assert not any("\ufffd" in chunk for chunk in chunks)


@settings(max_examples=150)
@given(TEXTS)
def test_a_character_is_emitted_with_the_token_that_completes_it(text: str) -> None:
    # The reference is Python's incremental decoder over the tokens' bytes. A token that completes one character
    # and begins another waits for the second one.
    tok = tokenizer("byte-level")
    streaming, decoder = TextStream(tok), codecs.getincrementaldecoder("utf-8")()
    ready = ""
    for id in tok.encode(text)[1:]:
        ready += decoder.decode(tok.token_bytes(id))
        incomplete = decoder.getstate()[0] != b""
        assert streaming.feed(id) == ("" if incomplete else ready)
        ready = ready if incomplete else ""
    assert streaming.finish() == ""


def test_the_space_between_prompt_and_text_is_kept() -> None:
    tok = tokenizer("sentencepiece")
    prompt, ids = tok.encode("the"), tok.encode("cat")
    assert tok.decode(ids) == "cat"  # alone, its space is stripped
    assert stream(tok, prompt, ids)[0] == " "
    assert "".join(stream(tok, prompt, ids)) == " cat"
    assert "".join(stream(tok, [], ids)) == "cat"
    assert "".join(stream(tok, [1], ids)) == "cat"  # BOS alone is no text either


def test_a_partial_character_is_emitted_only_at_the_end() -> None:
    tok = tokenizer("byte-level")
    ids = tok.encode("a\U0010ffff")[1:]
    assert len(ids) == 5
    assert stream(tok, [], ids[:3]) == ["a", "", "", "\ufffd"]
    assert stream(tok, [], ids) == ["a", "", "", "", "\U0010ffff", ""]


def test_a_generated_replacement_character_is_text() -> None:
    tok = tokenizer("byte-level")
    assert "".join(stream(tok, tok.encode("\ufffd"), tok.encode("a\ufffdb\ufffd"))) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_partial_character_leaves_those_of_the_prompt_intact(kind: str) -> None:
    # Byte fallback decodes a run of bytes as a whole, and the run began in the prompt.
    tok = tokenizer(kind)
    prompt = tok.encode("🙂🙂🙂")
    ids = tok.encode("\U0010ffff")[-4:]
    for kept in (1, 2, 3):
        text = "".join(stream(tok, prompt, ids[:kept]))
        assert set(text) == {"\ufffd"}
        assert len(text) <= kept
    assert "".join(stream(tok, prompt, ids)) == "\U0010ffff"


def test_special_tokens_are_not_text() -> None:
    tok = tokenizer("byte-level")
    ids = tok.encode("é")[1:]
    assert len(ids) == 2
    assert stream(tok, [], [EOS_ID, ids[0], EOS_ID, ids[1], EOS_ID]) == ["", "", "", "é", "", ""]


@every_kind
def test_the_cost_per_token_is_constant(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer(kind)
    prompt, ids = tok.encode("the cat sat on" * 20), tok.encode("the cat 🙂 sat on 日本, é" * 20)
    lengths: list[int] = []
    decode = tok.decode

    def counted(ids: list[int], *, skip_special: bool = True) -> str:
        lengths.append(len(ids))
        return decode(ids, skip_special=skip_special)

    monkeypatch.setattr(tok, "decode", counted)
    streaming = TextStream(tok, prompt)
    while not streaming.feed(ids.pop(0)):
        pass
    assert max(lengths) >= len(prompt)
    lengths.clear()
    assert len(ids) > 100
    for id in ids:
        streaming.feed(id)
    assert len(lengths) >= len(ids)
    assert max(lengths) <= 12


# --- stop strings ---


def oracle(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Search character by character: return the text before the first complete stop string (the longest of several)."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return text[: end - len(stop)], stop
    return text, None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may be the start of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


PIECES = ("a", "b", "🙂", "ab", "ba", "aa", "bb", "aba", "bab", "a🙂", "abab", "🙂b🙂")
STOPS = st.lists(st.text("ab🙂", min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=400)
@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=12), STOPS)
@example([PIECES.index("abab")], ["abab", "b"])
@example([PIECES.index("aba"), PIECES.index("b")], ["bab", "ab🙂"])
def test_stop_strings(ids: list[int], stops: list[str]) -> None:
    streaming = TextStream(pieces_tokenizer(PIECES), (), stops)
    emitted = fed = ""
    for id in ids:
        emitted += streaming.feed(id)
        fed += PIECES[id]
        text, stop = oracle(fed, stops)
        assert streaming.stopped == stop
        # Nothing of a stop string or after it is emitted, and only a possible start of one is held back.
        assert emitted == (text if stop else text[: len(text) - held_back(text, stops)])
    emitted += streaming.finish()
    assert (emitted, streaming.stopped) == oracle(fed, stops)


@settings(max_examples=100)
@given(st.text("ab🙂", max_size=12), STOPS, st.data())
def test_token_boundaries_do_not_matter(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    parts = [text[start:end] for start, end in itertools.pairwise(cuts)]
    one_by_one = TextStream(pieces_tokenizer(("a", "b", "🙂")), (), stops)
    in_parts = TextStream(pieces_tokenizer(tuple(dict.fromkeys(parts)) or ("a",)), (), stops)
    letters = "".join(one_by_one.feed("ab🙂".index(letter)) for letter in text) + one_by_one.finish()
    chunks = "".join(in_parts.feed(list(dict.fromkeys(parts)).index(part)) for part in parts) + in_parts.finish()
    assert (chunks, in_parts.stopped) == (letters, one_by_one.stopped)


def test_a_stop_string_split_over_tokens_and_characters() -> None:
    tok = tokenizer("byte-level")
    ids = tok.encode("sat 🙂🦊 on")[1:]
    streaming = TextStream(tok, (), ["🙂🦊"])
    chunks = [streaming.feed(id) for id in ids] + [streaming.finish()]
    assert "".join(chunks) == "sat "
    assert streaming.stopped == "🙂🦊"


def test_nothing_is_emitted_after_a_stop_string() -> None:
    streaming = TextStream(pieces_tokenizer(PIECES), (), ["b"])
    assert [streaming.feed(PIECES.index(piece)) for piece in ("a", "abab", "a", "aa")] == ["a", "a", "", ""]
    assert streaming.finish() == ""
    assert streaming.stopped == "b"


def test_an_incomplete_stop_string_is_text() -> None:
    streaming = TextStream(pieces_tokenizer(PIECES), (), ["abb"])
    assert [streaming.feed(PIECES.index(piece)) for piece in ("a", "b", "a", "b")] == ["", "", "ab", ""]
    assert streaming.finish() == "ab"
    assert streaming.stopped is None


def test_a_stop_string_does_not_match_across_the_end_of_the_prompt() -> None:
    tok = pieces_tokenizer(PIECES)
    assert stream(tok, [PIECES.index("a")], [PIECES.index("b")], ["ab"]) == ["b", ""]


def test_a_stop_string_may_be_completed_by_finish() -> None:
    # "\ufffd" waits for the rest of its character until finish.
    tok = tokenizer("byte-level")
    first = tok.encode("\U0010ffff")[1]
    streaming = TextStream(tok, (), ["a\ufffd"])
    ids = [*tok.encode("sa")[1:], first]
    assert "".join(streaming.feed(id) for id in ids) + streaming.finish() == "s"
    assert streaming.stopped == "a\ufffd"
