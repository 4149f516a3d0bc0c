"""Measure what quantization costs on real checkpoints: perplexity in llmcli and in llama.cpp, over the same tokens.

    pip install llama-cpp-python
    python tests/bench/quantization.py FOLDER --models smollm2,gemma3

FOLDER is that of ``real.py``. The text is this project's documentation, read in windows of 500 tokens; the loss is
the perplexity relative to that of the same engine's bfloat16. Takes minutes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llmcli.generation.loaded import load
from llmcli.generation.reading import last_logits
from llmcli.text.tokenizer import load_tokenizer
from tests.bench.peers import LlamaCpp
from tests.bench.real import PAIRS, write_versions

WINDOW = 500  # tokens
DOCS = Path(__file__).parents[2] / "docs"

Logits = Callable[[list[int]], Tensor]  # of a window's ids, fp32 [ids, V]


def perplexity(logits_of: Logits, ids: list[int]) -> float:
    """Return the perplexity of all tokens but the first, each predicted from those before it in its window."""
    total = 0.0
    for start in range(0, len(ids) - 1, WINDOW):
        window = ids[start : start + WINDOW + 1]
        targets = torch.tensor(window[1:])
        total += float(torch.nn.functional.cross_entropy(logits_of(window[:-1]), targets, reduction="sum"))
    return math.exp(total / (len(ids) - 1))


def llmcli_logits(folder: Path, kind: str) -> Logits:
    quantization = kind if kind in ("int8", "int4") else None
    model = load(folder, dtype="bfloat16" if quantization else kind, quantization=quantization).model  # type: ignore[arg-type]
    return lambda ids: last_logits(model, ids, model.new_cache(), len(ids))


def llama_cpp_logits(folder: Path, kind: str) -> Logits:
    import numpy

    engine = LlamaCpp(folder, kind, torch.get_num_threads(), all_logits=True)

    def logits_of(ids: list[int]) -> Tensor:
        engine.clear()
        engine.feed(ids)
        rows = [engine.logits(number) for number in range(len(ids))]
        return torch.from_numpy(numpy.stack(rows))

    return logits_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the models are")
    parser.add_argument("--models", default="smollm2,gemma3", help="names, separated by commas")
    parser.add_argument("--tokens", type=int, default=5000, help="tokens that are predicted")
    arguments = parser.parse_args()
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    print("| model | engine | weights | perplexity | loss |\n|" + "---|" * 5)
    for name in arguments.models.split(","):
        source = arguments.folder / name
        ids = load_tokenizer(source, None).encode(text)[: arguments.tokens + 1]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_versions(arguments.folder / f"{name}.gguf", folder, list(PAIRS.values()))
            runs = [("llmcli", kind, llmcli_logits, source) for kind in ("bfloat16", "float32", "int8", "int4")]
            runs += [("llama.cpp", kind, llama_cpp_logits, folder) for kind in PAIRS.values()]
            base: dict[str, float] = {}
            for engine, kind, open_model, where in runs:
                found = perplexity(open_model(where, kind), ids)
                loss = found / base.setdefault(engine, found) - 1
                print(f"| {name} | {engine} | {kind} | {found:.3f} | {loss:+.2%} |", flush=True)


if __name__ == "__main__":
    main()
