"""The metadata of a GGUF file for a tokenizer: the inverse of ``tokenizer``.

A GGUF file can describe fewer tokenizers than a tokenizer.json. So the metadata is read again, and must give the same
tokens for texts of all kinds of characters and for the text of every token.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from llmcli.errors import LlmcliError
from llmcli.text.decoder import is_byte
from llmcli.text.gguf.patterns import WORDS, Words
from llmcli.text.gguf.tokenizer import PHI3, SPACE
from llmcli.text.gguf.vocabulary import (
    BYTE_LEVEL,
    ENDS,
    PREFIX,
    SENTENCEPIECE,
    UNIGRAM,
    Kind,
    names_without_token,
    read_vocabulary,
)
from llmcli.text.tokenizer import Tokenizer, gguf_tokenizer
from llmcli.text.tokenizer_errors import tokenizer_errors

# One character of each kind that a pattern may treat differently.
CHARACTERS = "aZsé語ǅʰम\u0301ेカ한ـ7٣½\n\r\t \u00a0\u3000'._/-$^~«”🙂\u200d"
RUNS = "".join(f"x{char * count}y" for char in CHARACTERS for count in (2, 3, 4, 5, 8))
LINES = (
    "I'm he's IT'S we'LL they've you'RE don't can'T he'd 'sa 'Tb x'll1 l'été aujourd'hui rock'n'roll\n",
    "The HTTPServer's camelCaseWord cost 1234567 $, or 3.14 %; see https://example.com/a_b?c=d#e.\r\n\r\n\tEnd…\n",
    "Съешь же ещё этих булок, да выпей чаю. 日本語のテキスト、漢字と仮名。한국어 문장 ÅNGSTRÖM Ξεσκεπάζω\n",
    "ที่นี่ مُحَمَّد שָׁלוֹם नमस्ते 👩‍👩‍👧 🇯🇵 👍🏽 \ufeff\x00\x1b[31m \U0010ffff ३४५ ¾",
)
TRIPLES = "".join(map("".join, itertools.product("aZsé語\u0301カ한7½\n\r \u3000'./🙂", repeat=3)))
TEXTS = (RUNS, *LINES, TRIPLES)
UNMERGED = -1e6  # the score of a piece that no merge makes, below those of all others


@dataclass(frozen=True)
class TokenizerMetadata:
    """What to write, and ``changes``: where the file's tokenizer differs from the original, for the user."""

    metadata: Mapping[str, Any]
    changes: tuple[str, ...]


def describe_tokenizer(
    tokenizer: Tokenizer, size: int, roles: Mapping[str, int], stop_ids: Sequence[int]
) -> TokenizerMetadata:
    """Return the metadata of a tokenizer for a model with ``size`` rows of embeddings.

    ``roles`` are the ids of special tokens by the names of GGUF, such as "eos" and "padding", if they are known;
    ``stop_ids`` end a text or a reply. Raises LlmcliError if a GGUF file cannot describe the tokenizer.
    """
    _ = tokenizer.size  # raises for ids that no model has
    for text in TEXTS:
        tokenizer.encode(text)  # raises if the library fails, or a pattern takes too long
    state = json.loads(tokenizer.fast.to_str())
    tokens, kinds = _tokens(tokenizer, state, size)
    model, own = _model(tokenizer, state, tokens)
    if model != BYTE_LEVEL and tokenizer.unknown_id is not None:
        roles = {**roles, "unknown": tokenizer.unknown_id}
    ends, ids, changes = _ends(tokenizer, roles, stop_ids, size)
    values = {"model": model, "tokens": tokens, "token_type": kinds, **own, **ids, **ends}
    metadata: dict[str, Any] = {"general.type": "model", "general.name": _name(tokenizer, state)}
    metadata |= {f"{PREFIX}{name}": value for name, value in values.items()}
    return TokenizerMetadata(metadata, (*changes, *_checked(tokenizer, metadata, size)))


def _name(tokenizer: Tokenizer, state: Mapping[str, Any]) -> str:
    """The model's name; only in files of models called Phi-3, control tokens take the spaces after them."""
    takes_spaces = any(token["special"] and token["rstrip"] for token in state["added_tokens"])
    return tokenizer.name if not takes_spaces or PHI3.search(tokenizer.name.lower()) else f"{tokenizer.name} (Phi-3)"


