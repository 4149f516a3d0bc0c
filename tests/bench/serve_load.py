"""Load `llmcli serve` with many clients and faults, and compare every answer with the library's own (Linux).

    python tests/bench/serve_load.py --requests 2000 --clients 64 --signals 20

Requests are drawn from a pool of distinct ones, whose texts are generated beforehand: another text shows that answers
were mixed up. Some clients hang up, read slowly, or send what no client should. Then servers get SIGTERM under load:
they must finish what they began, refuse what comes later, and exit with 0. The exit code is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmcli.generation import Conversation, LoadedModel, load
from llmcli.generation.generate import generate, sampler_of
from llmcli.hub import default_model, find
from llmcli.text import Message, TemplateFormat, find_template
from tests.bench.http_client import Connection, events

TEXT = "the old fox went to a river with two hens and said nothing while snow fell on many quiet little towns"
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.0},
    {"temperature": 1.3, "min_p": 0.1},
    {"top_k": 20, "repetition_penalty": 1.2},
    {"top_p": 0.8, "presence_penalty": 0.5},
)
KINDS = {"whole": 40, "stream": 38, "slow": 6, "hang up": 10, "wrong": 6}  # percent of the requests
PAUSE = 0.05  # seconds that slow readers wait before each part
TOO_LONG = 10**10  # bytes of a body


@dataclass(frozen=True)
class Case:
    """A request, and the texts that it must get."""

    path: str
    body: dict[str, Any]
    texts: Sequence[str]


def make_cases(loaded: LoadedModel, count: int, rng: random.Random) -> list[Case]:
    """Distinct requests: short and long prompts, some with a common beginning, few and many tokens, several texts."""
    vocabulary, chats = TEXT.split(), find_template(loaded.folder) is not None
    beginning, cases = " ".join(rng.choices(vocabulary, k=150)), []
    for number in range(count):
        words = " ".join(rng.choices(vocabulary, k=rng.choice((1, 8, 60, 200))))
        prompt = f"{beginning} {words}" if number % 3 == 0 else f"{number} {words}"
        tokens, n, seed = rng.choice((1, 8, 24, 64)), rng.choice((1, 1, 1, 2, 3)), rng.randrange(2**32)
        options = OPTIONS[number % len(OPTIONS)]
        body = {"max_tokens": tokens, "n": n, "seed": seed, **options}
        if chats and number % 4 == 1:
            body["messages"] = [{"role": "user", "content": prompt}]
            texts = [reply_to(loaded, prompt, options, tokens, seed + k) for k in range(n)]
            cases.append(Case("/v1/chat/completions", body, texts))
            continue
        runs = [generate(loaded, prompt, max_new_tokens=tokens, seed=seed + k, **options) for k in range(n)]
        texts = ["".join(text for _, text in run) for run in runs]
        cases.append(Case("/v1/completions", {**body, "prompt": prompt}, texts))
    return cases


def reply_to(loaded: LoadedModel, message: str, options: dict[str, Any], tokens: int, seed: int) -> str:
    """The reply to a message, as `llmcli chat` would give it."""
    template = find_template(loaded.folder)
    assert template is not None
    conversation = Conversation(loaded, TemplateFormat(template, loaded.tokenizer))
    sampler = sampler_of(loaded, seed, {name.replace("_", "-"): value for name, value in options.items()})
    return "".join(piece.answer for _, piece in conversation.answer((Message("user", message),), sampler, tokens))


def texts_of(answer: dict[str, Any]) -> list[str]:
    """The texts of an answer, whole."""
    return [each["text"] if "text" in each else each["message"]["content"] for each in answer["choices"]]


def streamed_texts(data: bytes, count: int) -> list[str]:
    """The texts of a stream. Raises ValueError if its end is missing, or that of a text."""
    texts, ended = [""] * count, set()
    for choice in (choice for chunk in events(data) for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
        if choice["finish_reason"]:
            ended.add(choice["index"])
    if len(ended) < count or not data.endswith(b"data: [DONE]\n\n"):
        raise ValueError(f"the stream ends with {data[-80:]!r}")
    return texts


@dataclass
class Results:
    """What happened to the requests so far, by kind, and what went wrong."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    half_open: list[Connection] = field(default_factory=list)


