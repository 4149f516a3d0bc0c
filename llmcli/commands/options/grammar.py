"""The options of constrained output, and how they become the filter that allows only what was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.options.prompt import read_text_file
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.commands.options.length import Length
    from llmcli.generation.grammar import Grammar, GrammarFilter
    from llmcli.generation.loaded import LoadedModel


@dataclass(frozen=True)
class GrammarChoice:
    """Which ``option`` was given, and its grammar; neither, if the text is free."""

    option: str | None
    rules: str | None

    def compiled(self, loaded: LoadedModel) -> Grammar | None:
        """The grammar over the model's own tokens; None if the text is free."""
        from llmcli.generation.grammar import Grammar

        return None if self.rules is None else Grammar(loaded, self.rules)

    def exclude(self, option: str, why: str) -> None:
        """Raise where a grammar is given beside ``option``."""
        if self.option is not None:
            raise usage_error(f"{option} and {self.option} exclude each other", why)

    def exclude_all(self, length: Length) -> None:
        """Raise where a grammar is given beside what would end the text elsewhere, or cut it."""
        if length.stop:
            self.exclude("--stop", "the grammar says where the text may end")
        if length.overflow == "shift":
            self.exclude("--context-overflow shift", "the grammar must see the whole text")

    def filter(self, loaded: LoadedModel, start: int) -> GrammarFilter | None:
        """The stage for one text, which begins behind ``start`` tokens of prompt."""
        grammar = self.compiled(loaded)
        return None if grammar is None else grammar.filter(start)


def asked(json_schema: str | None, regex: str | None, choices: str | None) -> GrammarChoice:
    """The options, checked before anything is loaded."""
    given = {"--json-schema": json_schema, "--regex": regex, "--choices": choices}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise usage_error(f"{' and '.join(named)} exclude each other", "give one of them")
    if not named:
        return GrammarChoice(None, None)
    import_torch()
    from llmcli.generation.grammar import choice_rules, json_rules, regex_rules

    if json_schema is not None:
        rules = json_rules(read_schema(json_schema))
    else:
        rules = choice_rules(parse_choices(choices)) if choices is not None else regex_rules(regex or "")
    return GrammarChoice(named[0], rules)


def read_schema(given: str) -> object:
    """A JSON schema from a file, or as it stands. Errors: no such file, not JSON."""
    inline = given.lstrip().startswith("{") or given.strip() in ("true", "false")
    text = given if inline else read_text_file(Path(given))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise usage_error(f"{'--json-schema' if inline else given} is not valid JSON ({where})") from None
    except RecursionError:
        raise usage_error("the JSON schema is nested too deep", "make it flatter") from None


def parse_choices(text: str) -> list[str]:
    """Texts between commas, without the spaces around them, or a JSON list of texts exactly as they are."""
    if not text.lstrip().startswith("["):
        return [choice.strip() for choice in text.split(",")]
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise usage_error("--choices begins with [ but is no JSON list of texts", """as in '["yes", "no, never"]'""")
    return choices


def check_valid(ends: Sequence[tuple[str, bool | None]]) -> None:
    """Raise where a text ended before it was what the grammar asks for; of each, why it ended and whether it is."""
    cut = [finish for finish, valid in ends if valid is False]
    if cut:
        which = (
            "the text is cut off before it fits" if len(ends) == 1 else f"{len(cut)} of {len(ends)} texts do not fit"
        )
        hint = "the context is full: shorten the prompt" if "context" in cut else "give more --max-tokens"
        raise LlmcliError(f"{which} the grammar", hint)


grammar_options = bundle(
    "grammar",
    asked,
    click.option(
        "--json-schema",
        metavar="FILE|INLINE",
        help='Write JSON that fits this schema, on one line: a file, or the schema itself: \'{"type": "integer"}\'.',
    ),
    click.option("--regex", metavar="REGEX", help="Write a text that this regular expression matches as a whole."),
    click.option(
        "--choices",
        metavar="A,B,C",
        help='Write one of these. A JSON list if one holds a comma or begins with a space: \'[" yes", " no"]\'.',
    ),
    title="Grammar",
)
