"""Names, the cache and downloads, against a hub on localhost that fails in every way a network can."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcli import hub as hub_module
from llmcli.errors import LlmcliError
from llmcli.files.sizes import readable
from llmcli.hub import cache, downloads
from llmcli.hub.names import HubName, parse
from llmcli.hub.remove import removable, remove
from tests.hub_server import Hub

find = hub_module.find
WEIGHTS = bytes(range(256)) * 400
LARGE = bytes(range(256)) * 12_000  # enough that a broken connection is resumed at once
FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
AWQ = b'{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}'
INDEX = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
SHARDED = {
    "config.json": FILES["config.json"],
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": INDEX,
    "model-1-of-2.safetensors": b"one",
    "model-2-of-2.safetensors": b"three",
}


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def partials() -> list[Path]:
    return list(cache.cache_folder().glob("*/blobs/*.incomplete"))


def fails(call: Callable[[], Any]) -> LlmcliError:
    """Return the error that ``call`` raises, which must be one line and have a hint."""
    with pytest.raises(LlmcliError) as caught:
        call()
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name", "main")),
        ("Org-1/na.me_2@v1.0", HubName("Org-1/na.me_2", "v1.0")),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("org/name@" + "a" * 40, HubName("org/name", "a" * 40)),
    ],
)
def test_hub_names_are_parsed(text: str, name: HubName) -> None:
    assert parse(text) == name
    assert str(name) == text
    assert str(HubName("org/name", "main")) == "org/name"


@pytest.mark.parametrize(
    "name",
    [
        "../../no-such-etc",
        "org/../x",
        "org/..",
        "a/b/c",
        "/org/name",
        "@",
        "@main",
        "org/name@",
        "org/name@../../x",
        "org/name@/etc",
        "org/name@a//b",
        "org/name@a b",
        "org/na me",
        " org/name",
        "org/-name",
        "org/a--b",
        "org/x.git",
        "órg/name",
        "\udcff/name",
        "org/a\0b",
        "org/" + "x" * 97,
        "x" * 5000,
        "~no-such-user/x",
        "C:\\models\\x",
    ],
)
def test_invalid_names_are_rejected_without_a_request(hub: Hub, name: str) -> None:
    assert parse(name) is None
    error = fails(lambda: find(name))
    assert "there is no " in error.message
    assert len(error.message) < 300
    assert not hub.log
    assert not cache.cache_folder().exists()


def test_a_name_without_an_organization_is_resolved_by_the_hub(hub: Hub) -> None:
    assert fails(lambda: find("nowhere")).message.startswith("there is no model nowhere")
    hub.add(FILES, "first-org/gpt2")
    hub.renamed["gpt2"] = "first-org/gpt2"
    hub.renamed["bert"] = "first-org/gpt2"
    assert find("bert").parents[1].name == "models--bert"  # although a part of another model's name
    folder = find("gpt2")
    assert folder.parents[1].name == "models--gpt2"  # as huggingface_hub caches it
    assert cache.name_of(folder) == "gpt2"
    hub.log.clear()
    assert find("gpt2") == folder
    assert not hub.log
    assert "there is no model nowhere" in fails(lambda: find("nowhere", offline=True)).message


def test_the_old_name_of_a_model_on_disk_causes_no_request(hub: Hub) -> None:
    hub.add(FILES, "openai-community/gpt2")
    folder = find("openai-community/gpt2")
    hub.log.clear()
    assert find("gpt2") == folder
    assert str(hub_module.parse_hub_name("gpt2")) == removable("gpt2").name == "openai-community/gpt2"
    assert not hub.log


def test_a_model_without_an_organization_in_the_cache(hub: Hub) -> None:
    folder = cache.repo_folder("gpt2") / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / file).write_text("{}")
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("a" * 40)
    assert find("gpt2") == folder
    assert cache.name_of(folder) == "gpt2"
    assert removable("gpt2").folder == folder
    assert not hub.log


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_an_error(name: str) -> None:
    assert "empty" in fails(lambda: find(name)).message


def test_a_name_has_no_line_end() -> None:
    assert parse("org/name\n") is parse("org/name@v1\n") is parse("org/name:Q4\n") is parse("org/name/a.gguf\n") is None


def test_a_folder_takes_precedence_over_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES)
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find("org/name") == (tmp_path / "org" / "name").resolve()
    assert not hub.log


def test_the_path_of_weights_names_their_folder(tmp_path: Path) -> None:
    shard = "model-1-of-2.safetensors"
    for name in ("model.safetensors", "model.safetensors.index.json", shard, "weights.gguf"):
        (tmp_path / name).touch()
    assert find(str(tmp_path / "model.safetensors")) == tmp_path.resolve()
    assert find(str(tmp_path / "model.safetensors.index.json")) == tmp_path.resolve()
    assert find(str(tmp_path / "weights.gguf")) == (tmp_path / "weights.gguf").resolve()
    assert find(str(tmp_path / shard)) == tmp_path.resolve()
    (tmp_path / "notes.txt").write_text("notes")
    assert "is neither a model folder nor a GGUF file" in fails(lambda: find(str(tmp_path / "notes.txt"))).message


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("pytorch_model.bin", "pickled"),
        ("model.pt", "pickled"),
        ("last.CKPT", "pickled"),
        ("tf_model.h5", "Keras"),
        ("model.keras", "Keras"),
        ("model.onnx", "ONNX"),
        ("flax_model.msgpack", "TensorFlow or Flax"),
        ("ggml-model-q4_0.bin", "GGML, the format before GGUF"),
    ],
)
def test_weights_in_another_format_are_named(tmp_path: Path, name: str, format: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    for path in (tmp_path, tmp_path / name):
        error = fails(lambda path=path: find(str(path)))  # type: ignore[misc]
        assert f"the weights are {format} ({name}), and llmcli reads only safetensors and GGUF files" in error.message
        assert "safetensors" in error.hint
    (tmp_path / "config.json").touch()
    assert find(str(tmp_path)) == tmp_path.resolve()  # its tokenizer can be used


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
        (b"PK\x03\x04", "a file of pickled weights"),
        (b"tjgg", "a GGML file"),
        (b"", "an empty file"),
        (b"text", "is neither a model folder nor a GGUF file"),
    ],
)
def test_a_file_without_a_suffix_is_recognized_by_its_beginning(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "x").write_bytes(start)
    assert what in fails(lambda: find(str(tmp_path / "x"))).message
    (tmp_path / "x").write_bytes(b"GGUF")
    assert find(str(tmp_path / "x")) == (tmp_path / "x").resolve()


@pytest.mark.parametrize("name", ["./nosuchdir", "../x", "/no/such/folder", "~/no such folder", "a/b/c", "models/"])
def test_a_path_that_does_not_exist(hub: Hub, name: str) -> None:
    assert fails(lambda: find(name)).message == f"there is no folder {name}"
    assert not hub.log


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GPT2-XL@main", "openai-community/gpt2-xl"),
        ("distilgpt", "distilbert/distilgpt2"),
        ("name", "org/name"),
        ("llama-tales-12", "llama-tales-12m"),
        ("https://huggingface.co/openai-community/gpt2/tree/main", "openai-community/gpt2"),
        ("hf.co/org/name", "org/name"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("https://huggingface.co/org/name/blob/main/BF16/a.gguf?x", "org/name/BF16/a.gguf"),
        ("https://huggingface.co/org/name/resolve/main/a.gguf", "org/name/a.gguf"),
    ],
)
def test_a_similar_name_is_suggested(hub: Hub, name: str, meant: str) -> None:
    hub.add(FILES)
    find("org/name")
    hub.log.clear()
    error = fails(lambda: find(name))
    assert error.message == f"there is no model {name}"
    assert meant in error.hint.replace("?", "").split()
    assert not hub.log


# What is downloaded


def test_only_the_files_of_the_model_are_downloaded(hub: Hub) -> None:
    others = [
        "README.md",
        "modeling_x.py",
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "consolidated.safetensors",
        "model-1-of-2.safetensors",
        "model.safetensors.index.json",
        "original/config.json",
        "onnx/tokenizer.json",
        "training_args.bin",
    ]
    small = [
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    ]
    repo = hub.add(FILES | {name: name.encode() for name in (*others, *small)})
    folder = find("org/name")
    assert folder.name == repo.commit
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES | {n: n.encode() for n in small}
    requested = {request.path for request in hub.log}
    assert not [path for path in requested if path.endswith(tuple(others))]


def test_shards(hub: Hub) -> None:
    hub.add(SHARDED | {"consolidated.safetensors": b"x", "model-3-of-2.safetensors": b"x"})
    assert names_in(find("org/name")) == set(SHARDED)


def test_an_adapter_can_be_downloaded(hub: Hub) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    hub.add(files | {"adapter_model.bin": b"x"})
    assert names_in(find("org/name")) == set(files)
    before = len(hub.log)
    find("org/name")
    assert len(hub.log) == before


def without(name: str, **more: bytes) -> dict[str, bytes]:
    return {file: data for file, data in FILES.items() if file != name} | more


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        (without("model.safetensors", **{"pytorch_model.bin": b"x"}), "its weights are pickled (pytorch_model.bin)"),
        (without("model.safetensors", **{"mmproj-F16.gguf": b"x"}), "its weights are GGUF (mmproj-F16.gguf)"),
        (without("model.safetensors", **{"consolidated.safetensors": b"x"}), "its weights are in Mistral's own layout"),
        (without("model.safetensors"), "it contains no model.safetensors"),
        (without("config.json"), "it contains no config.json"),
        (FILES | {"config.json": b'{"model_type": "martian"}'}, "model_type 'martian' is not supported"),
        (
            FILES | {"config.json": b'{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}'},
            "cannot open weights quantized by AWQ",
        ),
        (FILES | {"config.json": b"["}, "config.json is not a JSON object"),
        (FILES | {"config.json": b"[]"}, "config.json is not a JSON object"),
        (SHARDED | {"model.safetensors.index.json": b"{}"}, "lists no shards"),
        (SHARDED | {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "lists no shards"),
        (
            SHARDED | {"model.safetensors.index.json": b'{"weight_map": {"a": "no.safetensors"}}'},
            "which does not exist",
        ),
    ],
)
def test_weights_of_unusable_models_are_not_downloaded(hub: Hub, files: dict[str, bytes], fragment: str) -> None:
    hub.add(files)
    error = fails(lambda: find("org/name"))
    assert error.message.startswith("org/name cannot be used: ")
    assert fragment in error.message
    assert not [request for request in hub.log if request.path.endswith((".safetensors", ".bin", ".gguf"))]
    assert not list(cache.models())


# The cache


def test_a_cached_model_needs_no_network(hub: Hub) -> None:
    for revision in ("main", "v1"):
        hub.add(FILES | {"merges.txt": revision.encode()}, refs=(revision,))
    commit = hub.repos["org/name"][1].commit
    folders = [find("org/name"), find("org/name@v1")]
    hub.log.clear()
    assert [find("org/name"), find("org/name@v1")] == folders
    assert find("org/name@main") == folders[0]
    assert find(f"org/name@{commit}") == folders[1]
    assert not hub.log


def test_a_cached_model_needs_no_huggingface_hub(hub: Hub) -> None:
    hub.add(FILES)
    find("org/name")
    code = "import sys; from llmcli.hub import find; find('org/name'); assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("files", [FILES, SHARDED], ids=["one file", "shards"])
def test_only_missing_files_are_downloaded(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(files)
    folder = find("org/name")
    for name in files:
        (folder / name).resolve().unlink()
        hub.log.clear()
        assert hub_module.find_here("org/name") is None
        find("org/name")
        assert [request.path.rpartition("/")[2] for request in hub.log] == ["main", name]
        assert (folder / name).read_bytes() == files[name]


def test_weights_may_have_a_name_of_their_own(hub: Hub) -> None:
    """As old programs for GPTQ give it, with the settings in another file."""
    extra = {"gptq_model-4bit-128g.safetensors": WEIGHTS, "quantize_config.json": b'{"bits": 4}'}
    hub.add(without("model.safetensors", **extra))
    folder = find("org/name")
    assert names_in(folder) == {"config.json", "tokenizer.json", *extra}
    hub.log.clear()
    assert find("org/name") == folder
    assert not hub.log


def test_a_model_without_tokenizer_json_is_complete_without_it(hub: Hub) -> None:
    hub.add(without("tokenizer.json", **{"tokenizer.model": b"x"}))
    find("org/name")
    hub.log.clear()
    find("org/name")
    assert not hub.log


def test_huggingface_hub_and_llmcli_read_each_others_downloads(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

    repo = hub.add(FILES)
    theirs = hub.add(FILES, "org/theirs")
    folder = find("org/name")
    where = cache.cache_folder()
    assert try_to_load_from_cache("org/name", "config.json", cache_dir=where) == str(folder / "config.json")
    scan = scan_cache_dir(where)
    assert not scan.warnings
    (known,) = scan.repos
    assert (known.repo_id, known.size_on_disk) == ("org/name", sum(map(len, FILES.values())))
    assert known.refs["main"].commit_hash == repo.commit
    for name in FILES:
        hf_hub_download("org/theirs", name, cache_dir=where, endpoint=hub.url)
    hub.log.clear()
    assert find("org/theirs").name == theirs.commit
    assert not hub.log


def test_the_cache_folder_is_that_of_huggingface_hub(tmp_path: Path) -> None:
    code = """
