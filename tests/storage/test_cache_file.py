"""Prompt cache files: reading restores exactly what was written, and any damage is detected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.files.safetensors import INTEGERS, MAX_HEADER, TensorFile, write_tensors
from llmcli.model import cache as cache_module
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.storage import cache_file
from llmcli.storage.cache_file import Unusable, may_replace, read_cache, write_cache
from llmcli.storage.fingerprint import digest
from tests.tiny import TinyFactory, random_ids

COUNT = 60  # tokens, more than a window
FINGERPRINT = "a fingerprint"


class Written(NamedTuple):
    """A cache, the ids that it holds, and its file."""

    model: Transformer
    ids: list[int]
    cache: KVCache
    path: Path
    content: bytes


def filled(model: Transformer, count: int = COUNT) -> tuple[list[int], KVCache]:
    """``count`` random ids and the model's cache of them."""
    ids, cache = random_ids(count, seed=1), model.new_cache()
    cache.planned = count
    with torch.no_grad():
        for part in ids.split(6, dim=1):
            model.hidden(part, cache)
    return ids[0].tolist(), cache


def contents(cache: KVCache) -> list[tuple[int, Tensor, Tensor]]:
    return [cache.held(layer) for layer in cache.attending]


def assert_equal(a: KVCache, b: KVCache) -> None:
    assert (a.length, a.span) == (b.length, b.span)
    for (first, keys, values), (other, k, v) in zip(contents(a), contents(b), strict=True):
        assert first == other
        assert torch.equal(keys, k)
        assert torch.equal(values, v)


def fault(path: Path, model: Transformer, fingerprint: str = FINGERPRINT) -> str:
    """Why the file cannot be used, which it must not be."""
    with pytest.raises(Unusable) as caught:
        read_cache(path, model, fingerprint)
    return caught.value.fault


@pytest.fixture
def model(tiny: TinyFactory) -> Transformer:
    return tiny("gemma3_text").load()  # full and windowed layers


@pytest.fixture
def path(tmp_path: Path, model: Transformer) -> Path:
    ids, cache = filled(model)
    write_cache(tmp_path / "cache", ids, cache, FINGERPRINT)
    return tmp_path / "cache"


# Round trips


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "phi3-longrope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_bit_is_restored(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cache_module, "SPARE", 2)  # windowed layers drop old positions often
    model = tiny(name).load().to(dtype)
    ids, cache = filled(model)
    write_cache(tmp_path / "cache", ids, cache, FINGERPRINT)
    read, restored = read_cache(tmp_path / "cache", model, FINGERPRINT)
    assert read == ids
    assert_equal(restored, cache)
    assert (name == "phi3-longrope") == bool(restored.span)
    assert (name in ("mistral", "gemma3_text")) == any(first for first, _, _ in contents(cache))


def test_only_the_requested_positions_are_written(path: Path, model: Transformer) -> None:
    ids, cache = filled(model)
    write_cache(path, ids[: COUNT - 4], cache, FINGERPRINT)
    assert cache.length == COUNT
    read, restored = read_cache(path, model, FINGERPRINT)
    cache.truncate(COUNT - 4)
    assert read == ids[: COUNT - 4]
    assert_equal(restored, cache)


def test_the_safetensors_library_reads_it(path: Path, model: Transformer) -> None:
    ids, cache = filled(model)
    tensors = load_file(path)
    assert tensors.pop("ids").tolist() == ids
    assert tensors.pop("span").tolist() == [0]
    for layer, (first, keys, values) in enumerate(contents(cache)):
        assert torch.equal(tensors.pop(f"keys.{layer}"), keys[0])
        assert torch.equal(tensors.pop(f"values.{layer}"), values[0])
        assert keys.shape[2] == COUNT - first
    assert not tensors


def test_views_transposes_scalars_and_empty_tensors_are_written(tmp_path: Path) -> None:
    whole = torch.randn(6, 8).bfloat16()
    tensors = {"a": whole[1::2, :3], "b": whole.t().float(), "c": torch.tensor(7), "d": whole[:0], "é": torch.arange(3)}
    with (tmp_path / "x").open("wb") as file:
        write_tensors(file, tensors, {"b": "1", "a": "2"})
    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    written = TensorFile(tmp_path / "x", INTEGERS)
    assert written.metadata == {"b": "1", "a": "2"}
    assert all(entry.start % written.dtype(entry).itemsize == 0 for entry in written.entries.values())


# Unusable files


