"""``--endpoint``: the options that say that a server runs the model, and what they exclude."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.shell.settings import key_of
from llmcli.commands.shell.torchrun import torchrun
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.commands.options.sampling import Sampling
    from llmcli.endpoint.server import Server

# Parameters of what only this machine does: on the command line they are a mistake, elsewhere meant for other runs.
LOCAL_OPTIONS = (
    "adapter",
    "offline",
    "device",
    "dtype",
    "quantization",
    "threads",
    "tensor_parallel",
    "prompt_cache",
    "prompt_lookup",
    "draft_model",
)
# Parameters that would change what is written or shown, and that no server knows: refused wherever they were set.
UNSUPPORTED_OPTIONS = (
    "parse_special",
    "overflow",
    "json_schema",
    "regex",
    "choices",
    "num_samples",
    "best_of",
    "interactive",
    "temperatures",
    "samplers",
)


@dataclass(frozen=True)
class Endpoint:
    """Where the server is, if one is to run the model, and the file with its key."""

    url: str | None
    key_file: Path | None

    @property
    def given(self) -> bool:
        """An empty address runs the model here, whatever the config file says."""
        return bool(self.url)

    def open(self) -> Server:
        """Reach the server. Errors: as of ``open_server``; an option that has no meaning there."""
        from llmcli.endpoint.server import open_server

        assert self.url
        context = click.get_current_context()
        check_options(context)
        if torchrun().size > 1:
            raise usage_error(
                "a server runs the model: there is nothing to share among processes", "leave out torchrun"
            )
        typed = click.core.ParameterSource.COMMANDLINE
        model = context.params["model"]
        if context.get_parameter_source("endpoint_url") is typed and context.get_parameter_source("model") is not typed:
            model = None  # the one that is set elsewhere is this machine's
        server = open_server(self.url, model, self.key_file)
        context.call_on_close(server.client.close)
        return server


def asked(endpoint_url: str | None, api_key_file: Path | None) -> Endpoint:
    """The options as they were given."""
    return Endpoint(endpoint_url, api_key_file)


def check_options(context: click.Context) -> None:
    """Raise at an option that a server knows nothing of."""
    source = click.core.ParameterSource
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        on_machine = option.name in LOCAL_OPTIONS and given is source.COMMANDLINE
        in_meaning = option.name in UNSUPPORTED_OPTIONS and given not in (source.DEFAULT, None)
        if isinstance(option, click.Option) and (on_machine or in_meaning):
            raise usage_error(
                f"--{key_of(option)} has no meaning with --endpoint",
                'leave it out, or run the model here: --endpoint ""',
            )


def fields_of(sampling: Sampling, server: Server, seed: int | None) -> dict[str, Any]:
    """The sampling options as the server takes them. Errors: one that it does not."""
    from llmcli.endpoint.server_kinds import request_fields

    return request_fields(server.kind, sampling.given, seed=seed, window=sampling.window, biases=tuple(sampling.biases))


endpoint_options = bundle(
    "endpoint",
    asked,
    click.option(
        "--endpoint",
        "endpoint_url",
        metavar="URL",
        help="Let an OpenAI-compatible server run the model; -m is then its name there.",
    ),
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="The server's key, in a file.  [default: the variable LLMCLI_API_KEY]",
    ),
    title="Model",
)
