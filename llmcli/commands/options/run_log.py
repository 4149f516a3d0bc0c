"""``--log``: keep texts in the run log, with everything that repeats them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from llmcli import generation, hub, render
from llmcli.commands.options.changes import Ablation, Changes, Steering
from llmcli.commands.options.common import bundle, is_verbose
from llmcli.commands.options.distributed import DistributedModelChoice
from llmcli.commands.options.grammar import GrammarChoice
from llmcli.commands.options.model import ModelChoice
from llmcli.commands.options.sampling import Sampling, sampling_parameters
from llmcli.commands.shell.config_file import config_folder, key_of
from llmcli.errors import LlmcliError
from llmcli.files.run_log import Run, RunLog

# Options that do not change the text, besides those that ``Setup`` has.
NO_EFFECT = ("log", "as_json", "probs", "echo", "verbose", "prompt_cache", "prompt_lookup", "draft_model", "best_of")
FINGERPRINT = "llmcli.fingerprint"  # key in a context's meta
NOT_KEPT = ("log", "as_json", "file", "prompt_file", "api_key_file")  # in the log's list of options


def run_log() -> RunLog:
    """Return the user's run log."""
    return RunLog(config_folder() / "runs.sqlite3")


@dataclass(frozen=True)
class Setup:
    """What a text is made with, besides its prompt and its seed.

    ``own`` is what the model's generation_config.json sets and this depends on: ``stop_ids``, ``sampling`` and
    ``min_new_tokens``.
    """

    choice: ModelChoice
    changes: Changes
    sampling: Sampling
    grammar: GrammarChoice
    max_tokens: int
    stop: tuple[str, ...]
    rolls: bool
    own: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the setup as JSON values. Paths are absolute: the repetition may run in another folder."""
        choice = self.choice.undivided()
        form = asdict(replace(self, choice=choice))
        form["choice"] |= {"model": _absolute(choice.model), "adapter": _absolute(choice.adapter)}
        files = (form["changes"]["ablation"], "reference"), (form["changes"]["steering"], "file")
        for part, name in files:
            part[name] = None if part[name] is None else str(part[name].absolute())
        return form

    def applied(self, loaded: generation.LoadedModel) -> generation.LoadedModel:
        """Return the model with the settings that it had when the text was written."""
        own = {**self.own, "stop_ids": tuple(self.own["stop_ids"])}
        return replace(loaded, defaults=replace(loaded.defaults, **own))

    @staticmethod
    def of_json(form: Mapping[str, Any]) -> Setup:
        """Return the setup that ``to_json`` gave."""
        changes, sampling = form["changes"], form["sampling"]
        ablation, steering, breakers = changes["ablation"], changes["steering"], sampling["breakers"]
        return Setup(
            choice=ModelChoice(**form["choice"]),
            changes=Changes(
                Ablation(tuple(ablation["parts"]), ablation["replacement"], _path(ablation["reference"])),
                Steering(_path(steering["file"]), steering["strength"], steering["layers"]),
            ),
            sampling=Sampling(
                **{
                    **sampling,
                    "biases": [(token, amount) for token, amount in sampling["biases"]],
                    "breakers": None if breakers is None else tuple(breakers),
                }
            ),
            grammar=GrammarChoice(**form["grammar"]),
            max_tokens=form["max_tokens"],
            stop=tuple(form["stop"]),
            rolls=form["rolls"],
            own=form["own"],
        )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def own_settings(loaded: generation.LoadedModel) -> dict[str, Any]:
    """Return ``Setup.own`` of a model."""
    own = loaded.defaults
    return {
        "stop_ids": list(loaded.stop_ids),
        "sampling": dict(own.sampling),
        "min_new_tokens": own.min_new_tokens,
    }


@dataclass(frozen=True)
class Logging:
    """The value of --log. Its methods do nothing without it, and print a note instead of raising an error."""

    log: bool

    def keep(
        self,
        loaded: generation.LoadedModel,
        setup: Setup,
        prompt: str,
        prompt_ids: list[int],
        texts: Mapping[int, generation.Generation | generation.Sample],
        obstacle: str = "",
    ) -> None:
        """Keep the ``texts`` that a model on this machine wrote, by their seeds; ``obstacle``: why none is repeated."""
        if not self.log:
            return
        unknown, split = _unknown_options(), isinstance(setup.choice, DistributedModelChoice) and setup.choice.ranks > 1
        mark = None if split else fingerprint_of(loaded)
        replay: dict[str, Any] = {"setup": setup.to_json(), "prompt_ids": prompt_ids}
        if split or unknown:
            kept = f"the log does not keep what {', '.join(unknown)} changes"
            replay = {"obstacle": "its model was split among processes" if split else kept}
        elif obstacle:
            replay = {"obstacle": obstacle}
        for seed, text in texts.items():
            self._add(
                Run(
                    time=_now(),
                    command=_command(),
                    model=loaded.name,
                    fingerprint=mark,
                    prompt=prompt,
                    options=_given_options(setup.sampling),
                    replay=replay,
                    seed=seed,
                    text=text.text,
                    finish=text.finish,
                    tokens=text.tokens,
                )
            )

    def keep_server_text(self, model: str, prompt: str, seed: int | None, text: str, finish: str, tokens: int) -> None:
        """Keep a text that a server wrote."""
        if not self.log:
            return
        options, obstacle = _given_options(None), {"obstacle": "a server generated it"}
        self._add(Run(_now(), _command(), model, None, prompt, options, obstacle, seed, text, finish, tokens))

    def _add(self, run: Run) -> None:
        try:
            id = run_log().add(run)
        except LlmcliError as error:
            render.note(f"the run is not in the log: {render.one_line(error.message)}", sys.stderr)
        else:
            if is_verbose():
                render.note(f"logged as run {id}", sys.stderr)


def fingerprint_of(loaded: generation.LoadedModel) -> str:
    """Return the fingerprint of this command's only model, which is computed once."""
    from llmcli.storage.fingerprint import fingerprint

    known = click.get_current_context().meta
    if FINGERPRINT not in known:
        known[FINGERPRINT] = fingerprint(loaded.model)
    return str(known[FINGERPRINT])


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _command() -> str:
    return click.get_current_context().info_name or ""


