"""Encoding and decoding: the ids of ``tokenizers``, exact bytes and positions, and clear errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from llmcli.errors import EXIT_FAILURE, EXIT_USAGE, LlmcliError
from llmcli.explain.tokens.bpe_merges import merges
from llmcli.explain.tokens.tokenization import tokenize
from llmcli.text.tokenizer import Token, Tokenizer, load_tokenizer
from llmcli.train.vocabulary import BOS, BOS_ID, EOS, EOS_ID, train_tokenizer

SENTENCES = [
    "the cat sat on the mat, and the cat's mat sat there too",
    "once upon a time there was a naïve little café, a time ago",
    "日本語の日本語 and 🙂🙂 and 🙂, 12 34 12 34",
]
SHARED = Path(__file__).parents[3] / "shared" / "checkpoints" / "tokenizers"
REAL = sorted(path.parent for path in SHARED.glob("*/tokenizer.json"))
MODELS = sorted(Path(os.environ["LLMCLI_REAL_MODELS"]).glob("*/")) if "LLMCLI_REAL_MODELS" in os.environ else []


def byte_level() -> FastTokenizer:
    """As llmcli trains them: a token for every byte, then merges; BOS before each text."""
    return train_tokenizer(SENTENCES, 330)


def sentencepiece() -> FastTokenizer:
    """Like Llama 2's: BPE over characters, spaces as U+2581, unknown characters as <0x..> bytes."""
    trained = FastTokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    fast = FastTokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            merges,
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
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


def unigram() -> FastTokenizer:
    """Like T5's: whole words with a leading space, single characters, and <unk> for all others."""
    words = sorted({"\u2581" + word for sentence in SENTENCES for word in sentence.split()})
    letters = sorted({*"</>", *(letter for sentence in SENTENCES for letter in sentence)} - {" "})
    scored = [("<unk>", 0.0), ("</s>", -99.0), ("\u2581", -3.0)]
    scored += [(word, -4.0 - n / 100) for n, word in enumerate(words)]
    scored += [(letter, -5.0 - n / 100) for n, letter in enumerate(letters)]
    fast = FastTokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "</s>")])
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return fast


KINDS: dict[str, Callable[[], FastTokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
}
END = {"byte-level": EOS, "sentencepiece": "</s>", "unigram": "</s>"}  # a special token of each
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind](), kind)


@cache
def reference(kind: str) -> FastTokenizer:
    return KINDS[kind]()


