"""The process in which chat templates run: Jinja's sandbox, with limits on memory, computing time and output.

A template is a program by a third party. The sandbox keeps it away from files and Python's internals, but cannot stop
it from computing forever or filling the memory; a separate process with limits can. Requests come as JSON objects on
stdin, one per line, and each gets a line on stdout (see ``answer``).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5  # of computing for one request
MEMORY = 2**29  # bytes of the whole process
SPARE_OUTPUT = 2**20  # characters that a template may write beyond twice those of its input
MAX_DETAIL = 1000  # characters of a template's own error message


class TemplateRejection(TemplateError):
    """What a template raises intentionally, through ``raise_exception``."""


class OutputTooLong(Exception):
    """Raised when a template writes too much; the text says how much is allowed."""


class GenerationTag(Extension):
    """``{% generation %}`` marks replies for training; it does not change the rendered text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: object) -> None:
    raise TemplateRejection(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialize without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment that published templates expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _environment()


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reply to a request: the literals and variables of a template, or a rendered text.

    A request has the ``source`` and, to render it, the ``variables``. The reply has ``error`` and ``detail`` if the
    template is invalid, rejects the conversation, or fails.
    """
    variables = request.get("variables")
    try:
        template = _compiled(request["source"])
        if variables is None:
            return _contents(request["source"])
    except TemplateSyntaxError as error:
        return _failure("is invalid", f"{error.message} (line {error.lineno})")
    except Exception as error:  # Jinja compiles to Python and evaluates constant expressions
        return _failure("is invalid", _described(error))
    try:
        return {"text": _render(template, variables)}
    except TemplateRejection as error:
        return _failure("rejects this conversation", str(error))
    except OutputTooLong as error:
        return _failure("writes too much", str(error))
    except Exception as error:  # a template is a program and may fail in any way
        return _failure("fails on this conversation", _described(error))


def _render(template: Template, variables: Mapping[str, Any]) -> str:
    allowed = SPARE_OUTPUT + 2 * sum(len(text) for message in variables["messages"] for text in message.values())
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > allowed:
            raise OutputTooLong(f"more than {allowed} characters")
    return "".join(parts)


def _contents(source: str) -> dict[str, Any]:
    """All literal text that a template may output, all that it compares with messages or splits them at, and variables.

    The parts of each text are separated by null characters. "names" are the variables that the template reads without
    having set them in every case; "arguments" are those of them that it never sets, or asks whether they are defined.
    """
    tree = _ENVIRONMENT.parse(source)
    output = [node.data for node in tree.find_all(nodes.TemplateData)]
    output += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    parents = [*tree.find_all(nodes.Compare), *(arg for call in tree.find_all(nodes.Call) for arg in call.args)]
    constants = [node for parent in parents for node in (parent, *parent.find_all(nodes.Const))]
    compared = [str(node.value) for node in constants if isinstance(node, nodes.Const)]
    names = meta.find_undeclared_variables(tree)
    stored = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"}
    tested = {
        test.node.name
        for test in tree.find_all(nodes.Test)
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)
    }
    return {
        "output": "\0".join(output),
        "compared": "\0".join(compared),
        "names": sorted(names),
        "arguments": sorted(names - (stored - tested)),
    }


def _described(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return f"{type(error).__name__}: {error}"


def _failure(error: str, detail: str) -> dict[str, Any]:
    return {"error": error, "detail": detail[:MAX_DETAIL]}


def time_limit() -> Callable[[], None]:
    """Limit the memory of this process; return a function that allows it ``SECONDS`` more of computing.

    Windows has neither limit: there only the process that waits for the answer ends this one.
    """
    if sys.platform == "win32":
        return lambda: None
    import resource

    with suppress(ValueError, OSError):  # a lower limit is set, or the system has none
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def allow() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, most))

    return allow


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more. The first line of ``replies`` says that the process is ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    allow = time_limit()
    replies.write(b"{}\n")
    replies.flush()
    for line in requests:
        allow()
        replies.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        replies.flush()
