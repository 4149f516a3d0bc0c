"""LoRA adapters (Hu et al. 2021) as PEFT saves them, merged into the weights while those are read.

A matrix W [out, in] becomes W + s B A, with A [r, in], B [out, r] and s = lora_alpha / r (rsLoRA: / sqrt(r)).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmcli.files.safetensors import TensorFile
from llmcli.model.families.fields import field, wrong

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
PLAIN_INITS = ("gaussian", "eva", "true", "false")  # values of init_lora_weights that leave the base model unchanged
_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(\.weight)?")


class Adapter:
    """An adapter's tensors, by the name of the stored tensor that they change.

    ``rename`` maps stored names to the family's. Raises LlmcliError if the adapter is not a LoRA, uses unsupported
    features, is damaged, or has an A without its B.
    """

    def __init__(self, folder: Path, rename: Callable[[str], str]) -> None:
        self.path = folder / ADAPTER_WEIGHTS
        self.config = _read_config(folder)
        self.file = TensorFile(self.path)
        self.replaced: dict[str, Tensor] = {}  # tensors that were trained in full
        self._factors: dict[str, dict[str, Tensor]] = {}  # by source, then "A" or "B"
        self._scales: dict[str, float] = {}
        for name, entry in self.file.entries.items():
            bare = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
            match = _LOW_RANK.fullmatch(bare)
            if match is None:
                self.replaced[rename(bare)] = self.file.read(entry)
                continue
            module, embedding, factor, _ = match.groups()
            source = rename(f"{module}.weight")
            tensor = self.file.read(entry).float()
            if tensor.ndim != 2 or 0 in tensor.shape:
                raise self._misfit(source)
            # An embedding's table is [tokens, size]: the transpose of a matrix [out, in].
            factors = self._factors.setdefault(source, {})
            factors[{"A": "B", "B": "A"}[factor] if embedding else factor] = tensor.T if embedding else tensor
            self._scales[source] = self._scale(module, tensor.shape[0 if factor == "A" else 1])
        incomplete = sorted(source for source, factors in self._factors.items() if len(factors) < 2)
        if incomplete:
            raise LlmcliError(f"{self.path}: A or B is missing for {', '.join(incomplete[:3])}", "download it again")

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

    def _misfit(self, source: str) -> LlmcliError:
        return LlmcliError(
            f"{self.path}: the adapter for {source} does not fit the model's tensor", "it may belong to another model"
        )

    def _scale(self, module: str, rank: int) -> float:
        """The scale s of a module's adapter; ``alpha_pattern`` maps ends of module names to their own lora_alpha."""
        alpha = field(self.config, "lora_alpha", 8.0)
        patterns = self.config.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping):
            raise wrong("alpha_pattern", patterns, "an object")
        for ending in patterns:
            if not re.fullmatch(r"[\w.]+", ending):  # PEFT allows any regular expression, which may not terminate
                raise LlmcliError(f"{self.path.parent / ADAPTER_CONFIG}: alpha_pattern {ending!r} is not supported")
            if f".{module}".endswith(f".{ending}"):
                alpha = field(patterns, ending, alpha)
                break
        return alpha / (rank**0.5 if field(self.config, "use_rslora", False) else rank)


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises LlmcliError if it describes anything but a plain LoRA."""
    raw = read_json(folder / ADAPTER_CONFIG, f"an adapter folder has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    if raw.get("peft_type") != "LORA":
        raise LlmcliError(f"{folder / ADAPTER_CONFIG}: peft_type is {raw.get('peft_type')!r}", "only LORA is supported")
    init = raw.get("init_lora_weights")
    unsupported = [key for key in VARIANTS if raw.get(key)]
    if isinstance(init, str) and init not in PLAIN_INITS:  # initializations that change the base model's weights
        unsupported.append(f"init_lora_weights {init!r}")
    if unsupported:
        raise LlmcliError(
            f"{folder / ADAPTER_CONFIG}: {', '.join(unsupported)} is not supported", "merge the adapter with peft first"
        )
    return raw