import importlib, itertools, os
from pathlib import Path
from huggingface_hub import constants
from llmcli.hub.cache import cache_folder
names = ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"]
for values in itertools.product([None, "~/x", "$HOME/y"], repeat=len(names)):
    for name, value in zip(names, values):
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value + name
    importlib.reload(constants)
    assert cache_folder() == Path(constants.HF_HUB_CACHE).resolve(), values
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HOME": str(tmp_path)})


def test_without_symlinks_the_snapshot_holds_the_files_themselves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    hub.add(FILES)
    hub.cut["model.safetensors"] = 1000
    fails(lambda: find("org/name"))
    folder = find("org/name")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert not list(folder.parents[1].glob("blobs/*"))
    hub.log.clear()
    assert find("org/name") == folder
    assert not hub.log
    assert remove(removable("org/name")) == sum(map(len, FILES.values()))
    assert not folder.exists()


def test_finding_a_model_records_its_use(hub: Hub) -> None:
    hub.add(FILES)
    os.utime(find("org/name"), (1000, 1000))
    assert [model.last_use for model in cache.models()] == [1000]
    find("org/name")
    (model,) = cache.models()
    assert model.last_use is not None
    assert model.last_use > 1000


# Updates


def test_only_download_looks_for_a_newer_version(hub: Hub) -> None:
    hub.add(FILES)
    old = find("org/name")
    new = hub.add(FILES | {"config.json": b'{"model_type": "gpt2"}'})
    assert find("org/name") == old
    hub.log.clear()
    folder = hub_module.download(HubName("org/name"))
    assert folder.name == new.commit
    assert find("org/name") == folder
    assert [request.path.rpartition("/")[2] for request in hub.log] == ["main", "config.json"]


