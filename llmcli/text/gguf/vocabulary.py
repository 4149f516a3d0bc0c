"""The tokens in the metadata of a GGUF file, their types and roles, checked, and its chat template.

The metadata comes from a file that may be damaged or hostile, so nothing in it is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.gguf import GgufHeader, read_gguf

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
BYTE_LEVEL, SENTENCEPIECE, GEMMA4, UNIGRAM = "gpt2", "llama", "gemma4", "t5"
MODELS = (BYTE_LEVEL, SENTENCEPIECE, GEMMA4, UNIGRAM)
ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")
# The ids of special tokens where the file does not give them.
USUAL_IDS = {
    BYTE_LEVEL: {},
    GEMMA4: {},
    SENTENCEPIECE: {"bos": 1, "eos": 2, "unknown": 0},
    UNIGRAM: {"eos": 1, "unknown": 2, "padding": 0},
}
TEMPLATE_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
MAX_IDS = 2**22  # several times the largest vocabularies
MAX_TOKEN = 1000  # characters; published tokens have at most some hundred
# Tokens that end a reply, whatever type the file gives them.
ENDS = frozenset(
    {
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<turn|>"),
        *("<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)
HARMONY = frozenset({"<|return|>", "<|call|>", "<|end|>"})  # there "<|end|>" ends one message of several


class Kind(IntEnum):
    """The types of tokens in a GGUF file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file by id, with their types (``Kind``); ``roles`` has the ids of special tokens, such as "eos".

    ``model`` is one of ``MODELS``; ``metadata`` is that of the file.
    """

    metadata: Mapping[str, object]
    model: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    roles: Mapping[str, int]

    def text(self, role: str) -> str | None:
        """Return the token with a role; None if there is none."""
        return self.tokens[self.roles[role]] if role in self.roles else None

    @property
    def ids(self) -> dict[str, int]:
        """The ids by token, without the rows of the embedding that no token has, to which converters give names."""
        roles = set(self.roles.values())
        return {
            token: id
            for id, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind != Kind.UNUSED or id in roles or token not in names_without_token(id)
        }

    @property
    def template(self) -> str | None:
        """The chat template; None if there is none. Raises LlmcliError if it is not text."""
        return text_value(self.metadata, TEMPLATE)

    @property
    def template_tokens(self) -> dict[str, str]:
        """The special tokens by their names in chat templates, such as "bos_token"."""
        texts = {name: self.text(role) for role, name in TEMPLATE_NAMES.items()}
        return {name: text for name, text in texts.items() if text is not None}


def names_without_token(id: int) -> tuple[str, ...]:
    """Return the names for a row of the embedding that no token has, the one of llama.cpp's converter first."""
    return f"[PAD{id}]", f"[UNUSED{id}]", f"[UNUSED {id}]"


def vocabulary_of(path: Path) -> Vocabulary:
    """Return the tokens of the GGUF file at ``path``. Those of the last files are kept.

    Raises the errors of ``read_gguf`` and ``read_vocabulary``.
    """
    header = read_gguf(path)
    with errors_of(path):
        return _vocabulary_of(header)


@lru_cache(maxsize=2)  # two models are compared
def _vocabulary_of(header: GgufHeader) -> Vocabulary:
    return read_vocabulary(header.metadata)


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Return the tokens of a file.

    Raises LlmcliError if the file has no tokenizer or one of another type, or if its tokens are not distinct texts or
    do not fit their types or ids.
    """
    model = text_value(metadata, f"{PREFIX}model")
    if model is None:
        raise metadata_error("the file has no tokenizer", "it may be a part of a model; open the whole model")
    if model not in MODELS:
        raise metadata_error(
            f"the file's tokenizer has the unsupported type {model!r:.40}", f"supported types: {', '.join(MODELS)}"
        )
    tokens = _checked_tokens(list_value(metadata, "tokens"))
    kinds: Sequence[Any] = [Kind.NORMAL] * len(tokens)
    if f"{PREFIX}token_type" in metadata:
        kinds = numbers(metadata, "token_type", len(tokens))
    return Vocabulary(metadata, model, tokens, kinds, _roles(metadata, model, len(tokens)))


def gguf_end_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the tokens that end a text or a reply, in ascending order: those with such a role, or such a name."""
    named = {token: id for id, token in enumerate(vocabulary.tokens) if token in ENDS}
    if named.keys() >= HARMONY:
        del named["<|end|>"]
    roles = {vocabulary.roles[role] for role in ("eos", "eot", "eom") if role in vocabulary.roles}
    return tuple(sorted(roles.union(named.values())))


