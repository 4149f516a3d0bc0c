"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tiny models are slower with more threads, above all on a busy machine. Set before torch is imported, and inherited.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The config file of the person who runs the tests is ignored.
os.environ.update({"LLMCLI_CONFIG": os.devnull})

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from tests import endpoint_server
from tests.endpoint_server import Endpoint
from tests.hub_server import Hub, serving
from tests.tiny import TinyFactory, make

# No deadline, because machines differ in speed. The same examples in every run, so that no test is flaky.
settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """The tiny random model of a case (see ``tiny.CASES``), built once."""
    return cache(lambda name: make(name, tmp_path_factory.mktemp(name)))


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
        monkeypatch.setenv("NO_PROXY", "*")
        yield server


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A server for this test alone, and no API key in the environment."""
    for name in ("LLMCLI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with endpoint_server.serving() as server:
        yield server
