"""Tokenizers written as GGUF metadata: the same ids, in llmcli and in llama.cpp, or an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError
from llmcli.files.gguf_writer import write_header
from llmcli.text.gguf.export import TEXTS, describe_tokenizer
from llmcli.text.gguf.patterns import WORDS
from llmcli.text.gguf.vocabulary import Kind, gguf_end_ids, read_vocabulary
from llmcli.text.tokenizer import Tokenizer, gguf_tokenizer, load_tokenizer
from tests.text.test_gguf_tokenizer import LINES, SHARED, sentencepiece, trained

ROLES = {"bos": 0, "eos": 1}
P = "tokenizer.ggml."


def byte_level(change: Callable[[FastTokenizer], object] = lambda fast: None) -> Tokenizer:
    """The trained tokenizer, changed."""
    fast = FastTokenizer.from_str(trained().to_str())
    change(fast)
    return Tokenizer(fast, "tiny")


def from_metadata(metadata: Mapping[str, object]) -> Tokenizer:
    return gguf_tokenizer(read_vocabulary(metadata), "tiny")


def in_llama_cpp(metadata: Mapping[str, Any], path: Path) -> Any:
    """llama.cpp's tokenizer for these metadata."""
    llama_cpp = pytest.importorskip("llama_cpp")
    with path.open("wb") as file:
        write_header(file, {"general.architecture": "llama", **metadata}, [])
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def set_words(fast: FastTokenizer, name: str) -> None:
    WORDS[name].apply(fast)
    fast.model.ignore_merges = WORDS[name].whole


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3"]
)
def test_the_way_to_divide_a_text_is_recognized(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(lambda fast: set_words(fast, pre))
    metadata = describe_tokenizer(tokenizer, tokenizer.size, ROLES, [1]).metadata
    assert WORDS[str(metadata[f"{P}pre"])] == WORDS[pre]
    written, theirs = from_metadata(metadata), in_llama_cpp(metadata, tmp_path / "a.gguf")
    for line in filter(None, LINES):
        expected = tokenizer.encode(line)
        assert written.encode(line) == expected
        if pre in ("gpt-2", "smollm", "llama-bpe", "smaug-bpe"):  # llama.cpp approximates the others
            assert theirs.tokenize(line.encode(), add_bos=True, special=False) == expected


def test_no_two_ways_to_divide_a_text_look_the_same() -> None:
    """The texts that are compared show every difference, but for equivalent patterns and for what merges do."""
    seen: dict[Any, str] = {}
    for words, name in {words: name for name, words in WORDS.items()}.items():
        fast = FastTokenizer(models.BPE())
        words.apply(fast)
        assert fast.pre_tokenizer is not None
        normalized = [text if fast.normalizer is None else fast.normalizer.normalize_str(text) for text in TEXTS]
        divided = str([fast.pre_tokenizer.pre_tokenize_str(text) for text in normalized])
        other = WORDS[seen.setdefault(divided, name)]
        same_but_merges = (other.patterns, other.nfc) == (words.patterns, words.nfc)
        assert same_but_merges or "llada-moe" in (name, seen[divided]), (name, seen[divided])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs tokenizer.json files of published models")
@pytest.mark.parametrize("name", ["qwen2.5-0.5b-instruct", "tinyllama-1.1b-chat"])
def test_real_tokenizers_keep_their_ids(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHARED / name)
    described = describe_tokenizer(tokenizer, tokenizer.size, {}, [])
    theirs = in_llama_cpp(described.metadata, tmp_path / "a.gguf")
    assert bool(described.changes) == (name == "tinyllama-1.1b-chat")
    for line in filter(None, LINES):
        if line != normalize("NFC", line) and name.startswith("qwen"):  # llama.cpp does not compose characters
            continue
        line = line.lstrip(" ") if described.changes else line
        expected = tokenizer.encode(line, add_special=False)
        assert theirs.tokenize(line.encode(), add_bos=False, special=False) == expected, line


# --- kinds of tokens and of tokenizers ---


def test_tokens_have_their_kinds_and_rows_without_a_token_a_name() -> None:
    tokenizer = byte_level(lambda fast: fast.add_tokens([AddedToken("<|x|>", special=True), AddedToken("[PAD333]")]))
    x, pad = tokenizer.fast.token_to_id("<|x|>"), tokenizer.fast.token_to_id("[PAD333]")
    metadata = describe_tokenizer(tokenizer, 335, ROLES, [1]).metadata
    tokens, kinds = metadata[f"{P}tokens"], metadata[f"{P}token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == 335
    assert (kinds[0], kinds[10], kinds[x], kinds[pad]) == (Kind.CONTROL, Kind.NORMAL, Kind.CONTROL, Kind.USER_DEFINED)
    assert tokens[333:] == ["[UNUSED333]", "[PAD334]"]
    assert set(kinds[tokenizer.size :]) == {Kind.UNUSED}
    # Added tokens that the model has no rows for are left out.
    fewer = describe_tokenizer(tokenizer, x, ROLES, [1]).metadata
    assert len(fewer[f"{P}tokens"]) == x


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
def test_rows_without_a_token_stay_without_one(model: str) -> None:
    roles = {} if model == "llama" else {"unknown_token_id": 0, "eos_token_id": 2}
    tokenizer = byte_level(lambda fast: fast.add_special_tokens(["<|x|>", "<|y|>"]))
    if model != "gpt2":
        tokenizer = from_metadata(sentencepiece(model, **roles))
    metadata: dict[str, Any] = {**describe_tokenizer(tokenizer, tokenizer.size + 2, {}, [1]).metadata}
    assert metadata[f"{P}tokens"][-1] == f"[PAD{tokenizer.size + 1}]"
    again = from_metadata(metadata)
    assert again.size == tokenizer.size
    assert again.has_tokens_of(tokenizer)
    if model != "t5":  # a unigram model has no gaps
        gap = tokenizer.size - 2
        for name, value in (("tokens", f"[PAD{gap}]"), ("token_type", int(Kind.UNUSED))):
            old = metadata[P + name]
            metadata[P + name] = [*old[:gap], value, *old[gap + 1 :]]
        assert from_metadata(metadata).ids == [id for id in tokenizer.ids if id != gap]


def test_end_tokens_are_those_of_the_model() -> None:
    tokenizer = byte_level(lambda fast: fast.add_special_tokens([f"<|{name}|>" for name in "abc"]))
    first = tokenizer.size - 3
    described = describe_tokenizer(tokenizer, tokenizer.size, ROLES, [first, 1, first + 1])
    assert gguf_end_ids(read_vocabulary(described.metadata)) == (1, first, first + 1)
    assert described.changes == ()
    described = describe_tokenizer(tokenizer, tokenizer.size, ROLES, [1, first, first + 1, first + 2])
    assert described.changes == ("these tokens end a text here, but not in llama.cpp: <|c|>",)
    without = describe_tokenizer(tokenizer, tokenizer.size, {}, [first]).metadata
    assert without[f"{P}eos_token_id"] == first
    assert without[f"{P}bos_token_id"] == 0  # the tokenizer puts it before a text


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_sentencepiece_tokenizers_come_back(model: str, prefix: bool, tmp_path: Path) -> None:
    extra = {} if model == "llama" else {"unknown_token_id": 0, "eos_token_id": 2, "remove_extra_whitespaces": prefix}
    tokenizer = from_metadata(sentencepiece(model, add_space_prefix=prefix, **extra))
    metadata = describe_tokenizer(tokenizer, tokenizer.size, {}, [2]).metadata
    assert metadata[f"{P}model"] == model
    assert (metadata[f"{P}add_bos_token"], metadata[f"{P}add_eos_token"]) == (
        (True, False) if model == "llama" else (False, True)
    )
    written, original = from_metadata(metadata), sentencepiece(model)
    assert metadata[f"{P}tokens"] == original[f"{P}tokens"]
    if model == "llama":
        assert metadata[f"{P}token_type"] == original[f"{P}token_type"]
        theirs = in_llama_cpp(metadata, tmp_path / "a.gguf")
    for line in (*LINES, "aaa b cab  aab", "  a"):
        expected = tokenizer.encode(line)
        assert written.encode(line) == expected
        if model == "llama" and line and "</s" not in line:  # llama.cpp joins pieces to this control token
            assert theirs.tokenize(line.encode(), add_bos=True, special=False) == expected


# --- tokenizers that a file cannot describe ---


def two_before(fast: FastTokenizer) -> None:
    names = [token for token, _ in sorted(fast.get_vocab().items(), key=lambda item: item[1])[:2]]
    fast.post_processor = processors.TemplateProcessing(
        f"{names[0]} {names[1]} $A", None, [(names[0], 0), (names[1], 1)]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda fast: setattr(fast, "normalizer", normalizers.Lowercase()), "its way to divide a text into words"),
        (
            lambda fast: setattr(
                fast,
                "pre_tokenizer",
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
                ),
            ),
            "its way to divide a text into words",
        ),
        (
            lambda fast: setattr(fast, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "its way to divide a text into words",
        ),
        (two_before, "it puts more than one token before or after a text"),
        (lambda fast: setattr(fast, "model", models.WordLevel({"a": 0}, "a")), "it is WordLevel"),
        (lambda fast: setattr(fast, "pre_tokenizer", pre_tokenizers.Whitespace()), "it is BPE, not byte-level BPE"),
        (lambda fast: fast.add_tokens([AddedToken("the cat", single_word=True)]), "would get other tokens"),
    ],
    ids=["lowercase", "pattern", "prefix", "two-before", "words", "plain-bpe", "single-word"],
)
def test_other_tokenizers_are_an_error(change: Callable[[FastTokenizer], None], problem: str) -> None:
    tokenizer = byte_level(change)
    with pytest.raises(LlmcliError) as raised:
        describe_tokenizer(tokenizer, tokenizer.size, ROLES, [1])
    assert problem in raised.value.message
    assert raised.value.message.startswith("tiny: a GGUF file cannot describe the tokenizer: ")


