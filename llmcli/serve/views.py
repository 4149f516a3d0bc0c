"""``/v1/explain``: any view by the name of its command, with the options of its function in ``llmcli.explain``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from llmcli import explain
from llmcli.errors import LlmcliError, did_you_mean
from llmcli.generation.loaded import LoadedModel
from llmcli.serve.body import Body
from llmcli.serve.errors import api_error, bad_request
from llmcli.serve.wanted import read_messages, read_sampler

ToJson = Callable[[LoadedModel, Any], Mapping[str, Any]]

# The command -> its function in ``explain``. Views of two models and those that run for minutes are not served.
VIEWS = {
    "attend": "attend",
    "attention-pattern": "attention_pattern",
    "branch": "branch",
    "decide": "decide",
    "explain-step": "step",
    "heads": "heads",
    "inspect": "inspect",
    "lens": "lens",
    "match-keys": "match_keys",
    "merges": "merges",
    "neighbours": "neighbours",
    "patch": "patch",
    "position": "position",
    "score": "score",
    "tokenize": "tokenize",
    "tokenize-chat": "tokenize_chat",
    "tour": "tour",
    "why": "why",
}
NOT_JSON = ("progress", "form", "template", "sampler")  # arguments that no request can give


def explain_view(loaded: LoadedModel, body: Body, to_json: ToJson) -> Mapping[str, Any]:
    """The JSON of the view that a request names. Runs the model. Raises ApiError for options that it does not have."""
    name = body.text("view")
    if name not in VIEWS:
        hint = did_you_mean(name or "", VIEWS) or f"known: {', '.join(VIEWS)}"
        raise bad_request(f"unknown view {(name or '')[:80]!r}: {hint}", "view")
    function = getattr(explain, VIEWS[name])
    _, *parameters = inspect.signature(function).parameters.values()  # the first is the model
    given = {each.name: body.take(each.name) for each in parameters if each.name not in NOT_JSON}
    values = {name: value for name, value in given.items() if value is not None}
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in values:
            raise bad_request(f"{name} needs {parameter.name}", parameter.name)
    if "messages" in values:
        values["messages"] = read_messages(values["messages"])
    if "head" in values and isinstance(values["head"], list):
        values["head"] = tuple(values["head"])
    if any(parameter.name == "sampler" for parameter in parameters):
        values["sampler"] = read_sampler(loaded, body)
    body.check()
    try:
        return to_json(loaded, function(loaded, **values))
    except LlmcliError as error:
        raise api_error(error) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise bad_request(f"{name}: {error}") from None