def _unsupported(tokenizer: Tokenizer, problem: str) -> LlmcliError:
    return LlmcliError(
        f"{tokenizer.name}: a GGUF file cannot describe the tokenizer: {problem}",
        "llama.cpp would divide texts into other tokens",
    )


def _tokens(tokenizer: Tokenizer, state: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The tokens with their kinds; rows without a token get a name. Added tokens without a row are left out."""
    added = {token["id"]: token for token in state["added_tokens"] if token["id"] < size}
    texts = {id: text for text, id in tokenizer.fast.get_vocab(with_added_tokens=False).items()}
    if texts and max(texts) >= size:
        raise LlmcliError(
            f"{tokenizer.name}: the tokenizer has the id {max(texts)}, but the model only {size} rows of embeddings",
            "the tokenizer may belong to another model",
        )
    texts |= {id: token["content"] for id, token in added.items()}
    taken = set(texts.values())
    if len(taken) < len(texts):
        raise _unsupported(tokenizer, "two tokens have the same text")
    unknown, bytes_are_tokens = tokenizer.unknown_id, bool(state["model"].get("byte_fallback"))
    byte_level = _is_byte_level(state)
    tokens, kinds = [], []
    for id in range(size):
        text = texts.get(id)
        if text is None:
            text = next(name for name in names_without_token(id) if name not in taken)
            kind = Kind.UNUSED
        elif id == unknown and not byte_level:
            kind = Kind.UNKNOWN
        elif id in added:
            kind = Kind.CONTROL if added[id]["special"] else Kind.USER_DEFINED
        else:
            kind = Kind.BYTE if bytes_are_tokens and is_byte(text) else Kind.NORMAL
        tokens.append(text)
        kinds.append(int(kind))
    return tokens, kinds


def _model(tokenizer: Tokenizer, state: Mapping[str, Any], tokens: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The kind of tokenizer, and the metadata that only this kind has."""
    model, parts = state["model"], json.dumps([state["normalizer"], state["pre_tokenizer"]], ensure_ascii=False)
    if _is_byte_level(state):
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return BYTE_LEVEL, {"pre": _pre(tokenizer, bool(model.get("ignore_merges"))), "merges": merges}
    if model["type"] == "BPE" and SPACE in parts:
        return SENTENCEPIECE, {
            "pre": "default",
            "scores": _scores(model["merges"], tokens),
            "add_space_prefix": _has_prefix(tokenizer),
        }
    if model["type"] == "Unigram":
        return UNIGRAM, _unigram(tokenizer, state, tokens)
    raise _unsupported(tokenizer, f"it is {model['type']}, not byte-level BPE, SentencePiece BPE or Unigram")


def _is_byte_level(state: Mapping[str, Any]) -> bool:
    return state["model"]["type"] == "BPE" and '"ByteLevel"' in json.dumps(state["pre_tokenizer"])


def _pre(tokenizer: Tokenizer, whole: bool) -> str:
    """llama.cpp's name of the tokenizer's way to divide a text into words."""
    names: dict[Words, str] = {}
    for name, words in WORDS.items():
        names.setdefault(words, name)
    divided = [_divided(tokenizer.fast, text) for text in TEXTS]
    for words in sorted(names, key=lambda words: words.whole is not whole):
        fast = _with_words(words)
        if all(_divided(fast, text) == expected for text, expected in zip(TEXTS, divided, strict=True)):
            return names[words]
    raise _unsupported(tokenizer, "llama.cpp does not know its way to divide a text into words")


def _with_words(words: Words) -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    words.apply(fast)
    return fast


def _divided(fast: FastTokenizer, text: str) -> list[str]:
    text = text if fast.normalizer is None else fast.normalizer.normalize_str(text)
    assert fast.pre_tokenizer is not None
    return [word for word, _ in fast.pre_tokenizer.pre_tokenize_str(text)]


def _scores(merges: Sequence[Any], tokens: Sequence[str]) -> list[float]:
    """Scores from which the merges follow: a token of an earlier merge has a higher one."""
    ranks: dict[str, int] = {}
    for merge in merges:
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), len(ranks))
    return [-float(ranks[token]) if token in ranks else UNMERGED for token in tokens]


