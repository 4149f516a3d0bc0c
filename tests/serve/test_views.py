"""Views by request: which there are, and what their options may be."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from llmcli import explain
from llmcli.cli import GROUPS
from llmcli.commands.serve import report_json
from llmcli.generation import LoadedModel
from llmcli.serve.body import Body
from llmcli.serve.job import ClientGone
from llmcli.serve.view_options import KINDS, kind_of
from llmcli.serve.views import NOT_JSON, NOT_SERVED, VIEWS, explain_view


def test_every_view_is_served_or_refused_and_its_options_are_checked() -> None:
    commands = {*GROUPS["Look inside"], *GROUPS["Change it"], *GROUPS["Check and measure"]} - {"explain", "bench"}
    assert commands <= {*VIEWS, *NOT_SERVED}
    used = set()
    for function in VIEWS.values():
        _, *parameters = inspect.signature(getattr(explain, function)).parameters.values()
        checked = [each for each in parameters if each.name not in (*NOT_JSON, "progress", "sampler", "messages")]
        used |= {kind_of(parameter).words for parameter in checked}
    assert used == {kind.words for kind in KINDS.values()}


def test_views_by_request_report_and_can_be_given_up(loaded: LoadedModel) -> None:
    happy, sad = ["They laughed and played", "She smiled and sang"], ["They cried and hid", "She wept alone"]
    body: dict[str, Any] = {"view": "steer", "positive": happy, "negative": sad, "layers": [2]}
    calls: list[None] = []
    report = explain_view(loaded, Body(body), report_json, lambda: calls.append(None))
    assert report == report_json(loaded, explain.steer(loaded, happy, sad, layers=2))
    assert calls

    def gone() -> None:
        raise ClientGone

    with pytest.raises(ClientGone):
        explain_view(loaded, Body(body), report_json, gone)
