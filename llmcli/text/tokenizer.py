"""Text <-> token ids by the model's tokenizer.json, and the bytes of each token."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.formats import stand_in
from llmcli.text.decoder import ByteDecoder, is_byte
from llmcli.text.gguf.tokenizer import build_tokenizer
from llmcli.text.gguf.vocabulary import MAX_IDS, Vocabulary, errors_of, vocabulary_of
from llmcli.text.limited_calls import LimitedCalls
from llmcli.text.tokenizer_config import read_tokenizer_config
from llmcli.text.tokenizer_errors import tokenizer_errors


@dataclass(frozen=True)
class Token:
    """One token of a text; ``start`` and ``end`` are byte offsets into the text's UTF-8 form."""

    id: int
    text: str  # its bytes as UTF-8, with U+FFFD for incomplete characters
    bytes: bytes
    start: int
    end: int
    special: bool


class Tokenizer:
    """A tokenizer.json. Special tokens that occur in a text are plain text unless ``parse_special``.

    ``eos_id`` is the end-of-text token ``eos``, if the tokenizer's files name one.
    """

    def __init__(self, fast: FastTokenizer, name: str, eos: str | None = None) -> None:
        self.fast = fast
        self.name = name
        self.eos_id = None if eos is None else fast.token_to_id(eos)
        added = fast.get_added_tokens_decoder().items()
        self.special_names = {id: token.content for id, token in added if token.special}
        self.special_ids = frozenset(self.special_names)
        self._calls = LimitedCalls(name)
        self._decoder = ByteDecoder(fast, self._calls)

    @cached_property
    def size(self) -> int:
        """The largest id plus one; some vocabularies have gaps below it.

        Raises LlmcliError for an id that no model can have: a loop over all ids, such as the library's own to save a
        tokenizer, would take minutes.
        """
        largest = max(self.ids, default=-1)
        if largest >= MAX_IDS:
            raise LlmcliError(
                f"{self.name}: the tokenizer has a token with the id {largest}", "the file may be damaged"
            )
        return 1 + largest

    @cached_property
    def added_ids(self) -> dict[str, int]:
        """The ids of the added tokens by their text, which is normalized if the token is matched in normalized text."""
        return {self.fast.id_to_token(id) or "": id for id in self.fast.get_added_tokens_decoder()}

    @property
    def ids(self) -> list[int]:
        """Every id that has a token, in ascending order."""
        return sorted(set(self.fast.get_vocab(with_added_tokens=True).values()))

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = True) -> list[int]:
        """Return the ids of ``text``; ``add_special`` adds the tokens, such as BOS, that the post-processor inserts.

        ``parse_special`` turns special tokens written in the text into those tokens. Raises LlmcliError if the text is
        not valid Unicode (it has lone surrogates, which come from undecodable bytes), or if the tokenizer fails on it
        or takes too long.
        """
        return list(self.encoding(text, parse_special, add_special).ids)

    def tokens(self, text: str, *, parse_special: bool = False) -> list[Token]:
        """Return the tokens of ``text``, as ``encode`` does, with their bytes and offsets."""
        encoding = self.encoding(text, parse_special)
        data = [self.token_bytes(id) for id in encoding.ids]
        inserted = [mask == 1 for mask in encoding.special_tokens_mask]  # by the post-processor
        spans = byte_spans(text, data, inserted, encoding.offsets)
        return [
            Token(id, raw.decode("utf-8", "replace"), raw, start, end, id in self.special_ids)
            for id, raw, (start, end) in zip(encoding.ids, data, spans, strict=True)
        ]

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``.

        Raises LlmcliError if an id is outside the vocabulary, or if the tokenizer fails or takes too long.
        """
        try:
            ids = [operator.index(id) for id in ids]
        except TypeError:
            raise TypeError(f"expected a list of token ids, not {ids!r:.80}") from None
        for id in ids:
            if not 0 <= id < self.size:
                raise self._no_token(id)
        if self._decoder.has_regex:
            call = partial(self.fast.decode_batch, [ids], skip_special_tokens=skip_special)
            return self._calls.result(call, "decode these tokens", len(ids))[0]
        with tokenizer_errors(f"the tokenizer of {self.name} cannot decode these tokens"):
            return self.fast.decode(ids, skip_special_tokens=skip_special)

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes that a token adds to a text, as in ``decode``; for a special token, usually its name."""
        written = self._written(id)
        return b"" if written is None else self._decoder.token(written)

    def vocabulary_bytes(self, written: str) -> bytes:
        """Return the bytes of text in the vocabulary's notation: one stand-in per byte, or U+2581 for a space."""
        return self._decoder.text(written)

    def has_tokens_of(self, other: Tokenizer) -> bool:
        """Whether each id is the same token in both. The notation may differ: GGUF has spaces as they are."""
        if self.fast.get_vocab() == other.fast.get_vocab():
            return True
        return self.ids == other.ids and all(self.token_bytes(id) == other.token_bytes(id) for id in self.ids)

    @cached_property
    def unknown_id(self) -> int | None:
        """The unknown token, for text that the vocabulary cannot represent; None if there is none."""
        model: Any = self.fast.model
        if hasattr(model, "unk_token"):
            return None if model.unk_token is None else self.fast.token_to_id(model.unk_token)
        found = json.loads(model.__getstate__()).get("unk_id")
        return found if isinstance(found, int) else None

    def id_of(self, text: str) -> int | None:
        """Return the token whose bytes are ``text``; None if no single token is.

        If there are several, the smallest id, but single-byte tokens such as "<0x41>" only if there is no other:
        tokenizers use them for unknown characters.
        """
        if not isinstance(text, str):
            raise TypeError(f"expected a text, not {text!r:.80}")
        try:
            return self._ids_by_bytes.get(text.encode("utf-8", "surrogateescape")) if text else None
        except UnicodeEncodeError:  # other surrogates
            return None

    @cached_property
    def _ids_by_bytes(self) -> dict[bytes, int]:
        single: dict[bytes, int] = {}
        others: dict[bytes, int] = {}
        for id in reversed(range(self.size)):
            written = self.fast.id_to_token(id)
            if written is not None:
                (single if is_byte(written) else others)[self._decoder.token(written)] = id
        return single | others

    def token_text(self, id: int) -> str:
        """Return a token's own text; "<unused N>" for a row of the embedding without a token.

        Like ``token_bytes``, raises LlmcliError for an id that no token can have.
        """
        if self._written(id) is None:
            return f"<unused {id}>"
        return self.token_bytes(id).decode("utf-8", "replace")

    def _written(self, id: int) -> str | None:
        """A token in the vocabulary's notation; None if there is no token ``id``."""
        try:
            return self.fast.id_to_token(id)
        except OverflowError:
            raise self._no_token(id) from None

    def _no_token(self, id: int) -> LlmcliError:
        return usage_error(f"token id {id} is not in the vocabulary", f"ids range from 0 to {self.size - 1}")

    def encoding(self, text: str, parse_special: bool, add_special: bool = True) -> Any:
        """Return the ``tokenizers.Encoding`` of ``text``; arguments and errors are those of ``encode``."""
        _check_unicode(text)

        def call() -> Any:
            self.fast.encode_special_tokens = not parse_special
            # encode would keep every other thread from running.
            return self.fast.encode_batch([text], add_special_tokens=add_special)[0]

        return self._calls.result(call, "encode this text", len(text))

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of many texts, in parallel: special tokens in them are plain text, and none are added.

        Raises LlmcliError if the tokenizer fails on one of them or takes too long.
        """

        def call() -> list[list[int]]:
            self.fast.encode_special_tokens = True
            return [list(found.ids) for found in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

        return self._calls.result(call, "encode these texts", sum(map(len, texts)))

    def normalize(self, text: str) -> str:
        """Return ``text`` after the tokenizer's normalizer. Raises the errors of ``encode``."""
        _check_unicode(text)
        normalizer = self.fast.normalizer
        if normalizer is not None and b'"Regex"' in normalizer.__getstate__():
            self.encoding(text, parse_special=False)  # in limited time, which normalizing alone does not have
        with tokenizer_errors(f"the tokenizer of {self.name} cannot normalize this text"):
            return text if normalizer is None else str(normalizer.normalize_str(text))


