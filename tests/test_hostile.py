"""Damaged and malicious model folders: each opens, or raises a clear error that reveals no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import MUTATIONS, SECRET, generation, good_folder, outcome

ROUNDS = 40  # of all kinds of mutation; python -m tests.hostile runs many more


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_folder(tmp_path_factory.mktemp("hostile") / "good")


def test_the_good_folder_opens(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hostile.MUTATIONS", (_nothing,))
    assert outcome(good, 0).opened


def _nothing(folder: Path, rng: object) -> None:
    """Leave the folder unchanged."""


@pytest.mark.parametrize("place", range(len(MUTATIONS)), ids=lambda i: f"{i}-{MUTATIONS[i].__name__}")
def test_mutated_folders_open_or_are_clear_errors(good: Path, place: int) -> None:
    outcomes = [outcome(good, place + len(MUTATIONS) * n) for n in range(ROUNDS)]
    assert [o for o in outcomes if o.fault] == []
    rejected = sum(not o.opened for o in outcomes)
    assert rejected == 0 if MUTATIONS[place] is generation else rejected >= ROUNDS / 4, "the mutations do too little"


def test_a_fault_is_noticed(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reveal(*_: object, **__: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("llmcli.generation.loaded.load", reveal)
    assert SECRET in outcome(good, 0).fault
