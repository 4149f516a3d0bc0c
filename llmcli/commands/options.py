"""Options that several commands share, and how their values become what the library takes."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.errors import LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.generate.loaded import LoadedModel
    from llmcli.generate.sampling import Filter

Decorator = Callable[[Any], Any]

# Written out, not taken from the sampler's module: that imports torch, and --help must not.
FILTER_NAMES = "temperature,top-k,top-p,min-p"
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_THREADS = 1024  # torch crashes where the system grants no more


class Real(click.ParamType[float]):
    """A number; not-a-number is refused here, ranges where the number is used."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number", param, ctx)
        return number


def together(*decorators: Decorator) -> Decorator:
    """Several option decorators as one, in the order in which --help shows them."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


prompt_options = together(
    click.argument("prompt", required=False),
    click.option("--prompt-file", type=click.Path(path_type=Path), help="Read the prompt from a file."),
    click.option("--parse-special", is_flag=True, help="Read special tokens in the prompt as tokens, not as text."),
)

device_option = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads; torch's own choice if not given."
)

offline_option = click.option("--offline", is_flag=True, help="Download nothing; HF_HUB_OFFLINE=1 means the same.")

model_options = together(
    click.option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A folder, a name of `llmcli models`, or org/name of the Hugging Face hub.",
    ),
    offline_option,
    device_option,
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="auto: as stored."),
    threads_option,
)

_OWN = "  [default: the model's own, else {}]"

sampling_options = together(
    click.option(
        "--temperature",
        "--temp",
        type=Real(),
        help="Below 1 bolder choices become rarer, above 1 commoner. 0: always the most probable token."
        + _OWN.format(0.8),
    ),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the K most probable. 0: off." + _OWN.format(0)),
    click.option("--top-p", type=Real(), help="Keep the fewest that reach P together. 1: off." + _OWN.format(0.95)),
    click.option(
        "--min-p", type=Real(), help="Keep those at least P times as probable as the best. 0: off." + _OWN.format(0)
    ),
    click.option(
        "--samplers", metavar="NAMES", default=FILTER_NAMES, show_default=True, help="Which filters run, in what order."
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Repeats a run; random, and reported, if not given."),
)

verbose_option = click.option("--verbose", is_flag=True, help="Say more; show a traceback with an error.")


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from the argument, a file or stdin; an argument and stdin together are joined by a blank line."""
    if prompt_file is not None:
        if prompt is not None:
            raise usage_error("a PROMPT and --prompt-file are both given", "give one of them")
        return read_text_file(prompt_file)
    if prompt == "-":
        return read_stdin()
    if sys.stdin is None or sys.stdin.isatty():
        if prompt is None:
            raise usage_error("no prompt", "give it as an argument, with --prompt-file, or through a pipe")
        return prompt
    piped = read_stdin()
    return "\n\n".join(part for part in (prompt, piped) if part)


def read_text_file(path: Path) -> str:
    """A UTF-8 file without the line end that closes it. Errors: cannot be read, not UTF-8."""
    try:
        return _text(path.read_bytes(), str(path))
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "give a text file") from error


def read_stdin() -> str:
    """All of stdin, likewise."""
    if sys.stdin is None:  # Python's own sign for a stdin that was closed
        raise usage_error("stdin is closed", "give the prompt as an argument")
    try:
        return _text(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise LlmcliError(f"stdin: {error.strerror or error}", "give the prompt as an argument") from error


def _text(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LlmcliError(f"{source} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8 first") from None
    return text.removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True)
class AskedSampling:
    """The sampling options that were given, by filter name, and the order of the filters."""

    given: dict[str, float]
    order: list[str]

    def filters(self, own: Mapping[str, float]) -> list[Filter]:
        """The chain; what was not asked for is the model's ``own`` or ours. Errors: out of range, unknown names."""
        from llmcli.generate.sampling import DEFAULTS, filter_chain

        return filter_chain(self.order, {**DEFAULTS, **own, **self.given})

    def adopted(self, own: Mapping[str, float]) -> dict[str, float]:
        """Which of the model's ``own`` settings the chain follows."""
        return {name: value for name, value in own.items() if name in self.order and name not in self.given}


def asked_sampling(
    temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None, samplers: str
) -> AskedSampling:
    """The sampling options, checked before anything is loaded."""
    values = {"temperature": temperature, "top-k": top_k, "top-p": top_p, "min-p": min_p}
    given = {name: float(value) for name, value in values.items() if value is not None}
    asked = AskedSampling(given, [name.strip() for name in samplers.split(",") if name.strip()])
    asked.filters({})
    return asked


def tell_defaults(asked: AskedSampling, loaded: LoadedModel) -> None:
    """Say on stderr which settings come from the model itself, and which of those it wants cannot be had."""
    from llmcli.render.generation import defaults_line, note

    line = defaults_line(asked.adopted(loaded.defaults.sampling), loaded.defaults.unmet)
    if line:
        note(line, sys.stderr)


def make_seed(seed: int | None) -> int:
    """The seed asked for, or one that nobody can know."""
    return secrets.randbelow(2**32) if seed is None else seed


def use_threads(threads: int | None) -> None:
    """Have torch compute on so many CPU threads, if a number is given."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def find_model(name: str | None, offline: bool) -> Path:
    """The folder of the model, the shipped one if none is named; shows the download if there is one."""
    from llmcli import hub
    from llmcli.render.download import DownloadView

    name = hub.default_model() if name is None else name
    with DownloadView(name, sys.stderr) as view:
        return hub.find(name, offline=offline, progress=view)


def open_model(model: str | None, offline: bool, device: str, dtype: str, threads: int | None) -> LoadedModel:
    """Find and load the model."""
    folder = find_model(model, offline)
    use_threads(threads)
    from llmcli.generate.loaded import load
    from llmcli.hub.cache import name_of

    return load(folder, name=name_of(folder), device=device, dtype=dtype)
