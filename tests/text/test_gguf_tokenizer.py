"""Tokenizers from the metadata of GGUF files: the ids of independent references, and clear errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError
from llmcli.text.chat_template import find_template
from llmcli.text.gguf.patterns import WORDS
from llmcli.text.gguf.vocabulary import ENDS, Kind, gguf_end_ids, read_vocabulary
from llmcli.text.tokenizer import Tokenizer, gguf_tokenizer, load_tokenizer
from llmcli.train.recipe import BOS_ID, EOS_ID
from llmcli.train.vocabulary import BOS, EOS, train_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints" / "tokenizers"
SENTENCES = [
    "the cat sat on the mat, and the cat's mat sat there too",
    "once upon a time there was a naïve little café, a time ago",
    "日本語の日本語 and 🙂🙂 and 🙂, 12 34 12 34",
]
LINES = [
    *SENTENCES,
    "",
    " ",
    "   leading and trailing   ",
    "I'M it's WE'LL 1234567 ३४५ ½ x²",
    "def f(x):\n\treturn {'a': x[0]}  # ok\r\n\r\n\n",
    "Съешь ещё этих ПриВет, Ξεσκεπάζω τὴν, Árvíztűrő, e\u0301 n\u0303",
    "ऋषियों को सताने, เป็นมนุษย์, นำ้, 키스의, שָׁלוֹם, مُحَمَّد",
    "👩‍👩‍👧 🇯🇵 👍🏽 ❤️ \ufeff\u200b\u00a0\u2028\u3000",
    "\x00\x01\x1b[31m\x7f\x85 \ufffd \U0010ffff",
    "<|endoftext|> <s> </s> <unk> <0x41> ▁ ▁▁ Ġ Ċ",
    "aaaaaaaaaaaaa           bbbbbbb ======= ---",
    "https://example.com/a?b=c#d C:\\x\\y camelCaseWord HTTPServer snake_case",
]
TEXTS = st.one_of(
    st.lists(st.sampled_from([part for line in LINES for part in line.split(" ")]), max_size=8).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def tokenizer_from(metadata: Mapping[str, object]) -> Tokenizer:
    return gguf_tokenizer(read_vocabulary(metadata), "the file")


def metadata_of(raw: Mapping[str, Any], pre: str) -> dict[str, object]:
    """What a converter writes for the byte-level tokenizer.json ``raw``."""
    added = {token["id"]: token for token in raw["added_tokens"]}
    tokens = {id: token for token, id in raw["model"]["vocab"].items()}
    tokens |= {id: token["content"] for id, token in added.items()}
    kinds = {id: Kind.CONTROL if token["special"] else Kind.USER_DEFINED for id, token in added.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [tokens[id] for id in range(len(tokens))],
        "tokenizer.ggml.token_type": [int(kinds.get(id, Kind.NORMAL)) for id in range(len(tokens))],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]],
    }


@cache
def trained() -> FastTokenizer:
    return train_tokenizer(SENTENCES, 330)


def byte_level(**changes: object) -> dict[str, object]:
    """The metadata of the trained tokenizer, with changes."""
    ends = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "add_bos_token": True}
    return metadata_of(json.loads(trained().to_str()), "gpt-2") | {
        f"tokenizer.ggml.{name}": value for name, value in {**ends, **changes}.items()
    }


# <unk>, <s>, </s>, the 256 bytes, then pieces with scores; "</s>" could be joined from pieces.
PIECES = {
    **{"▁": -50.0, "a": -51.0, "b": -52.0, "c": -53.0, "<": -54.0, "/": -55.0, "s": -56.0, ">": -57.0, "é": -58.0},
    **{"aa": -3.0, "ab": -1.0, "▁a": -2.0, "aab": -6.0, "aaaa": -4.0, "bb": -5.0, "▁▁": -7.5, "ba": -7.5, "cab": 1.0},
    **{"</": -9.0, "</s": -10.0, "▁b": -11.0, "aaa": -12.0, "▁▁▁▁": -7.5, "▁▁▁": -7.5},
}


def sentencepiece(model: str = "llama", **changes: object) -> dict[str, object]:
    """The metadata of a SentencePiece tokenizer, with changes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<user>"]
    kinds = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * 256, *[Kind.NORMAL] * len(PIECES)]
    values: dict[str, object] = {
        "model": model,
        "tokens": pieces,
        "scores": [0.0] * 259 + [*PIECES.values(), 0.0],
        "token_type": [int(kind) for kind in (*kinds, Kind.USER_DEFINED)],
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


@cache
def loaded(kind: str) -> Tokenizer:
    return tokenizer_from(byte_level() if kind == "byte-level" else sentencepiece())


def names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.fast.id_to_token(id) or "" for id in ids]