def test_an_interrupted_update_keeps_the_old_model(hub: Hub) -> None:
    hub.add(FILES)
    old = find("org/name")
    hub.add(FILES | {"model.safetensors": WEIGHTS + b"new"})
    hub.cut["model.safetensors"] = 10
    fails(lambda: hub_module.download(HubName("org/name")))
    hub.log.clear()
    assert find("org/name") == old
    assert not hub.log


# Interruptions


def test_an_interrupted_download_is_incomplete_and_can_be_resumed(hub: Hub) -> None:
    hub.add(FILES)
    hub.cut["model.safetensors"] = 60_000
    error = fails(lambda: find("org/name"))
    assert "the connection to 127.0.0.1 failed" in error.message
    assert [path.stat().st_size for path in partials()] == [60_000]
    assert hub_module.find_here("org/name") is None
    assert [(model.state, model.name) for model in cache.models()] == [("incomplete", "org/name")]
    folder = find("org/name")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    first, second = hub.requests_for("model.safetensors")
    assert second.headers["range"] == "bytes=60000-"
    assert first.sent + second.sent == len(WEIGHTS)
    assert len(hub.requests_for("config.json")) == len(hub.requests_for("tokenizer.json")) == 1
    assert not partials()


def test_ctrl_c_keeps_the_received_bytes(hub: Hub) -> None:
    hub.add(FILES)

    def progress(done: int, total: int) -> None:
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find("org/name", progress=progress)
    (kept,) = [path.stat().st_size for path in partials()]
    assert kept > 0
    find("org/name")
    assert hub.requests_for("model.safetensors")[1].headers["range"] == f"bytes={kept}-"


