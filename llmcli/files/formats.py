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
    (rb"(lmgg|fmgg|tjgg)", "a GGML file, the format before GGUF", "get the model as GGUF or safetensors"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", "get the model as safetensors"),
    (rb"PK\x03\x04|\x80[\x02-\x05]", "a file of pickled weights", "get the model as safetensors"),
    (rb"\Z", "an empty file", "the download may be incomplete; download it again"),
)
_PICKLED = (
    "get the model as safetensors, or convert it with transformers: from_pretrained(FOLDER).save_pretrained(OUT);"
    " opening pickled files can run code"
)
# Names of files with weights in formats that llmcli does not read: the format, and what to do.
_OTHER_WEIGHTS = (
    (r".*\.gguf", "GGUF", "name the file itself as the model: {}"),
    (r".*\.ggml|ggml-.*\.bin", "GGML, the format before GGUF", "get the model as GGUF or safetensors"),
    (r"openvino.*\.(bin|xml)", "OpenVINO", "get the model as safetensors"),
    (r".*\.(bin|pt|pth|ckpt|pkl|pickle|nemo)", "pickled", _PICKLED),
    (r".*\.onnx(_data|\.data)?", "ONNX", "get the model as safetensors; ONNX files are made for other programs"),
    (r".*\.(h5|keras)", "Keras", "get the model as safetensors"),
    (r".*\.(msgpack|tflite|pb)", "TensorFlow or Flax", "get the model as safetensors"),
    (r".*\.npz", "NumPy", "get the model as safetensors"),
    (r"consolidated.*\.safetensors", "in Mistral's own layout", "get the model in the layout of transformers"),
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
    found = _find_other(names)
    return f"{found[0]} ({found[1]})" if found else ""


def other_weights_hint(names: Iterable[str]) -> str:
    """Return what to do about the weights that ``other_weights`` finds."""
    found = _find_other(names)
    return found[2] if found else "get the model as safetensors"


def _find_other(names: Iterable[str]) -> tuple[str, str, str] | None:
    """The format of weights in another format, the file that has them, and what to do."""
    names = sorted(names)
    for pattern, format, hint in _OTHER_WEIGHTS:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return format, name, hint.format(name) if format == "GGUF" else hint
    return None
