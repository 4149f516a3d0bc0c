"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# For tiny models more threads only cost, and much where other programs run. Before torch is imported, and inherited.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import settings

from tests.tiny import Tiny, make

# Machines differ in speed, so no example has a deadline; the same examples every time, so no test flickers.
settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The tiny random model of a case (see ``tiny.CASES``), built once."""
    return cache(lambda name: make(name, tmp_path_factory.mktemp(name)))
