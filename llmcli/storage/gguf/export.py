"""Writing a model as a GGUF file: llama.cpp's metadata, and one tensor after the other in the wanted type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.gguf import BLOCKS
from llmcli.files.gguf_writer import NewTensor, write_header
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families import family_of
from llmcli.model.families.gguf import architecture_for, architecture_of, described, metadata_of
from llmcli.model.families.gguf_apertus import CONSTANTS, CURVE
from llmcli.model.families.gguf_architecture import DROPPED, WINDOW
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.families.gguf_rope import factors_of
from llmcli.model.families.rules import Rule, Source
from llmcli.model.positions import inverse_frequencies, span
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.gguf.quantizers import encode
from llmcli.storage.gguf.sources import Stored, stored_parameters
from llmcli.storage.gguf.weights import contents_of

GgufType = Literal["BF16", "F16", "F32", "Q8_0", "Q4_0", "Q4_K"]
FILE_TYPES: dict[GgufType, int] = {"BF16": 32, "F16": 1, "F32": 0, "Q8_0": 7, "Q4_0": 2, "Q4_K": 15}  # llama.cpp's
NARROWER = {
    "Q4_K": "Q5_1",
    "Q6_K": "Q8_0",
    "Q5_1": "F16",
    "Q4_0": "F16",
    "Q8_0": "F16",
}  # for rows that are not whole blocks
CHUNK = 2**20  # weights converted at a time
# Of the matrices within a layer, those that a model's quality depends on most.
DELICATE = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down|experts\.\d+\.ffn_down)\.weight")
# The parameters with rows and columns that llama.cpp has in float32.
PRECISE = (
    *("norm.weight", "router.weight", "shared_gate.weight", "positions.weight"),
    *("mixer.kernel", "mixer.decay", "mixer.skip"),
)
PART = re.compile(r"(blk\.\d+\.)(experts|heads)\.(\d+)\.(\w+)\.(weight|bias)")  # of a tensor of all of them
SUFFIXES = {"experts": "_exps", "heads": ""}


@dataclass(frozen=True)
class Place:
    """Where a source is stored: in the tensor ``name``, from the byte ``offset`` on, as rows of the type ``type``."""

    name: str
    offset: int
    type: str


class GgufExport:
    """A model to write as a GGUF file whose matrices have the type ``kind``; ``adapter`` is a LoRA's folder to merge.

    Where matrices have 4 bits, embedding tables and heads have 8; norms, biases and routers are in float32. With Q4_K,
    some of the matrices have Q6_K. Matrices whose rows are not whole blocks have another type. ``changes`` are what the
    user should know about the new file.

    Raises LlmcliError if the format cannot express the model, or a file of the model is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, kind: GgufType, adapter: Path | None = None) -> None:
        self.kind = kind
        self.stored: Stored = stored_parameters(checkpoint, adapter)
        config = self.stored.config
        self.vocab_size, self.unused = config.vocab_size, self.stored.unused
        is_gguf = checkpoint.folder.is_file()
        self._name, self._architecture = architecture_for(config)
        if is_gguf:  # whose metadata is copied
            self._architecture = architecture_of(contents_of(checkpoint.folder))
        rules = self._architecture.rules(config)
        self._curves = [rule for rule in rules if rule.target.endswith(".curve")]  # numbers in the metadata
        self.rules = [rule for rule in rules if rule not in self._curves]
        self._unfit: dict[str, int] = {}
        self.tensors, self.places = self._planned()
        rows = f"because rows are not multiples of {BLOCKS[kind][0]}"
        matrices = sum(place.type != "F32" for place in self.places.values())
        self.changes = [
            f"stored as {type}, {rows}: {count} of {matrices} matrices" for type, count in self._unfit.items()
        ]
        self.metadata, self.factors = _copied(checkpoint.folder) if is_gguf else self._described(config)
        self.metadata |= {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}
        for name, factors in self.factors.items():
            self.tensors[name] = NewTensor(name, "F32", (len(factors),))

    def _planned(self) -> tuple[dict[str, NewTensor], dict[str, Place]]:
        """The tensors of the file, and the place of each of the architecture's sources, by name."""
        tensors: dict[str, NewTensor] = {}
        places: dict[str, Place] = {}
        for rule in self.rules:
            columns = self.stored.shapes[rule.target][1:]
            for source in rule.sources:
                shape = source.stored_shape(columns)
                one = NewTensor(source.name, self._type(rule, source.name, shape), shape)
                part = PART.fullmatch(source.name)
                if part is None:
                    tensors[source.name], places[source.name] = one, Place(source.name, 0, one.type)
                    continue
                name, number = f"{part[1]}{part[4]}{SUFFIXES[part[2]]}.{part[5]}", int(part[3])
                tensors[name] = NewTensor(name, one.type, (number + 1, *shape))
                places[source.name] = Place(name, number * one.nbytes, one.type)
        return tensors, places

    def _type(self, rule: Rule, name: str, shape: Sequence[int]) -> str:
        """The type of the source called ``name``."""
        if len(shape) < 2 or rule.target.endswith(PRECISE):
            return "F32"
        wanted: str = self.kind
        if self.kind in ("Q4_0", "Q4_K") and rule.target in ("embedding.weight", "head.weight"):
            wanted = "Q8_0"
        delicate = DELICATE.fullmatch(name)
        if self.kind == "Q4_K" and delicate and self._is_delicate(int(delicate[1])):
            wanted = "Q6_K"
        type = wanted
        while shape[-1] % BLOCKS[type][0]:
            type = NARROWER[type]
        if type != wanted:
            self._unfit[type] = self._unfit.get(type, 0) + 1
        return type

    def _is_delicate(self, layer: int) -> bool:
        """Whether a layer is among the first or last eighth, or every third of the others, as in llama.cpp's Q4_K_M."""
        layers = self.stored.config.num_hidden_layers
        return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2

    def _described(self, config: ModelConfig) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """The metadata and the factors of rotary angles of a model with this config.

        Raises LlmcliError unless they describe the same model when they are read again.
        """
        written = _without_windows(config)
        if written.max_position_embeddings < config.max_position_embeddings:
            window = written.max_position_embeddings
            self.changes.append(f"the context is limited to the attention window of {window} tokens")
        if self._name == "phi3" and config.sliding_window is not None:
            self.changes.append(f"llama.cpp does not use the attention window of {config.sliding_window} tokens")
        if config.rope is not None and config.rope.rope_type == "yarn" and not config.rope.truncate:
            self.changes.append("llama.cpp rounds the ends of YaRN's ramp, so some pairs rotate at another speed")
        unsuited, written = self._architecture.refused(written), self._architecture.multiplied(written)
        metadata, factors = metadata_of(written), factors_of(written)
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        shapes |= {name: (len(values),) for name, values in factors.items()}
        raw = described(Contents(metadata, shapes, factors.__getitem__))
        changed = [*differences(written, family_of(raw).parse(raw)), *unsuited]
        if changed:
            raise LlmcliError(
                f"the GGUF architecture {self._name} cannot express this model's {', '.join(changed)}",
                "llama.cpp would compute something else",
            )
        return metadata | self._learned(), factors

    def _learned(self) -> dict[str, Any]:
        """The metadata of a learned activation; none without."""
        if not self._curves:
            return {}
        curves = torch.stack([self.stored.values(rule.target).float() for rule in self._curves])
        learned = dict(zip(CURVE, curves.T.tolist(), strict=True))
        return learned | {key: [value] * len(curves) for key, value in CONSTANTS.items()}

    def write(
        self, file: BinaryIO, metadata: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Write the file; ``metadata`` is added to the model's own, such as that of its tokenizer.

        ``progress`` receives the bytes of tensors done and in total. Raises LlmcliError, which names the tensor, if a
        weight is NaN or infinite, or too large for its type.
        """
        positions = write_header(file, {**self.metadata, **metadata}, list(self.tensors.values()))
        done, total = 0, sum(tensor.nbytes for tensor in self.tensors.values())
        for name, factors in self.factors.items():
            file.seek(positions[name])
            file.write(_buffer(torch.tensor(factors)))
        for rule in self.rules:
            for source, pieces in self._encoded(rule):
                place = self.places[source.name]
                file.seek(positions[place.name] + place.offset)
                for piece in pieces:
                    file.write(_buffer(piece))
                    done += piece.nbytes
                    if progress is not None:
                        progress(done, total)

    def _encoded(self, rule: Rule) -> Iterator[tuple[Source, Iterator[Tensor]]]:
        """Each source of a parameter, and its bytes in the file."""
        values: Tensor | None = None
        first = 0
        for source in rule.sources:
            type = self.places[source.name].type
            packed = self.stored.packed(rule, source, first, type)
            if packed is None:
                values = self.stored.values(rule.target) if values is None else values
                yield source, self._converted(source, values[first : first + source.rows], type)
            else:
                yield source, iter([packed])
            first += source.rows

    def _converted(self, source: Source, rows: Tensor, type: str) -> Iterator[Tensor]:
        columns = tuple(rows.shape[1:])
        stored = source.in_file(rows.float() if source.computed else rows, columns)
        for piece in torch.split(stored, max(CHUNK // max(stored[0].numel(), 1), 1)):
            encoded = encode(piece, type)
            if type == "F16" and not encoded.view(torch.float16).isfinite().all():
                raise LlmcliError(f"values of {source.name} are too large for F16", "use BF16")
            yield encoded


def _buffer(piece: Tensor) -> memoryview:
    data: Any = piece.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(data)


def _copied(path: Path) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The metadata of a GGUF file that its tensors' types do not change, and its factors of rotary angles."""
    contents = contents_of(path)
    metadata = {
        key: value
        for key, value in contents.metadata.items()
        if key != "general.alignment" and not key.startswith("split.")
    }
    if contents.predicting_layers:
        metadata = _without_predicting(contents, metadata)
    names = [name for name in contents.shapes if any(re.fullmatch(pattern, name) for pattern in DROPPED)]
    return metadata, {name: contents.values(name) for name in names}


def _without_predicting(contents: Contents, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata without the layers after the model's own, which are not read."""
    own, all, layers = f"{contents.architecture}.", contents.count("block_count", 1), contents.layers
    shorter = {
        key: value[:layers] if key.startswith(own) and isinstance(value, list) and len(value) == all else value
        for key, value in metadata.items()
        if key != f"{own}nextn_predict_layers"
    }
    return shorter | {f"{own}block_count": layers}


def _without_windows(config: ModelConfig) -> ModelConfig:
    """The config without attention windows, if the architecture has none: texts are not longer than a window, then."""
    window = config.sliding_window
    if window is None or "sliding_attention" not in config.layer_types:
        return config
    if WINDOW.key in (value.key for value in architecture_for(config)[1].values):
        return config
    context = min(window, config.max_position_embeddings)
    return replace(config, max_position_embeddings=context, sliding_window=None, layer_types=())


def differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields in which two configs describe different computations."""
    ours, theirs = _comparable(config), _comparable(other)
    return [name for name in ours if not _close(ours[name], theirs[name])]


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-5 * max(abs(one), abs(other))
    return bool(one == other)


def _comparable(config: ModelConfig) -> dict[str, Any]:
    """What a config says about the computation, in one form."""
    texts = ("model_type", "bos_token_id", "eos_token_ids", "eos_by_default")
    others = ("rope", "local_rope", "layer_types", "sliding_window")
    values = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name not in (*texts, *others)
    }
    layers = range(config.num_hidden_layers)
    dense = [layer for layer in layers if config.has_mlp(layer) and not config.is_moe(layer)]
    dense += filter(config.has_mlp_and_experts, layers)
    windows = [config.layer_type(layer) == "sliding_attention" for layer in layers]
    local = config.rope if config.local_rope is None else config.local_rope
    return values | {
        "intermediate_size": [config.mlp_size(layer) for layer in dense],
        "sliding_window": [config.sliding_window if windowed else None for windowed in windows],
        "rope": _angles(config, config.rope),
        "local_rope": _angles(config, local) if any(windows) else [],
    }


def _angles(config: ModelConfig, rope: RopeConfig | None) -> list[float]:
    """The speeds of the rotary pairs in a short and in a long text, and the factor of the rotated features."""
    if rope is None:
        return []
    lengths = (1, config.max_position_embeddings)
    speeds = [inverse_frequencies(rope, config.head_dim, span(rope, length)) for length in lengths]
    return [*torch.cat(speeds).tolist(), rope.attention_factor]
