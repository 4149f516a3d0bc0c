"""A model split among ranks of one machine: memory of each, tokens a second, and what an exchange between them takes.

    python tests/bench/ranks.py [--hidden 2048] [--layers 16] [--vocab 32000] [--ranks 1 2] [--rounds 3]

Writes a random Llama in bfloat16, and runs it with each number of ranks in turn, round after round, one thread a rank.
Memory is what a rank holds in weights, and its process's peak beside that of one that has loaded nothing. An exchange
is the sum of one token's vector over all ranks, of which a token takes two a layer and one for the embedding.
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
PROMPT, TOKENS, EXCHANGES = 64, 32, 500


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rank_of(folder: Path, meeting: Path, rank: int, size: int, out: Connection) -> None:
    """Send weights and peak in bytes, seconds of the prompt, of a token, and of an exchange."""
    torch.set_num_threads(1)
    before = peak_memory()
    ranks = ProcessGroup(CPU, rank, size, meeting)
    model = load_split(Checkpoint.read(folder), ranks, dtype=torch.bfloat16)
    assert isinstance(model, SplitTransformer)
    ranks.share(None)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    x = torch.zeros(model.config.hidden_size, dtype=torch.bfloat16)
    exchange = timed(lambda: [ranks.sum(x) for _ in range(EXCHANGES)]) / EXCHANGES
    times = [0.0, 0.0]
    if ranks.leads:
        sampler = Sampler([Temperature(0.0)], seed=0)
        for count in (1, TOKENS + 1):  # the first time is for warming up
            texts = steps(model, list(range(PROMPT)), sampler=sampler, max_new_tokens=count)
            times[0] = timed(lambda texts=texts: next(texts))
            times[1] = timed(lambda texts=texts: list(texts)) / TOKENS
        model.end()
    else:
        model.serve()
    out.send((weights, peak_memory() - before, *times, exchange))
    ranks.close()


def run(folder: Path, size: int) -> list[tuple[float, ...]]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        pipes = [spawn.Pipe(duplex=False) for _ in range(size)]
        processes = [
            spawn.Process(target=rank_of, args=(folder, Path(place) / "meeting", rank, size, pipes[rank][1]))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        told = [heard.recv() for heard, _ in pipes]
        for process in processes:
            process.join()
    return told


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 2048), ("layers", 16), ("vocab", 32000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    said = parser.parse_args()
    found: dict[int, list[list[tuple[float, ...]]]] = {size: [] for size in said.ranks}
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), config(said.hidden, said.layers, said.vocab), torch.bfloat16, shards=True)
        for _ in range(said.rounds):
            for size in said.ranks:
                found[size].append(run(Path(place), size))
    print("| ranks | weights, MiB a rank | peak, MiB a rank | prompt, tokens/s | decode, tokens/s | exchange, us |")
    print("|---|---|---|---|---|---|")
    for size, rounds in found.items():
        leads = [told[0] for told in rounds]
        weights = ", ".join(f"{told[0] / MIB:.0f}" for told in rounds[0])
        peaks = ", ".join(f"{told[1] / MIB:.0f}" for told in rounds[0])
        prompt, decode = [PROMPT / told[2] for told in leads], [1 / told[3] for told in leads]
        exchange = spread([1e6 * told[4] for told in leads], ".0f")
        print(f"| {size} | {weights} | {peaks} | {spread(prompt, '.1f')} | {spread(decode, '.2f')} | {exchange} |")


if __name__ == "__main__":
    main()
