"""GGUF files of the hub: which one a name means, and that they are downloaded, listed and removed like other models."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.errors import LlmcliError
from llmcli.hub import cache, download, find, find_here, name_of
from llmcli.hub.gguf_names import choose, label_of, models_among
from llmcli.hub.names import HubName, parse
from llmcli.hub.remove import removable, remove
from tests.hub.test_hub import FILES, LARGE, fails, names_in, partials
from tests.hub_server import Hub

REPO = {
    "README.md": b"read me",
    "config.json": b"{}",
    "M-Q8_0.gguf": b"GGUF" + bytes(100),
    "M-Q4_K_M.gguf": b"GGUF" + bytes(200),
    "M-UD-Q4_K_M.gguf": b"GGUF" + bytes(250),
    "mmproj-F16.gguf": b"GGUF" + bytes(50),
    "BF16/M-BF16-00001-of-00002.gguf": b"GGUF" + bytes(300),
    "BF16/M-BF16-00002-of-00002.gguf": b"GGUF" + bytes(301),
}
FIRST, SECOND = (name for name in REPO if name.startswith("BF16"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name:Q4_K_M", HubName("org/name", "main", "Q4_K_M")),
        ("org/name@v1:q8_0", HubName("org/name", "v1", "q8_0")),
        ("org/name/a.gguf", HubName("org/name", "main", "a.gguf")),
        ("org/name/BF16/A b-1.GGUF", HubName("org/name", "main", "BF16/A b-1.GGUF")),
        ("org/name@refs/pr/1:BF16/a.gguf", HubName("org/name", "refs/pr/1", "BF16/a.gguf")),
        ("org/name:a.gguf", HubName("org/name", "main", "a.gguf")),
        ("org/name/[ä]/(1).gguf", HubName("org/name", "main", "[ä]/(1).gguf")),
        ("org/name@v1/a.gguf", HubName("org/name", "v1", "a.gguf")),
    ],
)
def test_names_of_files_are_parsed(text: str, name: HubName) -> None:
    assert parse(text) == name
    assert parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "org/name:",
        "org/name:a b",
        "org/name:a:b",
        "org/name:../a.gguf",
        "org/name/../../a.gguf",
        "org/name/.a.gguf",
        "org/name//a.gguf",
        "org/name/a\\..\\b.gguf",
        "org/name/a\x1b.gguf",
        "org/name/a\u202eb.gguf",
        "org/name/a\ud800.gguf",
        f"org/name:{'q' * 200}",
        f"org/name/{'q' * 300}.gguf",
        "org/name/file",
        "a.gguf",
        "dir/a.gguf",
        "C:\\models\\a.gguf",
    ],
)
def test_invalid_names_of_files_cause_no_request(hub: Hub, text: str) -> None:
    assert parse(text) is None
    assert "there is no " in fails(lambda: find(text)).message
    assert not hub.log


@given(st.lists(st.sampled_from(["org", "/", "..", ".", "a", "\\", ":", "@", ".gguf", " ", "\n", "C"]), max_size=12))
def test_no_name_leads_out_of_a_snapshot(parts: list[str]) -> None:
    name = parse("".join(["org/name", *parts]))
    if name is not None and name.gguf is not None:
        inside = PureWindowsPath("C:/snapshot") / name.gguf
        assert ".." not in inside.parts
        assert inside.is_relative_to("C:/snapshot")
        assert parse(str(name)) == name


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        (None, "M-Q4_K_M.gguf"),
        ("Q4_K_M", "M-Q4_K_M.gguf"),
        ("q4_k_m", "M-Q4_K_M.gguf"),
        ("UD-Q4_K_M", "M-UD-Q4_K_M.gguf"),
        ("bf16", FIRST),
        (SECOND, FIRST),
        ("M-Q8_0.gguf", "M-Q8_0.gguf"),
        ("mmproj-F16.gguf", "mmproj-F16.gguf"),
        ("Q4_K", None),
        ("F16", None),
        ("Q5_0", None),
        ("Q5_0.gguf", None),
        (".*", None),
    ],
)
def test_a_tag_is_the_whole_quantization(wanted: str | None, file: str | None) -> None:
    if file is not None:
        assert choose(REPO, wanted) == file
        return
    with pytest.raises(LlmcliError) as caught:
        choose(REPO, wanted)
    assert str(caught.value) == f"it has no GGUF file {wanted} (it has BF16, Q4_K_M, Q8_0, UD-Q4_K_M)"


def test_without_a_tag_the_order_is_llama_cpps() -> None:
    assert choose(["x-F16.gguf", "x-Q8_0.gguf", "x-Q2_K.gguf"], None) == "x-Q8_0.gguf"
    assert choose(["x.gguf", "a.gguf", "mtp-a-Q8_0.gguf"], None) == "a.gguf"
    for name, label in {
        "llama-2-7b.Q4_K_M.gguf": "Q4_K_M",
        "x-fp16.gguf": "FP16",
        "x-q4.gguf": "Q4",
        "Qwen2-IQ4_XS-00001-of-00003.gguf": "IQ4_XS",
        "Q6_K/x-00001-of-00003.gguf": "Q6_K",
        "x-MXFP4_MOE.gguf": "MXFP4_MOE",
        "Qwen2.gguf": "",
        "x.gguf": "",
    }.items():
        assert label_of(name) == label


def test_names_that_lead_out_of_a_folder_are_no_models() -> None:
    assert not models_among(["../a.gguf", "/a.gguf", "a/../b.gguf", "a\\b.gguf", "a\nb.gguf", "a.bin", "C:a.gguf"])


def test_a_list_of_many_split_models_needs_little_memory() -> None:
    names = [f"{number}-00002-of-04000.gguf" for number in range(1000)]
    tracemalloc.start()
    with pytest.raises(LlmcliError, match=r"it has 0-00001-of-04000.gguf, .* and 980 more"):
        choose(names, "Q8_0")
    assert tracemalloc.get_traced_memory()[1] < 10**7  # not the names of four million files
    tracemalloc.stop()


def test_a_tag_chooses_the_file_that_is_downloaded(hub: Hub) -> None:
    repo = hub.add(REPO)
    path = find("org/name:q8_0")
    assert path.name == "M-Q8_0.gguf"
    assert path.read_bytes() == REPO["M-Q8_0.gguf"]
    assert names_in(cache.repo_folder("org/name") / "snapshots" / repo.commit) == {"M-Q8_0.gguf"}
    assert name_of(path) == "org/name:Q8_0"
    hub.log.clear()
    assert find("org/name:Q8_0") == find("org/name/M-Q8_0.gguf") == find(f"org/name@{repo.commit}:Q8_0") == path
    assert find(str(path)) == path
    assert not hub.log


def test_parts_are_downloaded_together(hub: Hub) -> None:
    hub.add(REPO)
    path = find(f"org/name/{SECOND}")
    assert path.as_posix().endswith(FIRST)
    assert (path.parent / Path(SECOND).name).read_bytes() == REPO[SECOND]
    assert name_of(path) == "org/name:BF16"
    second = (path.parent / Path(SECOND).name).resolve()
    second.unlink()
    assert find_here("org/name:BF16") is None
    assert [(model.state, model.bytes) for model in cache.models()] == [("incomplete", 304)]
    hub.log.clear()
    find("org/name:BF16")
    assert len(hub.log) == 2  # the list, and the part that was missing


def test_without_a_tag_the_choice_is_reported(hub: Hub) -> None:
    hub.add(REPO)
    notes: list[str] = []
    assert find("org/name", note=notes.append).name == "M-Q4_K_M.gguf"
    assert notes == ["org/name: using Q4_K_M; for another file, add a colon and one of: BF16, Q8_0, UD-Q4_K_M"]
    notes.clear()
    find("org/name", note=notes.append)
    find("org/name:Q8_0", note=notes.append)
    assert notes == []  # there was no choice
    hub.log.clear()
    assert find("org/name", note=notes.append).name == "M-Q4_K_M.gguf"
    assert notes == ["org/name: using Q4_K_M; for another file, add a colon and one of: Q8_0"]
    assert not hub.log


def test_a_repo_with_safetensors_is_a_folder_unless_a_tag_chooses(hub: Hub) -> None:
    hub.add(FILES | {"M-Q8_0.gguf": b"GGUF"})
    gguf = find("org/name:Q8_0")
    assert find("org/name", offline=True) == gguf
    assert find("org/name") == gguf.parent
    assert {model.name: model.format for model in cache.models()} == {
        "org/name": "safetensors",
        "org/name:Q8_0": "GGUF Q8_0",
    }
    whole = sum(map(len, FILES.values()))
    assert removable("org/name").bytes == whole
    assert remove(removable("org/name")) == whole
    assert find("org/name", offline=True) == gguf
    assert remove(removable("org/name")) == 4
    assert not list(cache.cache_folder().glob("models--*"))


@pytest.mark.parametrize(
    ("name", "files", "fragment"),
    [
        ("org/name:Q5_0", REPO, "it has no GGUF file Q5_0 (it has BF16, Q4_K_M, Q8_0, UD-Q4_K_M)"),
        ("org/name:Q5_0", FILES, "it has no GGUF file Q5_0"),
        ("org/name/no.gguf", REPO, "it has no GGUF file no.gguf"),
        ("org/name:BF16", {FIRST: b"GGUF"}, f"it has no {SECOND}, which is a part of the model"),
        ("org/name", {"../../../evil.gguf": b"GGUF"}, "it contains no model.safetensors"),
        ("org/name:Q8_0", {"../../../evil-Q8_0.gguf": b"GGUF"}, "it has no GGUF file Q8_0"),
    ],
)
def test_what_a_repo_does_not_have_is_not_downloaded(
    hub: Hub, name: str, files: dict[str, bytes], fragment: str
) -> None:
    hub.add(files)
    error = fails(lambda: find(name))
    assert str(error).startswith(f"{name} cannot be used: ")
    assert fragment in str(error)
    assert len(hub.log) == 1
    assert not cache.cache_folder().exists()


@pytest.mark.parametrize("said", [{"architecture": "martian"}, {"architecture": 3}, "nonsense", None])
def test_an_architecture_that_llmcli_cannot_run_is_not_downloaded(hub: Hub, said: object) -> None:
    hub.add(REPO, gguf=said)
    if said == {"architecture": "martian"}:
        assert "the architecture 'martian' is not supported" in fails(lambda: find("org/name:Q8_0")).message
        assert len(hub.log) == 1
    else:
        find("org/name:Q8_0")


def test_an_interrupted_file_is_resumed_and_can_be_removed(hub: Hub) -> None:
    hub.add(REPO | {"M-Q8_0.gguf": LARGE})
    find("org/name:Q4_K_M")
    for removed in (True, False):
        hub.cut["M-Q8_0.gguf"] = 60_000
        assert "connection" in fails(lambda: find("org/name:Q8_0")).message
        assert [path.stat().st_size for path in partials()] == [60_000]
        states = {model.name: (model.state, model.bytes) for model in cache.models()}
        assert states == {"org/name:Q4_K_M": ("complete", 204), "org/name": ("incomplete", 60_000)}
        if removed:
            assert remove(removable("org/name")) == 60_000
            assert find("org/name:Q4_K_M", offline=True).is_file()
    assert find("org/name:Q8_0").read_bytes() == LARGE
    assert hub.requests_for("M-Q8_0.gguf")[-1].headers["range"] == "bytes=60000-"


def test_a_hub_that_lies_about_a_size(hub: Hub) -> None:
    hub.add(REPO)
    hub.long["M-Q8_0.gguf"] = 1 << 20
    assert "was damaged" in fails(lambda: find("org/name:Q8_0")).message
    assert not partials()


def test_removal_keeps_what_other_files_and_revisions_need(hub: Hub) -> None:
    hub.add(REPO)
    hub.add(REPO | {"README.md": b"new"}, refs=("v1",))
    for name in ("org/name:Q8_0", "org/name:BF16", "org/name@v1:Q8_0"):
        find(name)
    assert sorted(model.name for model in cache.models()) == ["org/name:BF16", "org/name:Q8_0", "org/name@v1:Q8_0"]
    assert "has 2 GGUF files on disk: BF16, Q8_0" in fails(lambda: removable("org/name")).message
    assert "is not on disk" in fails(lambda: removable("org/name:Q4_K_M")).message
    assert remove(removable("org/name:Q8_0")) == 0  # the other revision has the same file
    assert find_here("org/name:Q8_0") is None
    assert find("org/name@v1:Q8_0", offline=True).read_bytes() == REPO["M-Q8_0.gguf"]
    assert remove(removable("org/name")) == len(REPO[FIRST]) + len(REPO[SECOND])
    assert remove(removable("org/name@v1")) == len(REPO["M-Q8_0.gguf"])
    assert not list(cache.cache_folder().glob("models--*"))


def test_the_file_of_the_newest_version_is_pulled(hub: Hub) -> None:
    hub.add(REPO)
    old = find("org/name:Q8_0")
    hub.add(REPO | {"M-Q8_0.gguf": b"GGUFnew"})
    assert find("org/name:Q8_0") == old
    new = download(HubName("org/name", gguf="Q8_0"))
    assert new.read_bytes() == b"GGUFnew"
    assert find("org/name:Q8_0") == new


def test_finding_a_file_records_its_use(hub: Hub) -> None:
    hub.add(REPO)
    path, other = find("org/name:Q8_0"), find("org/name:Q4_K_M")
    for file in (path, other):
        os.utime(file, (1000, 1000), follow_symlinks=False)
    find("org/name:Q8_0")
    used = {model.name: model.last_use for model in cache.models()}
    assert used["org/name:Q4_K_M"] == 1000
    assert (used["org/name:Q8_0"] or 0) > 1000


# GGUF files by their paths


def test_any_part_names_a_split_model(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    second.touch()
    assert find(str(second)) == second.resolve()  # opening it says what is missing
    first.touch()
    assert find(str(second)) == find(str(first)) == find(str(tmp_path)) == first.resolve()


def test_a_folder_with_one_gguf_model_is_that_model(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "Q8_0").mkdir()
    (tmp_path / "Q8_0" / "deep.gguf").touch()
    assert find(str(tmp_path)) == (tmp_path / "Q8_0" / "deep.gguf").resolve()
    for name in ("b-Q8_0.gguf", "mmproj-b.gguf", "README.md"):
        (tmp_path / name).touch()
    assert find(str(tmp_path)) == (tmp_path / "b-Q8_0.gguf").resolve()
    (tmp_path / "config.json").touch()
    assert find(str(tmp_path)) == (tmp_path / "b-Q8_0.gguf").resolve()
    (tmp_path / "a.GGUF").touch()
    error = fails(lambda: find(str(tmp_path)))
    assert error.message == f"{tmp_path.resolve()} has 2 GGUF files: a.GGUF, b-Q8_0.gguf"
    assert str(tmp_path.resolve() / "a.GGUF") in error.hint
    (tmp_path / "model.safetensors").touch()
    assert find(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    assert "a.gguf: not a regular file" in fails(lambda: find(str(tmp_path / "a.gguf"))).message


def test_weights_with_a_name_of_their_own_are_those_of_their_folder(hub: Hub, tmp_path: Path) -> None:
    for name in ("gptq_model-4bit.safetensors", "config.json", "a.gguf"):
        (tmp_path / name).touch()
    assert find(str(tmp_path)) == find(str(tmp_path / "gptq_model-4bit.safetensors")) == tmp_path.resolve()
    hub.add({"gptq_model-4bit.safetensors": b"x", "a-Q8_0.gguf": b"GGUF"})
    assert "it contains no config.json" in fails(lambda: find("org/name")).message


def test_a_mistyped_file_is_suggested(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "SmolLM2-Q8_0.gguf").touch()
    error = fails(lambda: find(str(tmp_path / "SmolLM2-Q8.gguf")))
    assert error.message == f"there is no file {tmp_path / 'SmolLM2-Q8.gguf'}"
    assert error.hint == f"did you mean {tmp_path / 'SmolLM2-Q8_0.gguf'}?"
    assert not hub.log