def test_a_connection_that_breaks_after_much_data_is_resumed_at_once(hub: Hub) -> None:
    hub.add(FILES | {"model.safetensors": LARGE})
    hub.cut["model.safetensors"] = 2_000_000
    folder = find("org/name")
    assert (folder / "model.safetensors").read_bytes() == LARGE
    assert sum(request.sent for request in hub.requests_for("model.safetensors")) == len(LARGE)


def test_a_server_without_range_requests_sends_the_whole_file_again(hub: Hub) -> None:
    hub.add(FILES)
    hub.cut["model.safetensors"] = 60_000
    fails(lambda: find("org/name"))
    hub.ranges = False
    seen: list[tuple[int, int]] = []
    folder = find("org/name", progress=lambda done, total: seen.append((done, total)))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1][0] == seen[-1][1]


def test_progress_counts_the_whole_model(hub: Hub) -> None:
    hub.add(FILES)
    hub.cut["model.safetensors"] = 60_000
    seen: list[tuple[int, int]] = []
    fails(lambda: find("org/name", progress=lambda done, total: seen.append((done, total))))
    stopped = seen[-1][0]
    seen.clear()
    find("org/name", progress=lambda done, total: seen.append((done, total)))
    total = sum(map(len, FILES.values()))
    assert seen[0] == (stopped, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    seen.clear()
    hub_module.download(HubName("org/name"), lambda done, total: seen.append((done, total)))
    assert not seen


def test_two_downloads_at_once_fetch_each_file_once(hub: Hub) -> None:
    hub.add(FILES | {"model.safetensors": LARGE})
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(find("org/name"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert (found[0] / "model.safetensors").read_bytes() == LARGE
    assert len(hub.requests_for("model.safetensors")) == 1


# Checksums


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_a_wrong_checksum_is_reported_and_deleted(hub: Hub, name: str) -> None:
    hub.add(FILES)
    hub.damaged.add(name)
    error = fails(lambda: find("org/name"))
    assert f"{name} was damaged" in error.message
    assert not partials()
    assert hub_module.find_here("org/name") is None
    hub.damaged.clear()
    assert (find("org/name") / name).read_bytes() == FILES[name]


def test_a_damaged_partial_file_is_detected_when_resumed(hub: Hub) -> None:
    hub.add(FILES)
    hub.cut["model.safetensors"] = 60_000
    fails(lambda: find("org/name"))
    partials()[0].write_bytes(b"x" * 60_000)
    assert "was damaged" in fails(lambda: find("org/name")).message
    assert (find("org/name") / "model.safetensors").read_bytes() == WEIGHTS


# Errors of the server


SIBLING = {"rfilename": "config.json", "size": 1, "blobId": "0" * 40}


def refused(hub: Hub, name: str = "org/name") -> LlmcliError:
    error = fails(lambda: find(name))
    assert "hf_" not in str(error)
    assert not partials()
    return error


def test_a_hub_that_redirects_in_a_circle_is_an_error(hub: Hub) -> None:
    hub.circular = True
    assert "the connection to 127.0.0.1 failed" in refused(hub).message


def test_gated_models_need_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES, gated=True)
    error = refused(hub)
    assert "license" in error.message
    assert "127.0.0.1/org/name" in error.hint
    assert "HF_TOKEN" in error.hint
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    find("org/name")


def test_private_and_missing_models_give_the_same_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES, private=True)
    for name in ("org/name", "org/other"):
        error = refused(hub, name)
        assert f"there is no model {name}" in error.message
        assert "HF_TOKEN" in error.hint
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    find("org/name")


def test_the_token_is_not_sent_to_other_hosts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES, gated=True)
    hub.redirects = True
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    find("org/name")
    tokens = {request.path.startswith("/cdn"): request.headers.get("authorization") for request in hub.log}
    assert tokens == {False: "Bearer hf_right", True: None}


