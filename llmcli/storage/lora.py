"""LoRA adapters (Hu et al. 2021) as PEFT saves them, merged into the weights while those are read.

A matrix W [out, in] becomes W + s B A, with A [r, in], B [out, r] and s = lora_alpha / r (rsLoRA: / sqrt(r)).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights
from llmcli.files.gguf import is_gguf
from llmcli.files.json import read_json
from llmcli.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmcli.files.safetensors import TensorFile
from llmcli.model.families.fields import field, wrong
from llmcli.storage.finite import is_finite
from llmcli.storage.naming import unwrapped
from llmcli.storage.patterns import first_match

# Config fields of adapters that do more than W + s B A.
VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
)
# Values of init_lora_weights that keep the base model as it is.
PLAIN_INITS = ("gaussian", "eva", "mica", "orthogonal", "true", "false")
# A key may have the adapter's name, such as "default", before or instead of ".weight".
_LOW_RANK = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(\.\w+)?(\.weight)?")
_SAVED_MODULE = re.compile(r"\.modules_to_save(\.\w+)?(?=\.(weight|bias)$)")
_ORIGINAL = re.compile(r".+\.original_module\.(weight|bias)")  # the base model's own tensor
N = TypeVar("N", int, float)


class Adapter:
    """An adapter's tensors, by the name of the stored tensor that they change.

    ``resolve`` maps stored names to the family's. Raises LlmcliError if the adapter is not a LoRA, uses unsupported
    features, is damaged, or has an A without its B.
    """

    def __init__(self, folder: Path, resolve: Callable[[str], str]) -> None:
        self.path = folder / ADAPTER_WEIGHTS
        self.config = _read_config(folder)
        if not self.path.exists():
            found = other_weights(path.name for path in folder.iterdir())
            raise LlmcliError(
                f"{folder} has no {ADAPTER_WEIGHTS}" + (f", but weights that are {found}" if found else ""),
                "save the adapter as safetensors" if found else "download it again",
            )
        self.file = TensorFile(self.path)
        self.replaced: dict[str, Tensor] = {}  # tensors that were trained in full
        self._factors: dict[str, dict[str, Tensor]] = {}  # by source, then "A" or "B"
        modules: dict[str, str] = {}  # the adapter's name for the module, by source
        for name, entry in self.file.entries.items():
            bare = _SAVED_MODULE.sub("", unwrapped(name).replace(".base_layer.", "."))
            match = _LOW_RANK.fullmatch(bare)
            if match is None:
                if not _ORIGINAL.fullmatch(bare):
                    self.replaced[resolve(bare)] = self.file.read(entry)
                continue
            module, embedding, factor = match.group(1, 2, 3)
            source = resolve(f"{module}.weight")
            tensor = self.file.read(entry).float()
            if tensor.ndim != 2 or 0 in tensor.shape:
                raise self._misfit(source)
            # An embedding's table is [tokens, size]: the transpose of a matrix [out, in].
            factors = self._factors.setdefault(source, {})
            role = {"A": "B", "B": "A"}[factor] if embedding else factor
            if role in factors:
                raise LlmcliError(f"{self.path}: contains two adapters for {module}", "save one adapter alone")
            factors[role] = tensor.T if embedding else tensor
            modules[source] = module
        incomplete = sorted(source for source, factors in self._factors.items() if len(factors) < 2)
        if incomplete:
            raise LlmcliError(f"{self.path}: A or B is missing for {', '.join(incomplete[:3])}", "download it again")
        if not self.sources:
            raise LlmcliError(f"{self.path}: contains no tensors", "save the adapter again, or download it again")
        try:
            self._check_ranks(modules)
            alphas = self._by_module("alpha_pattern", field(self.config, "lora_alpha", 8.0), list(modules.values()))
            self._scales = {source: self._scale(source, alpha) for source, alpha in zip(modules, alphas, strict=True)}
        except LlmcliError as error:  # of a value in the file
            problem = error.message.replace("config.json", str(folder / ADAPTER_CONFIG), 1)
            raise LlmcliError(problem, "correct the file, or merge the adapter with peft first") from None

    @property
    def sources(self) -> set[str]:
        """The names of the stored tensors that the adapter changes."""
        return self._factors.keys() | self.replaced.keys()

    def applied(self, source: str, tensor: Tensor, *, transposed: bool) -> Tensor:
        """A stored tensor with the adapter merged into it. ``transposed``: it is stored [in, out]."""
        if self.replaced.get(source, tensor).shape != tensor.shape:
            raise self._misfit(source)
        tensor = self.replaced.get(source, tensor)
        if source not in self._factors:
            return tensor
        factors = self._factors[source]
        if factors["A"].shape[0] != factors["B"].shape[1]:
            raise self._misfit(source)
        change = self._scales[source] * (factors["B"] @ factors["A"])
        change = change.T if transposed else change
        if change.shape != tensor.shape:
            raise self._misfit(source)
        return tensor.float() + change

    def finite(self, source: str) -> bool:
        """Whether what the adapter has for ``source`` contains neither NaN nor infinity."""
        changes = [*self._factors.get(source, {}).values()]
        changes += [self.replaced[source]] if source in self.replaced else []
        return all(is_finite(change) for change in changes)

    def _misfit(self, source: str) -> LlmcliError:
        return LlmcliError(
            f"{self.path}: the adapter for {source} does not fit the model's tensor", "it may belong to another model"
        )

    def _scale(self, source: str, alpha: float) -> float:
        """The scale s of the adapter of ``source``."""
        rank: int = self._factors[source]["A"].shape[0]
        return alpha / (rank**0.5 if field(self.config, "use_rslora", False) else rank)

    def _check_ranks(self, modules: Mapping[str, str]) -> None:
        """Raise LlmcliError if the tensors of one of ``modules`` have another rank than the file says, if it does."""
        ranks = self._by_module("rank_pattern", field(self.config, "r", 0), list(modules.values()))
        for (source, module), rank in zip(modules.items(), ranks, strict=True):
            a, b = self._factors[source]["A"].shape[0], self._factors[source]["B"].shape[1]
            if a == b != rank and self.config.get("r") is not None:
                raise LlmcliError(f"config.json: the rank of {module} is {rank}, but its tensors have rank {a}")

    def _by_module(self, key: str, usual: N, modules: Sequence[str]) -> list[N]:
        """The number of each module: that of the first regular expression in ``key`` that matches, or ``usual``."""
        patterns = self.config.get(key) or {}
        if not isinstance(patterns, Mapping):
            raise wrong(key, patterns, "an object")
        numbers = [field(patterns, pattern, usual) for pattern in patterns]
        if not patterns:
            return [usual] * len(modules)
        found = self._matches(key, list(patterns), modules)
        return [usual if index is None else numbers[index] for index in found]

    def _matches(self, key: str, patterns: Sequence[str], modules: Sequence[str]) -> list[int | None]:
        """For each module, the index of the first pattern that matches the end of its name, as in PEFT.

        Any regular expression is allowed.
        """
        if all(re.fullmatch(r"[\w.]+", pattern) for pattern in patterns):
            return [
                next((i for i, ending in enumerate(patterns) if f".{module}".endswith(f".{ending}")), None)
                for module in modules
            ]
        try:
            return first_match([rf"(.*\.)?({pattern})$" for pattern in patterns], modules)
        except ValueError as error:
            raise LlmcliError(
                f"config.json: {key} has a regular expression that is {error}: " + ", ".join(map(repr, patterns)),
                "merge the adapter with peft first",
            ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises LlmcliError if it describes anything but a plain LoRA."""
    if folder.is_file():
        what = "a GGUF file" if is_gguf(folder) else "a file"
        raise LlmcliError(
            f"{folder}: this is {what}, and llmcli merges only adapters in PEFT's layout",
            f"give a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}",
        )
    raw = read_json(folder / ADAPTER_CONFIG, f"an adapter folder has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    if raw.get("peft_type") != "LORA":
        raise LlmcliError(f"{folder / ADAPTER_CONFIG}: peft_type is {raw.get('peft_type')!r}", "only LORA is supported")
    init = raw.get("init_lora_weights")
    unsupported = [key for key in VARIANTS if raw.get(key)]
    if (
        isinstance(init, str) and init.lower() not in PLAIN_INITS
    ):  # initializations that change the base model's weights
        unsupported.append(f"init_lora_weights {init!r}")
    if unsupported:
        raise LlmcliError(
            f"{folder / ADAPTER_CONFIG}: {', '.join(unsupported)} is not supported", "merge the adapter with peft first"
        )
    return raw
