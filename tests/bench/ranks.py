"""Measure a model split among ranks on one machine: memory per rank, tokens per second, and time per all-reduce.

    python tests/bench/ranks.py [--hidden 2048] [--layers 16] [--vocab 32000] [--ranks 1 2] [--rounds 3]

Writes a random Llama in bfloat16 and runs it with each number of ranks in turn in each round, with one thread per rank.
Memory is the size of a rank's weights, and the increase of its process's peak over that of a process without a model.
An all-reduce sums one token's vector over all ranks; each token needs two per layer and one for the embedding.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from llmcli.engine.tensor_parallel.process_group import ProcessGroup
from llmcli.engine.tensor_parallel.transformer import SplitTransformer, load_split
from llmcli.generation.bench import peak_memory
from llmcli.generation.filters import Temperature
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.storage.checkpoint import Checkpoint
from tests.bench.load_memory import MIB, config, write

CPU = torch.device("cpu")
PROMPT, TOKENS, ALL_REDUCES = 64, 32, 500


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_rank(folder: Path, rendezvous: Path, rank: int, size: int, out: Connection) -> None:
    """Send the bytes of the weights and of peak memory, and the seconds for the prompt, a token and an all-reduce."""
    torch.set_num_threads(1)
    before = peak_memory()
    ranks = ProcessGroup(CPU, rank, size, rendezvous)
    model = load_split(Checkpoint.read(folder), ranks, dtype=torch.bfloat16)
    assert isinstance(model, SplitTransformer)
    ranks.exchange(None)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    x = torch.zeros(model.config.hidden_size, dtype=torch.bfloat16)
    all_reduce = timed(lambda: [ranks.sum(x) for _ in range(ALL_REDUCES)]) / ALL_REDUCES
    times = [0.0, 0.0]
    if ranks.leads:
        sampler = Sampler([Temperature(0.0)], seed=0)
        for count in (1, TOKENS + 1):  # the first run is a warm-up
            texts = steps(model, list(range(PROMPT)), sampler=sampler, max_new_tokens=count)
            times[0] = timed(lambda texts=texts: next(texts))
            times[1] = timed(lambda texts=texts: list(texts)) / TOKENS
        model.end()
    else:
        model.serve()
    out.send((weights, peak_memory() - before, *times, all_reduce))
    ranks.close()


def run(folder: Path, size: int) -> list[tuple[float, ...]]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        pipes = [spawn.Pipe(duplex=False) for _ in range(size)]
        processes = [
            spawn.Process(target=run_rank, args=(folder, Path(temporary) / "rendezvous", rank, size, pipes[rank][1]))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        measurements = [receiver.recv() for receiver, _ in pipes]
        for process in processes:
            process.join()
    return measurements


def spread(values: list[float], style: str) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):{style}} ({min(values):{style}}-{max(values):{style}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 2048), ("layers", 16), ("vocab", 32000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks; default: 1 2")
    options = parser.parse_args()
    results: dict[int, list[list[tuple[float, ...]]]] = {size: [] for size in options.ranks}
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), config(options.hidden, options.layers, options.vocab), torch.bfloat16, shards=True)
        for _ in range(options.rounds):
            for size in options.ranks:
                results[size].append(run(Path(temporary), size))
    print(
        "| ranks | weights, MiB per rank | peak, MiB per rank | prompt, tokens/s | decode, tokens/s | all-reduce, us |"
    )
    print("|---|---|---|---|---|---|")
    for size, rounds in results.items():
        leaders = [ranks[0] for ranks in rounds]
        weights = ", ".join(f"{rank[0] / MIB:.0f}" for rank in rounds[0])
        peaks = ", ".join(f"{rank[1] / MIB:.0f}" for rank in rounds[0])
        prompt, decode = [PROMPT / leader[2] for leader in leaders], [1 / leader[3] for leader in leaders]
        all_reduce = spread([1e6 * leader[4] for leader in leaders], ".0f")
        print(f"| {size} | {weights} | {peaks} | {spread(prompt, '.1f')} | {spread(decode, '.2f')} | {all_reduce} |")


if __name__ == "__main__":
    main()
