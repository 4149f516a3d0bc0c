"""A model as a whole: what it is and whether it fits into memory, predicted from its files and then measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmcli.engine.size import CacheBytes, cache_bytes, empty_model, weight_bytes
from llmcli.errors import usage_error
from llmcli.explain.models.architecture import Architecture, architecture_of
from llmcli.explain.report import NOT_IN_JSON, Check, Claim, Report, check
from llmcli.explain.selection import check_loaded, check_whole
from llmcli.generation.loaded import LoadedModel, device_for
from llmcli.generation.reading import PREFILL_CHUNK
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.device import Memory, memory_of, pick_dtype
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.headers import Headers, read_headers
from llmcli.storage.quantize import Quantization
from llmcli.text.tokenizer import load_tokenizer

GROUPS = (
    "embedding",
    "positions",
    "per-layer embeddings",
    "attention",
    "recurrent layers",
    "MLP",
    "experts",
    "routers",
    "norms",
    "head",
)
SMALLER: tuple[Quantization, ...] = ("int8", "int4")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one kind: their number, their share of all parameters, and their bytes as loaded."""

    name: str
    parameters: int
    share: float
    bytes: int


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of one dtype in the weight files; ``dtype`` is the name that safetensors or GGUF has for it."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class MemoryNeed:
    """The memory for the weights in one format, ``weights``, and for both weights and a full KV cache, ``total``.

    ``fits`` is None if the memory of the device is unknown.
    """

    weights: str
    weight_bytes: int
    total: int
    fits: bool | None


@dataclass(frozen=True)
class MeasuredMemory:
    """Bytes allocated: for the parameters of the opened model, and for the buffers of the KV cache after the text."""

    weight_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class InspectReport(Report):
    """A model and its memory for a text of ``tokens``; ``needs`` starts with the requested format.

    ``active`` parameters take part in the computation of one token. ``others`` names stored tensors that the model
    does not use. ``measured`` is None if the model was not opened because it does not fit. ``dtype`` and
    ``quantization`` are those in which it is opened.
    """

    model: str
    shape: Architecture
    parameters: int
    active: int
    groups: tuple[ParameterGroup, ...]
    stored: tuple[StoredTensors, ...]
    others: str
    disk_bytes: int
    device: str
    tokens: int
    cache: CacheBytes
    needs: tuple[MemoryNeed, ...]
    memory: Memory
    measured: MeasuredMemory | None
    check: Check
    dtype: str = field(metadata=NOT_IN_JSON)
    quantization: str | None = field(metadata=NOT_IN_JSON)


def inspect(loaded: LoadedModel, *, tokens: int | None = None) -> InspectReport:
    """Report on a model that is open, with the memory for a text of ``tokens`` (None: the whole context).

    Raises LlmcliError if ``tokens`` is more than the context.
    """
    check_loaded(loaded)
    return inspect_folder(
        loaded.name,
        loaded.folder,
        loaded.adapter,
        device=loaded.model.device.type,
        dtype=loaded.model.dtype_name,
        quantization=loaded.quantization,
        tokens=tokens,
        open_model=lambda: loaded,
    )


def inspect_folder(
    name: str,
    folder: Path,
    adapter: Path | None = None,
    *,
    device: str,
    dtype: str,
    quantization: Quantization | None,
    tokens: int | None,
    open_model: Callable[[], LoadedModel],
) -> InspectReport:
    """Report on the model in ``folder``, with ``adapter``, as ``load`` opens it with these options; see ``inspect``.

    Calls ``open_model`` only if the model fits into memory. Raises the errors of ``load``, and LlmcliError if
    ``tokens`` is more than the context.
    """
    checkpoint = Checkpoint.read(folder)
    headers = read_headers(checkpoint, adapter)
    config = headers.config
    where = device_for(checkpoint, device, quantization)
    kind = quantization or headers.quantization
    model = empty_model(config)
    in_float32 = sum(weight_bytes(model, torch.float32, headers.quantization).values())
    compute_dtype = pick_dtype(dtype, where, headers.dtype, in_float32)
    context = config.max_position_embeddings
    if tokens is not None:
        check_whole("tokens", tokens, 1)
    if tokens is not None and tokens > context:
        raise usage_error(f"{tokens} tokens are more than the model's context of {context}", kind="beyond-context")
    tokens = tokens or context
    cache = cache_bytes(config, compute_dtype, tokens, chunk=PREFILL_CHUNK, device=where)
    memory = memory_of(where)
    restored = quantization is not None and not folder.is_file()  # before the weights are quantized
    kept, blocks = (headers.kept, headers.blocks) if where.type == "cpu" and not restored else ({}, None)
    needs = _needs(model, compute_dtype, kind, kept, blocks, where, cache, memory.usable)
    measured = None if needs[0].fits is False else _measure(open_model().model, tokens)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return InspectReport(
        model=name,
        shape=architecture_of(config, load_tokenizer(folder, name, model=checkpoint.raw).size),
        parameters=sum(counts.values()),
        active=_active_parameters(config, counts),
        groups=_groups(counts, {**weight_bytes(model, compute_dtype, kind), **kept}),
        stored=_stored(headers),
        others=headers.others_named,
        disk_bytes=sum(entry.end - entry.start for entry in headers.stored),
        device=where.type,
        tokens=tokens,
        cache=cache,
        needs=needs,
        memory=memory,
        measured=measured,
        check=_check(sum(counts.values()), headers, needs[0], cache, measured),
        dtype=str(compute_dtype).removeprefix("torch."),
        quantization=kind or blocks,
    )


