"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tiny models are slower with more threads, above all on a busy machine. Set before torch is imported, and inherited.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import endpoint_server
from tests.endpoint_server import Endpoint
from tests.hub_server import Hub, serving
from tests.tiny import TinyFactory, make

# Settings of a terminal, of Python, and of the launcher of a cluster.
OTHERS = {"NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "PYTHONUNBUFFERED", "PYTHONIOENCODING"}
OTHERS |= {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run the tests: none besides pytest's own for files, which end before others would start."""
    if config.option.capture == "no" or not any(Path(arg).is_dir() for arg in config.args):
        return 0
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def pytest_configure() -> None:
    """Make the tests, and the programs that they start, independent of how pytest is started."""
    for name in set(os.environ):
        if name in OTHERS or (name.startswith("LLMCLI_") and name != "LLMCLI_REAL_MODELS"):
            del os.environ[name]
    os.environ["LLMCLI_CONFIG"] = os.devnull
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the network; those of the hub have their own
    # Programs find llmcli from any folder.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    # Jobs in the background, also those of some CI systems, ignore these signals, and programs inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


# No deadline, because machines differ in speed. The same examples in every run, so that no test is flaky.
settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("steady")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window. Tests are skipped where it is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """The tiny random model of a case (see ``tiny.CASES``), built once."""
    return cache(lambda name: make(name, tmp_path_factory.mktemp(name)))


def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other programs' models be in ``folder``, where none are, instead of the user's home."""
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.setenv(name, str(folder / name))
    for name in ("HOME", "USERPROFILE"):  # of LM Studio
        monkeypatch.setenv(name, str(folder / "user"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub for this test alone, and an empty cache, for this process and those that it starts."""
    from huggingface_hub import constants

    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # huggingface_hub reads these from the environment when it is imported, which may be before the test.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        alone(tmp_path, monkeypatch)
        monkeypatch.setenv("NO_PROXY", "*")
        yield server


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A server for this test alone, and no API key in the environment."""
    for name in ("LLMCLI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with endpoint_server.serving() as server:
        yield server