def _checked_tokens(tokens: Sequence[Any]) -> list[str]:
    """The tokens, with a name for empty ones."""
    if not 0 < len(tokens) <= MAX_IDS:
        raise metadata_error(f"{PREFIX}tokens has {len(tokens)} entries")
    if not all(isinstance(token, str) for token in tokens):
        raise metadata_error(f"{PREFIX}tokens has an entry that is not text")
    texts = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    longest = max(map(len, texts))
    if longest > MAX_TOKEN:
        raise metadata_error(f"{PREFIX}tokens has an entry of {longest} characters")
    if len(set(texts)) != len(texts):
        ids: dict[str, int] = {}
        for id, token in enumerate(texts):
            if ids.setdefault(token, id) != id:
                raise metadata_error(f"{PREFIX}tokens has {token!r:.40} twice, with the ids {ids[token]} and {id}")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise metadata_error(f"{PREFIX}tokens has an entry that is not valid Unicode") from None
    return texts


def _roles(metadata: Mapping[str, object], model: str, size: int) -> dict[str, int]:
    """The ids of the special tokens."""
    found = {role: id for role, id in USUAL_IDS[model].items() if id < size}
    for role in ROLES:
        key = f"{PREFIX}{role}_token_id"
        if key in metadata:
            id = metadata[key]
            if role == "padding" and id not in range(size):  # some files have a padding token that the model has not
                continue
            if type(id) is not int or not 0 <= id < size:
                raise metadata_error(f"{key} is {id!r:.40}, but there are {size} tokens")
            found[role] = id
    return found


def text_value(metadata: Mapping[str, object], key: str) -> str | None:
    """Return the text with a key; None if there is none. Raises LlmcliError if it is not text."""
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise metadata_error(f"{key} is not text")
    return value


def flag_value(metadata: Mapping[str, object], name: str, usual: bool) -> bool:
    """Return a flag of the tokenizer, which is ``usual`` unless given. Raises LlmcliError if it is no boolean."""
    value = metadata.get(f"{PREFIX}{name}", usual)
    if not isinstance(value, bool):
        raise metadata_error(f"{PREFIX}{name} is neither true nor false")
    return value


def list_value(metadata: Mapping[str, object], name: str) -> Sequence[Any]:
    """Return a list of the tokenizer. Raises LlmcliError if it is missing or not a list."""
    value = metadata.get(f"{PREFIX}{name}")
    if value is None:
        raise metadata_error(f"the file has no {PREFIX}{name}")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise metadata_error(f"{PREFIX}{name} is not a list")
    return value


def numbers(metadata: Mapping[str, object], name: str, size: int) -> Sequence[Any]:
    """Return a list with a number for each of ``size`` tokens. Raises LlmcliError if it has others, or NaN."""
    values = list_value(metadata, name)
    if len(values) != size:
        raise metadata_error(f"{PREFIX}{name} has {len(values)} entries, but there are {size} tokens")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise metadata_error(f"{PREFIX}{name} has an entry that is not a finite number")
    return values


def bytes_value(metadata: Mapping[str, object], name: str) -> bytes:
    """Return a list of bytes, which may be signed. Raises LlmcliError if it has other entries."""
    values = list_value(metadata, name)
    if not all(type(value) is int and -128 <= value < 256 for value in values):
        raise metadata_error(f"{PREFIX}{name} has an entry that is not a byte")
    return bytes(value % 256 for value in values)


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Begin the errors within the block, which are about the metadata of the file at ``path``, with the path."""
    try:
        yield
    except LlmcliError as error:
        raise LlmcliError(f"{path}: {error.message}", error.hint) from error


def metadata_error(problem: str, hint: str = "the file may be damaged; download it again") -> LlmcliError:
    """Return the error for metadata that cannot be right."""
    return LlmcliError(problem, hint)