def test_a_missing_revision_is_an_error(hub: Hub) -> None:
    hub.add(FILES)
    assert "has no revision v9" in refused(hub, "org/name@v9").message


@pytest.mark.parametrize(
    ("status", "fragment", "hint"),
    [
        (400, "status 400", "try again"),
        (403, "denies access to org/name", "HF_TOKEN"),
        (404, "status 404", "try again"),
        (429, "too many requests", "wait"),
        (500, "status 500", "try again"),
        (503, "status 503", "try again"),
    ],
)
def test_each_error_status_has_its_hint(hub: Hub, status: int, fragment: str, hint: str) -> None:
    hub.status = status
    error = refused(hub)
    assert fragment in error.message
    assert hint in error.hint


def test_a_rejected_token_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status, hub.reason = 401, "Invalid credentials in Authorization header"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token" in refused(hub).message


@pytest.mark.parametrize("token", ["hf_se\x0bcret", "hf_secrét"])
def test_a_token_with_invalid_characters_is_an_error_that_hides_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = refused(hub)
    assert "contains invalid characters" in error.message
    assert error.__cause__ is None  # it names the token, and --verbose prints causes
    assert error.__suppress_context__


@pytest.mark.parametrize(
    "body",
    [
        b"<html>log in</html>",
        b"[]",
        b"{}",
        b"\xff",
        b'{"id": "org/name", "sha": "../../x", "siblings": []}',
        b'{"id": "org/name", "sha": null, "siblings": []}',
        json.dumps(
            {"id": "x", "sha": "a" * 40, "siblings": [{"rfilename": "config.json", "size": 1, "blobId": "../x"}]}
        ).encode(),
        b'{"id": "org/name", "sha": ' + b"[" * 10**5,
        *(
            json.dumps({"id": "x", "sha": "a" * 40, "siblings": [SIBLING | other]}).encode()
            for other in ({"size": "12"}, {"size": -1}, {"size": 1e300}, {"size": 10**30}, {"size": [1]})
        ),
        *(
            json.dumps({"id": "x", "sha": "a" * 40, "siblings": siblings}).encode()
            for siblings in ([SIBLING | {"rfilename": 3}], [SIBLING | {"lfs": {"sha256": 5}}], [1], {"a": 1}, 7)
        ),
    ],
)
def test_a_server_that_is_not_a_hub_is_an_error(hub: Hub, body: bytes) -> None:
    hub.body = body
    assert "does not respond like a model hub" in refused(hub).message


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "http://[bad", "ftp://x"])
def test_a_failed_connection_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert "connection" in refused(hub).message


