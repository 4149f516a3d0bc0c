"""The sampling settings of a chat: the command line's options, which /set can change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import click

from llmcli import generation
from llmcli.commands.options.length import Length
from llmcli.commands.options.sampling import Sampling, parse_sampling, sampling_parameters
from llmcli.commands.shell.config_file import hyphenate, key_of, options_by_name
from llmcli.commands.shell.help import simplify_message
from llmcli.errors import did_you_mean, usage_error
from llmcli.generation.filters import OPTIONS

LENGTH = "max_tokens"
REPLY_TOKENS = 2048  # where neither the user nor the model sets a limit


class Settings(ABC):
    """The values of the sampling options and of --max-tokens, validated as on the command line."""

    def __init__(self, context: click.Context, sampling: Sampling) -> None:
        names = (*sampling_parameters(), LENGTH)
        self._context = context
        self._options: dict[str, click.Option] = {
            name: option for name, option in options_by_name(context.command).items() if option.name in names
        }
        self._first_seed = self.use(sampling, context.params[LENGTH])
        self._values: dict[str, Any] = {name: context.params[name] for name in names} | {"seed": self._first_seed}
        self._replies = 0

    @abstractmethod
    def use(self, sampling: Sampling, max_tokens: int | None) -> int | None:
        """Use ``sampling`` for the next replies, of at most ``max_tokens`` if that is given.

        Returns the seed of the first reply, if any. Raises LlmcliError if an option is not supported.
        """

    @abstractmethod
    def unset(self, name: str) -> str:
        """What applies if an option is not set, as text."""

    @property
    def names(self) -> list[str]:
        """The names that /set takes."""
        return list(dict.fromkeys(map(key_of, self._options.values())))

    @property
    def max_tokens(self) -> int:
        """The most tokens of a reply."""
        return int(self._values[LENGTH] or REPLY_TOKENS)

    @property
    def seed(self) -> int | None:
        """The seed of the next reply: that of the previous reply plus one."""
        return None if self._first_seed is None else self._first_seed + self._replies

    def next_seed(self) -> int | None:
        """Return ``seed`` and advance it for the reply after the next."""
        seed = self.seed
        self._replies += 1
        return seed

    def shown(self, name: str) -> str:
        """The value of an option as text. Raises LlmcliError if there is no such option."""
        option = self._option(name)
        current = {"seed": self.seed, LENGTH: self.max_tokens}
        value = current.get(str(option.name), self._values[str(option.name)])
        if value is None or value == ():
            return self.unset(key_of(option))
        return (
            ", ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
        )

    def set(self, name: str, text: str) -> None:
        """Set an option to ``text``. Raises LlmcliError and changes nothing if the command line would reject it."""
        option = self._option(name)
        try:
            value = option.type_cast_value(self._context, [text] if option.multiple else text)
        except click.BadParameter as error:
            raise usage_error(f"{name}: {simplify_message(error.message)}") from None
        assert option.name is not None
        values = {**self._values, option.name: value}
        sampling = parse_sampling(**{key: value for key, value in values.items() if key != LENGTH})
        self._first_seed = self.use(sampling, values[LENGTH])
        self._values = values
        self._replies = 0 if option.name == "seed" else self._replies

    def _option(self, name: str) -> click.Option:
        """The option called ``name``. Raises LlmcliError if there is none."""
        option = self._options.get(hyphenate(name.removeprefix("--")))
        if option is None:
            hint = did_you_mean(name, self.names) or "known: " + ", ".join(self.names)
            raise usage_error(f"there is no setting {name!r}", hint)
        return option


class SamplerSettings(Settings):
    """The sampling options as a sampler for a local model."""

    def __init__(self, context: click.Context, sampling: Sampling, loaded: generation.LoadedModel) -> None:
        self._loaded = loaded
        super().__init__(context, sampling)

    def use(self, sampling: Sampling, max_tokens: int | None) -> int | None:
        limits = Length(max_tokens, (), "error").of(self._loaded).adopted
        self._chain = sampling.sampler(self._loaded, limits=limits)
        self.sampling = sampling
        return self._chain.seed

    def unset(self, name: str) -> str:
        own = self._loaded.defaults.sampling
        if name in own:
            return f"{own[name]:g} (the model's)"
        return f"{OPTIONS[name].default:g}" if name in OPTIONS else "none"

    @property
    def max_tokens(self) -> int:
        return self._loaded.defaults.token_limit(self._values[LENGTH], REPLY_TOKENS)

    def sampler(self) -> generation.Sampler:
        """The sampler for the next reply."""
        seed = self.next_seed()
        assert seed is not None
        return generation.Sampler(self._chain.filters, seed)
