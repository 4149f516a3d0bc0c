"""A tokenizer's decoder, applied to single tokens: the bytes that each one adds to a text.

``tokenizers`` decodes to whole characters. A token may hold a part of one, so its bytes need the decoder's own rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tokenizers import Regex, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from llmcli.text.limited_calls import LimitedCalls
from llmcli.text.surrogates import is_unicode

# One step of a decoder, as a function of a token. Bytes that are not valid UTF-8 are lone surrogates.
Rule = Callable[[str], str]

# What the WordPiece decoder's ``cleanup`` replaces, in order.
CLEANUP = (
    *((f" {sign}", sign) for sign in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m")),
    (" do not", " don't"),
    *((f" {ending}", ending) for ending in ("'s", "'ve", "'re")),
)


class ByteDecoder:
    """The decoder of a tokenizer, for a token inside a text: what it drops at the beginning of a text is kept.

    Without a decoder, the library writes tokens as they are in the vocabulary, with a space between any two.
    ``has_regex``: a step replaces a regular expression, with ``calls``.
    """

    def __init__(self, fast: FastTokenizer, calls: LimitedCalls) -> None:
        decoder = fast.decoder  # only this part: serializing a large tokenizer takes a third of a second
        steps = [] if decoder is None else list(_steps(json.loads(decoder.__getstate__())))
        self.has_regex = any("Regex" in step.get("pattern", "") for step in steps)
        self._rules: list[Rule] = []
        self._text_rules: list[Rule] = []
        joined = False  # whether an earlier step made one string of all tokens
        for step in steps:
            rule = None if joined and step["type"] == "Strip" else _rule(step, calls)
            joined = joined or step["type"] in ("Fuse", "ByteLevel")
            if rule is not None:
                self._rules.append(rule)
                self._text_rules += [rule] if step["type"] != "ByteFallback" else []

    def token(self, written: str) -> bytes:
        """Return the bytes of a token, given as it is in the vocabulary."""
        return _applied(self._rules, written)

    def text(self, written: str) -> bytes:
        """Return the bytes of text in the vocabulary's notation, in which "<0x41>" is not a byte but six characters."""
        return _applied(self._text_rules, written)


def is_byte(written: str) -> bool:
    """Whether a token is one byte, such as "<0xE2>", if the decoder has byte fallback."""
    return len(written) == 6 and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", written) is not None


def _applied(rules: list[Rule], text: str) -> bytes:
    for rule in rules:
        text = rule(text)
    return text.encode("utf-8", "surrogateescape")


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The steps of a decoder, without the nesting."""
    if decoder["type"] == "Sequence":
        for child in decoder["decoders"]:
            yield from _steps(child)
    else:
        yield decoder


def _rule(step: Mapping[str, Any], calls: LimitedCalls) -> Rule | None:
    """One step as a function of a token; None if it changes no token."""
    kind = step["type"]
    if kind == "ByteLevel":
        return _byte_level
    if kind == "ByteFallback":
        return _byte_fallback
    if kind == "Replace":
        pattern, content = step["pattern"], step["content"]
        if "String" in pattern:
            return lambda token: token.replace(pattern["String"], content)
        return _replacing(decoders.Replace(Regex(pattern["Regex"]), content), calls)
    if kind == "Metaspace":
        return lambda token: token.replace(step["replacement"], " ")
    if kind == "Strip":
        return lambda token: _stripped(token, step["content"], step["start"], step["stop"])
    if kind == "WordPiece":
        return lambda token: _word_piece(token, step["prefix"], step["cleanup"])
    if kind == "BPEDecoder":
        return lambda token: token.replace(step["suffix"], " ")
    return None


def _replacing(step: decoders.Replace, calls: LimitedCalls) -> Rule:
    """A replacement by a pattern in the library's own syntax; it leaves bytes that are not a character unchanged."""

    def replaced(token: str) -> str:
        if not is_unicode(token):
            return token
        alone = FastTokenizer(models.WordLevel({token: 0}, ""))  # the step itself has no function for batches
        alone.decoder = step
        return calls.result(lambda: alone.decode_batch([[0]])[0], "decode these tokens", len(token))

    return replaced


def _byte_level(token: str) -> str:
    """One stand-in character per byte. A token with any other character is not in this notation."""
    try:
        return b"".join([_BYTES[char] for char in token]).decode("utf-8", "surrogateescape")
    except KeyError:
        return token


def _byte_fallback(token: str) -> str:
    """ "<0xE2>" is the byte E2."""
    return bytes([int(token[3:5], 16)]).decode("utf-8", "surrogateescape") if is_byte(token) else token


def _stripped(token: str, content: str, start: int, stop: int) -> str:
    """``token`` without up to ``start`` times ``content`` at its beginning, and up to ``stop`` times at its end."""
    first = len(token) - len(token.lstrip(content))
    last = len(token) - len(token.rstrip(content))
    return token[min(first, start) : max(len(token) - min(last, stop), 0)]


def _word_piece(token: str, prefix: str, cleanup: bool) -> str:
    """A token begins a word unless it has the prefix."""
    text = token.removeprefix(prefix) if prefix and token.startswith(prefix) else f" {token}"
    for before, after in CLEANUP if cleanup else ():
        text = text.replace(before, after)
    return text


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 as it is, the other 68 from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return {char: bytes([byte]) for byte, char in stand_ins.items()}


_BYTES = _byte_alphabet()