def _absolute(model: str | None) -> str | None:
    """A model's name or, if it is that of a folder or file, its absolute path."""
    return str(Path(model).absolute()) if model is not None and hub.is_model_path(model) else model


def _given_options(sampling: Sampling | None) -> dict[str, Any]:
    """The options that were given in any way, by name; the numbers of ``sampling`` are the latest."""
    context = click.get_current_context()
    given: dict[str, Any] = {}
    for option in _given():
        if option.name not in NOT_KEPT:
            value = context.params[option.name or ""]
            given[key_of(option)] = value if isinstance(value, bool | int | float | str | None) else str(value)
            if isinstance(value, tuple):
                given[key_of(option)] = list(map(str, value))
    return given | ({} if sampling is None else sampling.given)


def _unknown_options() -> list[str]:
    """Options that were given and that may change the text in a way that ``Setup`` does not have."""
    others = ("argument", "file", "parse_special", "max_tokens", "stop", "overflow", "num_samples")
    chat = ("system_prompt", "raw", "template_file", "template_arg", "think")
    changes = ("ablate", "ablate_with", "steer", "strength", "steer_layers")
    ours = (*changes, "json_schema", "regex", "choices", "tensor_parallel")
    known = {*NO_EFFECT, *others, *chat, *ours, *sampling_parameters(), *(field.name for field in fields(ModelChoice))}
    return [key_of(option) for option in _given() if option.name not in known]


def _given() -> list[click.Option]:
    """The options of the command that have another value than their default."""
    context = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, None)
    return [
        option
        for option in context.command.params
        if isinstance(option, click.Option)
        and option.name in context.params
        and context.get_parameter_source(option.name) not in default
    ]


log_option = bundle(
    "logging",
    Logging,
    click.option("--log/--no-log", help="Keep the prompt, the options and the text in the run log: see llmcli log."),
    title="Output",
)
