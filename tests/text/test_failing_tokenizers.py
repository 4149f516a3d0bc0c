"""Tokenizers that load but fail, panic or have absurd ids: every use is one clear error, and none takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import LlmcliError
from llmcli.explain.tokens.bpe_merges import merges
from llmcli.explain.tokens.tokenization import tokenize
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import ChatTemplate, Message
from llmcli.text.gguf.vocabulary import MAX_IDS
from llmcli.text.tokenizer import Tokenizer, load_tokenizer

BPE = {"type": "BPE", "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
WORD_PIECE = {"type": "WordPiece", "vocab": {}, "unk_token": "[UNK]", "max_input_chars_per_word": 100}
WORD_PIECE["continuing_subword_prefix"] = "##"
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
# What is changed in a small BPE tokenizer so that encoding "aaa…!" fails.
FAILING: dict[str, dict[str, Any]] = {
    "no unknown token": {"model": BPE | {"unk_token": "<unk>"}},
    "an empty WordPiece": {"model": WORD_PIECE},
    "an empty WordLevel": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}},
    "an empty Unigram": {"model": {"type": "Unigram", "vocab": [], "unk_id": None}},
    "a regex without end": {"pre_tokenizer": SPLIT},
    "a damaged table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
}
TEXT = "a" * 40 + "!"


def write(folder: Path, changes: dict[str, Any]) -> Path:
    raw = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "model": BPE}
    raw |= {"post_processor": None, "decoder": None, **changes}
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


@pytest.mark.parametrize("fault", FAILING)
def test_a_text_that_the_tokenizer_fails_on_is_an_error(fault: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcliError) as caught:
        load_tokenizer(write(tmp_path, FAILING[fault]), "odd").encode(TEXT)
    assert caught.value.message.startswith("the tokenizer of odd cannot encode this text: ")
    assert "\n" not in str(caught.value)


def test_tokens_that_the_tokenizer_cannot_decode_are_an_error(tmp_path: Path) -> None:
    decoder = {"type": "Strip", "content": "a", "start": 1_000_000, "stop": 1_000_000}
    tokenizer = load_tokenizer(write(tmp_path, {"decoder": decoder}), "odd")
    with pytest.raises(LlmcliError, match="cannot decode"):
        tokenizer.decode([0])


def test_a_panic_prints_one_line(tmp_path: Path) -> None:
    """The library's own message, with a backtrace, is discarded; later errors are not."""
    code = "from llmcli.cli import cli; cli(['tokenize', '-m', sys.argv[1], sys.argv[2]])"
    folder = write(tmp_path, FAILING["a regex without end"])
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}", folder, TEXT], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"llmcli: the tokenizer of {tmp_path.name} cannot encode this text: ")
    assert done.stderr.count("\n") == 1


CUBIC = {"Regex": "a*a*a*b|a"}  # most of a second for 200 characters, minutes for a thousand
SLOW: dict[str, dict[str, Any]] = {
    "pre_tokenizer": {"type": "Split", "pattern": CUBIC, "behavior": "Isolated", "invert": False},
    "normalizer": {"type": "Replace", "pattern": CUBIC, "content": ""},
    "decoder": {"type": "Replace", "pattern": CUBIC, "content": ""},
}
LONG = "a" * 200
SLOW_USES: dict[str, tuple[str, Callable[[Tokenizer], Any], str]] = {
    "encode": ("pre_tokenizer", lambda tokenizer: tokenizer.encode(LONG), "encode this text"),
    "encode many": ("pre_tokenizer", lambda tokenizer: tokenizer.encode_all([LONG, "b"]), "encode these texts"),
    "normalize": ("normalizer", lambda tokenizer: tokenizer.normalize(LONG), "encode this text"),
    "decode": ("decoder", lambda tokenizer: tokenizer.decode([3]), "decode these tokens"),
    "a token": ("decoder", lambda tokenizer: tokenizer.token_bytes(3), "decode these tokens"),
}


@pytest.mark.parametrize("use", SLOW_USES)
def test_a_regex_that_takes_too_long_is_an_error(use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the next text, while the first call still runs."""
    monkeypatch.setattr("llmcli.text.limited_calls.SECONDS", 0.01)
    part, call, doing = SLOW_USES[use]
    vocabulary = {"vocab": BPE["vocab"] | {LONG: 3}}
    tokenizer = load_tokenizer(write(tmp_path, {part: SLOW[part], "model": BPE | vocabulary}), "odd")
    with pytest.raises(LlmcliError, match=f"the tokenizer of odd cannot {doing} within"):
        call(tokenizer)
    with pytest.raises(LlmcliError, match="the tokenizer of odd cannot encode this text within"):
        tokenizer.encode("a")


USES: dict[str, Callable[[Tokenizer], Any]] = {
    "size": lambda tokenizer: tokenizer.size,
    "a token by its text": lambda tokenizer: tokenizer.id_of("zz"),
    "merges": lambda tokenizer: merges(tokenizer, "ab"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("id", [MAX_IDS, 2**32 - 1])
def test_an_id_that_no_model_has_is_an_error(use: str, id: int, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, {"model": BPE | {"vocab": BPE["vocab"] | {"c": id}}}), "odd")
    with pytest.raises(LlmcliError, match=f"odd: the tokenizer has a token with the id {id}"):
        USES[use](tokenizer)


def test_a_large_id_that_a_model_may_have_is_fine(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, {"model": BPE | {"vocab": BPE["vocab"] | {"c": 300_000}}}), "odd")
    assert tokenizer.size == 300_001
    assert tokenizer.id_of("c") == 300_000


def test_an_empty_vocabulary_encodes_to_nothing(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, {"model": BPE | {"vocab": {}, "merges": []}}), "odd")
    assert tokenizer.encode("a b") == []
    assert not tokenize(tokenizer, "a b").exact


SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
WORD_LEVEL = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
BAD_FOR_CHATS: dict[str, dict[str, Any]] = {
    "an id of two tokens": {
        "model": WORD_LEVEL | {"vocab": {"a": 0, "[UNK]": 7, "b": 7, "c": 9}, "unk_token": "[UNK]"},
        "added_tokens": [{"id": 3, "content": "<s>", **SPECIAL}],
    },
    "no unknown token": {"model": WORD_LEVEL, "added_tokens": [{"id": 4, "content": "<s>", **SPECIAL}]},
}


@pytest.mark.parametrize("fault", BAD_FOR_CHATS)
def test_a_chat_that_the_tokenizer_fails_on_is_an_error(fault: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, BAD_FOR_CHATS[fault]), "odd")
    template = ChatTemplate("{% for m in messages %}<s>{{ m.content }}{% endfor %}", {}, tmp_path)
    form = TemplateFormat(template, tokenizer)
    with pytest.raises(LlmcliError, match="the tokenizer cannot encode a chat"):
        form.encode(form.render([Message("user", "a <s> b")]))
