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
from llmcli.serve.prompts import read_messages
from llmcli.serve.sampler_options import read_sampler
from llmcli.serve.view_options import check_option

ToJson = Callable[[LoadedModel, Any], Mapping[str, Any]]

# The command -> its function in ``explain``.
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
    "steer": "steer",
    "tokenize": "tokenize",
    "tokenize-chat": "tokenize_chat",
    "tour": "tour",
    "why": "why",
}
NOT_SERVED = {
    "compare": "it reads two models",
    "fit-lens": "it runs for minutes and writes a file",
    "verify": "it loads the model again, which takes minutes and memory",
}
NOT_JSON = ("fitted", "form", "template")  # arguments that no request can give


def explain_view(loaded: LoadedModel, body: Body, to_json: ToJson, check: Callable[[], None]) -> Mapping[str, Any]:
    """The JSON of the view that a request names. Runs the model.

    A view that takes long calls ``check`` between its passes, which may raise. Raises ApiError for options that the
    view does not have.
    """
    name = body.text("view")
    if name is None:
        raise bad_request(f"view is missing: one of {', '.join(VIEWS)}", "view")
    if name in NOT_SERVED:
        raise bad_request(f"{name} is not served: {NOT_SERVED[name]} (run llmcli {name})", "view")
    if name not in VIEWS:
        hint = did_you_mean(name, VIEWS) or f"known: {', '.join(VIEWS)}"
        raise bad_request(f"unknown view {name[:80]!r}: {hint}", "view")
    function = getattr(explain, VIEWS[name])
    values = read_options(loaded, body, name, function, check)
    body.check()
    try:
        return to_json(loaded, function(loaded, **values))
    except LlmcliError as error:
        raise api_error(error) from None


def read_options(
    loaded: LoadedModel, body: Body, view: str, function: Callable[..., Any], check: Callable[[], None]
) -> dict[str, Any]:
    """The arguments of a view's function. Raises ApiError for one that is missing or of the wrong kind."""
    made: dict[str, Callable[[], Any]] = {
        "messages": lambda: read_messages(body.take("messages")),
        "progress": lambda: lambda *_: check(),
        "sampler": lambda: read_sampler(loaded, body),
    }
    values: dict[str, Any] = {}
    _, *parameters = inspect.signature(function).parameters.values()  # the first is the model
    for parameter in parameters:
        name = parameter.name
        if name in NOT_JSON:
            continue
        if name in made:
            values[name] = made[name]()
        elif (value := body.take(name)) is not None:
            check_option(parameter, value)
            values[name] = value
        elif parameter.default is parameter.empty:
            raise bad_request(f"{view} needs {name}", name)
    return values
