"""Compare `llmcli serve` with the servers of llama-cpp-python and transformers, on the same weights (POSIX).

    pip install "llama-cpp-python[server]" "transformers[serving]"
    python tests/bench/serve_peers.py FOLDER --threads 2

Clients send distinct prompts at the same time and read streams of greedy tokens. The servers take turns in each round,
and those that wait are stopped, so that they use no processor. Ratios are computed within a round; the table gives
medians and the range of the ratios. The time to the first token is that of each request, from when it was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.http_client import Connection, events
from tests.bench.peers import processor, ratio, versions
from tests.bench.serve_load import TEXT

START_SECONDS = 300
LEAST = 4  # requests of a single client


@dataclass(frozen=True)
class Run:
    """How long some requests took together, and each until its first token, in seconds; and their texts."""

    seconds: float
    firsts: list[float]
    texts: list[str]


class Server:
    """A server in a process of its own, which runs only while it has its turn."""

    def __init__(self, name: str, command: Sequence[str], model: str | None) -> None:
        self.name = name
        self.port = free_port()
        self.options = {} if model is None else {"model": model}
        words = [*command, "--port", str(self.port)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{self.port}"

    async def wait(self) -> None:
        """Return when it answers."""
        for _ in range(START_SECONDS):
            if self.process.poll() is not None:
                break
            try:
                connection = await Connection.open(self.url)
                status, _, _ = await connection.answer("/v1/models", None)
                connection.close()
            except (OSError, EOFError):
                status = 0
            if status == 200:
                return
            await asyncio.sleep(1)
        raise SystemExit(f"{self.name} did not start")

    async def request(self, prompt: str, output: int) -> tuple[float, str]:
        """The seconds to the first token of a stream, and the whole text."""
        began, first, data = time.perf_counter(), 0.0, b""
        connection = await Connection.open(self.url)
        body = {"prompt": prompt, "max_tokens": output, "temperature": 0, "stream": True, **self.options}
        await connection.send("/v1/completions", body)
        status, headers = await connection.head()
        assert status == 200, (self.name, status)
        async for part in connection.parts(headers):
            data += part
            if not first and b'"text"' in part:
                first = time.perf_counter() - began
        connection.close()
        texts = [choice.get("text") or "" for event in events(data) for choice in event["choices"]]
        return first, "".join(texts)

    async def run(self, prompts: Sequence[str], clients: int, output: int) -> Run:
        """Send all prompts from a number of clients."""
        left, found = iter(prompts), list[tuple[float, str]]()

        async def client() -> None:
            for prompt in left:
                found.append(await self.request(prompt, output))

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return Run(time.perf_counter() - began, [first for first, _ in found], [text for _, text in found])


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        port: int = made.getsockname()[1]
        return port


def start(names: Sequence[str], folder: Path, gguf: Path, threads: int) -> list[Server]:
    """Start the servers called ``names``."""
    python, count = [sys.executable, "-m"], str(threads)
    words = [*python, "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    llama = ["--model", str(gguf), "--n_threads", count, "--n_threads_batch", count, "--interrupt_requests", "false"]
    commands: dict[str, tuple[list[str], str | None]] = {
        "llmcli": ([*python, "llmcli", "serve", "-m", str(folder), "--threads", count, "--parallel", "32"], None),
        "llama.cpp": ([*python, "llama_cpp.server", *llama], None),
        "transformers": (words, str(folder)),
        "transformers, batching": ([*words, "--continuous-batching"], str(folder)),
    }
    os.environ |= {"OMP_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
    return [Server(name, *commands[name]) for name in names]


def make_prompts(count: int, rng: random.Random) -> list[str]:
    """Distinct prompts of 60 to 100 words."""
    return [" ".join(rng.choices(TEXT.split(), k=rng.randint(60, 100))) for _ in range(count)]


async def compare(servers: Sequence[Server], clients: int, rounds: int, output: int) -> dict[str, list[Run]]:
    """The runs of each server by its name. An extra first round is a warm-up."""
    runs: dict[str, list[Run]] = {server.name: [] for server in servers}
    for number in range(rounds + 1):
        prompts = make_prompts(clients if clients > 1 else LEAST, random.Random(100 * clients + number))
        for server in servers:
            server.process.send_signal(signal.SIGCONT)
            run = await server.run(prompts if number else prompts[:LEAST], clients, output)
            server.process.send_signal(signal.SIGSTOP)
            if number:
                runs[server.name].append(run)
                print(f"{clients} {server.name}: {len(run.texts) / run.seconds:.2f}/s", file=sys.stderr, flush=True)
    return runs


def show(clients: int, runs: dict[str, list[Run]]) -> None:
    """Print a row for each server: requests a second, times to the first token, and our ratios to it."""
    ours = next(iter(runs.values()))
    for name, theirs in runs.items():
        cells = [str(clients), name]
        rates = [[len(run.texts) / run.seconds for run in some] for some in (ours, theirs)]
        firsts = [[statistics.median(run.firsts) for run in some] for some in (ours, theirs)]
        late = [statistics.quantiles(run.firsts, n=10, method="inclusive")[-1] for run in theirs]
        cells += [f"{statistics.median(rates[1]):.2f}", ratio(*rates)]
        cells += [f"{statistics.median(firsts[1]):.2f}", f"{statistics.median(late):.2f}", ratio(*reversed(firsts))]
        print("| " + " | ".join(cells) + " |", flush=True)


async def measure(servers: list[Server], arguments: argparse.Namespace) -> None:
    """Wait for the servers, and print the table."""
    for server in servers:
        await server.wait()
        server.process.send_signal(signal.SIGSTOP)
    for clients in map(int, arguments.clients.split(",")):
        show(clients, await compare(servers, clients, arguments.rounds, arguments.output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the model")
    parser.add_argument(
        "--servers", default="llmcli;llama.cpp;transformers;transformers, batching", help="servers to compare"
    )
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients, separated by commas")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each server")
    parser.add_argument("--output", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the servers, too
    with tempfile.TemporaryDirectory() as temporary:
        gguf = Path(temporary) / "model.gguf"
        subprocess.run(
            [sys.executable, "-m", "llmcli", "export", arguments.folder, gguf], check=True, capture_output=True
        )
        servers = start(arguments.servers.split(";"), arguments.folder, gguf, arguments.threads)
        print(f"{processor()}, {arguments.threads} threads, {versions()}\n")
        print("| clients | server | requests/s | ratio | first token | 90% | ratio |\n|" + "---|" * 7)
        try:
            asyncio.run(measure(servers, arguments))
        finally:
            for server in servers:
                server.process.kill()


if __name__ == "__main__":
    main()
