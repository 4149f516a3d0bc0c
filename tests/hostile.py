"""Damaged and malicious model folders: seeded mutations of a good one, and how llmcli handles each.

    python -m tests.hostile --count 10000

runs that many in worker processes and prints the slowest, the largest, and each that did not end in a clear error.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from llmcli.errors import LlmcliError
from llmcli.files.names import INDEX, WEIGHTS
from llmcli.generation import loaded
from llmcli.generation.bench import peak_memory
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families import FAMILIES
from llmcli.model.families.llama import describe
from llmcli.model.transformer import Transformer

SECRET = "a line that no error may show"
WORST_SECONDS = 2.0
WORST_BYTES = 200 * 2**20


def good_folder(folder: Path) -> Path:
    """Write a tiny complete model with a tokenizer, and next to it files that the model must not reach."""
    config = ModelConfig("llama", 300, 16, 24, 2, 2, 1, 8, 64, rope=RopeConfig(), eos_token_ids=(1,))
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    from llmcli.storage.checkpoint import save

    save(model, folder, describe(config), dtype=torch.bfloat16)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.7}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["<s>", "</s>"])
    fast.save(str(folder / "tokenizer.json"))
    (folder.parent / "secret.safetensors").write_text(SECRET)
    (folder.parent / "secret.json").write_text(json.dumps({"secret": SECRET}))
    return folder


# Values that are invalid for every field.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308, 1e-308, 0.5,
    float("nan"), float("inf"), "", "0", "full_attention", "../secret", "\x00", "é" * 1000, "a" * 100_000,
    [], [None], [[]], [0] * 1000, {}, {"": {}}, {"rope_type": "yarn"}, {"rope_type": "longrope", "factor": 0},
    {"type": "dynamic", "factor": 1e300}, {"factor": -4, "rope_type": "linear"}, ["sliding_attention"] * 2,
]  # fmt: skip
KEYS = [
    "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "num_experts", "num_local_experts",
    "mlp_only_layers", "no_rope_layers", "text_config", "quantization_config", "use_sliding_window", "logit_scale",
    "n_embd", "n_head", "attn_logit_softcapping", "query_pre_attn_scalar", "partial_rotary_factor", "clip_qkv",
]  # fmt: skip


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with something else in its place or inside it."""
    if isinstance(value, dict) and value and rng.random() < 0.7:
        key = rng.choice(list(value))
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], mutate_value(value[place], rng), *value[place + 1 :]]
    if type(value) is int and rng.random() < 0.5:
        return value * rng.choice([-1, 0, 2, 3, 2**20, 2**40]) + rng.choice([-1, 0, 1])
    if isinstance(value, str) and rng.random() < 0.3:
        return value[: rng.randrange(len(value) + 1)] + rng.choice(["", "x", "\ud800", "\U0001f642", "../" * 50])
    return rng.choice(ODD)


