"""Measure peak memory and time of loading a model and processing one prompt, and compare with the model's size.

    python tests/bench/load_memory.py [--hidden 2048] [--layers 16] [--vocab 32000] [--shards]

For each stored dtype, writes a random Llama into a temporary folder, loads it as bfloat16 in a separate process, and
prints the peak resident memory of that process and the bound: model + largest tensor + 350 MiB.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmcli.files.names import INDEX, WEIGHTS
from llmcli.generation.bench import peak_memory
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families.llama import LLAMA, describe
from llmcli.model.transformer import Transformer

MIB = 2**20
STORED = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8": torch.float8_e4m3fn,
}


def config(hidden: int, layers: int, vocab: int) -> ModelConfig:
    """Return the config of a Llama with grouped-query attention and a head dimension of 64."""
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        head_dim=64,
        max_position_embeddings=2048,
        rope=RopeConfig(),
    )


def write(folder: Path, shape: ModelConfig, dtype: torch.dtype, *, shards: bool) -> None:
    """Write random weights in the stored layout to one file, or with ``shards`` to one file per layer."""
    with torch.device("meta"):
        parameters = dict(Transformer(shape).named_parameters())
    files: dict[str, dict[str, torch.Tensor]] = {}
    for rule in LLAMA.rules(shape):
        name = ".".join(rule.target.split(".")[:2]) if shards else "model"
        for source in rule.sources:
            size = source.stored_shape(tuple(parameters[rule.target].shape[1:]))
            is_norm = dtype.itemsize == 1 and len(size) == 1  # norms are not stored in 8 bits
            tensor = (0.02 * torch.randn(size)).to(torch.bfloat16 if is_norm else dtype)
            files.setdefault(f"{name}.safetensors" if shards else WEIGHTS, {})[source.name] = tensor
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    if shards:
        weight_map = {name: file for file, tensors in files.items() for name in tensors}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(describe(shape)))


def child(folder: Path) -> None:
    """Load the model, process eight tokens, and print the seconds and the peak memory of this process in bytes."""
    from tests.tiny import load

    start = time.perf_counter()
    model = load(folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    loaded = time.perf_counter() - start
    with torch.inference_mode():
        model(torch.arange(8)[None])
    print(json.dumps({"seconds": loaded, "peak": peak_memory(), "model": sum(p.nbytes for p in model.parameters())}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size")
    parser.add_argument("--layers", type=int, default=16, help="number of layers")
    parser.add_argument("--vocab", type=int, default=32000, help="vocabulary size")
    parser.add_argument("--shards", action="store_true", help="store one file per layer")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    shape = config(arguments.hidden, arguments.layers, arguments.vocab)
    largest = 2 * math.prod((shape.vocab_size, shape.hidden_size))
    print("stored\tmodel MiB\tpeak MiB\tbound MiB\tload s")
    for name, dtype in STORED.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), shape, dtype, shards=arguments.shards)
            out = subprocess.run(
                [sys.executable, __file__, "--child", folder], check=True, capture_output=True, text=True
            )
        result = json.loads(out.stdout)
        bound = result["model"] + max(largest, 2 * 4 * shape.hidden_size**2) * (2 if dtype.itemsize == 4 else 1)
        row = (result["model"] / MIB, result["peak"] / MIB, bound / MIB + 350, result["seconds"])
        print(name, *(f"{value:.1f}" for value in row), sep="\t", flush=True)


if __name__ == "__main__":
    main()
