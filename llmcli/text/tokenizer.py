"""Text <-> token ids, by the model's own tokenizer.json, and what each token stands for in bytes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError, usage_error


@dataclass(frozen=True)
class Token:
    """One token of a text; ``start`` and ``end`` are byte offsets into the UTF-8 text."""

    id: int
    text: str  # its bytes as UTF-8, U+FFFD for parts of characters
    bytes: bytes
    start: int
    end: int
    special: bool


class Tokenizer:
    """A tokenizer.json with its settings. Special tokens in a text are plain text unless asked for."""

    def __init__(self, fast: FastTokenizer, name: str) -> None:
        self.fast = fast
        self.name = name
        added = fast.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._added = {id: token.content for id, token in added.items()}
        decoder = fast.decoder  # alone: the whole tokenizer as JSON takes a third of a second for a large one
        self._byte_level = decoder is not None and "ByteLevel" in _types(json.loads(decoder.__getstate__()))

    @cached_property
    def size(self) -> int:
        """One more than the largest id; some vocabularies have holes below it."""
        return 1 + max(self.ids, default=-1)

    @property
    def ids(self) -> list[int]:
        """Every id that has a token, in order."""
        return sorted(set(self.fast.get_vocab(with_added_tokens=True).values()))

    def encode(self, text: str, *, parse_special: bool = False, surrounded: bool = True) -> list[int]:
        """Ids of ``text``, ``surrounded`` by the tokens (such as BOS) that the tokenizer puts around every text.

        ``parse_special`` reads special tokens written in the text as what they stand for.
        Errors: text that is not Unicode (lone surrogates, from undecodable bytes).
        """
        return list(self.encoded(text, parse_special, surrounded).ids)

    def tokens(self, text: str, *, parse_special: bool = False) -> list[Token]:
        """``encode``, each id with its bytes and its place in the text."""
        encoded = self.encoded(text, parse_special)
        pieces = [self.token_bytes(id) for id in encoded.ids]
        # A token the text holds is no template's; the tokens that surround every text are empty places.
        inserted = [mask == 1 for mask in encoded.special_tokens_mask]
        spans = _spans(text, pieces, inserted, encoded.offsets)
        return [
            Token(id, piece.decode("utf-8", "replace"), piece, start, end, id in self.special_ids)
            for id, piece, (start, end) in zip(encoded.ids, pieces, spans, strict=True)
        ]

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``. Errors: an id that the tokenizer does not have."""
        for id in ids:
            if not 0 <= id < self.size:
                raise usage_error(f"token id {id} is not in the vocabulary", f"ids are from 0 to {self.size - 1}")
        return self.fast.decode(ids, skip_special_tokens=skip_special)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for in a text; a special token's are its name's."""
        if id in self._added:
            return self._added[id].encode()
        piece = self.fast.id_to_token(id)
        if piece is None:
            return b""
        if not self._byte_level and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return self.spelt(piece)

    def spelt(self, written: str) -> bytes:
        """The bytes of text as the vocabulary writes it: byte by byte in stand-ins, or with U+2581 for spaces."""
        if self._byte_level:
            return bytes(byte for char in written for byte in _BYTES.get(char, char.encode()))
        return written.replace("\u2581", " ").encode()

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for what the vocabulary lacks; None if there is none."""
        model: Any = self.fast.model
        if hasattr(model, "unk_token"):
            return None if model.unk_token is None else self.fast.token_to_id(model.unk_token)
        found = json.loads(model.__getstate__()).get("unk_id")
        return found if isinstance(found, int) else None

    def id_of(self, text: str) -> int | None:
        """The token whose bytes are ``text``, the smallest id if there are several; None if no one token is."""
        if not text:
            return None
        return self._ids.get(text.encode("utf-8", "surrogateescape"))

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {self.token_bytes(id): id for id in reversed(range(self.size))}

    def token_text(self, id: int) -> str:
        """A token's own text; "<unused N>" for a row of the embedding that no token has."""
        if self.fast.id_to_token(id) is None:
            return f"<unused {id}>"
        return self.token_bytes(id).decode("utf-8", "replace")

    def encoded(self, text: str, parse_special: bool, surrounded: bool = True) -> Any:
        """What ``tokenizers`` itself makes of ``text``; see ``encode``."""
        _check_unicode(text)
        self.fast.encode_special_tokens = not parse_special
        return self.fast.encode(text, add_special_tokens=surrounded)

    def normalised(self, text: str) -> str:
        """The text as the tokenizer rewrites it before it is cut into tokens. Errors: as of ``encode``."""
        _check_unicode(text)
        normalizer = self.fast.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise usage_error(f"the text is not valid Unicode at character {error.start}", "UTF-8 is wanted") from None


def load_tokenizer(folder: Path, name: str | None = None) -> Tokenizer:
    """The tokenizer of a model folder, called as the folder unless ``name`` is given.

    Errors: no tokenizer.json, or one that cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        older = [file for file in ("tokenizer.model", "vocab.json") if (folder / file).is_file()]
        if older:
            opened = f"AutoTokenizer.from_pretrained(r'{folder}')"
            convert = f"from transformers import AutoTokenizer; {opened}.save_pretrained(r'{folder}')"
            hint = (
                f"only the older {older[0]} is here; with `pip install transformers sentencepiece`, "
                f'this writes tokenizer.json: python -c "{convert}"'
            )
        else:
            hint = "is this the folder of a Hugging Face model?"
        raise LlmcliError(f"{path}: no such file", hint)
    try:
        fast = FastTokenizer.from_file(str(path))
        fast.no_truncation()  # some files ask for it, for training: a prompt must never be cut in silence
        fast.no_padding()
        return Tokenizer(fast, name or folder.name)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for faults of the file, and panics at some
        raise LlmcliError(f"{path}: not a tokenizer: {error}", "the file may be damaged; get it again") from error


def _types(node: object) -> set[str]:
    """The "type" of a tokenizer.json component and of all that are nested in it."""
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(_types(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(_types(child) for child in node))
    return set()


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 as it is, the other 68 from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return {char: bytes([byte]) for byte, char in stand_ins.items()}


_BYTES = _byte_alphabet()


def _spans(
    text: str, pieces: list[bytes], inserted: list[bool], offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Byte offsets of each token in the text.

    Where the tokens' bytes joined are the text (but for a space that some tokenizers put in front),
    they are exact, also inside a character. Otherwise the text was normalised, and a token is given
    the whole characters that it came from.
    """
    source = text.encode()
    joined = b"".join(piece for piece, put_in in zip(pieces, inserted, strict=True) if not put_in)
    shift = 1 if joined == b" " + source else 0
    spans, place = [], -shift
    if joined[shift:] == source:
        for piece, put_in in zip(pieces, inserted, strict=True):
            end = place if put_in else place + len(piece)
            spans.append((max(place, 0), max(end, 0)))
            place = end
        return spans
    before = [0]
    for char in text:
        before.append(before[-1] + len(char.encode()))
    return [(before[start], before[end]) for start, end in offsets]
