"""Fixtures shared by the tests of generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from llmcli.engine.native import NativeStep
from llmcli.model.transformer import Transformer


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of positions of each forward pass, in order."""
    passes: list[int] = []
    hidden = Transformer.hidden

    def counted(self: Transformer, ids: Tensor, *rest: Any) -> Tensor:
        passes.append(ids.shape[1])
        return hidden(self, ids, *rest)

    feed = NativeStep.feed

    def counted_feed(self: NativeStep, ids: Sequence[int], *rest: Any) -> Tensor:
        passes.append(len(ids))
        return feed(self, ids, *rest)

    monkeypatch.setattr(Transformer, "hidden", counted)
    monkeypatch.setattr(NativeStep, "feed", counted_feed)
    return passes
