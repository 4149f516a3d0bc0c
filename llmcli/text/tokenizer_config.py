"""What tokenizer_config.json and its older companions add to a tokenizer.json, as transformers reads them.

Special tokens may be in any of these files, and a token that a tokenizer does not know is split into pieces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG
from llmcli.model.families import FAMILIES

TOKENIZER_CONFIG, OLDER_MAP, OLDER_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
END = "<|endoftext|>"
# transformers' tokenizer classes that set whether a text gets a space before it, with their default tokens.
CLASSES: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": {"unk_token": END, "bos_token": END, "eos_token": END},
    "GPTNeoXTokenizer": {"unk_token": END, "bos_token": END, "eos_token": END, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": {"unk_token": END, "eos_token": END, "pad_token": END},
    "Qwen3_5Tokenizer": {"unk_token": END, "eos_token": END, "pad_token": END},
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "CohereTokenizer": {
        "unk_token": "<UNK>",
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "pad_token": "<PAD>",
        "cls_token": "<CLS>",
        "sep_token": "<SEP>",
        "mask_token": "<MASK_TOKEN>",
    },
}
BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "Qwen3_5Tokenizer", "CohereTokenizer")
GENERIC = ""  # any class that uses tokenizer.json as it is
# Llama's normalizer as written by old versions, which also puts a space after every special token.
PREPENDING = [
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
]


@dataclass(frozen=True)
class TokenizerConfig:
    """What the files say.

    ``kind`` is the class that transformers would use, if it is one of ``CLASSES``. ``named`` are the special tokens
    with a name ("eos_token", "image_token"), ``extra`` those without one, ``added`` the tokens of a list by id.
    """

    raw: Mapping[str, Any]
    kind: str
    named: Mapping[str, AddedToken]
    extra: tuple[AddedToken, ...]
    added: tuple[AddedToken, ...]

    @property
    def variables(self) -> dict[str, str]:
        """The texts of the named tokens, which a chat template may use."""
        return {name: token.content for name, token in self.named.items()}

    @property
    def eos(self) -> str | None:
        """The end-of-text token, unless it is only the usual one of the class."""
        return self.variables.get("eos_token") if "eos_token" in self.raw else None

    def apply(self, fast: FastTokenizer) -> None:
        """Add the tokens to ``fast``, and set whether a text gets a space before it."""
        if self.kind in BYTE_LEVEL_CLASSES:
            _set_byte_level_prefix(fast, bool(self.raw.get("add_prefix_space")))
        elif self.kind == "LlamaTokenizer":
            _set_llama_prefix(fast, self.raw.get("add_prefix_space"), legacy=bool(self.raw.get("legacy")))
        before = fast.get_added_tokens_decoder().values()
        known, were_special = {t.content for t in (*before, *self.added)}, {t.content for t in before if t.special}
        special = [*self.named.values(), *self.extra]
        fast.add_tokens([*self.added, *(token for token in special if token.content not in known)])
        # A token with a role is special even if a list of tokens says otherwise: a chat must be able to end. The
        # library also keeps a token special once it was added as special.
        names = {token.content for token in special} | were_special
        plain = [t for t in fast.get_added_tokens_decoder().values() if t.content in names and not t.special]
        fast.add_tokens([_token({name: getattr(t, name) for name in ("content", *FLAGS)}, special=True) for t in plain])


def read_tokenizer_config(folder: Path, model: Mapping[str, Any] | None = None) -> TokenizerConfig:
    """Read the files of a model folder, of which any may be missing; ``model`` is config.json if it is already parsed.

    Raises LlmcliError if a file has the wrong contents.
    """
    config, raw = folder / TOKENIZER_CONFIG, _read(folder / TOKENIZER_CONFIG)
    added: list[AddedToken] = []
    if "added_tokens_decoder" in raw:
        by_id = raw["added_tokens_decoder"]
        if not isinstance(by_id, dict) or not all(key.isdecimal() and len(key) < 10 for key in by_id):
            raise LlmcliError(f"{config}: added_tokens_decoder is not an object of tokens by id", "correct the file")
        added = [_checked(by_id[key], config) for key in sorted(by_id, key=int)]
    else:
        raw = {**raw, **_read(folder / OLDER_MAP)}
    kind = _kind(raw, _read(folder / CONFIG) if model is None else model)
    values = {**dict.fromkeys(NAMES), **CLASSES.get(kind, {}), **{name: raw[name] for name in NAMES if name in raw}}
    named = {
        name: _checked(value, config, special=True)
        for name, value in {**values, **_other_names(raw)}.items()
        if isinstance(value, str | dict)
    }
    listed = raw.get("extra_special_tokens") or raw.get("additional_special_tokens")
    extra = tuple(_checked(value, config, special=True) for value in listed) if isinstance(listed, list) else ()
    if "added_tokens_decoder" not in raw:
        special = {token.content for token in (*named.values(), *extra)}
        older = _read(folder / OLDER_TOKENS)
        added = [
            _checked({"content": text, "special": text in special}, folder / OLDER_TOKENS)
            for text in sorted(older, key=lambda text: older[text] if type(older[text]) is int else 0)
        ]
    return TokenizerConfig(raw, kind, named, extra, tuple(added))


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _other_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens with names of their own, such as "image_token".

    As in transformers, those of "model_specific_special_tokens" count only if there are no others.
    """
    found = {key: value for key, value in raw.items() if key.endswith("_token") and key not in NAMES}
    named, specific = raw.get("extra_special_tokens"), raw.get("model_specific_special_tokens")
    found |= named if isinstance(named, dict) else {}
    return found or (specific if isinstance(specific, dict) else {})