def _has_prefix(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before a text."""
    ids = tokenizer.encode("x", add_special=False)
    return bool(ids) and (tokenizer.fast.id_to_token(ids[0]) or "").startswith(SPACE)


def _unigram(tokenizer: Tokenizer, state: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    scores = dict(state["model"]["vocab"])
    found: dict[str, Any] = {"scores": [float(scores.get(token, 0.0)) for token in tokens]}
    for step in _steps(state["normalizer"]):
        if step["type"] == "Precompiled":
            found["precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
    merged = tokenizer.encode("x  y", add_special=False) == tokenizer.encode("x y", add_special=False)
    return found | {"add_space_prefix": _has_prefix(tokenizer), "remove_extra_whitespaces": merged}


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normalizer's steps."""
    if part is not None and part["type"] == "Sequence":
        for step in part["normalizers"]:
            yield from _steps(step)
    elif part is not None:
        yield part


def _ends(
    tokenizer: Tokenizer, roles: Mapping[str, int], stop_ids: Sequence[int], size: int
) -> tuple[dict[str, bool], dict[str, int], list[str]]:
    """Which tokens the tokenizer puts around a text, the ids of special tokens, and what the file cannot say."""
    plain, whole = tokenizer.encode("x", add_special=False), tokenizer.encode("x")
    start = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
    before, after = whole[:start], whole[start + len(plain) :]
    if len(before) > 1 or len(after) > 1:
        raise _unsupported(tokenizer, "it puts more than one token before or after a text")
    ids = {role: id for role, id in roles.items() if 0 <= id < size}
    ids |= {role: around[0] for role, around in (("bos", before), ("eos", after)) if around}
    if "eos" not in ids and stop_ids:
        ids["eos"] = stop_ids[0]
    more = [
        id
        for id in stop_ids
        if id != ids.get("eos") and (tokenizer.fast.id_to_token(id) or "") not in ENDS and id < size
    ]
    ids |= dict(zip(("eot", "eom"), more, strict=False))
    changes = []
    if len(more) > 2:
        named = ", ".join(tokenizer.token_text(id) for id in more[2:])
        changes.append(f"these tokens end a text here, but not in llama.cpp: {named}")
    ends = {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    return ends, {f"{role}_token_id": id for role, id in ids.items()}, changes


def _checked(tokenizer: Tokenizer, metadata: Mapping[str, Any], size: int) -> list[str]:
    """Read the metadata and compare tokens; returns the differences that only some texts show.

    Raises LlmcliError if any other text gets other tokens.
    """
    written = gguf_tokenizer(read_vocabulary(metadata), tokenizer.name)
    own = [tokenizer.token_bytes(id) for id in tokenizer.ids if id < size]
    texts = [text for text in (data.decode("utf-8", "replace") for data in own) if "\ufffd" not in text]
    # Some tokenizers treat a space at the beginning of a text in a way of their own.
    plain = [f".{text}" if text.startswith(" ") else text for text in texts if text not in ENDS]
    added = [name for name, id in tokenizer.added_ids.items() if id < size and id not in tokenizer.special_ids]
    within = [text for name in added for text in (f"x{name}y", f"x {name} y")]
    different = _first_difference(tokenizer, written, [*TEXTS, *plain, *within])
    if different is not None:
        raise _unsupported(tokenizer, f"{different!r:.60} would get other tokens")
    changes = []
    if _first_difference(tokenizer, written, [" x", "  x y"]) is not None:
        changes.append("a text that begins with a space gets other tokens in llama.cpp")
    marked = [f"x{name}y {name} \n z" for id, name in tokenizer.special_names.items() if id < size]
    if _first_difference(tokenizer, written, marked, parse_special=True) is not None:
        changes.append("spaces next to special tokens become other tokens in llama.cpp")
    return changes


def _first_difference(
    one: Tokenizer, other: Tokenizer, texts: Sequence[str], *, parse_special: bool = False
) -> str | None:
    """The first of ``texts`` for which two tokenizers differ."""
    found = []
    with tokenizer_errors(f"the tokenizer of {one.name} cannot encode its own tokens"):
        for fast in (one.fast, other.fast):
            fast.encode_special_tokens = not parse_special
            found.append(fast.encode_batch(list(texts), add_special_tokens=False))
    return next((text for text, a, b in zip(texts, *found, strict=True) if a.ids != b.ids), None)