def test_ids_beyond_the_embedding_are_an_error() -> None:
    tokenizer = byte_level()
    last = tokenizer.size - 1
    with pytest.raises(LlmcliError, match=f"the tokenizer has the id {last}, but the model only 200 rows"):
        describe_tokenizer(tokenizer, 200, ROLES, [1])


def test_merges_that_scores_cannot_order_are_an_error() -> None:
    """Scores join any two tokens to a third, so a file cannot leave out one way to make a token."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + n for n, token in enumerate(("<unk>", *"▁abcx", "ab", "bc", "abc", "xa"))}
    merges = [("b", "c"), ("x", "a"), ("a", "bc"), ("a", "b"), ("ab", "c")]
    for order, fits in ((merges, True), ([merges[n] for n in (3, 4, 0, 1, 2)], True), (merges[:2] + merges[3:], False)):
        fast = FastTokenizer(models.BPE(vocabulary, order, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        fast.normalizer = normalizers.Replace(" ", "▁")
        tokenizer = Tokenizer(fast, "tiny")
        if fits:
            describe_tokenizer(tokenizer, tokenizer.size, {}, [])
            continue
        with pytest.raises(LlmcliError, match="would get other tokens"):
            describe_tokenizer(tokenizer, tokenizer.size, {}, [])
