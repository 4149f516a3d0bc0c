"""The options of guessing ahead, and what guesses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.options.model import ModelChoice, complete_model
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.steps import Guesser


@dataclass(frozen=True)
class Ahead:
    """Whether the text itself is to guess, or which smaller model; neither, if nothing guesses."""

    prompt_lookup: bool
    draft_model: str | None

    @property
    def given(self) -> bool:
        return self.prompt_lookup or self.draft_model is not None

    def guesser(self, loaded: LoadedModel, choice: ModelChoice) -> Guesser | None:
        """What guesses for ``loaded``; a smaller model is opened as it was, by ``choice``."""
        from llmcli.generation.speculative import DraftModel, PromptLookup, check_vocabularies

        if self.draft_model is None:
            return PromptLookup() if self.prompt_lookup else None
        draft = replace(choice.alone(), model=self.draft_model, adapter=None).open()
        check_vocabularies(loaded, draft)
        return DraftModel(draft.model)


def asked(prompt_lookup: bool, draft_model: str | None) -> Ahead:
    """The options, checked."""
    if prompt_lookup and draft_model is not None:
        raise usage_error("--prompt-lookup and --draft-model exclude each other", "give one of them")
    return Ahead(prompt_lookup, draft_model)


ahead_options = bundle(
    "ahead",
    asked,
    click.option("--prompt-lookup", is_flag=True, help="Guess ahead where the text repeats itself."),
    click.option(
        "--draft-model",
        metavar="MODEL",
        shell_complete=complete_model,
        help="Let this smaller model of the same tokenizer guess ahead.",
    ),
    title="Speed",
)