def fails(metadata: Mapping[str, object]) -> LlmcliError:
    with pytest.raises(LlmcliError) as caught:
        tokenizer_from(metadata)
    return caught.value


# --- ids ---


@given(TEXTS, st.booleans())
def test_byte_level_ids_are_those_of_the_tokenizer_it_was_made_from(text: str, parse_special: bool) -> None:
    tokenizer, reference = loaded("byte-level"), Tokenizer(trained(), "reference", EOS)
    assert tokenizer.tokens(text, parse_special=parse_special) == reference.tokens(text, parse_special=parse_special)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text("ab c▁", max_size=24))
@example("c" * 3 + "aab" * 4 + "a" * 9 + " " * 9)
def test_sentencepiece_joins_the_pair_with_the_highest_score_first(text: str) -> None:
    parts = list("▁" + text.replace(" ", "▁") if text else "")
    while found := [(-PIECES[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in PIECES]:
        _, n = min(found)  # the leftmost of equal ones
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    tokenizer = loaded("sentencepiece")
    assert names(tokenizer, tokenizer.encode(text, add_special=False)) == parts
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@given(st.text("ab c▁", max_size=24))
def test_the_merges_of_gemma_4_are_in_the_file(text: str) -> None:
    """They are SentencePiece's, without a space before the text."""
    state = json.loads(loaded("sentencepiece").fast.to_str())
    merges = [" ".join(merge) for merge in state["model"]["merges"]]
    tokenizer = tokenizer_from(sentencepiece("gemma4", scores=None, merges=merges, bos_token_id=1, unknown_token_id=0))
    plain = tokenizer_from(sentencepiece(add_space_prefix=False))
    assert tokenizer.encode(text) == [1, *plain.encode(text, add_special=False)]
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@given(st.text("ab c", max_size=9))
def test_unigram_finds_the_division_with_the_highest_score(text: str) -> None:
    tokenizer = tokenizer_from(sentencepiece("t5", eos_token_id=2, unknown_token_id=0, add_space_prefix=True))
    written = ("▁" if text.strip(" ") else "") + text.replace(" ", "▁")
    best = {0: 0.0}
    for end in range(1, len(written) + 1):
        best[end] = max(best[n] + PIECES[written[n:end]] for n in range(end) if written[n:end] in PIECES)
    parts = names(tokenizer, tokenizer.encode(text))
    assert parts.pop() == "</s>"
    assert "".join(parts) == written
    assert sum(PIECES[part] for part in parts) == pytest.approx(best[len(written)])


def test_unigram_removes_extra_spaces_if_the_file_says_so() -> None:
    tokenizer = tokenizer_from(sentencepiece("t5", remove_extra_whitespaces=True, add_eos_token=False))
    assert names(tokenizer, tokenizer.encode("  a   b  ")) == ["▁a", "▁b"]
    prefixed = tokenizer_from(sentencepiece("t5", add_eos_token=False, add_space_prefix=True))
    assert names(prefixed, prefixed.encode("   ")) == ["▁▁▁"]
    assert names(prefixed, prefixed.encode("a  ")) == ["▁a", "▁▁"]
    plain = tokenizer_from(sentencepiece("t5", add_eos_token=False, add_space_prefix=False))
    assert names(plain, plain.encode("a b")) == ["a", "▁b"]


def test_unknown_characters_are_bytes() -> None:
    tokenizer = loaded("sentencepiece")
    assert names(tokenizer, tokenizer.encode("é日", add_special=False)) == ["▁", "é", "<0xE6>", "<0x97>", "<0xA5>"]
    assert tokenizer.decode(tokenizer.encode("é日")) == "é日"


def test_special_tokens_are_text_unless_they_are_parsed() -> None:
    tokenizer = loaded("sentencepiece")
    assert names(tokenizer, tokenizer.encode("a</s>b"))[1:] == ["▁a", "</s", ">", "b"]
    # A space comes before each part of the text, as llama.cpp puts it there.
    assert names(tokenizer, tokenizer.encode("a</s>b", parse_special=True)) == ["<s>", "▁a", "</s>", "▁b"]
    # A token that a user defined is found in any text.
    assert names(tokenizer, tokenizer.encode("a<user>b")) == ["<s>", "▁a", "<user>", "▁b"]
    assert tokenizer.special_names == {0: "<unk>", 1: "<s>", 2: "</s>"}
    assert tokenizer.unknown_id == 0
    without = tokenizer_from(sentencepiece(add_space_prefix=False))
    assert names(without, without.encode("a b")) == ["<s>", "a", "▁b"]
    assert without.decode(without.encode(" a")) == " a"


def test_ends_are_those_of_the_file() -> None:
    text = "the cat"
    plain = trained().encode(text, add_special_tokens=False).ids
    assert tokenizer_from(byte_level()).encode(text) == [BOS_ID, *plain]
    assert tokenizer_from(byte_level(add_bos_token=False)).encode(text) == plain
    both = tokenizer_from(byte_level(add_eos_token=True))
    assert both.encode(text) == [BOS_ID, *plain, EOS_ID]
    assert both.encode(text, add_special=False) == plain
    assert both.eos_id == EOS_ID
    usual = byte_level(pre="llama-bpe")
    del usual["tokenizer.ggml.add_bos_token"]
    assert tokenizer_from(usual).encode("") == [BOS_ID]
    assert tokenizer_from(usual | {"tokenizer.ggml.pre": "gpt-2"}).encode("") == []


def test_a_word_that_is_a_token_needs_no_merges_if_its_tokenizer_is_of_that_kind() -> None:
    metadata = byte_level(add_bos_token=False)
    tokens = [*metadata["tokenizer.ggml.tokens"], "Ġxyz"]  # type: ignore[misc]
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}
    whole = tokenizer_from(metadata | {"tokenizer.ggml.pre": "llama-bpe"})
    assert names(whole, whole.encode(" xyz")) == ["Ġxyz"]
    assert len(tokenizer_from(metadata).encode(" xyz")) > 1


# --- how a text is divided into words ---


def divided(pre: str, text: str) -> list[str]:
    fast = tokenizer_from(byte_level(pre=pre)).fast
    assert fast.pre_tokenizer is not None
    return [text[start:end] for _, (start, end) in fast.pre_tokenizer.pre_tokenize_str(text)]


DIVIDED = {  # the words, with | between them
    "gpt-2": "I|'|LL| go|.\"|\n|\n|x|2|=|12345| iPhone| नमस|्|त|े",
    "smollm": "I|'|LL| go|.\"|\n|\n|x|2|=|1|2|3|4|5| iPhone| नमस|्|त|े",
    "default": "I|'|LL| go|.\"|\n|\n|x|2|=|123|45| iPhone| नमस|्|त|े",
    "falcon": "I|'|LL| go|.\"|\n|\n|x|2|=|123|45| iPhone| नमस|्|त|े",
    "llama-bpe": "I|'LL| go|.\"\n\n|x|2|=|123|45| iPhone| नमस|्त|े",
    "qwen2": "I|'LL| go|.\"\n\n|x|2|=|1|2|3|4|5| iPhone| नमस|्त|े",
    "qwen35": "I|'LL| go|.\"\n\n|x|2|=|1|2|3|4|5| iPhone| नमस्ते",
    "tekken": "I|'LL| go|.\"\n\n|x|2|=|1|2|3|4|5| i|Phone| नमस्ते",
    "gpt-4o": "I'LL| go|.\"\n\n|x|2|=|123|45| i|Phone| नमस्ते",
    "deepseek-llm": "I|'|LL| go|.\"|\n|\n|x|2|=|12345| iPhone| |नमस्ते",
    "deepseek-coder": "I|'|LL| go|.\"|\n|\n|x|2|=|1|2|3|4|5| iPhone| |नमस|्|त|े",
    "deepseek-v3": "I|'LL| go|.\"\n\n|x|2|=|123|45| iPhone| नमस्ते",
    "viking": "I'LL| go|.|\"|\n\n|x|2|=|1|2|3|4|5| iPhone| नमस्ते",
    "tiny_aya": "I'LL| go|.\"\n\n|x|2|=|12|345| i|Phone| नमस्ते",
    "superbpe": "I'LL go.\"\n\nx|2|=|12|345| iPhone नमस्ते",
    "bailingmoe": "I|'LL| go|.\"\n\n|x|2|=|1|2|3|4|5| iPhone| नमस|्त|े",
    "seed-coder": "I|'LL| go|.\"|\n\n|x|2|=|1|2|3|4|5| iPhone| नमस|्त|े",
    "exaone-moe": "I|'LL| go|.\"\n|\n|x|2|=|1|2|3|4|5| iPhone नमस्ते",
    "laguna": "I|'LL| go|.\"|\n\n|x|2|=|1|2|3|4|5| iPhone| नमस|्त|े",
}


@pytest.mark.parametrize("pre", DIVIDED)
def test_words_are_those_of_the_named_pre_tokenizer(pre: str) -> None:
    assert divided(pre, "I'LL go.\"\n\nx2=12345 iPhone नमस्ते") == DIVIDED[pre].split("|")


def test_characters_are_composed_where_the_original_tokenizer_composes_them() -> None:
    composes = {"qwen2": True, "command-r": True, "olmo": True, "llama-bpe": False, "gpt-2": False, "smollm": False}
    for pre, expected in composes.items():
        tokenizer = tokenizer_from(byte_level(pre=pre))
        composed, apart = tokenizer.encode("caf\u00e9"), tokenizer.encode("cafe\u0301")
        assert (composed == apart) is expected, pre


def test_every_pre_tokenizer_divides_texts_completely() -> None:
    for words in set(WORDS.values()):
        fast = FastTokenizer.from_str(trained().to_str())
        words.apply(fast)
        for line in LINES:
            ids = fast.encode(line, add_special_tokens=False).ids
            assert words.nfc or fast.decode(ids) == line, words.patterns


# --- real tokenizers ---


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs tokenizer.json files of published models")
@pytest.mark.parametrize(
    ("name", "pre"), [("gpt2", "gpt-2"), ("qwen2.5-0.5b-instruct", "qwen2"), ("llama-3.2", "llama-bpe")]
)
def test_real_tokenizers_keep_their_ids(name: str, pre: str) -> None:
    path = SHARED / name / "tokenizer.json"
    reference = FastTokenizer.from_file(str(path))
    reference.no_truncation()
    tokenizer = tokenizer_from(metadata_of(json.loads(path.read_bytes()), pre))
    for line in LINES:
        for parse_special in (False, True):
            reference.encode_special_tokens = not parse_special
            expected = reference.encode(line, add_special_tokens=False).ids
            assert tokenizer.encode(line, parse_special=parse_special, add_special=False) == expected


@pytest.mark.skipif("LLMCLI_REAL_MODELS" not in os.environ, reason="needs LLMCLI_REAL_MODELS")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_ids_of_real_files_are_those_of_llama_cpp(name: str) -> None:
    llama_cpp, gguf = pytest.importorskip("llama_cpp"), pytest.importorskip("gguf")
    path = Path(os.environ["LLMCLI_REAL_MODELS"]) / f"{name}.gguf"
    tokenizer = tokenizer_from({key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()})
    reference = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for line in filter(None, LINES):
        expected = reference.tokenize(line.encode(), add_bos=False, special=True)
        assert tokenizer.encode(line, parse_special=True, add_special=False) == expected


# --- what else the metadata has ---


def test_end_tokens_have_a_role_or_a_name() -> None:
    metadata = byte_level()
    assert gguf_end_ids(read_vocabulary(metadata)) == (EOS_ID,)
    assert gguf_end_ids(read_vocabulary(byte_level(padding_token_id=10**6))) == (EOS_ID,)  # llama.cpp ignores it, too
    tokens = [BOS, EOS, "a", "<|im_end|>", "<|end|>", "b", "<|return|>", "<|call|>"]
    small = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens[:6], "tokenizer.ggml.eot_token_id": 5}
    assert gguf_end_ids(read_vocabulary(small)) == (1, 3, 4, 5)
    assert gguf_end_ids(read_vocabulary(small | {"tokenizer.ggml.tokens": tokens})) == (
        1,
        3,
        5,
        6,
        7,
    )  # "<|end|>" ends a part of a reply
    # A token with such a name is special, whatever its type.
    assert EOS in ENDS
    assert tokenizer_from(small | {"tokenizer.ggml.merges": []}).special_names.keys() == {1, 3, 4}