def mutate_object(raw: dict[str, Any], rng: random.Random, keys: list[str]) -> dict[str, Any]:
    """Change, drop or add one to three entries."""
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        key = rng.choice(list(raw) or ["x"])
        if kind < 0.6:
            raw = {**raw, key: mutate_value(raw.get(key), rng)}
        elif kind < 0.75:
            raw = {k: v for k, v in raw.items() if k != key}
        else:
            raw = {**raw, rng.choice(keys): rng.choice(ODD)}
    return raw


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Truncate the data, flip bits, repeat a part, or insert other bytes."""
    place = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + rng.randbytes(rng.randint(1, 100))
    if kind == 2:
        return data[:place] + rng.randbytes(rng.randint(1, 8)) + data[place + 1 :]
    if kind == 3:
        return data[:place] + data[rng.randrange(len(data) + 1) :]
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def dumped(raw: Any) -> bytes:
    return json.dumps(raw).encode("utf-8", "surrogatepass")


def config(folder: Path, rng: random.Random) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    if rng.random() < 0.5:
        raw["model_type"] = rng.choice(list(FAMILIES))
    path.write_bytes(dumped(mutate_object(raw, rng, KEYS)))


def any_bytes(folder: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def header(folder: Path, rng: random.Random) -> None:
    """Rewrite the safetensors header: lengths, overlaps, offsets, dtypes, metadata, duplicate names."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8 : 8 + length])
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([name for name, entry in tensors.items() if isinstance(entry, dict) and "shape" in entry])
        entry = tensors[name]
        kind = rng.randrange(7)
        if kind == 0:
            entry["data_offsets"] = mutate_value(entry.get("data_offsets"), rng)
        elif kind == 1:
            entry["shape"] = mutate_value(entry.get("shape"), rng)
        elif kind == 2:
            entry["dtype"] = rng.choice(["F64", "I64", "BOOL", "F8_E4M3", "F16", "F4", "", None, 3])
        elif kind == 3:
            tensors["__metadata__"] = rng.choice([None, 1, [], {}, {"a": 1}, {"a": None}, "x"])
        elif kind == 4:
            tensors[rng.choice(list(tensors))] = entry
        elif kind == 5:
            tensors[rng.choice(["", "../x", "model.norm.weight\x00", "a" * 10_000])] = entry
        else:
            tensors[name] = rng.choice(ODD)
    new = dumped(tensors)
    stated = rng.choice([len(new), len(new), len(new), 0, len(new) - 1, 2**40, 2**63, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", stated) + new + data[8 + length :])


def index(folder: Path, rng: random.Random) -> None:
    """Split the weights into shards, with an index whose paths leave the folder or are not paths."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    places: dict[str, Any] = {name: file for file, part in shards.items() for name in part}
    away = ["../secret.safetensors", str(folder.parent / "secret.safetensors"), "", ".", "..", "a\x00b", None, 3, []]
    for _ in range(rng.randint(1, 3)):
        places[rng.choice(names)] = rng.choice([*away, "./a.safetensors", "config.json", "c.safetensors"])
    raw: Any = {"weight_map": places}
    (folder / INDEX).write_bytes(dumped(rng.choice([raw, raw, raw, raw, mutate_value(raw, rng), [], {}])))


def tokenizer(folder: Path, rng: random.Random) -> None:
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    path.write_bytes(dumped(mutate_object(raw, rng, ["normalizer", "decoder", "truncation", "padding"])))


def special_tokens(folder: Path, rng: random.Random) -> None:
    """Add a tokenizer_config.json with other tokens; most of what may be wrong in it is in the tokens."""
    raw = {
        "added_tokens_decoder": {"256": {"content": "<x>", "lstrip": True}, "257": {"content": "</s>"}},
        "eos_token": {"content": "</s>"},
        "extra_special_tokens": {"image_token": "<y>"},
        "additional_special_tokens": ["<z>"],
    }
    (folder / "tokenizer_config.json").write_bytes(
        dumped(mutate_object(raw, rng, ["add_prefix_space", "tokenizer_class", "bos_token"]))
    )


def generation(folder: Path, rng: random.Random) -> None:
    """Change generation_config.json, in which nothing can keep a model from opening."""
    path = folder / "generation_config.json"
    keys = ["do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id"]
    path.write_bytes(dumped(mutate_object(json.loads(path.read_text()), rng, keys)))


def nested(folder: Path, rng: random.Random) -> None:
    """Write JSON nested too deeply for a parser's stack, or larger than any real file."""
    path = folder / rng.choice(["config.json", "generation_config.json", "tokenizer.json"])
    depth = rng.choice([100, 10_000, 200_000])
    path.write_bytes(
        rng.choice([b'{"a":' * depth, b"[" * depth, b'{"model_type":' + b"[" * depth + b"]" * depth + b"}"])
    )


MUTATIONS: tuple[Callable[[Path, random.Random], None], ...] = (
    config, config, config, header, header, any_bytes, index, tokenizer, special_tokens, generation, nested,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The result of opening one mutated folder. ``fault`` is empty if it opened or raised a clear error."""

    seed: int
    kind: str
    opened: bool
    seconds: float
    peak: int  # bytes by which the process's peak memory rose
    fault: str


def outcome(good: Path, seed: int) -> Outcome:
    """Mutate a copy of ``good`` with ``seed`` and open it as the commands do."""
    rng = random.Random(seed)
    mutate = MUTATIONS[seed % len(MUTATIONS)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(good, folder)
        for name in ("secret.safetensors", "secret.json"):
            shutil.copy(good.parent / name, Path(place) / name)
        mutate(folder, rng)
        before, began = (peak_memory() or 0), time.perf_counter()
        opened, fault = False, ""
        try:
            model = loaded.load(folder, device="cpu")
            model.model(torch.tensor([[1, 2, 3]]))
            model.tokenizer.decode(model.prompt_ids("a b"))
            opened = True
        except LlmcliError as error:
            if SECRET in str(error):
                fault = f"revealed a file outside the folder: {error}"
            if not error.message.strip():
                fault = "an empty message"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - began
    return Outcome(seed, mutate.__name__, opened, seconds, (peak_memory() or 0) - before, fault)


def _work(arguments: tuple[Path, int]) -> Outcome:
    torch.set_num_threads(1)
    return outcome(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(max_workers=2) as pool:
        good = good_folder(Path(place) / "good")
        seeds = range(arguments.first, arguments.first + arguments.count)
        outcomes = list(pool.map(_work, ((good, seed) for seed in seeds), chunksize=50))
    print("kind\tinputs\topened\tfaults\tslowest s\tmost MiB")
    for kind in sorted({o.kind for o in outcomes}):
        of_kind = [o for o in outcomes if o.kind == kind]
        slowest, most = max(o.seconds for o in of_kind), max(o.peak for o in of_kind) / 2**20
        counts = (len(of_kind), sum(o.opened for o in of_kind), sum(bool(o.fault) for o in of_kind))
        print(kind, *counts, f"{slowest:.2f}", f"{most:.0f}", sep="\t")
    for bad in [o for o in outcomes if o.fault or o.seconds > WORST_SECONDS or o.peak > WORST_BYTES][:40]:
        print(bad)


if __name__ == "__main__":
    main()
