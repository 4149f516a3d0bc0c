"""``text_chunks``: no text is lost or counted twice, whatever the first token is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.explain.scoring import text_chunks
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer

TOKENIZER = Tokenizer(train_tokenizer(["a fox met a fox by the river, again and again"], 280), "bytes")
BOS = TOKENIZER.encode("")


@settings(max_examples=100)
@given(st.text(min_size=1))
def test_after_a_special_token_the_chunks_are_the_whole_text(text: str) -> None:
    chunks, size = text_chunks(TOKENIZER, TOKENIZER.encode(text))
    assert len(BOS) == 1
    assert "".join(chunks) == text
    assert size == len(text.encode())


@settings(max_examples=100)
@given(st.text(min_size=2))
def test_the_first_tokens_bytes_are_not_counted(text: str) -> None:
    """Even if the first token is part of a character, which is shown whole."""
    ids = TOKENIZER.encode(text)[1:]
    if len(ids) < 2:
        return
    first = TOKENIZER.token_bytes(ids[0])
    chunks, size = text_chunks(TOKENIZER, ids)
    assert size == len(text.encode()) - len(first)
    assert "".join(chunks) in (text, text.encode()[len(first) :].decode("utf-8", "replace"))
    assert "\ufffd" not in "".join(chunks) or "\ufffd" in text


def test_a_character_that_the_first_token_starts_is_shown_whole() -> None:
    ids = TOKENIZER.encode("🙂 fox")[1:]
    assert text_chunks(TOKENIZER, ids)[0][:4] == ["", "", "🙂", " fox"]
    assert text_chunks(TOKENIZER, ids)[1] == len("🙂 fox".encode()) - 1


def test_a_replacement_character_at_the_end_is_not_lost() -> None:
    """A stream holds back U+FFFD, which may be an incomplete character; here it is part of the text."""
    chunks, size = text_chunks(TOKENIZER, TOKENIZER.encode("fox \ufffd"))
    assert ("".join(chunks), size) == ("fox \ufffd", 7)


def test_special_tokens_have_neither_text_nor_bytes() -> None:
    ids = [*TOKENIZER.encode("a fox"), *BOS, *TOKENIZER.encode(" met")]
    chunks, size = text_chunks(TOKENIZER, ids)
    assert "".join(chunks) == "a fox met"
    assert size == len("a fox met")