def test_a_server_that_never_responds_times_out(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.add(FILES)
    hub.stall["listing"] = 0
    assert "did not respond in time" in refused(hub).message


@pytest.mark.parametrize("path", ["/api/", "/resolve/"])
def test_a_hub_that_only_says_continue_times_out(hub: Hub, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    hub.add(FILES)
    hub.continuing = path
    with monkeypatch.context() as patch:
        patch.setattr("llmcli.hub.responses.PATIENCE", 0.02)
        assert "did not respond in time" in refused(hub).message
    hub.continuing = ""
    find("org/name")  # a new connection


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"MAX_LISTING": 1 << 20}, "does not respond like a model hub"),
        ({"MAX_LISTING": 1 << 40, "PATIENCE": 0.01}, "did not respond in time"),
    ],
)
def test_a_list_of_files_that_never_ends_is_an_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], message: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(f"llmcli.hub.responses.{name}", value)
    hub.endless = True
    assert message in refused(hub).message


def test_a_file_of_the_wrong_length_is_an_error(hub: Hub) -> None:
    hub.add(FILES)
    hub.short["model.safetensors"] = 40_000
    assert "sent only 40000 of the 102400 bytes of model.safetensors" in fails(lambda: find("org/name")).message
    assert [path.stat().st_size for path in partials()] == [40_000]
    hub.short.clear()
    hub.long["model.safetensors"] = 1 << 23
    seen: list[int] = []
    error = fails(lambda: find("org/name", progress=lambda done, total: seen.append(done)))
    assert "was damaged" in error.message
    assert len(WEIGHTS) < max(seen) < 1 << 23  # the download stopped before the end
    assert not partials()


