"""The options of constrained output: a JSON schema, a regular expression, or choices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from llmcli import generation
from llmcli.commands.options.choices import CHOICES_HELP, parse_choices
from llmcli.commands.options.common import bundle
from llmcli.commands.options.length import Length
from llmcli.commands.options.prompt import read_text_file
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import LlmcliError, usage_error


@dataclass(frozen=True)
class GrammarChoice:
    """The ``option`` that was given, and the ``rules`` of its grammar; both None for free text."""

    option: str | None
    rules: str | None

    def exclude(self, option: str, why: str) -> None:
        """Raise LlmcliError if a grammar is given together with ``option``."""
        if self.option is not None:
            raise usage_error(f"{option} and {self.option} cannot be combined", why)

    def exclude_all(self, length: Length) -> None:
        """Raise LlmcliError if a grammar is given together with options that end or cut the text elsewhere."""
        if length.given_stop:
            self.exclude("--stop", "the grammar decides where the text may end")
        if length.overflow == "shift":
            self.exclude("--context-overflow shift", "the grammar needs the whole text")

    def limits_of(self, length: Length, loaded: generation.LoadedModel) -> Length:
        """``length`` with the model's own limits, without stop strings if a grammar decides where the text ends."""
        length = length.of(loaded)
        if self.option is None or length.own is None:
            return length
        return replace(length, own=replace(length.own, stop=()))

    def filter(self, loaded: generation.LoadedModel, start: int) -> generation.GrammarFilter | None:
        """The filter for one text, which begins after ``start`` prompt tokens; None for free text."""
        return None if self.rules is None else generation.Grammar(loaded, self.rules).filter(start)


def parse_grammar(json_schema: str | None, regex: str | None, choices: str | None) -> GrammarChoice:
    """Check the values of the options before anything is loaded."""
    given = {"--json-schema": json_schema, "--regex": regex, "--choices": choices}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise usage_error(f"{' and '.join(named)} cannot be combined", "give one of them")
    if not named:
        return GrammarChoice(None, None)
    import_torch()
    if json_schema is not None:
        rules = generation.json_rules(read_schema(json_schema))
    elif choices is not None:
        rules = generation.choice_rules(parse_choices(choices))
    else:
        rules = generation.regex_rules(regex or "")
    return GrammarChoice(named[0], rules)


def read_schema(given: str) -> object:
    """A JSON schema, given inline or as the name of a file. Raises LlmcliError if it cannot be read or parsed."""
    inline = given.lstrip().startswith("{") or given.strip() in ("true", "false")
    text = given if inline else read_text_file(Path(given))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise usage_error(f"{'--json-schema' if inline else given} is not valid JSON ({where})") from None
    except RecursionError:
        raise usage_error("the JSON schema is nested too deeply", "simplify it") from None


def check_valid(ends: Sequence[tuple[str, bool | None]]) -> None:
    """Raise LlmcliError if a text ended before it fit the grammar.

    ``ends`` has for each text why it ended and whether it fits (None without a grammar).
    """
    cut = [finish for finish, valid in ends if valid is False]
    if cut:
        which = (
            "the text was cut off before it fit" if len(ends) == 1 else f"{len(cut)} of {len(ends)} texts do not fit"
        )
        hint = "the context is full: shorten the prompt" if "context" in cut else "increase --max-tokens"
        raise LlmcliError(f"{which} the grammar", hint)


schema_option = click.option(
    "--json-schema",
    metavar="FILE|INLINE",
    help='Generate JSON that fits this schema, on one line. Give a file or the schema: \'{"type": "integer"}\'.',
)
regex_option = click.option(
    "--regex", metavar="REGEX", help="Generate a text that this regular expression matches as a whole."
)
grammar_options = bundle(
    "grammar",
    parse_grammar,
    schema_option,
    regex_option,
    click.option("--choices", metavar="FILE|A,B,C", help=f"Generate one of these. {CHOICES_HELP}"),
    title="Grammar",
)
# For commands that score choices instead.
grammar_options_without_choices = bundle(
    "grammar",
    lambda json_schema, regex: parse_grammar(json_schema, regex, None),
    schema_option,
    regex_option,
    title="Grammar",
)
