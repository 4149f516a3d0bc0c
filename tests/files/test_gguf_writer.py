"""The GGUF writer, against the reader of the package ``gguf`` and llmcli's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType

from llmcli.errors import LlmcliError
from llmcli.files.gguf import read_gguf
from llmcli.files.gguf_writer import NewTensor, write_header

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "text": "naïve 🙂\n",
    "yes": True,
    "count": 7,
    "negative": -7,
    "large": 2**40,
    "float": 0.5,
    "whole float": 2.0,
    "texts": ["a", "", "é"],
    "numbers": [1, 2, -3],
    "floats": [0.5, -2.0],
    "flags": [True, False],
    "bytes": b"\x00\xff",
    "nothing": [],
}
KINDS = {
    "count": [GGUFValueType.UINT32],
    "negative": [GGUFValueType.INT32],
    "large": [GGUFValueType.UINT64],
    "whole float": [GGUFValueType.FLOAT32],
    "numbers": [GGUFValueType.ARRAY, GGUFValueType.INT32],
    "floats": [GGUFValueType.ARRAY, GGUFValueType.FLOAT32],
    "bytes": [GGUFValueType.ARRAY, GGUFValueType.UINT8],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = [NewTensor("a", "F32", (3, 5)), NewTensor("b", "Q8_0", (2, 3, 64)), NewTensor("c", "F16", (7,))]
    data = [bytes(range(60)), bytes(range(204)) * 2, bytes(range(14))]
    with path.open("wb") as file:
        positions = write_header(file, METADATA, tensors)
        for tensor, content in list(zip(tensors, data, strict=True))[::-1]:  # in any order
            file.seek(positions[tensor.name])
            file.write(content)
    header, reader = read_gguf(path), GGUFReader(path)
    assert {key: field.contents() for key, field in reader.fields.items() if key in METADATA and key != "nothing"} == {
        key: list(value) if isinstance(value, bytes) else value for key, value in METADATA.items() if key != "nothing"
    }
    assert dict(header.metadata) == {k: list(v) if isinstance(v, bytes) else v for k, v in METADATA.items()}
    assert {key: reader.fields[key].types for key in KINDS} == KINDS
    for tensor, content, theirs in zip(tensors, data, reader.tensors, strict=True):
        ours = header.tensors[tensor.name]
        assert (ours.name, ours.type, ours.shape) == (tensor.name, tensor.type, tensor.shape)
        assert theirs.data.tobytes() == path.read_bytes()[ours.start : ours.end] == content
        assert theirs.tensor_type.name == tensor.type
        assert positions[tensor.name] % 32 == 0


@pytest.mark.parametrize("value", ["\udc80", ["a", "\ud800"], 1e300, [0.0, -1e300], 2**70])
def test_what_cannot_be_stored_is_named(value: object, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file, pytest.raises(LlmcliError, match=r"cannot store .* as some\.key: "):
        write_header(file, {"some.key": value}, [])