FRAGMENTS = [
    *("the cat", " the", " ", "   ", "\n", "\r\n", "\t", "\x00", "\x1b[31m", "\x7f", "\ufeff", "\u2028", "\u200b"),
    *("é", "e\u0301", "\u0301", "日本語", "한국어", "🙂", "👩‍👩‍👧", "🇯🇵", "👍🏽", "\ufffd", "\ufffe", "\U0010ffff"),
    *("Ġ", "Ċ", "▁", "<0x41>", "<|begin_of_text|>", "<|end_of_text|>", "<s>", "</s>", "<unk>", "<s", "1234567", "it's"),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def inserted(kind: str, tokens: list[Token]) -> tuple[list[Token], list[Token]]:
    """Return the special tokens added around every text, and the tokens of the text itself."""
    return (tokens[-1:], tokens[:-1]) if kind == "unigram" else (tokens[:1], tokens[1:])


def assert_positions(text: str, tokens: list[Token]) -> None:
    """Check that spans are inside the text and in order, and cover all of it if the bytes are those of the text."""
    source = text.encode()
    start = end = 0
    for token in tokens:
        assert start <= token.start <= token.end <= len(source)
        assert end <= token.end
        start, end = token.start, token.end
        assert token.text == token.bytes.decode("utf-8", "replace")
    joined = b"".join(token.bytes for token in tokens)
    if source in (joined, joined[1:]):
        assert b"".join(source[token.start : token.end] for token in tokens) == source


# --- ids, bytes and positions ---


@every_kind
@settings(max_examples=100)
@given(TEXTS)
@example("")
@example("<s></s><unk><|end_of_text|>")
def test_ids_are_those_of_tokenizers(kind: str, text: str) -> None:
    for parse_special in (False, True):
        reference(kind).encode_special_tokens = not parse_special
        assert tokenizer(kind).encode(text, parse_special=parse_special) == reference(kind).encode(text).ids


@every_kind
@settings(max_examples=100)
@given(TEXTS)
def test_tokens_have_the_ids_and_their_positions(kind: str, text: str) -> None:
    tokens = tokenizer(kind).tokens(text)
    assert [token.id for token in tokens] == tokenizer(kind).encode(text)
    around, own = inserted(kind, tokens)
    assert [token.special for token in around] == [True]
    assert around[0].start == around[0].end
    assert_positions(text, own)


@settings(max_examples=100)
@given(TEXTS)
@example("<|begin_of_text|><|end_of_text|>")
def test_byte_level_is_lossless(text: str) -> None:
    source = text.encode()
    bos, *own = tokenizer("byte-level").tokens(text)
    assert (bos.id, bos.start, bos.end) == (BOS_ID, 0, 0)
    assert b"".join(token.bytes for token in own) == source
    assert [source[token.start : token.end] for token in own] == [token.bytes for token in own]
    assert tokenizer("byte-level").decode([token.id for token in own]) == text
    assert not any(token.special for token in own)


@settings(max_examples=100)
@given(TEXTS.filter(lambda text: "▁" not in text and text))
@example(" a")
@example("  🙂 ")
def test_sentencepiece_positions_are_exact_after_the_added_space(text: str) -> None:
    source = text.encode()
    _, *own = tokenizer("sentencepiece").tokens(text)
    assert b"".join(token.bytes for token in own) == b" " + source
    assert own[0].bytes == b" " + source[: own[0].end]
    assert [source[token.start : token.end] for token in own[1:]] == [token.bytes for token in own[1:]]
    assert tokenizer("sentencepiece").decode([token.id for token in own]) == text


def test_byte_tokens_of_a_character_have_positions_of_single_bytes() -> None:
    _, space, *parts = tokenizer("sentencepiece").tokens("語🦊")[:7]
    assert space.bytes == b" "
    assert [part.bytes for part in parts[-4:]] == [b"\xf0", b"\x9f", b"\xa6", b"\x8a"]
    assert [(part.start, part.end) for part in parts[-4:]] == [(3, 4), (4, 5), (5, 6), (6, 7)]
    assert [part.text for part in parts[-4:]] == ["\ufffd"] * 4


def test_unknown_tokens_of_unigram_keep_their_positions() -> None:
    text = "the 🦊 cat"
    own = tokenizer("unigram").tokens(text)[:-1]
    unknown = [token for token in own if token.id == 0]
    assert [text.encode()[token.start : token.end].decode() for token in unknown] == ["🦊"]
    assert [text.encode()[token.start : token.end].strip() for token in own if token.bytes.strip() == b"cat"] == [
        b"cat"
    ]


def test_positions_in_a_normalized_text_are_whole_characters() -> None:
    fast = byte_level()
    fast.normalizer = normalizers.NFC()
    text = "cafe\u0301 日"
    own = Tokenizer(fast, "nfc").tokens(text)[1:]
    assert b"".join(token.bytes for token in own).decode() == "café 日"
    assert own[-1].end == len(text.encode())
    edges = {0, *(len(text[: n + 1].encode()) for n in range(len(text)))}
    assert {edge for token in own for edge in (token.start, token.end)} <= edges


# --- special tokens ---


@every_kind
def test_special_tokens_in_a_text_are_parsed_only_on_request(kind: str) -> None:
    name = END[kind]
    end = tokenizer(kind).fast.token_to_id(name)
    text = f"the {name} cat"
    _, own = inserted(kind, tokenizer(kind).tokens(text))
    assert end not in [token.id for token in own]
    _, parsed = inserted(kind, tokenizer(kind).tokens(text, parse_special=True))
    (special,) = [token for token in parsed if token.id == end]
    assert special.special
    assert special.bytes == name.encode()
    assert text.encode()[special.start : special.end] == name.encode()
    assert_positions(text, parsed)
    # Parsing one text does not affect the next one.
    assert end not in [token.id for token in inserted(kind, tokenizer(kind).tokens(text))[1]]


def test_bos_in_the_text_differs_from_the_added_one() -> None:
    first, typed, *rest = tokenizer("byte-level").tokens(BOS + "the", parse_special=True)
    assert first.id == typed.id == BOS_ID
    assert (first.start, first.end) == (0, 0)
    assert (typed.start, typed.end) == (0, len(BOS))
    assert rest[0].start == len(BOS)


@every_kind
def test_decode_skips_special_tokens_by_default(kind: str) -> None:
    ids = tokenizer(kind).encode("the cat")
    assert tokenizer(kind).decode(ids) == "the cat"
    assert "<" in tokenizer(kind).decode(ids, skip_special=False)


# --- single tokens ---


def test_every_byte_level_token_has_its_bytes() -> None:
    tok = tokenizer("byte-level")
    single = [tok.token_bytes(id) for id in range(tok.size)]
    assert {data for data in single if len(data) == 1} == {bytes([byte]) for byte in range(256)}
    for id, data in enumerate(single):
        if id not in tok.special_ids:
            assert data.decode("utf-8", "replace") == tok.fast.decode([id]) == tok.token_text(id)
    assert (single[BOS_ID], single[EOS_ID]) == (BOS.encode(), EOS.encode())
    assert tok.special_ids == {BOS_ID, EOS_ID}


def test_every_sentencepiece_token_has_its_bytes() -> None:
    tok = tokenizer("sentencepiece")
    assert [tok.token_bytes(3 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    for id in range(259, tok.size):
        # After another token, so that the decoder does not strip the leading space.
        assert tok.fast.decode([tok.fast.token_to_id("a"), id]) == "a" + tok.token_text(id)
    assert tok.token_text(2) == "</s>"


@every_kind
@settings(max_examples=30)
@given(st.data())
def test_the_text_of_a_token_is_its_decoded_bytes(kind: str, data: st.DataObject) -> None:
    tok = tokenizer(kind)
    id = data.draw(st.integers(0, tok.size - 1))
    assert tok.token_text(id) == tok.token_bytes(id).decode("utf-8", "replace")
    assert tok.token_bytes(id)


ADDED = [
    AddedToken(content, **flags)
    for number, flags in enumerate(
        (
            {},
            {"special": True},
            {"normalized": False},
            {"special": True, "normalized": True},
            {"lstrip": True, "rstrip": True},
            {"single_word": True},
        )
    )
    for content in (
        *(f"<{number}>", f"na\u00efve {number}", f"\u2581\u2581{number or ''}", f"\u0120 {number}", f"\u0120.{number}"),
        f"<\uff5cbegin\u2581of{number}\uff5c>",
    )
]
DECODERS = {
    "word pieces": decoders.WordPiece(cleanup=True),
    "suffix": decoders.BPEDecoder(),
    "metaspace": decoders.Metaspace(prepend_scheme="first"),
    "each stripped": decoders.Sequence([decoders.Strip("x", 1, 0), decoders.Fuse(), decoders.Strip("\u2581", 1, 0)]),
    "pattern": decoders.Sequence([decoders.Replace(Regex("[st]+"), "\u2581"), decoders.Metaspace("\u2581", "never")]),
    "bytes first": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
}


def assert_bytes_are_decoded(fast: FastTokenizer) -> None:
    """Compare the bytes of every id with what ``decode`` gives between two letters."""
    tok, letter = Tokenizer(fast, "x"), fast.token_to_id("a")
    around = tok.token_bytes(letter)
    decoded = fast.decode_batch([[letter, letter, id, letter] for id in tok.ids], skip_special_tokens=False)
    start = fast.decode([letter, letter]).removesuffix(around.decode())
    for id, text in zip(tok.ids, decoded, strict=True):
        data = tok.token_bytes(id)
        assert (around + data + around).decode("utf-8", "replace") == text.removeprefix(start), fast.id_to_token(id)


@every_kind
def test_the_bytes_of_every_token_are_those_that_decode_gives(kind: str) -> None:
    fast = KINDS[kind]()
    for token in ADDED:
        fast.add_tokens([token])
    assert_bytes_are_decoded(fast)


@every_kind
def test_added_tokens_of_every_kind_pass_the_checks_of_the_views(kind: str) -> None:
    fast = KINDS[kind]()
    fast.add_tokens(ADDED)
    tok = Tokenizer(fast, kind)
    for content in {token.content for token in ADDED}:
        for text in (content, f"a{content}b", f"the {content} cat", f"  {content}{content}  x"):
            for parse_special in (False, True):
                assert tokenize(tok, text, parse_special=parse_special).check.ok, text
                assert kind == "unigram" or merges(tok, text, parse_special=parse_special).check.ok, text


@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_gives_the_bytes_of_tokens(kind: str) -> None:
    words = [
        "a",
        "b",
        "the",
        "##the",
        "cat</w>",
        "\u2581cat",
        "aacaa",
        " .",
        "do not",
        "<0x41>",
        "<0xE2>",
        "<0xe2>",
        "x's",
    ]
    fast = FastTokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="a"))
    fast.decoder = DECODERS[kind]
    fast.add_tokens(ADDED)
    assert_bytes_are_decoded(fast)


def test_without_a_decoder_tokens_are_written_as_they_are() -> None:
    fast = FastTokenizer(models.WordLevel({"a": 0, "\u2581b": 1, "<0x41>": 2}, unk_token="a"))
    tok = Tokenizer(fast, "x")
    assert [tok.token_bytes(id).decode() for id in tok.ids] == [fast.decode([id]) for id in tok.ids]
    assert tok.id_of("\u2581b") == 1


@pytest.mark.skipif(not REAL, reason="needs tokenizers of real models")
@pytest.mark.parametrize("folder", [*REAL, *MODELS], ids=lambda folder: folder.name)
def test_the_bytes_of_published_vocabularies(folder: Path) -> None:
    tok = load_tokenizer(folder)
    assert_bytes_are_decoded(tok.fast)
    for text in ("a  b   c", "  ", "\n\n\t\t x", " \u2581\u2581 y"):
        assert tokenize(tok, text).check.ok
        known = [token for token in tok.tokens(text) if not token.special and "\ufffd" not in token.text]
        assert all(tok.token_bytes(tok.id_of(token.text)) == token.bytes for token in known)


def test_added_runs_of_spaces_are_spaces() -> None:
    """As in Gemma's tokenizers."""
    fast = sentencepiece()
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.add_tokens([AddedToken("\u2581" * count, normalized=True) for count in (2, 3)])
    tok = Tokenizer(fast, "spaces")
    texts = [token.text for token in tok.tokens("a  b   c") if not token.special]
    assert texts == ["a", "  ", "b", "   ", "c"]
    assert tok.id_of("   ") == fast.token_to_id("\u2581" * 3)
    report = tokenize(tok, "a  b   c")
    assert report.exact
    assert report.check.ok


def test_a_text_is_the_token_that_the_tokenizer_writes_for_it() -> None:
    """Not the byte of the same value, which is only for characters without a token."""
    tok = tokenizer("sentencepiece")
    assert tok.id_of("t") == tok.fast.token_to_id("t") != tok.fast.token_to_id("<0x74>")
    assert tok.id_of("#") == tok.fast.token_to_id("<0x23>")


@every_kind
def test_unused_rows_are_labeled(kind: str) -> None:
    tok = tokenizer(kind)
    assert not tok.token_text(tok.size - 1).startswith("<unused")
    for id in (tok.size, tok.size + 7):
        assert tok.token_text(id) == f"<unused {id}>"
        assert tok.token_bytes(id) == b""


def test_an_id_that_no_token_can_have_is_an_error() -> None:
    tok = tokenizer("sentencepiece")
    for call in (tok.token_text, tok.token_bytes, lambda id: tok.decode([id])):
        for id in (-1, 1 << 32, -(1 << 70)):
            with pytest.raises(LlmcliError, match=f"token id {id} is not in the vocabulary.*from 0 to {tok.size - 1}"):
                call(id)


def test_size_counts_added_tokens() -> None:
    fast = byte_level()
    before = Tokenizer(fast, "before").size
    fast.add_tokens(["<tool>"])
    fast.add_special_tokens(["<|pad|>"])
    tok = Tokenizer(fast, "after")
    assert tok.size == before + 2
    assert tok.token_bytes(before) == b"<tool>"
    assert before not in tok.special_ids
    assert before + 1 in tok.special_ids
    assert tok.decode([before, before + 1]) == "<tool>"


def test_size_reaches_the_last_id_of_a_vocabulary_with_holes() -> None:
    tok = Tokenizer(FastTokenizer(models.BPE({"a": 0, "b": 1, "c": 5}, [])), "holes")
    assert tok.size == 6
    assert tok.token_text(3) == "<unused 3>"
    assert "c" in tok.decode(tok.encode("abc"))


# --- faults ---


@every_kind
@pytest.mark.parametrize(("text", "index"), [("\ud800", 0), ("ab\udce9c", 2)])
def test_a_lone_surrogate_is_an_error(kind: str, text: str, index: int) -> None:
    for call in (tokenizer(kind).encode, tokenizer(kind).tokens):
        with pytest.raises(LlmcliError, match=f"character {index}") as caught:
            call(text)
        assert caught.value.exit_code == EXIT_USAGE


@every_kind
def test_an_id_out_of_range_is_an_error(kind: str) -> None:
    tok = tokenizer(kind)
    tok.decode([0, tok.size - 1])
    for id in (-1, tok.size, 2**40):
        with pytest.raises(LlmcliError, match=str(id)) as caught:
            tok.decode([0, id])
        assert caught.value.exit_code == EXIT_USAGE
        assert str(tok.size - 1) in caught.value.hint


def test_a_saved_tokenizer_is_loaded(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tok = load_tokenizer(tmp_path)
    assert tok.name == tmp_path.name
    assert tok.encode("the cat 🦊") == tokenizer("byte-level").encode("the cat 🦊")


def test_what_a_file_sets_for_training_is_ignored(tmp_path: Path) -> None:
    fast = byte_level()
    fast.model.dropout = 0.9
    fast.enable_truncation(8)
    fast.enable_padding(length=64, pad_id=EOS_ID, pad_token=EOS)
    fast.save(str(tmp_path / "tokenizer.json"))
    text = "the cat sat on the mat, " * 4
    assert load_tokenizer(tmp_path).encode(text) == tokenizer("byte-level").encode(text)
    assert load_tokenizer(tmp_path).encode("the") == tokenizer("byte-level").encode("the")


@pytest.mark.parametrize(("files", "hint"), [([], "copy it"), (["tokenizer.model"], "save_pretrained")])
def test_a_missing_tokenizer_is_an_error(tmp_path: Path, files: list[str], hint: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x0a\x0e")
    with pytest.raises(LlmcliError, match=r"has no tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert hint in caught.value.hint
    assert caught.value.exit_code == EXIT_FAILURE


BROKEN = {
    "cut short": b'{"version": "1.0", "model": {"type": "BP',
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "another file": b'{"architectures": ["LlamaForCausalLM"]}',
    "merges of unknown tokens": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}',
    # tokenizers panics, which is not an Exception.
    "bad charsmap": b'{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, '
    b'"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_invalid_tokenizer_is_an_error(tmp_path: Path, fault: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(BROKEN[fault])
    with pytest.raises(LlmcliError, match=r"tokenizer\.json: not a tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.hint
    assert caught.value.exit_code == EXIT_FAILURE


# --- published tokenizers ---

DIFFICULT_TEXTS = [
    *FRAGMENTS,
    *("", " ", "Hello, world!", " leading", "trailing ", "a  b   c", "don't DON'T", "x" * 300, "e\u0301" * 5),
    *(
        "<|endoftext|>",
        "<|im_start|>user\nhi<|im_end|>",
        "<|eot_id|>",
        "[INST] <<SYS>>",
        "naïve café 🦊🦊 日本語テキスト",
    ),
    "".join(FRAGMENTS),
    "The quick brown fox. " * 20,
]


@pytest.mark.skipif(not REAL, reason="needs tokenizers of real models")
@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_published_tokenizers(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder).backend_tokenizer
    theirs.no_truncation()
    for parse_special in (False, True):
        theirs.encode_special_tokens = not parse_special
        for text in DIFFICULT_TEXTS:
            tokens = ours.tokens(text, parse_special=parse_special)
            expected = theirs.encode(text)
            assert [token.id for token in tokens] == expected.ids, text
            own = [token for token, added in zip(tokens, expected.special_tokens_mask, strict=True) if not added]
            assert_positions(text, own)
            if not parse_special:
                assert not any(token.special for token in own), text
    specials = {id: added.content for id, added in theirs.get_added_tokens_decoder().items() if added.special}
    assert ours.special_ids == set(specials)
    for id, name in list(specials.items())[:5]:
        if name != "<unk>":  # SentencePiece also encodes unknown text as <unk>
            assert id in ours.encode(f"a{name}b", parse_special=True)
            assert id not in ours.encode(f"a{name}b")[1:]
