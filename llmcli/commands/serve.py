"""``llmcli serve``: a server for other programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llmcli import explain, generation, render, text
from llmcli import serve as server
from llmcli.commands.options.common import MOST_IN_BATCH, verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, model_options, models_option
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import described_by, heading
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import EXIT_INTERRUPTED, usage_error
from llmcli.hub import name_of
from llmcli.render import json_forms

PORT = 8000
MIB = 2**20


@click.command(cls=Command)
@heading("Server")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="Listen on HOST; other machines need a key.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Listen on port N. 0: any free port."
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="Key that clients must send.  [default: LLMCLI_API_KEY]",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, MOST_IN_BATCH),
    default=16,
    show_default=True,
    help="Generate up to N texts at a time.",
)
@click.option(
    "--queue", type=click.IntRange(1), default=64, show_default=True, help="Queue up to N requests; refuse more."
)
@click.option(
    "--prefix-memory",
    type=click.IntRange(0),
    default=512,
    show_default=True,
    help="Cache texts in N MiB. 0: no cache.",
)
@click.option(
    "--timeout", type=click.IntRange(1), default=600, show_default=True, help="End a request after N seconds."
)
@described_by("generate", model_options)
@heading("Model")
@models_option("Also serve MODEL: it loads when a client asks for it. Repeatable.", "--models")
@verbose_option
def serve(
    host: str,
    port: int,
    api_key_file: Path | None,
    parallel: int,
    queue: int,
    prefix_memory: int,
    timeout: int,
    choice: ModelChoice,
    models: tuple[str, ...],
) -> None:
    """Serve a model to other programs, with OpenAI's protocol under /v1.

    \b
    Examples:
      llmcli serve
      llmcli generate "Once upon a time" --endpoint http://localhost:8000
    """
    server.check_installed()
    from llmcli.endpoint.address import own_key

    local = server.is_loopback(host)
    key = own_key(api_key_file)
    if key is None and not local:
        raise usage_error(f"{host} is reachable from other machines, but no API key is set", kind="server-needs-key")
    listener = server.listen(host, port)
    others = find_others(choice, models)
    limits = server.Limits(seconds=float(timeout))

    def begin(loaded: generation.LoadedModel) -> server.Served:
        scheduler = server.Scheduler(
            loaded, thread, parallel=parallel, most_waiting=queue, prefix_bytes=prefix_memory * MIB
        )
        return server.Served(loaded, scheduler, server.Reader(loaded, text.find_template(loaded.folder), limits))

    load = loader(choice, *choice.find())
    import_torch()
    thread = server.ModelThread()
    first = server.run_apart(lambda: begin(load()))
    thread.start()
    name = first.loaded.name
    check_names([name, *(name for name, _ in others)])
    service = server.Service(
        server.Models(first, dict(others), begin, log),
        report_json,
        server.PageWriter(page_of, *render.page_hashes()),
        log,
        limits,
    )

    def drain() -> None:
        service.draining = True

    def finish() -> None:
        schedulers = [served.scheduler for served in service.models.loaded.values()]
        if any(each.running or each.waiting for each in schedulers):
            log("finishing what runs (press Ctrl-C to stop at once)")

    def announce() -> None:
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        render.note(f"serving {name} at http://{shown}:{bound} (press Ctrl-C to stop)", sys.stderr)

    app = server.Guard(server.build_app(service), key, local=local)
    if server.run_server(app, listener, ready=announce, drain=drain, finish=finish, patience=limits.seconds):
        sys.exit(EXIT_INTERRUPTED)


def log(line: str) -> None:
    """Print a line about a request or a model."""
    render.note(render.one_line(line), sys.stderr)


Loader = Callable[[], "generation.LoadedModel"]  # not imported with the command


def find_others(choice: ModelChoice, models: Sequence[str]) -> list[tuple[str, Loader]]:
    """Return the name of each model, and a function that loads it with the options of ``choice``.

    Downloads models that are not on this machine.
    """
    found = []
    for model in models:
        other = replace(choice, model=model, adapter=None)
        folder, _ = other.find()
        found.append((render.one_line(name_of(folder)), loader(other, folder, None)))
    return found


def loader(choice: ModelChoice, folder: Path, adapter: Path | None) -> Loader:
    """Return a function that loads a model from its folder and that of its adapter, in any thread."""
    ctx = click.get_current_context()

    def load() -> generation.LoadedModel:
        from llmcli.model import use_threads

        use_threads(choice.threads)
        with ctx.scope(cleanup=False):
            return choice.load(folder, adapter)

    return load


def check_names(names: Sequence[str]) -> None:
    """Raise LlmcliError if two models have the same name: clients could not choose between them."""
    for name in names:
        if names.count(name) > 1:
            raise usage_error(f"two models are called {name}", "run a separate server for one of them")


def page_of(loaded: generation.LoadedModel, walk: explain.Walkthrough) -> str:
    """Return the page of `llmcli explain`."""
    model = describe_model(loaded)
    return render.page_html(walk, loaded.tokenizer, model, render.Caption("llmcli serve", None, [model]))


def report_json(loaded: generation.LoadedModel, report: Any) -> Mapping[str, Any]:
    """Return a view's report as its command's --json prints it."""
    forms: dict[type, Callable[[Any], Mapping[str, Any]]] = {
        explain.StepReport: json_forms.step,
        explain.Tokenization: json_forms.tokenization,
    }
    form = forms[type(report)](report) if type(report) in forms else json_forms.record(report)
    used = [describe_model(loaded)]
    rounded: Mapping[str, Any] = json_forms.rounded(json_forms.with_dtypes(form, used), render.most_digits(used))
    return rounded
