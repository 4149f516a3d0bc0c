"""Reading a corpus: text files or JSON Lines, plain or compressed with xz or gzip."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TextIO

from llmcli.errors import LlmcliError

SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
REPLIES = ("text", "completion", "response", "chosen")  # the fields that data sets use for the text to learn


@dataclass(frozen=True)
class Example:
    """A text to learn; a reply if there is a ``prompt``, and the better one if there is a ``rejected`` reply."""

    text: str
    prompt: str | None = None
    rejected: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Examples for training and for validation."""

    train: list[Example]
    valid: list[Example]

    @cached_property
    def digest(self) -> str:
        """A hash of all examples in order."""
        digest = hashlib.blake2b(f"{len(self.train)} {len(self.valid)} ".encode(), digest_size=16)
        for example in (*self.train, *self.valid):
            for text in (example.text, example.prompt, example.rejected):
                data = (text or "").encode("utf-8", "surrogatepass")
                digest.update(f"{len(data)} ".encode())
                digest.update(data)
        return digest.hexdigest()


def read_corpus(train: Iterable[Path], valid: Iterable[Path], *, preferences: bool = False) -> Corpus:
    """Return the examples of the files; without validation files, 5% of the training examples are held out.

    ``preferences`` selects the examples with a rejected reply, otherwise those without. Raises LlmcliError if there are
    none.
    """
    examples = read_examples(train, preferences=preferences)
    if held_out := list(valid):
        return Corpus(examples, read_examples(held_out, preferences=preferences))
    if len(examples) >= 20:
        return Corpus([example for n, example in enumerate(examples) if n % 20], examples[::20])
    if preferences:
        return Corpus(examples[1:] or examples, examples[:1])
    ends = [len(example.text) * 19 // 20 for example in examples]
    train_parts = [replace(example, text=example.text[:end]) for example, end in zip(examples, ends, strict=True)]
    valid_parts = [Example(example.text[end:]) for example, end in zip(examples, ends, strict=True)]
    return Corpus(train_parts, valid_parts)


def read_examples(paths: Iterable[Path], *, preferences: bool = False) -> list[Example]:
    """Return the examples of all files in order, without empty ones.

    Raises LlmcliError, with the file and the line, if a file cannot be read or there are no examples.
    """
    examples = [e for path in paths for e in _examples(path) if (e.rejected is not None) == preferences]
    if not examples:
        missing = '"chosen" and "rejected" replies' if preferences else "text"
        raise LlmcliError(f"the corpus contains no {missing}", "use files that contain some")
    return examples


def _examples(path: Path) -> Iterator[Example]:
    is_jsonl = ".jsonl" in path.suffixes
    try:
        with _open_text(path) as file:
            for example in _json_lines(file, path) if is_jsonl else map(Example, file.read().split(SEPARATOR)):
                if example.text.strip():
                    yield replace(example, text=example.text.strip())
    except FileNotFoundError:
        raise LlmcliError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise LlmcliError(f"{path}: cannot be read: {error}", "use UTF-8 text, plain, .gz or .xz") from error


def _open_text(path: Path) -> TextIO:
    if path.is_char_device():
        raise LlmcliError(f"{path}: a device, not a text file", "name a text file")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_lines(file: TextIO, path: Path) -> Iterator[Example]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text = next(record[name] for name in REPLIES if name in record)
            example = Example(text, record.get("prompt"), record.get("rejected"))
        except (ValueError, StopIteration, TypeError, AttributeError, RecursionError):
            example = None
        if example is None or not _is_valid(example):
            raise LlmcliError(
                f'{path}, line {number}: not an object with a "text"',
                'each line must be {"text"}, {"prompt", "completion"} or {"prompt", "chosen", "rejected"}',
            )
        yield example


def _is_valid(example: Example) -> bool:
    """Whether all fields are strings and a rejected reply has a prompt."""
    optional = (example.prompt, example.rejected)
    has_prompt = example.rejected is None or example.prompt is not None
    return isinstance(example.text, str) and all(t is None or isinstance(t, str) for t in optional) and has_prompt