def _check_unicode(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"expected a text, not {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise usage_error(f"the text is not valid Unicode at character {error.start}", "convert it to UTF-8") from None


def load_tokenizer(folder: Path, name: str | None = None, *, model: Mapping[str, Any] | None = None) -> Tokenizer:
    """Load the tokenizer of a model folder or a GGUF file; ``name`` is the folder's unless given.

    ``model`` is config.json if it is already parsed.

    Raises LlmcliError if the folder has no tokenizer.json, or a file of the tokenizer cannot be read.
    """
    if folder.is_file():
        vocabulary = vocabulary_of(folder)
        with errors_of(folder):
            return gguf_tokenizer(vocabulary, name or folder.name)
    path = folder / "tokenizer.json"
    if not path.is_file():
        older = [file for file in ("tokenizer.model", "vocab.json") if (folder / file).is_file()]
        if older:
            opened = f"AutoTokenizer.from_pretrained(r'{folder}')"
            convert = f"from transformers import AutoTokenizer; {opened}.save_pretrained(r'{folder}')"
            hint = (
                f"the folder has only the older {older[0]}; after `pip install transformers sentencepiece`, "
                f'this command writes tokenizer.json: python -c "{convert}"'
            )
        else:
            hint = "copy it from the model that these weights were made from"
        raise LlmcliError(f"{folder} has no tokenizer.json", hint)
    other = stand_in(path)
    if other is not None:
        raise other
    config = read_tokenizer_config(folder, model)
    with tokenizer_errors(f"{path}: not a tokenizer"):
        fast = FastTokenizer.from_file(str(path))
        fast.no_truncation()  # some files enable it for training, but a prompt must never be cut silently
        fast.no_padding()
        if getattr(fast.model, "dropout", None):  # also for training: the same text would get other tokens each time
            fast.model.dropout = None
        config.apply(fast)
        return Tokenizer(fast, name or folder.name, config.eos)


def gguf_tokenizer(vocabulary: Vocabulary, name: str) -> Tokenizer:
    """Return the tokenizer of a GGUF file. Raises LlmcliError if its metadata does not describe one."""
    with tokenizer_errors("the metadata does not describe a tokenizer"):
        return Tokenizer(build_tokenizer(vocabulary), name, vocabulary.text("eos"))


def byte_spans(
    text: str, data: list[bytes], inserted: list[bool], offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The byte offsets of each token in the text; ``offsets`` are in characters.

    If the tokens' bytes joined are the text, except for a space that some tokenizers prepend, the offsets are exact,
    even inside a character. Otherwise the text was normalized, and a token gets all characters that it came from.
    """
    source = text.encode()
    joined = b"".join(raw for raw, skip in zip(data, inserted, strict=True) if not skip)
    shift = 1 if joined == b" " + source else 0
    spans, start = [], -shift
    if joined[shift:] == source:
        for raw, skip in zip(data, inserted, strict=True):
            end = start if skip else start + len(raw)
            spans.append((max(start, 0), max(end, 0)))
            start = end
        return spans
    byte_offsets = [0]
    for char in text:
        byte_offsets.append(byte_offsets[-1] + len(char.encode()))
    return [(byte_offsets[start], byte_offsets[end]) for start, end in offsets]
