"""How a chat samples: the command line's options, which may be set anew while it goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options.sampling import Sampling, parse_sampling, sampling_parameters
from llmcli.commands.shell.help import plainly
from llmcli.errors import did_you_mean, usage_error

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.sampling import Sampler

LENGTH = "max_tokens"


class Settings(ABC):
    """The values of the sampling options and of --max-tokens, checked as on the command line."""

    def __init__(self, context: click.Context, sampling: Sampling) -> None:
        names = (*sampling_parameters(), LENGTH)
        self._context = context
        self._options: dict[str, click.Option] = {
            next(name for name in option.opts if name.startswith("--"))[2:]: option
            for option in context.command.params
            if option.name in names and isinstance(option, click.Option)
        }
        self._first = self.use(sampling)
        self._values: dict[str, Any] = {name: context.params[name] for name in names} | {"seed": self._first}
        self._begun = 0

    @abstractmethod
    def use(self, sampling: Sampling) -> int | None:
        """Write the next replies so; the seed of the first, None if it has none. Errors: they cannot be."""

    @property
    def names(self) -> list[str]:
        """What can be set."""
        return list(self._options)

    @property
    def max_tokens(self) -> int:
        return int(self._values[LENGTH])

    @property
    def seed(self) -> int | None:
        """That of the next reply: each has one of its own, one more than that of the reply before."""
        return None if self._first is None else self._first + self._begun

    def next_seed(self) -> int | None:
        """Likewise; and the reply after it has another."""
        seed = self.seed
        self._begun += 1
        return seed

    def set(self, name: str, text: str) -> None:
        """Set an option to what ``text`` says. Errors: as on the command line, and then nothing is changed."""
        option = self._options.get(name.removeprefix("--"))
        if option is None:
            hint = did_you_mean(name, self.names) or "known: " + ", ".join(self.names)
            raise usage_error(f"there is no setting {name!r}", hint)
        try:
            value = option.type_cast_value(self._context, [text] if option.multiple else text)
        except click.BadParameter as error:
            raise usage_error(f"{name}: {plainly(error.message)}") from None
        assert option.name is not None
        values = {**self._values, option.name: value}
        sampling = parse_sampling(**{key: value for key, value in values.items() if key != LENGTH})
        self._first = self.use(sampling)
        self._values = values
        self._begun = 0 if option.name == "seed" else self._begun


class SamplerSettings(Settings):
    """As a sampler of the model that runs here."""

    def __init__(self, context: click.Context, sampling: Sampling, loaded: LoadedModel) -> None:
        self._loaded = loaded
        super().__init__(context, sampling)

    def use(self, sampling: Sampling) -> int | None:
        self._chain = sampling.sampler(self._loaded)
        return self._chain.seed

    def sampler(self) -> Sampler:
        """A sampler for the next reply."""
        from llmcli.generation.sampling import Sampler

        seed = self.next_seed()
        assert seed is not None
        return Sampler(self._chain.filters, seed)
