"""``generate --endpoint``: a text that a server writes, shown as one written here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llmcli.commands.options.endpoint import fields_of
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import EXIT_INTERRUPTED, LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.commands.options.length import Length
    from llmcli.commands.options.sampling import Sampling
    from llmcli.commands.writing.text import Showing
    from llmcli.endpoint.server import Ask, Server
    from llmcli.endpoint.tokens import Token
    from llmcli.endpoint.writing import Writing
    from llmcli.explain.report import GeneratedToken
    from llmcli.render.generation import TextWriter


def answer(server: Server, text: str, sampling: Sampling, length: Length, showing: Showing) -> None:
    """Let the server continue ``text``; exit code 130 if Ctrl-C stopped it."""
    from llmcli.endpoint.server import Ask

    if length.max_tokens == 0:
        raise usage_error("--max-tokens 0 asks a server for nothing", "give at least 1")
    ask = Ask(text, length.max_tokens, fields_of(sampling, server, sampling.seed), length.stop, showing.rivals)
    if showing.as_json:
        writing = write_answer_json(server, ask, sampling, needed=showing.probs is not None)
    else:
        writing = write_answer(server, ask, echoed=text if showing.echo else "", seed=sampling.seed)
    if writing.finish == "interrupted":
        sys.exit(EXIT_INTERRUPTED)


def write_answer(server: Server, ask: Ask, *, echoed: str, seed: int | None) -> Writing:
    """The text as it comes; then, on stderr, the table of probabilities if asked for, and the summary."""
    from llmcli.render.generation import TextWriter, print_server_probabilities, print_server_summary

    writer = TextWriter(sys.stdout, by_probability=ask.rivals is not None)
    writing = server.write(ask)
    writer.write(echoed)
    try:
        told = show(writing, writer)
    finally:
        writer.end_line()
    if ask.rivals is not None:
        print_server_probabilities(told, sys.stderr)
    print_server_summary(writing, sys.stderr, seed=seed)
    return writing


def show(writing: Writing, writer: TextWriter, tokens: list[Token] | None = None) -> list[GeneratedToken]:
    """Write what comes, each token in its own colour where that can be; what was told of all of them.

    ``tokens`` gets them as the server told them.

    Ctrl-C leaves all that was written whole, and so does a server that fails.
    """
    from llmcli.endpoint.reports import reports

    told: list[GeneratedToken] = []
    shown = 0
    with Interrupt() as interrupt:
        try:
            for piece in writing:
                interrupt.point()
                new = list(reports(piece, len(told)))
                apart = len(new) > 1 and "".join(one.text for one in new) == piece.text
                for text, prob in [(one.text, one.prob) for one in new] if apart else [(piece.text, _least(new))]:
                    writer.write(text, 1.0 if prob is None else prob)
                told += new
                if tokens is not None:
                    tokens += piece.tokens
                shown = len(writing.text)
                interrupt.rest()
        except KeyboardInterrupt:
            writing.interrupt()
            writer.write(writing.text[shown:])
        except LlmcliError:
            writer.write(writing.text[shown:])
            raise
    return told


def _least(told: list[GeneratedToken]) -> float | None:
    return min((one.prob for one in told if one.prob is not None), default=None)


def write_answer_json(server: Server, ask: Ask, sampling: Sampling, *, needed: bool) -> Writing:
    """NDJSON: a start, a line a token, an end, which is written also when interrupted.

    Probabilities are ``needed`` where they were asked for by name; else a server that tells none is asked without.
    """
    from llmcli.endpoint.reports import reports
    from llmcli.files.ndjson import write_line
    from llmcli.render import json_forms

    writing, count = server.write(ask, needed=needed), 0
    sampler: list[tuple[str, float | None]] = list(sampling.given.items())
    sampler += [("logit-bias", None)] if sampling.biases else []
    with Interrupt() as interrupt:
        interrupt.rest()
        try:
            write_line(json_forms.generation_start(server.name, None, sampling.seed, sampler), sys.stdout)
            for piece in writing:
                interrupt.point()
                for report in reports(piece, count):
                    write_line(json_forms.generated_token(report), sys.stdout)
                    count += 1
                interrupt.rest()
        except KeyboardInterrupt:
            writing.interrupt()
    first, all_of_it = writing.first_seconds, writing.seconds
    write_line(
        json_forms.generation_end(writing.finish or "", writing.text, writing.tokens, first, all_of_it - first),
        sys.stdout,
    )
    return writing
