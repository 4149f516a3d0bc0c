"""``--endpoint``: the options for a server that runs the model, and the options that exclude it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llmcli import endpoint
from llmcli.commands.options.common import bundle
from llmcli.commands.options.sampling import Sampling
from llmcli.commands.shell.config_file import key_of
from llmcli.commands.shell.torchrun import torchrun_rank
from llmcli.errors import usage_error

# Parameters for models on this machine. They are an error on the command line, but ignored in the config file and in
# environment variables, where they apply to other runs.
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
# Parameters that change the output and that no server supports. They are an error wherever they are set.
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
    "ablate",
    "steer",
    "template_file",
    "template_arg",
)


@dataclass(frozen=True)
class Endpoint:
    """The values of --endpoint and --api-key-file."""

    endpoint_url: str | None
    api_key_file: Path | None

    @property
    def given(self) -> bool:
        """Whether a server runs the model. ``--endpoint ""`` overrides the config file and runs it here."""
        return bool(self.endpoint_url)

    def open(self) -> endpoint.Server:
        """Connect to the server. Raises LlmcliError for options it does not support, and if it does not answer."""
        assert self.endpoint_url
        context = click.get_current_context()
        check_options(context)
        if torchrun_rank().size > 1:
            raise usage_error("--endpoint uses a single process", "run llmcli without torchrun")
        command_line = click.core.ParameterSource.COMMANDLINE
        model = context.params["model"]
        here, there = context.get_parameter_source("model"), context.get_parameter_source("endpoint_url")
        if there is command_line and here is not command_line:
            model = None  # a model from the config file is for this machine
        server = endpoint.open_server(self.endpoint_url, model, self.api_key_file)
        context.call_on_close(server.client.close)
        return server


def check_options(context: click.Context) -> None:
    """Raise LlmcliError for an option that does not work with a server."""
    source = click.core.ParameterSource
    for option in context.command.params:
        origin = context.get_parameter_source(option.name or "")
        local = option.name in LOCAL_OPTIONS and origin is source.COMMANDLINE
        unsupported = option.name in UNSUPPORTED_OPTIONS and origin not in (source.DEFAULT, None)
        if isinstance(option, click.Option) and (local or unsupported):
            raise usage_error(
                f"--{key_of(option)} does not work with --endpoint",
                'omit it, or run the model on this machine: --endpoint ""',
            )


def fields_of(sampling: Sampling, server: endpoint.Server, seed: int | None) -> dict[str, Any]:
    """Return the sampling options as fields of a request. Raises LlmcliError for one that ``server`` does not take."""
    return endpoint.request_fields(
        server.kind,
        sampling.given,
        seed=seed,
        window=sampling.window,
        biases=tuple(sampling.biases),
        breakers=sampling.breakers,
    )


endpoint_options = bundle(
    "endpoint",
    Endpoint,
    click.option(
        "--endpoint",
        "endpoint_url",
        metavar="URL",
        help="Use the OpenAI-compatible server at this address; -m is the model's name there.",
    ),
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="File with the server's API key.  [default: the variable LLMCLI_API_KEY]",
    ),
    title="Model",
)