class Client:
    """Sends one request after the other, on one connection as long as that lasts."""

    def __init__(self, url: str, cases: Sequence[Case], results: Results, seed: int) -> None:
        self.url, self.cases, self.results = url, cases, results
        self.rng = random.Random(seed)
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """The connection, reopened if it was closed."""
        if self._connection is None or self._connection.reader.at_eof():
            self._connection = await Connection.open(self.url)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def request(self, kind: str) -> None:
        """Make one request of a kind, and record what came of it."""
        case = self.rng.choice(self.cases)
        try:
            if kind == "hang up":
                await self.hang_up(case)
            elif kind == "wrong":
                await self.send_nonsense(case)
            else:
                await self.check(case, kind)
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.results.faults.append(f"lost, {kind}: {error!r}")
            self.close()
        self.results.done[kind] += 1

    async def check(self, case: Case, kind: str) -> None:
        """Compare an answer with the expected one. A request that is refused for now is sent again later."""
        while True:
            connection = await self.connection()
            await connection.send(case.path, {**case.body, "stream": kind != "whole"})
            status, headers = await connection.head()
            pause = PAUSE if kind == "slow" else 0.0
            data = b"".join([part async for part in connection.parts(headers, pause)])
            if status != 429:
                break
            self.results.done["status 429"] += 1
            await asyncio.sleep(float(headers["retry-after"]) * self.rng.uniform(0.5, 1.0))
        if status != 200:
            raise ValueError(f"status {status}: {data[:200]!r}")
        found = texts_of(json.loads(data)) if kind == "whole" else streamed_texts(data, len(case.texts))
        if found != list(case.texts):
            self.results.faults.append(f"another text, {kind}: {found} instead of {case.texts}, {case.body}")

    async def hang_up(self, case: Case) -> None:
        """Close the connection before the answer, or in the middle of it."""
        connection = await self.connection()
        await connection.send(case.path, {**case.body, "max_tokens": 500, "stream": self.rng.random() < 0.7})
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(connection.reader.read(200), self.rng.uniform(0, 2))
        self.close()

    async def send_nonsense(self, case: Case) -> None:
        """Send a request that cannot be answered, or only a part of one; every other client gets its answers."""
        connection, way = await self.connection(), self.rng.randrange(5)
        if way == 0:  # the head has no end
            connection.writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-")
        elif way == 1:  # the body has no end
            await connection.send(case.path, b'{"prompt": ', "Content-Length: 1000\r\n")
        if way < 2:
            self.results.half_open.append(connection)
            self._connection = None
            return
        wanted, body, headers = {
            2: (400, b'{"prompt": ', ""),
            3: (413, b"{", f"Content-Length: {TOO_LONG}\r\n"),
            4: (400, {**case.body, "seed": "five"}, ""),
        }[way]
        status, _, data = await connection.answer(case.path, body, headers)
        if status != wanted or "error" not in json.loads(data):
            raise ValueError(f"status {status} instead of {wanted}")
        if way == 3:
            self.close()