def test_the_template_may_use_the_special_tokens() -> None:
    assert read_vocabulary(byte_level()).template is None
    vocabulary = read_vocabulary(byte_level() | {"tokenizer.chat_template": "{{ bos_token }}"})
    assert vocabulary.template == "{{ bos_token }}"
    assert vocabulary.template_tokens == {"bos_token": BOS, "eos_token": EOS}


def test_control_tokens_of_phi_3_take_the_spaces_after_them() -> None:
    metadata = sentencepiece(add_bos_token=False) | {"general.name": "Phi-3 mini"}
    tokenizer = tokenizer_from(metadata)
    assert names(tokenizer, tokenizer.encode("</s> \n a<s> a", parse_special=True)) == ["</s>", "▁a", "<s>", "▁", "▁a"]


def test_a_token_is_the_same_in_another_notation() -> None:
    """Converters write Gemma's runs of spaces as spaces."""
    pieces = sentencepiece()["tokenizer.ggml.tokens"]
    assert isinstance(pieces, list)
    two, five, written = (
        tokenizer_from(sentencepiece(tokens=[*pieces[:-1], spaces])) for spaces in ("  ", " " * 5, "▁" * 5)
    )
    assert five.has_tokens_of(written)
    assert not two.has_tokens_of(written)


# --- errors ---

