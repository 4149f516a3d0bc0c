"""What a file that cannot be read is instead: a Git LFS pointer, a web page, weights in another format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from llmcli.errors import LlmcliError

# Beginnings of files that are often saved in place of another one: what such a file is, and what to do.
_STAND_INS = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull`, or download the model with `llmcli pull`",
    ),
    (rb"\s*<(?i:!doctype html|html)", "a web page, not the file itself", "on the Hub, download it from /resolve/main/"),
    (rb"GGUF", "a GGUF file", "name this file itself as the model"),
    (rb"PK\x03\x04|\x80[\x02-\x05]", "a file of pickled weights", "get the model as safetensors"),
    (rb"\Z", "an empty file", "the download may be incomplete; download it again"),
)
# Names of files with weights in formats that llmcli does not read.
_OTHER_WEIGHTS = (
    (r".*\.(gguf|ggml)", "GGUF"),
    (r".*\.(bin|pt|pth|ckpt|pkl)", "pickled"),
    (r".*\.onnx", "ONNX"),
    (r".*\.(h5|keras|msgpack|tflite)", "TensorFlow or Flax"),
    (r".*\.npz", "NumPy"),
    (r"consolidated.*\.safetensors", "in Mistral's own layout"),
)


def stand_in(path: Path) -> LlmcliError | None:
    """Return the error for a file that is something else instead, such as a Git LFS pointer; None if it is not."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            start = file.read(256)
    except (OSError, ValueError):  # ValueError: an invalid character in the path
        return None
    for pattern, what, hint in _STAND_INS:
        if re.match(pattern, start):
            return LlmcliError(f"{path}: this is {what}", hint)
    return None


def other_weights(names: Iterable[str]) -> str:
    """Return the format of the weights among ``names`` that llmcli cannot read, and a file: "GGUF (model.gguf)".

    Returns "" if there are none. A GGUF file is a model by itself, but not the weights of a folder.
    """
    names = sorted(names)
    for pattern, format in _OTHER_WEIGHTS:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return f"{format} ({name})"
    return ""


def other_weights_hint(names: Iterable[str]) -> str:
    """Return what to do about the weights that ``other_weights`` finds."""
    gguf = sorted(name for name in names if re.fullmatch(_OTHER_WEIGHTS[0][0], name, re.IGNORECASE))
    return f"name the file itself as the model: {gguf[0]}" if gguf else "get the model as safetensors"