@contextmanager
def serving(arguments: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port: its address and its process. Lines of its log that tell of errors are shown."""
    words = [sys.executable, "-m", "llmcli", "serve", "--port", "0", "-m", str(arguments.model)]
    words += ["--threads", str(arguments.threads), "--parallel", str(arguments.parallel)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.search(r"http://\S+", first)
        if found is None:
            raise SystemExit(first + process.stderr.read())
        log = subprocess.Popen(["grep", "-i", "error"], stdin=process.stderr, stdout=sys.stderr)
        try:
            yield found[0], process
        finally:
            process.kill()
            log.wait()


async def state(url: str, process: subprocess.Popen[str]) -> str:
    """The memory and the open files of a server, and what it works on."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    files = sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())
    connection = await Connection.open(url)
    _, _, data = await connection.answer("/metrics", None)
    connection.close()
    numbers = dict(line.rsplit(" ", 1) for line in data.decode().splitlines() if line[0] != "#")
    counts = [
        next(value for number, value in numbers.items() if number.startswith(f"llmcli_{name}{{"))
        for name in ("running_texts", "waiting_requests", "generated_tokens_total")
    ]
    return "\t".join((f"{resident:.1f}", str(files), *counts))


async def load_server(
    url: str, process: subprocess.Popen[str], cases: Sequence[Case], arguments: argparse.Namespace
) -> Results:
    """Send all requests, and print the state of the server now and then."""
    results, began = Results(), time.perf_counter()
    rng = random.Random(arguments.seed)
    kinds = iter(rng.choices(list(KINDS), list(KINDS.values()), k=arguments.requests))
    clients = [Client(url, cases, results, seed) for seed in range(arguments.clients)]

    async def work(client: Client) -> None:
        for kind in kinds:
            await client.request(kind)
        client.close()

    async def watch() -> None:
        shown = 0
        while True:
            await asyncio.sleep(0.1)
            done = sum(results.done[kind] for kind in KINDS)
            if done >= shown:
                print(f"{done}\t{time.perf_counter() - began:.0f}\t{await state(url, process)}", flush=True)
                shown += arguments.requests // 10

    print("done\tseconds\tMiB\tfiles\trunning\twaiting\ttokens")
    watcher = asyncio.create_task(watch())
    await asyncio.gather(*map(work, clients))
    watcher.cancel()
    seconds = time.perf_counter() - began
    print(f"{arguments.requests} requests, {arguments.requests / seconds:.2f} per second: {dict(results.done)}")
    for connection in results.half_open:
        connection.close()
    await asyncio.sleep(1.0)  # until the server has noticed
    print(f"after all\t{seconds:.0f}\t{await state(url, process)}", flush=True)
    return results


async def signal_server(url: str, process: subprocess.Popen[str], cases: Sequence[Case], seed: int) -> Results:
    """Send SIGTERM while a server works, and further requests then."""
    results, rng = Results(), random.Random(seed)
    clients = [Client(url, cases, results, 1000 * seed + number) for number in range(24)]
    for client in clients:
        await client.connection()
    begun = [asyncio.create_task(client.request(rng.choice(("whole", "stream")))) for client in clients[:16]]
    half_open = [client.request("wrong") for client in clients[16:18]]
    await asyncio.gather(*half_open)
    await asyncio.sleep(rng.uniform(0.2, 1.5))
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    for client in clients[18:]:
        try:
            status, _, _ = await (await client.connection()).answer("/v1/completions", {"prompt": "x", "max_tokens": 1})
            found = str(status)
        except (OSError, EOFError):
            found = "closed"
        results.done[f"later: {found}"] += 1
        if found not in ("503", "closed"):
            results.faults.append(f"a request after the signal got status {found}")
    await asyncio.gather(*begun)
    code = await asyncio.to_thread(process.wait, 60)
    if code != 0:
        results.faults.append(f"the server exits with {code}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, help="folder of the model; without one, the shipped model")
    parser.add_argument("--requests", type=int, default=2000, help="number of requests")
    parser.add_argument("--clients", type=int, default=64, help="number of clients at once")
    parser.add_argument("--cases", type=int, default=60, help="number of distinct requests")
    parser.add_argument("--signals", type=int, default=20, help="number of servers that get SIGTERM")
    parser.add_argument("--parallel", type=int, default=16, help="texts that the server generates in parallel")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the server")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests")
    arguments = parser.parse_args()
    arguments.model = arguments.model or find(default_model())
    torch.set_num_threads(arguments.threads)
    cases = make_cases(load(arguments.model), arguments.cases, random.Random(arguments.seed))
    faults = []
    if arguments.requests:
        with serving(arguments) as (url, process):
            faults += asyncio.run(load_server(url, process, cases, arguments)).faults
    later: Counter[str] = Counter()
    for seed in range(arguments.signals):
        with serving(arguments) as (url, process):
            results = asyncio.run(signal_server(url, process, cases, seed))
        faults += results.faults
        later += results.done
    print(f"{arguments.signals} signals: {dict(later)}")
    print(*faults, f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
