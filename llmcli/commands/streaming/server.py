"""``generate --endpoint``: a text that a server generates, printed like a local one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llmcli import explain, render
from llmcli.commands.options.endpoint import fields_of
from llmcli.commands.options.length import Length
from llmcli.commands.options.sampling import Sampling
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.commands.streaming.text import Printing
from llmcli.errors import EXIT_INTERRUPTED, LlmcliError, usage_error
from llmcli.files.ndjson import write_line
from llmcli.render import json_forms

if TYPE_CHECKING:
    from llmcli.endpoint.server import Ask, Server
    from llmcli.endpoint.tokens import Token
    from llmcli.endpoint.writing import Writing


def write_server_text(server: Server, text: str, sampling: Sampling, length: Length, printing: Printing) -> None:
    """Let the server continue ``text`` and print the result. Exits with 130 after Ctrl-C."""
    from llmcli.endpoint.server import Ask

    if length.max_tokens == 0:
        raise usage_error("--max-tokens must be at least 1 with --endpoint", "omit it, or increase it")
    ask = Ask(text, length.max_tokens, fields_of(sampling, server, sampling.seed), length.stop, printing.alternatives)
    if printing.as_json:
        writing = _write_json(server, ask, sampling, needed=printing.probs is not None)
    else:
        writing = _write_text(server, ask, prefix=text if printing.echo else "", seed=sampling.seed)
    if writing.finish == "interrupted":
        sys.exit(EXIT_INTERRUPTED)


def _write_text(server: Server, ask: Ask, *, prefix: str, seed: int | None) -> Writing:
    """Write ``prefix`` and the text as it comes; then the table of probabilities and the summary on stderr."""
    writer = render.TextWriter(sys.stdout, by_probability=ask.rivals is not None)
    writing = server.write(ask)
    writer.write(prefix)
    try:
        reports = stream(writing, writer)
    finally:
        writer.end_line()
    if ask.rivals is not None:
        render.print_server_probabilities(reports, sys.stderr)
    render.print_server_summary(writing, sys.stderr, seed=seed)
    return writing


def stream(
    writing: Writing, writer: render.TextWriter, tokens: list[Token] | None = None
) -> list[explain.GeneratedToken]:
    """Write a server's text as it comes, token by token if possible, and return the reports of its tokens.

    ``tokens`` collects the tokens as the server sent them. All text so far is written even after Ctrl-C and if the
    server fails.
    """
    from llmcli.endpoint.reports import reports

    found: list[explain.GeneratedToken] = []
    written = 0
    with Interrupt() as interrupt:
        try:
            for piece in writing:
                interrupt.point()
                new = list(reports(piece, len(found)))
                separate = len(new) > 1 and "".join(report.text for report in new) == piece.text
                parts = [(report.text, report.prob) for report in new] if separate else [(piece.text, _least(new))]
                for text, prob in parts:
                    writer.write(text, 1.0 if prob is None else prob)
                found += new
                if tokens is not None:
                    tokens += piece.tokens
                written = len(writing.text)
                interrupt.rest()
        except KeyboardInterrupt:
            writing.interrupt()
            writer.write(writing.text[written:])
        except LlmcliError:
            writer.write(writing.text[written:])
            raise
    return found


def _least(reports: list[explain.GeneratedToken]) -> float | None:
    """The smallest known probability."""
    return min((report.prob for report in reports if report.prob is not None), default=None)


def _write_json(server: Server, ask: Ask, sampling: Sampling, *, needed: bool) -> Writing:
    """Write NDJSON: a start, one line per token, and an end, also after Ctrl-C.

    If probabilities are not ``needed``, a server that rejects requests for them is asked without.
    """
    from llmcli.endpoint.reports import reports

    writing, count = server.write(ask, needed=needed), 0
    filters: list[tuple[str, float | None]] = list(sampling.given.items())
    filters += [("logit-bias", None)] if sampling.biases else []
    with Interrupt() as interrupt:
        interrupt.rest()
        try:
            write_line(json_forms.generation_start(server.name, None, sampling.seed, filters), sys.stdout)
            for piece in writing:
                interrupt.point()
                for report in reports(piece, count):
                    write_line(json_forms.generated_token(report), sys.stdout)
                    count += 1
                interrupt.rest()
        except KeyboardInterrupt:
            writing.interrupt()
    first, total = writing.first_seconds, writing.seconds
    end = json_forms.generation_end(writing.finish or "", writing.text, writing.tokens, first, total - first)
    write_line(end, sys.stdout)
    return writing
