"""Compare llmcli with llama.cpp on real checkpoints: decoding and prefill, as a table of ratios.

    pip install llama-cpp-python    # with CMAKE_ARGS=-DGGML_NATIVE=ON
    python tests/bench/real.py FOLDER --models smollm2,gemma3
    python tests/bench/real.py --files a.gguf,b.gguf

For each name, FOLDER holds NAME/, a checkpoint, and NAME.gguf, the same weights, from which llama.cpp writes its BF16,
Q8_0 and Q4_0 versions. With --files, both run each file as it is. As in ``peers.py``, engines take turns, and ratios
are computed within a round.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

from tests.bench.peers import Child, compare, print_row, processor, versions

PAIRS = {"bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


def write_versions(source: Path, folder: Path, kinds: list[str]) -> None:
    """Write the weights of a GGUF file as each of ``kinds``, with llama.cpp's own program."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    for kind in kinds:
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        settings.allow_requantize = True
        target = str(folder / f"{kind}.gguf").encode()
        if llama_cpp.llama_model_quantize(str(source).encode(), target, settings):
            raise SystemExit(f"llama.cpp cannot write {source} as {kind}")


def measure(cells: list[str], engines: dict[str, str], folder: Path, options: argparse.Namespace) -> None:
    """Print a row for each prompt length: llmcli and llama.cpp run the weights that ``engines`` names in ``folder``."""
    children = [Child(engine, weights, folder, options.threads) for engine, weights in engines.items()]
    for length in map(int, options.prompts.split(",")):
        prompt = [(7 * i * i + 3) % 1000 for i in range(length)]
        speeds = compare(children, prompt, options.output, options.rounds)
        print_row([*cells, str(length)], *speeds.values())
    for child in children:
        child.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the models are")
    parser.add_argument("--files", help="GGUF files, separated by commas")
    parser.add_argument("--models", default="smollm2,gemma3", help="names, separated by commas")
    parser.add_argument("--kinds", default=",".join(PAIRS), help="llmcli's weights, separated by commas")
    parser.add_argument("--prompts", default="256", help="prompt lengths, separated by commas")
    parser.add_argument("--output", type=int, default=80, help="generated tokens")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    print(f"{datetime.date.today()}, {processor()}, {arguments.threads} threads, {versions()}\n")
    print("| model | llmcli | llama.cpp | prompt | prefill t/s | peer | ratio | decode t/s | peer | ratio |")
    print("|" + "---|" * 10)
    for file in map(Path, arguments.files.split(",") if arguments.files else ()):
        engines = dict.fromkeys(("llmcli", "llama.cpp"), file.name)
        measure([file.stem, "as it is", "as it is"], engines, file.parent, arguments)
    for name in arguments.models.split(",") if arguments.folder else ():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "hf").symlink_to((arguments.folder / name).resolve())
            write_versions(arguments.folder / f"{name}.gguf", folder, [PAIRS[kind] for kind in kinds])
            for kind in kinds:
                engines = {"llmcli": kind, "llama.cpp": PAIRS[kind]}
                measure([name, *engines.values()], engines, folder, arguments)


if __name__ == "__main__":
    sys.exit(main())
