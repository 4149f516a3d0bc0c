"""Text files -> examples: plain text or JSON lines, as they are or compressed with xz or gzip."""

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
REPLIES = ("text", "completion", "response", "chosen")  # the names that data sets use for the text to learn


@dataclass(frozen=True)
class Example:
    """A text to learn, possibly the reply to a ``prompt``, and possibly preferred to a ``rejected`` reply."""

    text: str
    prompt: str | None = None
    rejected: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Examples to train on, and others to validate on."""

    train: list[Example]
    valid: list[Example]

    @cached_property
    def digest(self) -> str:
        """A hash of all texts and their order."""
        found = hashlib.blake2b(f"{len(self.train)} {len(self.valid)} ".encode(), digest_size=16)
        for example in (*self.train, *self.valid):
            for text in (example.text, example.prompt, example.rejected):
                data = (text or "").encode("utf-8", "surrogatepass")
                found.update(f"{len(data)} ".encode())
                found.update(data)
        return found.hexdigest()


def read_corpus(train: Iterable[Path], valid: Iterable[Path], *, preferences: bool = False) -> Corpus:
    """Return the examples of both; without validation files, a twentieth of the training examples is held out.

    ``preferences`` selects the examples with a rejected reply, otherwise those without. Errors: there are none.
    """
    examples = read_examples(train, preferences=preferences)
    if held_out := list(valid):
        return Corpus(examples, read_examples(held_out, preferences=preferences))
    if len(examples) >= 20:
        return Corpus([d for n, d in enumerate(examples) if n % 20], examples[::20])
    if preferences:
        return Corpus(examples[1:] or examples, examples[:1])
    ends = [len(example.text) * 19 // 20 for example in examples]
    cut = [(replace(e, text=e.text[:end]), Example(e.text[end:])) for e, end in zip(examples, ends, strict=True)]
    return Corpus([start for start, _ in cut], [rest for _, rest in cut])


def read_examples(paths: Iterable[Path], *, preferences: bool = False) -> list[Example]:
    """Return the examples of all files in order, without empty ones. Errors name the file and the line."""
    examples = [e for path in paths for e in _examples(path) if (e.rejected is not None) == preferences]
    if not examples:
        what = 'no "chosen" and "rejected" replies' if preferences else "no text"
        raise LlmcliError(f"the corpus holds {what}", "use files that contain some")
    return examples


def _examples(path: Path) -> Iterator[Example]:
    lines = ".jsonl" in path.suffixes
    try:
        with _opened(path) as file:
            for example in _json_lines(file, path) if lines else map(Example, file.read().split(SEPARATOR)):
                if example.text.strip():
                    yield replace(example, text=example.text.strip())
    except FileNotFoundError:
        raise LlmcliError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise LlmcliError(f"{path}: cannot be read: {error}", "use UTF-8 text, plain, .gz or .xz") from error


def _opened(path: Path) -> TextIO:
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
            said = json.loads(line)
            text = next(said[name] for name in REPLIES if name in said)
            example = Example(text, said.get("prompt"), said.get("rejected"))
        except (ValueError, StopIteration, TypeError, AttributeError, RecursionError):
            example = None
        if example is None or not _sound(example):
            raise LlmcliError(
                f'{path}, line {number}: not an object with a "text"',
                'a line is {"text"}, {"prompt", "completion"} or {"prompt", "chosen", "rejected"}',
            )
        yield example


def _sound(example: Example) -> bool:
    optional = (example.prompt, example.rejected)
    whole = example.rejected is None or example.prompt is not None
    return isinstance(example.text, str) and all(t is None or isinstance(t, str) for t in optional) and whole