def _checked(value: object, path: Path, **changes: bool) -> AddedToken:
    """A token in one of the files: its text, or an object with "content".

    Raises LlmcliError if it is neither, or not valid Unicode.
    """
    try:
        return _token(value, **changes)
    except (AttributeError, KeyError, TypeError, UnicodeEncodeError):
        raise LlmcliError(f"{path}: {json.dumps(value)[:60]} is not a token", "correct the file") from None


def _token(value: Any, **changes: bool) -> AddedToken:
    content = value if isinstance(value, str) else value["content"]
    content.encode()
    flags = {} if isinstance(value, str) else {flag: value[flag] for flag in FLAGS if flag in value}
    return AddedToken(content, **{**flags, **changes})


def _kind(raw: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The class that transformers would use; ``model`` is config.json."""
    family = FAMILIES.get(str(model.get("model_type")))
    own = None if family is None else family.tokenizer_class
    declared = raw.get("tokenizer_class") or model.get("tokenizer_class")
    if own == GENERIC or not isinstance(declared, str):
        return own or GENERIC
    declared = declared.removesuffix("Fast")
    return declared if declared in CLASSES else GENERIC


def _set_byte_level_prefix(fast: FastTokenizer, prefix: bool) -> None:
    """Set whether a byte-level tokenizer puts a space before each text."""
    if fast.pre_tokenizer is None:
        return
    state = json.loads(fast.pre_tokenizer.__getstate__())
    for step in [state, *state.get("pretokenizers", [])]:
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = prefix
    fast.pre_tokenizer = _pre_tokenizer(state)


def _set_llama_prefix(fast: FastTokenizer, prefix: object, *, legacy: bool) -> None:
    """Set whether a SentencePiece tokenizer puts a space before each text; a ``legacy`` one does so after every token.

    ``prefix`` is null if the file says nothing. Then a tokenizer.json that puts no space there is right: some models
    are trained without one. If it puts a space there, it has the form of old versions, in which a space also follows
    every special token; transformers does not read it that way.
    """
    state = None if fast.pre_tokenizer is None else json.loads(fast.pre_tokenizer.__getstate__())
    normalizer = {} if fast.normalizer is None else json.loads(fast.normalizer.__getstate__())
    prepending = state is None and normalizer.get("normalizers") == PREPENDING
    metaspace = state is not None and state["type"] == "Metaspace" and prefix is not None
    if not prepending and not metaspace:
        return
    scheme = "never" if prefix is not None and not prefix else "always" if legacy else "first"
    split = state["split"] if state is not None else False
    fast.normalizer = normalizers.Sequence([]) if prepending else fast.normalizer
    fast.pre_tokenizer = _pre_tokenizer(
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}
    )
    if scheme == "never":
        fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])


def _pre_tokenizer(state: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    made = pre_tokenizers.ByteLevel()
    made.__setstate__(json.dumps(state).encode())
    return made
