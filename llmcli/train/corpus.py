"""Text files -> documents: plain text or JSON lines, as they are or compressed with xz or gzip."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from llmcli.errors import LlmcliError

SEPARATOR = "<|endoftext|>"  # stands between the documents of a plain text file


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and others to validate on."""

    train: list[str]
    valid: list[str]


def read_corpus(train: Iterable[Path], valid: Iterable[Path]) -> Corpus:
    """The documents of both; where no validation files are named, a twentieth is held out of the others."""
    documents, valid = read_documents(train), list(valid)
    if valid:
        return Corpus(documents, read_documents(valid))
    if len(documents) >= 20:
        return Corpus([d for n, d in enumerate(documents) if n % 20], documents[::20])
    ends = [len(document) * 19 // 20 for document in documents]
    cut = [(d[:end], d[end:]) for d, end in zip(documents, ends, strict=True)]
    return Corpus([start for start, _ in cut], [rest for _, rest in cut])


def read_documents(paths: Iterable[Path]) -> list[str]:
    """Every document of every file, in order, empty ones left out. Errors name the file and the line."""
    documents = [text for path in paths for text in _documents(path)]
    if not documents:
        raise LlmcliError("the corpus holds no text", "give files with text in them")
    return documents


def _documents(path: Path) -> Iterator[str]:
    lines = ".jsonl" in path.suffixes
    try:
        with _opened(path) as file:
            for text in _json_lines(file, path) if lines else file.read().split(SEPARATOR):
                if text.strip():
                    yield text.strip()
    except FileNotFoundError:
        raise LlmcliError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise LlmcliError(f"{path}: cannot be read: {error}", "UTF-8 text is wanted, plain, .gz or .xz") from error


def _opened(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise LlmcliError(f'{path}, line {number}: not an object with a "text"', "one JSON object a line is wanted")
        yield text