T = "tokenizer.ggml."


def test_an_error_about_the_metadata_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    for read in (load_tokenizer, find_template):
        with pytest.raises(LlmcliError, match=f"^{re.escape(str(path))}: "):
            read(path)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({}, "the file has no tokenizer"),
        (byte_level(model="bert"), "unsupported type 'bert'"),
        (byte_level(model=3), "tokenizer.ggml.model is not text"),
        (byte_level(pre="new-bpe"), "the file's pre-tokenizer 'new-bpe' is unknown"),
        (byte_level(pre=["gpt-2"]), "tokenizer.ggml.pre is not text"),
        ({f"{T}model": "gpt2"}, "the file has no tokenizer.ggml.tokens"),
        (byte_level(tokens="abc"), "tokenizer.ggml.tokens is not a list"),
        (byte_level(tokens=[]), "tokenizer.ggml.tokens has 0 entries"),
        (byte_level(tokens=["a", 1]), "tokenizer.ggml.tokens has an entry that is not text"),
        (byte_level(tokens=["a", "b", "a"]), "tokenizer.ggml.tokens has 'a' twice, with the ids 0 and 2"),
        (byte_level(tokens=["a", "\ud800"]), "tokenizer.ggml.tokens has an entry that is not valid Unicode"),
        (byte_level(tokens=["a" * 10**6]), "tokenizer.ggml.tokens has an entry of 1000000 characters"),
        (byte_level(token_type=[1, 1]), "tokenizer.ggml.token_type has 2 entries, but there are "),
        (byte_level(merges=["zz zz"]), "merges has 'zz zz', which does not join two tokens to a third"),
        (byte_level(merges=["ab"]), "merges has 'ab', which does not join"),
        (byte_level(merges=[""]), "merges has '', which does not join"),
        (byte_level(merges=[b"a b"]), "tokenizer.ggml.merges has an entry that is not text"),
        (byte_level(merges=None), "the file has no tokenizer.ggml.merges"),
        (byte_level(bos_token_id=10**9), "tokenizer.ggml.bos_token_id is 1000000000, but there are "),
        (byte_level(eos_token_id=-1), "tokenizer.ggml.eos_token_id is -1"),
        (byte_level(eot_token_id=True), "tokenizer.ggml.eot_token_id is True"),
        (byte_level(add_bos_token=1), "tokenizer.ggml.add_bos_token is neither true nor false"),
        (sentencepiece(scores=[0.0]), "tokenizer.ggml.scores has 1 entries, but there are "),
        (sentencepiece(scores=None), "the file has no tokenizer.ggml.scores"),
        (sentencepiece("t5", precompiled_charsmap=[300]), "precompiled_charsmap has an entry that is not a byte"),
        (sentencepiece("t5", precompiled_charsmap=[1, 2]), "the metadata does not describe a tokenizer"),
        (
            {f"{T}model": "gpt2", f"{T}tokens": ["a"], f"{T}merges": [], f"{T}add_eos_token": True},
            "add_eos_token is true, but tokenizer.ggml.eos_token_id is missing",
        ),
    ],
)
def test_metadata_that_cannot_be_right_is_one_line(metadata: dict[str, object], problem: str) -> None:
    error = fails(metadata)
    assert problem in error.message
    assert "\n" not in error.message
    assert error.hint


def test_scores_must_be_finite() -> None:
    scores: list[Any] = [0.0] * len(sentencepiece()[f"{T}tokens"])  # type: ignore[arg-type]
    for wrong in (float("nan"), float("inf"), "1", None, True):
        assert "not a finite number" in fails(sentencepiece(scores=[*scores[1:], wrong])).message