def test_a_stalled_download_times_out_and_keeps_the_received_bytes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add(FILES)
    hub.stall["model.safetensors"] = 40_000
    error = fails(lambda: find("org/name"))
    assert "did not respond in time" in error.message
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in error.hint
    assert [path.stat().st_size for path in partials()] == [40_000]


@pytest.mark.parametrize("variable", ["", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    hub.add(FILES)
    if variable:
        monkeypatch.setenv(variable, "yes")
    error = fails(lambda: find("org/name", offline=not variable))
    assert "offline" in error.message
    assert "llmcli pull org/name" in error.hint
    assert not hub.log
    folder = hub_module.download(HubName("org/name"))
    hub.log.clear()
    assert find("org/name", offline=not variable) == folder
    assert not hub.log


# Disk space


def test_too_little_disk_space_is_an_error_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=70_000))
    error = fails(lambda: find("org/name"))
    assert "org/name needs 102 kB more" in error.message
    assert "has 70.0 kB free" in error.message
    assert not hub.requests_for("model.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=103_000))
    find("org/name")


class FullDisk:
    """A file on a disk with ``room`` for that many more bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file = file
        self.room = room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.room -= self.file.write(data[: self.room])
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_received_bytes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES)
    opened = downloads.Download._opened
    monkeypatch.setattr(downloads.Download, "_opened", lambda self, part: FullDisk(opened(self, part), 30_000))
    error = fails(lambda: find("org/name"))
    assert "no space left" in error.message
    assert [path.stat().st_size for path in partials()] == [30_000]
    monkeypatch.setattr(downloads.Download, "_opened", opened)
    assert (find("org/name") / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.requests_for("model.safetensors")[1].headers["range"] == "bytes=30000-"


def test_an_unwritable_cache_is_an_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(FILES)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    error = fails(lambda: find("org/name"))
    assert str(tmp_path / "file") in error.message
    assert "HF_HOME" in error.hint


# Listing and removal


def test_only_models_are_listed_with_their_state(hub: Hub) -> None:
    hub.add(FILES)
    find("org/name")
    for repo, names in {
        "models--org--pickled": ["config.json", "pytorch_model.bin"],
        "models--org--tokenizer-alone": ["config.json", "tokenizer.json"],
        "models--org--gguf": ["x.gguf"],
        "models--gpt2": ["config.json", "tokenizer.json", "model.safetensors"],
        "datasets--org--name": ["config.json"],
    }.items():
        folder = cache.cache_folder() / repo / "snapshots" / hashlib.sha1(repo.encode()).hexdigest()
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(b"[]")
    (find("org/name") / "config.json").write_bytes(AWQ)
    formats = {model.name.partition("@")[0]: model.format for model in cache.models()}
    assert formats == {
        "org/name": "safetensors awq",
        "org/pickled": "",
        "org/gguf": "GGUF",
        "org/tokenizer-alone": "",
        "gpt2": "safetensors",
    }
    states = {model.name.partition("@")[0]: (model.state, model.family) for model in cache.models()}
    assert states == {
        "org/name": ("complete", "llama"),
        "org/pickled": ("no safetensors", None),
        "org/gguf": ("complete", None),
        "org/tokenizer-alone": ("incomplete", None),
        "gpt2": ("complete", None),
    }


def test_every_listed_name_can_be_found_and_removed(hub: Hub) -> None:
    for revision in ("main", "v1", "old"):
        hub.add(FILES | {"merges.txt": revision.encode()}, refs=(revision,))
    commit = hub.repos["org/name"][2].commit
    for name in ("org/name", "org/name@v1", f"org/name@{commit}"):
        find(name)
    names = [model.name for model in cache.models()]
    assert sorted(names) == sorted(["org/name", "org/name@v1", f"org/name@{commit}"])
    hub.log.clear()
    assert [find(model.name) for model in cache.models()] == [model.folder for model in cache.models()]
    assert not hub.log
    for name in names:
        remove(removable(name))
    assert not list(cache.models())
    assert not list(cache.cache_folder().glob("models--*"))


def test_removal_keeps_files_that_other_models_use(hub: Hub) -> None:
    hub.add(FILES)
    hub.add(FILES | {"merges.txt": b"x" * 100}, refs=("v1",))
    hub.add(FILES, "org/copy")  # the same commit, like a copy on the hub
    for name in ("org/name", "org/name@v1", "org/copy"):
        find(name)
    assert remove(removable("org/name@v1")) == 100
    hub.log.clear()
    assert {path.name: path.read_bytes() for path in find("org/name").iterdir()} == FILES
    assert remove(removable("org/name")) == sum(map(len, FILES.values()))
    find("org/copy")
    assert not hub.log


def test_an_interrupted_download_can_be_removed(hub: Hub) -> None:
    hub.add(FILES)
    hub.cut["model.safetensors"] = 60_000
    fails(lambda: find("org/name"))
    model = removable("org/name")
    size = 60_000 + len(FILES["config.json"]) + len(FILES["tokenizer.json"])
    assert model.bytes == size
    assert remove(model) == size
    assert not list(cache.cache_folder().glob("models--*"))


def damage_ref(repo: Path) -> None:
    (repo / "refs" / "gone").write_text("0" * 40)  # a revision whose snapshot is not there


def damage_snapshots(repo: Path) -> None:
    (repo / "snapshots" / "file").touch()


@pytest.mark.parametrize("damage", [damage_ref, damage_snapshots])
def test_removal_from_a_damaged_repo_frees_what_it_reports(hub: Hub, damage: Callable[[Path], None]) -> None:
    """huggingface_hub does not find such a repo; other revisions keep their files."""
    hub.add(FILES)
    hub.add(FILES | {"merges.txt": b"x" * 100}, refs=("v1",))
    for name in ("org/name", "org/name@v1"):
        find(name)
    repo = cache.repo_folder("org/name")
    damage(repo)
    before = sum(path.stat().st_size for path in repo.glob("blobs/*"))
    assert remove(removable("org/name@v1")) == 100
    assert sum(path.stat().st_size for path in repo.glob("blobs/*")) == before - 100
    assert {path.name: path.read_bytes() for path in find("org/name", offline=True).iterdir()} == FILES
    assert not (repo / "refs" / "v1").exists()
    assert remove(removable("org/name")) == sum(map(len, FILES.values()))
    assert not any(repo.glob("blobs/*"))


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need privileges on Windows")
def test_a_link_in_place_of_a_partial_download_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    hub.add(FILES)
    (tmp_path / "precious").write_bytes(b"precious")
    part = cache.repo_folder("org/name") / "blobs" / f"{hashlib.sha256(WEIGHTS).hexdigest()}.incomplete"
    part.parent.mkdir(parents=True)
    part.symlink_to(tmp_path / "precious")
    assert (find("org/name") / "model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_an_incomplete_model_can_be_removed(hub: Hub) -> None:
    hub.add(FILES)
    (find("org/name") / "tokenizer.json").resolve().unlink()
    folder = removable("org/name").folder
    remove(removable("org/name"))
    assert not folder.exists()


def test_only_models_in_the_cache_can_be_removed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "is not in the cache" in fails(lambda: removable(str(tmp_path / "mine"))).message
    assert "ships with llmcli" in fails(lambda: removable(hub_module.default_model())).message
    assert "is not on disk" in fails(lambda: removable("org/name")).message
    assert "there is no folder" in fails(lambda: removable("../../no-such-etc")).message
    hub.add(FILES)
    folder = find("org/name")
    assert removable(str(folder)).folder == folder


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_951, "100 kB"),
        (999_600, "1.0 MB"),
        (269_060_552, "269 MB"),
        (16_000_000_000, "16.0 GB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_are_rounded_for_readers(count: int, text: str) -> None:
    assert readable(count) == text
