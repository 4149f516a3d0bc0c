"""The reader of GGUF headers, against the package ``gguf``, and with damaged files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from llmcli.errors import LlmcliError
from llmcli.files.gguf import BLOCKS, GgufHeader, is_gguf, read_gguf

KINDS = gguf.GGUFValueType
VALUES: dict[str, tuple[Any, KINDS]] = {
    "a.u8": (200, KINDS.UINT8),
    "a.i8": (-100, KINDS.INT8),
    "a.u16": (60000, KINDS.UINT16),
    "a.i16": (-30000, KINDS.INT16),
    "a.u32": (2**32 - 1, KINDS.UINT32),
    "a.i32": (-(2**31), KINDS.INT32),
    "a.f32": (0.5, KINDS.FLOAT32),
    "a.bool": (True, KINDS.BOOL),
    "a.text": ("naïve 🙂", KINDS.STRING),
    "a.u64": (2**64 - 1, KINDS.UINT64),
    "a.i64": (-(2**63), KINDS.INT64),
    "a.f64": (1e300, KINDS.FLOAT64),
    "a.texts": (["", "a", "🙂"], KINDS.ARRAY),
    "a.numbers": ([1, -2, 3], KINDS.ARRAY),
}


def write(path: Path) -> Path:
    """Write a file with metadata of every type, and a few tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(key, value, kind)
    writer.add_tensor("rows", numpy.arange(6, dtype=numpy.float32).reshape(2, 3))
    writer.add_tensor("half", numpy.ones((2, 3, 4), dtype=numpy.float16))
    quantized = gguf.quants.quantize(numpy.ones((2, 64), dtype=numpy.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def raw(*parts: Any, version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    """A file of a header and ``parts``: bytes, texts with their lengths, or (struct's code, number)."""
    data = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    for part in parts:
        if isinstance(part, bytes):
            data += part
        elif isinstance(part, str):
            data += struct.pack("<Q", len(part.encode())) + part.encode()
        else:
            data += struct.pack(f"<{part[0]}", part[1])
    return data


def tensor(name: str, shape: tuple[int, ...], type: int, offset: int) -> bytes:
    return raw(name, ("I", len(shape)), *(("Q", size) for size in shape), ("I", type), ("Q", offset))[24:]


def test_metadata_and_tensors_are_those_of_the_reference(tmp_path: Path) -> None:
    header, reader = read_gguf(write(tmp_path / "a.gguf")), gguf.GGUFReader(tmp_path / "a.gguf")
    assert header.version == 3
    assert {key: header.metadata[key] for key in VALUES} == {key: value for key, (value, _) in VALUES.items()}
    assert header.metadata.keys() == {key for key in reader.fields if not key.startswith("GGUF.")}
    for theirs in reader.tensors:
        ours = header.tensors[theirs.name]
        assert (ours.type, ours.shape) == (theirs.tensor_type.name, tuple(int(size) for size in theirs.shape)[::-1])
        assert (ours.start, ours.end - ours.start) == (theirs.data_offset, theirs.n_bytes)


def test_block_sizes_are_those_of_the_reference() -> None:
    sizes = {kind.name: size for kind, size in gguf.constants.GGML_QUANT_SIZES.items()}
    assert {name: sizes[name] for name in BLOCKS} == BLOCKS


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw("k", ("I", 4), ("I", 1), keys=1))
    assert read_gguf(path).metadata == {"k": 1}
    path.write_bytes(raw("key", ("I", 4), ("I", 2), keys=1))
    assert read_gguf(path).metadata == {"key": 2}


def test_version_2_and_arrays_in_arrays(tmp_path: Path) -> None:
    nested = [("I", 9), ("I", 9), ("Q", 2), *[("I", 7), ("Q", 1), ("B", 1)], *[("I", 8), ("Q", 1), "x"]]
    (tmp_path / "a.gguf").write_bytes(raw("k", *nested, version=2, keys=1))
    assert read_gguf(tmp_path / "a.gguf").metadata == {"k": [[True], ["x"]]}


DEEP = b"".join(struct.pack("<IQ", 9, 1) for _ in range(2000))
F32 = tensor("a", (8,), 0, 0)
DAMAGED = {
    "it does not begin with GGUF": b"GGML" + raw(bytes(40))[4:],
    "it is too short for a header": b"GGUF",
    "its version is 1, not 2 or 3": raw(bytes(40), version=1),
    "its bytes are in big-endian order": raw(bytes(40), version=3 << 24),
    "it claims to have 1099511627776 tensors": raw(tensors=2**40),
    "it ends within its header": raw("k", ("I", 8), ("Q", 30), b"ten bytes", keys=1),
    "claims to be 9223372036854775808 bytes long": raw(("Q", 2**63), keys=1),
    "the key 'k' occurs twice": raw("k", ("I", 0), b"1", "k", ("I", 0), b"1", keys=2),
    "metadata of the unknown type 13": raw("k", ("I", 13), bytes(8), keys=1),
    "its arrays claim to be too long": raw("k", ("I", 9), ("I", 8), ("Q", 2**62), keys=1),
    "its arrays are too deep": raw("k", ("I", 9), DEEP, keys=1),
    "can't decode byte 0xff": raw("k", ("I", 8), ("Q", 1), b"\xff", keys=1),
    "general.alignment is 0": raw("general.alignment", ("I", 4), ("I", 0), keys=1),
    "general.alignment is 48": raw("general.alignment", ("I", 4), ("I", 48), keys=1),
    "has a name with control characters": raw(tensor("a\nb", (8,), 0, 0), bytes(99), tensors=1),
    "tensor 'a' has 0 dimensions": raw(tensor("a", (), 0, 0), tensors=1),
    "tensor 'a' has 5 dimensions": raw(tensor("a", (1,) * 5, 0, 0), tensors=1),
    "has the unknown type 4": raw(tensor("a", (8,), 4, 0), tensors=1),
    "has shape [33], which Q8_0 cannot store": raw(tensor("a", (33,), 8, 0), tensors=1),
    "has shape [0, 8], which": raw(tensor("a", (8, 0), 0, 0), tensors=1),
    "tensor 'a' ends beyond the end": raw(F32, bytes(31), tensors=1),
    "tensor 'huge' ends beyond the end": raw(tensor("huge", (2**62,) * 4, 0, 0), bytes(64), tensors=1),
    "tensor 'a' begins at 4, which is not a multiple of 32": raw(tensor("a", (8,), 0, 4), bytes(99), tensors=1),
    "tensor 'a' occurs twice": raw(F32, tensor("a", (8,), 0, 32), bytes(128), tensors=2),
    "tensors 'a' and 'b' overlap": raw(F32, tensor("b", (8,), 0, 0), bytes(128), tensors=2),
}


@pytest.mark.parametrize("problem", DAMAGED)
def test_damage_is_named_in_one_line(problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(DAMAGED[problem])
    with pytest.raises(LlmcliError) as raised:
        read_gguf(tmp_path / "a.gguf")
    assert problem in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(LlmcliError, match="a Git LFS pointer"):
        read_gguf(path)
    assert not is_gguf(path)
    with pytest.raises(LlmcliError, match="it is not a regular file"):
        read_gguf(tmp_path)
    with pytest.raises(LlmcliError, match="No such file"):
        read_gguf(tmp_path / "none.gguf")


def mutated(data: bytes, random: random.Random) -> bytes:
    """The data with a few bytes changed, a number replaced by an extreme one, or a part cut out, repeated or added."""
    changed, at = bytearray(data), random.randrange(len(data))
    ways: list[Callable[[], None]] = [
        lambda: changed.__setitem__(slice(at, at + 1), bytes([random.randrange(256)])),
        lambda: changed.__setitem__(
            slice(at, at + 8), random.choice((0, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
        ),
        lambda: changed.__setitem__(slice(at, at + 4), random.choice((0, 1, 255, 2**31)).to_bytes(4, "little")),
        lambda: changed.__delitem__(slice(at, None)),
        lambda: changed.__delitem__(slice(at, at + random.randrange(1, 40))),
        lambda: changed.__setitem__(slice(at, at), changed[at : at + random.randrange(1, 200)]),
    ]
    for _ in range(random.randint(1, 3)):
        random.choice(ways)()
    return bytes(changed)


def opened(path: Path) -> GgufHeader | LlmcliError:
    try:
        return read_gguf(path)
    except LlmcliError as error:
        return error


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    data, source = write(tmp_path / "good.gguf").read_bytes(), random.Random(0)
    refused = 0
    for number in range(400):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(mutated(data, source))
        header = opened(path)
        refused += isinstance(header, LlmcliError)
        if isinstance(header, LlmcliError):
            assert len(str(header).splitlines()) == 1
            continue
        assert all(tensor.end <= path.stat().st_size for tensor in header.tensors.values())
    assert refused > 100