def test_another_model_dtype_or_version_is_reported(
    path: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault(path, model, "another") == "model"
    assert fault(path, model.to(torch.bfloat16), "another") == "dtype"
    monkeypatch.setattr(cache_file, "VERSION", "0")
    assert fault(path, model) == "version"


@pytest.fixture(scope="module")
def written(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A cache and the bytes of its file, written once for all examples."""
    model, path = tiny("gemma3_text").load(), tmp_path_factory.mktemp("written") / "cache"
    ids, cache = filled(model)
    write_cache(path, ids, cache, FINGERPRINT)
    return Written(model, ids, cache, path, path.read_bytes())


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), in_header=st.booleans())
@settings(max_examples=150)
def test_any_flipped_bit_is_detected(written: Written, where: float, bit: int, in_header: bool) -> None:
    data = bytearray(written.content)
    data[int(where * (1000 if in_header else len(data)))] ^= 1 << bit
    written.path.write_bytes(data)
    try:
        read, restored = read_cache(written.path, written.model, FINGERPRINT)
    except Unusable:
        return
    assert read == written.ids  # only the metadata's "format" may change unnoticed
    assert_equal(restored, written.cache)


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_file_truncated_anywhere_is_damaged(written: Written, fraction: float) -> None:
    written.path.write_bytes(written.content[: int(fraction * len(written.content))])
    assert fault(written.path, written.model) == "damaged"


def change_ids_entry(path: Path, **other: object) -> None:
    """Change the header's entry for the ids, without changing the data."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["ids"] |= other
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[end:])


@pytest.mark.parametrize(
    "other",
    [{"shape": [COUNT // 2, 2]}, {"dtype": "F64"}, {"dtype": "F32", "shape": [2 * COUNT]}, {"shape": [1]}],
    ids=str,
)
def test_a_changed_shape_or_dtype_is_damage(path: Path, model: Transformer, other: dict[str, object]) -> None:
    change_ids_entry(path)
    assert read_cache(path, model, FINGERPRINT)[0] == filled(model)[0]
    change_ids_entry(path, **other)
    assert fault(path, model) == "damaged"


CRAFTED: dict[str, dict[str, Tensor | None]] = {
    "no ids": {"ids": None},
    "no span": {"span": None},
    "no keys": {f"keys.{layer}": None for layer in range(9)},
    "no values of a layer": {"values.1": None},
    "an extra tensor": {"keys.99": torch.zeros(1)},
    "ids in rows": {"ids": torch.zeros(6, 10, dtype=torch.int64)},
    "a single id": {"ids": torch.tensor(3)},
    "ids of bytes": {"ids": torch.zeros(COUNT, dtype=torch.uint8)},
    "ids of floats": {"ids": torch.zeros(COUNT)},
    "more ids than keys": {"ids": torch.zeros(COUNT + 1, dtype=torch.int64)},
    "fewer ids than keys": {"ids": torch.zeros(5, dtype=torch.int64)},
    "two spans": {"span": torch.zeros(2, dtype=torch.int64)},
    "a span of floats": {"span": torch.zeros(1)},
    "a single key": {"keys.0": torch.tensor(1.0)},
    "other heads": {"keys.0": torch.zeros(1, COUNT, 3), "values.0": torch.zeros(1, COUNT, 3)},
    "no positions": {"keys.0": torch.zeros(1, 0, 8), "values.0": torch.zeros(1, 0, 8)},
    "another dtype": {"keys.0": torch.zeros(1, COUNT, 8, dtype=torch.float16)},
}


@pytest.mark.parametrize("craft", CRAFTED)
@pytest.mark.parametrize("fingerprint", [FINGERPRINT, "another"])
def test_a_crafted_file_with_the_right_digest_is_unusable(
    path: Path, model: Transformer, craft: str, fingerprint: str
) -> None:
    tensors = {**load_file(path), **CRAFTED[craft]}
    kept = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}  # not mapped to the file
    metadata = {**TensorFile(path).metadata, "digest": digest(kept)}
    with path.open("wb") as file:
        write_tensors(file, kept, metadata)
    assert fault(path, model, fingerprint) in (("model", "dtype") if fingerprint == "another" else ("damaged",))


@pytest.mark.parametrize("name", ["keys.0", "values.1"])
def test_a_crafted_file_with_nan_is_unusable(path: Path, model: Transformer, name: str) -> None:
    kept = {name: tensor.clone() for name, tensor in load_file(path).items()}
    kept[name][0, 1, 2] = float("nan")  # one value of a row: attention may turn it into zeros
    metadata = {**TensorFile(path).metadata, "digest": digest(kept)}
    with path.open("wb") as file:
        write_tensors(file, kept, metadata)
    assert fault(path, model) == "damaged"


def test_a_value_replaced_by_nan_is_damage(path: Path, model: Transformer) -> None:
    data = bytearray(path.read_bytes())
    data[-4:] = torch.tensor([float("nan")]).numpy().tobytes()
    path.write_bytes(data)
    assert fault(path, model) == "damaged"


def test_other_files_are_unusable_and_must_not_be_replaced(tmp_path: Path, model: Transformer) -> None:
    huge = (MAX_HEADER + 1).to_bytes(8, "little") + b"{" * 100
    for name, data in (("text", b"Once upon a time " * 9), ("short", b"x"), ("huge", huge), ("zeros", bytes(999))):
        (tmp_path / name).write_bytes(data)
        assert fault(tmp_path / name, model) == "damaged"
        assert not may_replace(tmp_path / name)
    save_file({"x": torch.zeros(3), "scalar": torch.tensor(1.0)}, tmp_path / "other", {"format": "pt"})
    assert fault(tmp_path / "other", model) == "version"
    assert not may_replace(tmp_path / "other")
    assert fault(tmp_path, model) == "damaged"
    assert fault(tmp_path / "none", model) == "damaged"


def test_own_files_may_be_replaced_even_if_damaged(path: Path, tmp_path: Path) -> None:
    assert may_replace(path)
    path.write_bytes(path.read_bytes()[:100])
    assert may_replace(path)
    path.write_bytes(b"")
    assert may_replace(path)


# Interrupted writes


def test_an_interrupted_write_leaves_the_old_file(
    path: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(file: BinaryIO, *rest: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    ids, cache = filled(model)
    monkeypatch.setattr(cache_file, "write_tensors", half)
    with pytest.raises(KeyboardInterrupt):
        write_cache(path, ids[:9], cache, FINGERPRINT)
    assert read_cache(path, model, FINGERPRINT)[0] == ids
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_process_killed_while_writing_leaves_the_old_file(path: Path, model: Transformer) -> None:
    """Its temporary file does not prevent the next write."""
    code = f"""
import os, pathlib, sys
from llmcli.storage import cache_file
class Half:
    def __init__(self, file): self.file, self.left = file, 3
    def write(self, data):
        self.file.write(data); self.file.flush(); self.left -= 1
        if not self.left: os._exit(9)
written = cache_file.write_tensors
cache_file.write_tensors = lambda file, *rest: written(Half(file), *rest)
ids, cache = cache_file.torch.load(sys.argv[2], weights_only=False)
cache_file.write_cache(pathlib.Path(sys.argv[1]), ids[:9], cache, {FINGERPRINT!r})
"""
    ids, cache = filled(model)
    arguments = path.parent / "arguments"
    torch.save((ids, cache), arguments)
    assert subprocess.run([sys.executable, "-c", code, path, arguments]).returncode == 9
    assert len(list(path.parent.iterdir())) == 3
    assert read_cache(path, model, FINGERPRINT)[0] == ids
    write_cache(path, ids[:9], cache, FINGERPRINT)
    assert read_cache(path, model, FINGERPRINT)[0] == ids[:9]
    assert {found.name for found in path.parent.iterdir()} == {path.name, "arguments"}


# Sabotage


def test_a_restore_without_the_first_positions_shows(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = KVCache.restore

    def forgetful(self: KVCache, *rest: object) -> None:
        real(self, *rest)  # type: ignore[arg-type]
        self._first = dict.fromkeys(self._first, 0)

    monkeypatch.setattr(cache_module, "SPARE", 2)
    monkeypatch.setattr(KVCache, "restore", forgetful)
    model = tiny("mistral").load()
    ids, cache = filled(model)
    write_cache(tmp_path / "cache", ids, cache, FINGERPRINT)
    with pytest.raises(AssertionError):
        assert_equal(read_cache(tmp_path / "cache", model, FINGERPRINT)[1], cache)


def test_without_the_digest_damage_is_not_detected(
    path: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = TensorFile(path).metadata["digest"]
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert fault(path, model) == "damaged"
    monkeypatch.setattr(cache_file, "digest", lambda tensors: stored)
    with pytest.raises(AssertionError):
        assert_equal(read_cache(path, model, FINGERPRINT)[1], filled(model)[1])
