"""A rank of test_tensor_parallel's models: python -m tests.engine.ranks_program RENDEZVOUS RANK SIZE JOBS.

JOBS is a file with a JSON list of jobs: each has a model's ``folder``, a ``prompt`` (ids), a ``count`` of tokens to
generate, the ``dtype`` of the weights, the name of a ``sabotage`` or "", and whether to count ``communication``. The
first rank prints each job's result as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from llmcli.engine.tensor_parallel import transformer as split
from llmcli.engine.tensor_parallel.process_group import ProcessGroup
from llmcli.engine.tensor_parallel.transformer import SplitTransformer, load_split
from llmcli.generation.filters import Temperature
from llmcli.generation.reading import next_logits
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.model.layers import Embedding
from llmcli.storage import partition
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.partition import ParameterSlice, Partition

CPU = torch.device("cpu")
KV_HEADS: Any = Partition.kv_heads.fget  # type: ignore[attr-defined]
SABOTAGE: dict[str, Any] = {
    "bias on every rank": lambda: partition.SLICES.update({"attn.out.bias": lambda part: ParameterSlice()}),
    "wrong key/value heads": lambda: setattr(
        Partition, "kv_heads", property(lambda part: tuple((head + 1) % 2 for head in KV_HEADS(part)))
    ),
    "heads counted twice": lambda: setattr(Partition, "counted", property(lambda part: (True,) * len(part.kv_heads))),
    "embedding without communication": lambda: setattr(
        split.SplitEmbedding, "forward", lambda table, ids: Embedding.forward(table, ids % table.num_embeddings)
    ),
    "gate and up split as one": lambda: partition.SLICES.update(
        {"mlp.up.weight": lambda part: ParameterSlice(rows=(part.share_of(2 * part.whole.intermediate_size),))}
    ),
}


class Counting(ProcessGroup):
    """Counts the bytes that this rank contributes to each operation, and the messages that it sends."""

    counts: Counter[str]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.counts["sum"] += x.nbytes
        return super().sum(x)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        self.counts["broadcast"] += x.nbytes
        return super().broadcast(x)

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.counts["gather"] += x.nbytes
        return super().gather(x)

    def send(self, *numbers: int) -> None:
        self.counts["send"] += 1
        super().send(*numbers)


def greedy(model: SplitTransformer, prompt: list[int], count: int) -> list[int]:
    sampler = Sampler([Temperature(0.0)], seed=0)
    return [step.token for step in steps(model, prompt, sampler=sampler, max_new_tokens=count)]


def run(job: dict[str, Any], group: Counting) -> dict[str, Any] | None:
    """The job's result, on the first rank: generated ids, logits, bytes held by each rank, communication of a token."""
    group.counts = Counter()
    model = load_split(Checkpoint.read(Path(job["folder"])), group, dtype=getattr(torch, job["dtype"]))
    held = torch.tensor([sum(parameter.nbytes for parameter in model.parameters())])
    held_by = [int(part) for part in group.gather(held)]
    group.exchange(None)
    if not group.leads:
        model.serve()
        return None
    generated = greedy(model, job["prompt"], job["count"])
    communication = communication_of_a_token(model, job["prompt"], group) if job["communication"] else {}
    logits = next_logits(model, job["prompt"], model.new_cache()).tolist()
    model.end()
    return {"ids": generated, "logits": logits, "held": held_by, "communication": communication}


def communication_of_a_token(model: SplitTransformer, prompt: list[int], group: Counting) -> dict[str, int]:
    """``Counting.counts`` of the second of two tokens."""
    group.counts.clear()
    greedy(model, prompt, 1)
    first = Counter(group.counts)
    group.counts.clear()
    greedy(model, prompt, 2)
    group.counts.subtract(first)
    return dict(group.counts)


def main(rendezvous: str, rank: int, size: int, jobs: Path) -> None:
    group = Counting(CPU, rank, size, Path(rendezvous))
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        saved = dict(partition.SLICES), Partition.kv_heads, Partition.counted, split.SplitEmbedding.forward
        if job.get("sabotage"):
            SABOTAGE[job["sabotage"]]()
        result = run(job, group)
        partition.SLICES.update(saved[0])
        Partition.kv_heads, Partition.counted, split.SplitEmbedding.forward = saved[1:]  # type: ignore[method-assign]
        if result is not None:
            print(json.dumps(result), flush=True)
    group.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