def _needs(
    model: Transformer,
    dtype: torch.dtype,
    kind: Quantization | None,
    kept: Mapping[str, int],
    blocks: str | None,
    device: torch.device,
    cache: CacheBytes,
    usable: int | None,
) -> tuple[MemoryNeed, ...]:
    """The need in the requested format, and in the smaller formats that the weights can still be quantized to."""
    smaller = SMALLER if kind is None and not kept and device.type == "cpu" else ()
    needs = []
    for quantization in (kind, *smaller):
        size = sum({**weight_bytes(model, dtype, quantization), **kept}.values())
        total = size + cache.most
        weights = quantization or blocks or str(dtype).removeprefix("torch.")
        needs.append(MemoryNeed(weights, size, total, None if usable is None else total <= usable))
    return tuple(needs)


def _measure(model: Transformer, tokens: int) -> MeasuredMemory:
    """Measure the real parameters, and the real cache after a text, on the meta device, which allocates no memory."""
    block = model.new_cache().block
    cache = KVCache(model.config, device=torch.device("meta"), dtype=model.dtype, block=block)
    shapes = () if model.config.mixer is None else model.config.mixer.state_shapes
    while cache.length < tokens:
        count = min(PREFILL_CHUNK, tokens - cache.length)
        cache.reserve(count)
        for layer in cache.recurrent:
            cache.keep_state(layer, tuple(torch.empty(1, *shape, device="meta") for shape in shapes))
        cache.advance(count)
    return MeasuredMemory(sum(parameter.nbytes for parameter in model.parameters()), cache.nbytes)


def _check(
    parameters: int, headers: Headers, need: MemoryNeed, cache: CacheBytes, measured: MeasuredMemory | None
) -> Check:
    claims = [Claim("the config implies as many parameters as the files hold", abs(parameters - headers.parameters), 0)]
    if measured is not None:
        error = abs(need.weight_bytes - measured.weight_bytes)
        outside = max(cache.needed - measured.cache_bytes, measured.cache_bytes - cache.most, 0)
        claims.append(Claim("the opened weights have the predicted size", error, 0))
        claims.append(Claim("the KV cache is in the predicted range", outside, 0))
    return check(*claims)


def _active_parameters(config: ModelConfig, counts: Mapping[str, int]) -> int:
    """How many parameters take part in one token: of the experts, only those that the router chooses."""
    experts = sum(count for name, count in counts.items() if group_of(name) == "experts")
    unused = 0 if config.moe is None else experts - experts * config.moe.num_experts_per_tok // config.moe.num_experts
    return sum(counts.values()) - unused


def _groups(counts: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[ParameterGroup, ...]:
    """The groups of parameters, given the number and the bytes of each parameter by name."""
    parameters: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for name, count in counts.items():
        parameters[group_of(name)] += count
        size[group_of(name)] += sizes[name]
    total = sum(counts.values())
    return tuple(
        ParameterGroup(group, parameters[group], parameters[group] / total, size[group])
        for group in GROUPS
        if group in parameters
    )


def group_of(name: str) -> str:
    """Return the group, one of GROUPS, of a parameter of ``Transformer``."""
    module = name.rpartition(".")[0]
    if name.endswith(".sinks"):
        return "attention"
    if module in ("embedding", "positions", "head"):
        return module
    if module.endswith("norm") or name.endswith(".scalar"):
        return "norms"
    if module.startswith("inputs.") or ".input." in module:
        return "per-layer embeddings"
    if module.endswith(".router") or name.endswith((".choice_bias", ".expert_scale")):
        return "routers"
    if ".experts." in module:
        return "experts"
    if ".attn." in module:
        return "attention"
    return "recurrent layers" if ".mixer" in module else "MLP"


def _stored(headers: Headers) -> tuple[StoredTensors, ...]:
    """The stored tensors by dtype, the dtype with the most bytes first."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in headers.stored:
        tensors[entry.dtype] += 1
        sizes[entry.dtype] += entry.end - entry.start
    return tuple(StoredTensors(dtype, tensors[dtype], size) for dtype, size in sizes.most_common())
