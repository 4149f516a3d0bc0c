"""The options of speculative decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import click

from llmcli import generation
from llmcli.commands.options.common import bundle
from llmcli.commands.options.model import ModelChoice, complete_model
from llmcli.errors import usage_error


@dataclass(frozen=True)
class Speculative:
    """Where proposals come from: the text itself, or a draft model. Neither: decoding is not speculative."""

    prompt_lookup: bool
    draft_model: str | None

    @property
    def given(self) -> bool:
        return self.prompt_lookup or self.draft_model is not None

    def proposer(self, loaded: generation.LoadedModel, choice: ModelChoice) -> generation.Proposer | None:
        """The source of proposals for ``loaded``. A draft model is opened with the same options, ``choice``."""
        if self.draft_model is None:
            return generation.PromptLookup() if self.prompt_lookup else None
        draft = replace(choice.undivided(), model=self.draft_model, adapter=None).open()
        generation.check_vocabularies(loaded, draft)
        return generation.DraftModel(draft.model)


def parse_speculative(prompt_lookup: bool, draft_model: str | None) -> Speculative:
    """Check the values of the options."""
    if prompt_lookup and draft_model is not None:
        raise usage_error("--prompt-lookup and --draft-model cannot be combined", "give one of them")
    return Speculative(prompt_lookup, draft_model)


speculative_options = bundle(
    "speculative",
    parse_speculative,
    click.option(
        "--prompt-lookup",
        is_flag=True,
        help="Speculative decoding where the text repeats itself. --verbose counts accepted tokens.",
    ),
    click.option(
        "--draft-model",
        metavar="MODEL",
        shell_complete=complete_model,
        help="Speculative decoding with this smaller model, which must have the same tokenizer. --verbose counts "
        "accepted tokens.",
    ),
    title="Speed",
)
