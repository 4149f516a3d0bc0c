"""Models of other programs on this disk: ollama's store, llama.cpp's cache and LM Studio's folders."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from llmcli.hub import find, name_of, on_disk, parse_hub_name, programs
from llmcli.hub.remove import removable
from tests.conftest import alone
from tests.hub.test_hub import fails

KIND = "application/vnd.ollama.image."
links = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need privileges on Windows")


def gguf(**metadata: str | int) -> bytes:
    """A GGUF file without tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(metadata))
    for key, value in metadata.items():
        is_text = isinstance(value, str)
        data += text(key.replace("__", ".")) + struct.pack("<I", 8 if is_text else 4)
        data += text(str(value)) if is_text else struct.pack("<I", value)
    return data


FILE = gguf(general__architecture="llama", tokenizer__chat_template="{{ messages }}", general__file_type=15)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without models, whose folders are the default ones."""
    alone(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "user" / "local"))
    monkeypatch.setattr("llmcli.hub.ollama.SYSTEM_FOLDER", tmp_path / "service")
    return tmp_path / "user"


def ollama_model(store: Path, name: str = "registry.ollama.ai/library/llama3.2/1b", **blobs: Any) -> Path:
    """Write a model with these blobs, by kind, to a store. Returns the path of the last one."""
    layers = []
    path = store
    for kind, content in {"model": FILE, **blobs}.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        path = store / "blobs" / f"sha256-{digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        layers.append({"mediaType": KIND + kind, "digest": f"sha256:{digest}", "size": len(data)})
    write_manifest(store, {"schemaVersion": 2, "layers": layers}, name)
    return path


def write_manifest(store: Path, manifest: object, name: str = "registry.ollama.ai/library/llama3.2/1b") -> Path:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": f"sha256:{'0' * 64}"}
    path.write_text(json.dumps({"config": config, **manifest} if isinstance(manifest, dict) else manifest))
    return path


def names() -> list[str]:
    return [model.name for model in programs.models()]


@pytest.mark.parametrize(
    ("folder", "shown", "other"),
    [
        ("registry.ollama.ai/library/llama3.2/1b", "ollama:llama3.2:1b", "Ollama:LLAMA3.2:1B"),
        ("registry.ollama.ai/library/mistral/latest", "ollama:mistral:latest", "ollama:mistral"),
        ("registry.ollama.ai/me/mine/v1", "ollama:me/mine:v1", "ollama:me/mine:v1"),
        ("hf.co/me/mine-GGUF/Q8_0", "ollama:hf.co/me/mine-GGUF:Q8_0", "ollama:hf.co/me/mine-gguf:q8_0"),
        ("localhost:5000/me/mine/latest", "ollama:localhost:5000/me/mine:latest", "ollama:localhost:5000/me/mine"),
    ],
)
def test_an_ollama_model_is_found_by_its_name(home: Path, folder: str, shown: str, other: str) -> None:
    if sys.platform == "win32" and ":" in folder:
        pytest.skip("Windows has no such folders")
    blob = ollama_model(home / ".ollama" / "models", folder)
    assert names() == [shown]
    assert find(shown) == find(other) == blob
    assert name_of(blob) == name_of(find(str(blob))) == shown
    (model,) = programs.models()
    assert (model.where, model.family, model.format, model.bytes) == ("ollama", "llama", "GGUF Q4_K_M", len(FILE))


def test_the_store_is_where_ollama_is_told_or_where_its_service_keeps_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama_model(tmp_path / "service")
    assert names() == ["ollama:llama3.2:1b"]
    ollama_model(home / ".ollama" / "models", "registry.ollama.ai/library/own/1b")
    assert names() == ["ollama:own:1b"]
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "other"))
    assert names() == []
    error = fails(lambda: find("ollama:own:1b"))
    assert error.message == f"there is no model ollama:own:1b in {(tmp_path / 'other').resolve()}"
    ollama_model(tmp_path / "other", "registry.ollama.ai/library/third/1b")
    assert names() == ["ollama:third:1b"]


def test_what_ollama_adds_to_a_model_is_reported(home: Path) -> None:
    store, notes = home / ".ollama" / "models", list[str]()
    ollama_model(store, template=b"{{ .Prompt }}", license=b"MIT", params={"stop": ["</s>"]}, projector=b"GGUF")
    find("ollama:llama3.2:1b", note=notes.append)
    assert notes == []  # the file has a template and stop tokens of its own
    params = {"stop": ["x"], "temperature": 0.1, "num_ctx": 4096, "\x1b[31m": 1}
    bare = gguf(general__architecture="llama")
    ollama_model(store, model=bare, template=b"{{ .Prompt }}", system=b"You are Mario.", params=params)
    find("ollama:llama3.2:1b", note=notes.append)
    assert notes == [
        "ollama:llama3.2:1b: llmcli uses only the model's GGUF file, without the prompt template (the file has no chat "
        "template), the system prompt, the parameters num_ctx, temperature"
    ]
    ollama_model(store, params={"temperature": 0.1})
    find("ollama:llama3.2:1b", note=notes.append)
    assert notes[1:] == [
        "ollama:llama3.2:1b: llmcli uses only the model's GGUF file, without the parameter temperature"
    ]


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        ({"adapter": b"GGUF"}, "it is a model with a LoRA adapter for ollama"),
        ({"model": b"not one"}, "is not a GGUF file"),
        ({"model": b"version https://git-lfs.github.com/spec/v1"}, "a Git LFS pointer"),
        ({"model": b""}, "an empty file"),
    ],
)
def test_ollama_models_that_llmcli_cannot_open(home: Path, blobs: dict[str, bytes], message: str) -> None:
    ollama_model(home / ".ollama" / "models", **blobs)
    assert message in fails(lambda: find("ollama:llama3.2:1b")).message
    assert names() == []


DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"layers": [{"mediaType": KIND + "tensor", "digest": DIGEST}]}, "its weights are not in a GGUF file"),
        ({"layers": []}, "it has 0 GGUF files"),
        ({"layers": 3}, "it has 0 GGUF files"),
        ({"layers": [{"mediaType": KIND + "model", "digest": DIGEST}] * 2}, "it has 2 GGUF files"),
        ({"layers": [{"mediaType": KIND + "model", "digest": DIGEST}]}, "is missing"),
        ({"layers": [{"mediaType": KIND + "model", "digest": "sha256:../../../etc/passwd"}]}, "not the manifest"),
        ({"layers": [{"mediaType": KIND + "model", "digest": f"{DIGEST}\n"}]}, "not the manifest"),
        ({"layers": [{"mediaType": KIND + "model"}]}, "not the manifest"),
        ({"layers": [{"mediaType": 3, "digest": DIGEST}]}, "not the manifest"),
        ({"layers": ["x"]}, "not the manifest"),
        ({"layers": [], "config": 3}, "not the manifest"),
        ([1], "not a JSON object"),
        ("\ud800", "not a JSON object"),
    ],
)
def test_hostile_manifests_are_errors_of_one_line(home: Path, manifest: object, message: str) -> None:
    write_manifest(home / ".ollama" / "models", manifest)
    assert message in fails(lambda: find("ollama:llama3.2:1b")).message
    assert names() == []


@pytest.mark.parametrize("name", ["ollama:", "ollama:../../x", "ollama:a/b/c/d:e", "ollama:x:1:2", "ollama:\x00"])
def test_names_lead_to_nothing_outside_the_store(home: Path, name: str) -> None:
    ollama_model(home / ".ollama" / "models")
    (home / ".ollama" / "x").write_bytes(FILE)
    assert "there is no model" in fails(lambda: find(name)).message


@links
def test_links_that_form_a_loop_are_skipped(home: Path) -> None:
    store = home / ".ollama" / "models"
    ollama_model(store)
    library = store / "manifests" / "registry.ollama.ai" / "library"
    (library / "loop").symlink_to(library, target_is_directory=True)
    (library / "llama3.2" / "self").symlink_to(library / "llama3.2" / "self")
    for folder in (home / ".lmstudio" / "models", home / ".cache" / "llama.cpp"):
        folder.mkdir(parents=True)
        (folder / "loop").symlink_to(folder, target_is_directory=True)
        (folder / "a.gguf").symlink_to(folder / "a.gguf")
    assert names() == ["ollama:llama3.2:1b"]
    blob = find("ollama:llama3.2:1b")
    blob.unlink()
    blob.symlink_to(blob)
    assert "is missing" in fails(lambda: find("ollama:llama3.2:1b")).message


def write(path: Path, data: bytes = FILE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.resolve()


def test_files_in_llama_cpps_cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".cache" / "llama.cpp" / "org_name_M-Q8_0.gguf")
    write(home / "Library" / "Caches" / "llama.cpp" / "org_name_M-Q8_0.gguf")
    write(home / "local" / "llama.cpp" / "org_name_M-Q8_0.gguf")
    assert names() == ["llama.cpp:org_name_M-Q8_0.gguf"]
    cache = tmp_path / "cache"
    monkeypatch.setenv("LLAMA_CACHE", str(cache))
    first, _ = (write(cache / f"org_name_M-Q4_K_M-0000{number}-of-00002.gguf") for number in (1, 2))
    newer = write(cache / "models--org--name" / "snapshots" / ("a" * 40) / "M-Q6_K.gguf")
    for other in ("mmproj-org_name.gguf", "manifest=org=name=latest.json", "x-00001-of-00003.gguf"):
        write(cache / other)
    found = {model.name: (model.folder, model.format, model.bytes) for model in programs.models()}
    assert found == {
        f"llama.cpp:{first.name}": (first, "GGUF Q4_K_M", 2 * len(FILE)),
        "llama.cpp:org/name/M-Q6_K.gguf": (newer, "GGUF Q6_K", len(FILE)),
    }
    for name, (path, _, _) in found.items():
        assert find(name) == path
        assert name_of(path) == name
    error = fails(lambda: find("llama.cpp:org_name_M-Q4_K_M.gguf"))
    assert "there is no model llama.cpp:org_name_M-Q4_K_M.gguf in the folder of llama.cpp" in error.message
    assert first.name in error.hint


def test_files_in_lm_studios_folders(home: Path, tmp_path: Path) -> None:
    path = write(home / ".lmstudio" / "models" / "publisher" / "M-GGUF" / "M.gguf")
    older = write(home / ".cache" / "lm-studio" / "models" / "publisher" / "old" / "O-Q8_0.gguf")
    write(home / ".lmstudio" / "models" / "publisher" / "M-GGUF" / "mmproj-M.gguf")
    folder = write(home / ".lmstudio" / "models" / "publisher" / "M-MLX" / "config.json", b"{}").parent
    assert names() == ["lmstudio:M.gguf", "lmstudio:O-Q8_0.gguf"]
    write(folder / "model.safetensors", b"")
    chosen = write(tmp_path / "chosen" / "publisher" / "C" / "C-BF16.gguf")
    write(home / ".lmstudio" / "settings.json", json.dumps({"downloadsFolder": str(tmp_path / "chosen")}).encode())
    moved = write(tmp_path / "moved" / "models" / "publisher" / "P" / "P-F16.gguf")
    write(home / ".lmstudio-home-pointer", f"{tmp_path / 'moved'}\n".encode())
    found = {model.name: (model.folder, model.format) for model in programs.models()}
    assert found == {
        "lmstudio:P-F16.gguf": (moved, "GGUF F16"),
        "lmstudio:C-BF16.gguf": (chosen, "GGUF BF16"),
        "lmstudio:M.gguf": (path, "GGUF Q4_K_M"),  # as its metadata says
        "lmstudio:M-MLX": (folder, "safetensors"),
        "lmstudio:O-Q8_0.gguf": (older, "GGUF Q8_0"),
    }
    assert find("lmstudio:publisher/M-GGUF/M.gguf") == path
    assert find("lmstudio:publisher/M-MLX") == folder
    for name, (model, _) in found.items():
        assert find(name) == model
        assert name_of(model) == name
    assert [model.name for model in on_disk()][1:] == list(found)
    write(home / ".lmstudio" / "models" / "other" / "M-GGUF" / "M.gguf")
    assert {"lmstudio:other/M-GGUF/M.gguf", "lmstudio:publisher/M-GGUF/M.gguf"} < set(names())


def test_models_of_other_programs_are_neither_downloaded_nor_removed(home: Path) -> None:
    ollama_model(home / ".ollama" / "models")
    path = write(home / ".lmstudio" / "models" / "publisher" / "M-GGUF" / "M-Q8_0.gguf")
    error = fails(lambda: removable("ollama:llama3.2:1b"))
    assert error.message == "ollama:llama3.2:1b belongs to ollama: llmcli removes only what it downloads"
    assert error.hint == "remove it with `ollama rm`"
    assert "belongs to LM Studio" in fails(lambda: removable(str(path))).message
    assert "is not in the cache" in fails(lambda: removable(str(write(home / "own.gguf")))).message
    assert "is a model of ollama" in fails(lambda: parse_hub_name("ollama:llama3.2")).message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_folders_that_cannot_be_read_are_skipped(home: Path) -> None:
    folder = home / ".ollama" / "models" / "manifests"
    ollama_model(folder.parent)
    folder.chmod(0)
    try:
        assert names() == []
        assert "there is no model" in fails(lambda: find("ollama:llama3.2:1b")).message
    finally:
        folder.chmod(0o755)
