"""What the options of a view may be, by the types of its function: checked, and named in the words of JSON."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmcli.explain.interventions.patching import MapPart
from llmcli.explain.interventions.steering import Method
from llmcli.serve.body import MAX_INTEGER
from llmcli.serve.errors import bad_request
from llmcli.text.surrogates import is_unicode

MOST_ITEMS = 128  # of a list that is not a text's ids
# Without these, one request could hold up all others for as long as it likes.
HIGHEST = {"index": 1000, "top": 1000, "rows": 1000}


def is_text(value: Any) -> bool:
    return isinstance(value, str) and is_unicode(value)


def is_whole(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float)


def is_text_or_ids(value: Any) -> bool:
    return is_text(value) or is_list(value, is_whole, most=MAX_INTEGER)


def is_list(value: Any, fits: Callable[[Any], bool], most: int = MOST_ITEMS) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(fits, value))


@dataclass(frozen=True)
class Kind:
    """What an option must be, in words, and whether a value is that."""

    words: str
    fits: Callable[[Any], bool]


def one_of(words: tuple[str, ...]) -> Kind:
    """One of several words."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in words)


SEVERAL = f"of at most {MOST_ITEMS}"
KINDS = {  # by the annotation of a parameter
    "bool": Kind("true or false", lambda value: isinstance(value, bool)),
    "int": Kind("a whole number", lambda value: is_whole(value) and 0 <= value <= MAX_INTEGER),
    "int | str": Kind("a token's number or text", lambda value: is_whole(value) or is_text(value)),
    "str": Kind("a string", is_text),
    "str | Sequence[Message]": Kind("a string", is_text),
    "Text": Kind("a string or a list of token ids", is_text_or_ids),
    "Sequence[str]": Kind(f"a list {SEVERAL} strings", lambda value: is_list(value, is_text)),
    "Sequence[float]": Kind(f"a list {SEVERAL} numbers", lambda value: is_list(value, is_number)),
    "Sequence[Text]": Kind(f"a list {SEVERAL} texts", lambda value: is_list(value, is_text_or_ids)),
    "Layers": Kind(
        'a number, a list of numbers, or a string such as "0-2,5"',
        lambda value: is_whole(value) or is_text(value) or is_list(value, is_whole),
    ),
    "Head": Kind(
        'layer and head, such as "3.2" or [3, 2]',
        lambda value: is_text(value) or (is_list(value, is_whole) and len(value) == 2),
    ),
    "tuple[str, str]": Kind(
        'a list of two parts, such as ["3.2", "4.5"]', lambda value: is_list(value, is_text) and len(value) == 2
    ),
    "MapPart": one_of(typing.get_args(MapPart)),
    "Method": one_of(typing.get_args(Method)),
}


def check_option(parameter: inspect.Parameter, value: Any) -> None:
    """Raise ApiError unless ``value`` is what a parameter of a view may be."""
    name, kind = parameter.name, kind_of(parameter)
    highest = HIGHEST.get(name, MAX_INTEGER)
    if not kind.fits(value) or (is_whole(value) and value > highest):
        raise bad_request(f"{name} must be {kind.words}" + f" from 0 to {highest}" * (name in HIGHEST), name)


def kind_of(parameter: inspect.Parameter) -> Kind:
    """What a parameter takes; null is its default."""
    return KINDS[parameter.annotation.removesuffix(" | None")]
