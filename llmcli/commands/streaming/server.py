"""``generate --endpoint``: a text that a server generates, printed like a local one."""

from __future__ import annotations

import sys
from typing import Any

from llmcli import endpoint, explain, render
from llmcli.commands.options.endpoint import fields_of
from llmcli.commands.options.length import Length
from llmcli.commands.options.run_log import Logging
from llmcli.commands.options.sampling import Sampling
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.commands.streaming.text import Printing
from llmcli.errors import EXIT_INTERRUPTED, LlmcliError, usage_error
from llmcli.files.ndjson import write_line
from llmcli.render import json_forms


def write_server_text(
    server: endpoint.Server, text: str, sampling: Sampling, length: Length, printing: Printing, logging: Logging
) -> None:
    """Let the server continue ``text``, print the result and log it. Exits with 130 after Ctrl-C."""
    if length.max_tokens == 0:
        raise usage_error("--max-tokens must be at least 1 with --endpoint", "omit it, or increase it")
    request = endpoint.Request(
        text, length.max_tokens, fields_of(sampling, server, sampling.seed), length.stop, printing.alternatives
    )
    if printing.as_json:
        generation = _write_json(server, request, sampling, needed=printing.probs is not None)
    else:
        generation = _write_text(server, request, prefix=text if printing.echo else "", seed=sampling.seed)
    finish = generation.finish or ""
    logging.keep_server_text(server.name, text, sampling.seed, generation.text, finish, generation.tokens)
    if generation.finish == "interrupted":
        sys.exit(EXIT_INTERRUPTED)


def _write_text(
    server: endpoint.Server, request: endpoint.Request, *, prefix: str, seed: int | None
) -> endpoint.ServerGeneration:
    """Write ``prefix`` and the text as it arrives; then the table of probabilities and the summary on stderr."""
    writer = render.TextWriter(sys.stdout, by_probability=request.top_logprobs is not None)
    generation = server.stream(request)
    writer.write(prefix)
    try:
        reports = stream(generation, writer)
    finally:
        writer.end_line()
    if request.top_logprobs is not None:
        render.print_server_probabilities(reports, sys.stderr)
    render.print_server_summary(generation, sys.stderr, seed=seed)
    return generation


def stream(
    generation: endpoint.ServerGeneration,
    writer: render.TextWriter,
    tokens: list[endpoint.ServerToken] | None = None,
    thoughts: render.TextWriter | None = None,
) -> list[explain.GeneratedToken]:
    """Write a server's text as it arrives, token by token if possible, and return the reports of its tokens.

    ``thoughts`` writes the thoughts before the text. ``tokens`` collects the tokens as the server sent them. All text
    so far is written even after Ctrl-C and if the server fails.
    """
    found: list[explain.GeneratedToken] = []
    written = 0
    with Interrupt() as interrupt:
        try:
            for piece in generation:
                interrupt.point()
                if thoughts is not None:
                    thoughts.write(piece.thoughts)
                    if piece.text:
                        thoughts.end_line()
                new = endpoint.generated_tokens(piece, len(found))
                separate = len(new) > 1 and "".join(report.text for report in new) == piece.text
                parts = [(report.text, report.prob) for report in new] if separate else [(piece.text, _least(new))]
                for text, prob in parts:
                    writer.write(text, 1.0 if prob is None else prob)
                found += new
                if tokens is not None:
                    tokens += piece.tokens
                written = len(generation.text)
                interrupt.rest()
        except KeyboardInterrupt:
            generation.interrupt()
            writer.write(generation.text[written:])
        except LlmcliError:
            writer.write(generation.text[written:])
            raise
    return found


def _least(reports: list[explain.GeneratedToken]) -> float | None:
    """The smallest known probability."""
    return min((report.prob for report in reports if report.prob is not None), default=None)


def _write_json(
    server: endpoint.Server, request: endpoint.Request, sampling: Sampling, *, needed: bool
) -> endpoint.ServerGeneration:
    """Write NDJSON: a start, one line per token, and an end, also after Ctrl-C.

    If probabilities are not ``needed``, a request for them that the server rejects is repeated without them.
    """
    generation, count = server.stream(request, require_logprobs=needed), 0
    model = render.ModelLabel(server.name)
    filters: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sampling.given.items()]
    filters += [{"name": "logit-bias", "value": None}] if sampling.biases else []
    with Interrupt() as interrupt:
        interrupt.rest()
        try:
            write_line(json_forms.generation_start(model, None, sampling.seed, filters), sys.stdout)
            for piece in generation:
                interrupt.point()
                for report in endpoint.generated_tokens(piece, count):
                    write_line(json_forms.rounded(json_forms.generated_token(report), model.digits), sys.stdout)
                    count += 1
                interrupt.rest()
        except KeyboardInterrupt:
            generation.interrupt()
    first, total = generation.first_seconds, generation.seconds
    end = json_forms.generation_end(generation.finish or "", generation.text, generation.tokens, first, total - first)
    write_line(end, sys.stdout)
    return generation
