"""The number of CPU threads, and the dtype that fits into the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmcli.model import device
from llmcli.model.device import Memory, allowed_cpus, pick_dtype, use_threads


@pytest.fixture(autouse=True)
def _four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def write_version_1(folder: Path, quota: str, period: str) -> None:
    """The files of a version 1 control group, in which both numbers are microseconds."""
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu" / "cpu.cfs_period_us").write_text(period)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("50000 100000\n", 0.5),
        ("", None),
        ("1 0", None),
        ("a b c", None),
    ],
)
def test_the_quota_of_a_version_2_control_group(tmp_path: Path, text: str, cpus: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert allowed_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1\n", None), ("300000\n", 3.0)])
def test_the_quota_of_a_version_1_control_group(tmp_path: Path, quota: str, cpus: float | None) -> None:
    write_version_1(tmp_path, quota, "100000\n")
    assert allowed_cpus(tmp_path) == cpus


def test_without_a_control_group_there_is_no_limit(tmp_path: Path) -> None:
    assert allowed_cpus(tmp_path) is None


@pytest.mark.parametrize(("quota", "count"), [(50000, 1), (150000, 2), (300000, 3), (400000, 4), (900000, 4)])
def test_the_default_is_no_more_threads_than_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, count: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota} 100000")
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    use_threads(None)
    assert torch.get_num_threads() == count


def test_requested_threads_and_omp_num_threads_override_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    use_threads(3)
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_threads(None)
    assert torch.get_num_threads() == 3


GB = 10**9


@pytest.mark.parametrize(
    ("size", "memory", "expected"),
    [
        (4 * GB, Memory(8 * GB, None), torch.float32),
        (4 * GB + 1, Memory(8 * GB, None), torch.bfloat16),
        (4 * GB, Memory(64 * GB, 7 * GB), torch.bfloat16),  # a container's limit counts
        (400 * GB, Memory(None, None), torch.float32),  # unknown
    ],
)
def test_precise_is_float32_if_the_model_fits_into_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, size: int, memory: Memory, expected: torch.dtype
) -> None:
    monkeypatch.setattr(device, "memory_of", lambda where: memory)
    gpu = torch.device("cuda")  # where "auto" keeps the stored dtype on every machine
    assert pick_dtype("precise", gpu, torch.bfloat16, size) == expected
    assert pick_dtype("auto", gpu, torch.bfloat16, size) == torch.bfloat16
    assert pick_dtype("float16", gpu, torch.bfloat16, size) == torch.float16
