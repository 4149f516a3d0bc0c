"""From the names in weight files to those of a family's rules: without wrappers, and with the rules' prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmcli.model.config import ModelConfig
from llmcli.model.families.rules import Family

# Name components that wrappers insert: torch.compile, DataParallel and DeepSpeed, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"\b(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
ANCHORS = ("embedding.weight", "head.weight", "norm.weight")  # parameters whose names tell the prefix
MOST_PREFIXES = 16  # that are tried; only damaged files have more
# Names of a matrix's tensors that do not begin with its module's name and a dot, or have more after it: bitsandbytes'
# and gpt-oss's.
PART_OF_WEIGHT = re.compile(r"(.+\.weight)(\..+)")
PART_OF_MODULE = re.compile(r"(.+)(_blocks|_scales)")
PEFT_PREFIX = re.compile(r"^(base_model\.model\.)+")


def unwrapped(name: str) -> str:
    """The name without what torch's and PEFT's wrappers insert."""
    return PEFT_PREFIX.sub("", WRAPPERS.sub("", name))


@dataclass(frozen=True)
class Naming:
    """Maps stored names to the names that the rules of ``family`` use.

    ``modules`` are the tensors' names in the rules without ``.weight`` and ``.bias``. ``base`` is the prefix of all of
    them but the head's, such as ``model.``: weights of a base model are stored without it. ``prefix`` is what the file
    puts before the names.
    """

    family: Family
    modules: frozenset[str]
    base: str
    prefix: str = ""

    @classmethod
    def of(cls, family: Family, config: ModelConfig, stored: Iterable[str] = ()) -> Naming:
        """The naming for files with the ``stored`` names. Their prefix is the one with which most rules are found."""
        rules = family.rules(replace(config, tie_word_embeddings=False))
        modules = frozenset(_module(source.name) for rule in rules for source in rule.sources)
        named = {rule.target: rule.sources[0].name for rule in rules}
        base = named["embedding.weight"][: _module(named["embedding.weight"]).rindex(".") + 1]
        plain = cls(family, modules, base)
        names = [unwrapped(name) for name in stored]
        names = [name for name in names if not family.drops(family.rename(name))]
        anchors = [named[target].removeprefix(base) for target in ANCHORS if target in named]
        before = re.escape(base)
        pattern = re.compile(rf"(.*?)(?:(?:^|(?<=\.)){before})?(?:{'|'.join(map(re.escape, anchors))})")
        prefixes = {match[1] for name in names if (match := pattern.fullmatch(name))}
        candidates = [plain, *(replace(plain, prefix=prefix) for prefix in sorted(prefixes - {""})[:MOST_PREFIXES])]
        return max(candidates, key=lambda naming: len({naming._known(name) for name in names} - {None}))

    def resolve(self, stored: str) -> str:
        """The rules' name for a stored name; without a counterpart in the rules, the stored name itself, unwrapped."""
        name = unwrapped(stored)
        return self._known(name) or self._part(name) or self.family.rename(name)

    def _part(self, name: str) -> str | None:
        for pattern, end in ((PART_OF_WEIGHT, ""), (PART_OF_MODULE, ".weight")):
            match = pattern.fullmatch(name)
            weight = self._known(match[1] + end) if match else None
            if match and weight:
                return weight + match[2]
        return None

    def _known(self, name: str) -> str | None:
        for candidate in (name, name.removeprefix(self.prefix)):
            renamed = self.family.rename(candidate)
            for known in (renamed, self.base + renamed, renamed.removeprefix(self.base)):  # the last is the head
                if _module(known) in self.modules:
                    return known
        return None


def _module(name: str) -> str:
    return name.rpartition(".")[0]
