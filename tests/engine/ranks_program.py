"""One rank of those that test_split starts: python -m tests.engine.ranks_program MEETING RANK SIZE JOBS.

JOBS is a file: a JSON list of jobs, each a model's folder, a prompt, how many tokens to write, and by what name
the computation is spoilt, if it is. The first rank prints what came of each, a JSON object a line.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from llmcli.engine.tensor_parallel import transformer as split
from llmcli.engine.tensor_parallel.process_group import Ranks
from llmcli.engine.tensor_parallel.transformer import SplitTransformer
from llmcli.generation.filters import Temperature
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import next_logits, steps
from llmcli.model.layers import Embedding
from llmcli.storage import checkpoint
from llmcli.storage import partition as splits
from llmcli.storage.partition import Cut, Share

CPU = torch.device("cpu")
KV_HEADS: Any = Share.kv_heads.fget  # type: ignore[attr-defined]
SABOTAGE: dict[str, Any] = {
    "a bias for every rank": lambda: splits.TABLE.update({"attn.out.bias": lambda share: Cut()}),
    "keys of another head": lambda: setattr(
        Share, "kv_heads", property(lambda share: tuple((head + 1) % 2 for head in KV_HEADS(share)))
    ),
    "keys counted twice": lambda: setattr(Share, "counted", property(lambda share: (True,) * len(share.kv_heads))),
    "an embedding of its own": lambda: setattr(
        split.SplitEmbedding, "forward", lambda table, ids: Embedding.forward(table, ids % table.num_embeddings)
    ),
    "up and gate cut as one": lambda: splits.TABLE.update(
        {"mlp.up.weight": lambda share: Cut(rows=(share.piece(2 * share.whole.intermediate_size),))}
    ),
}


class Counting(Ranks):
    """Counts the bytes that this rank gives to each kind of exchange."""

    counts: Counter[str]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.counts["sum"] += x.nbytes
        return super().sum(x)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        self.counts["spread"] += x.nbytes
        return super().spread(x)

    def collect(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.counts["collect"] += x.nbytes
        return super().collect(x)

    def tell(self, *numbers: int) -> None:
        self.counts["tell"] += 1
        super().tell(*numbers)


def greedy(model: SplitTransformer, prompt: list[int], count: int) -> list[int]:
    sampler = Sampler([Temperature(0.0)], seed=0)
    return [step.token for step in steps(model, prompt, sampler=sampler, max_new_tokens=count)]


def run(job: dict[str, Any], ranks: Counting) -> dict[str, Any] | None:
    ranks.counts = Counter()
    model = checkpoint.load(Path(job["folder"]), device=CPU, dtype=torch.float32, ranks=ranks)
    assert isinstance(model, SplitTransformer)
    held = torch.tensor([sum(parameter.nbytes for parameter in model.parameters())])
    held_by = [int(part) for part in ranks.collect(held)]
    ranks.share(None)
    if not ranks.leads:
        model.serve()
        return None
    written = greedy(model, job["prompt"], job["count"])
    ranks.counts.clear()
    greedy(model, job["prompt"], 1)
    once = Counter(ranks.counts)
    ranks.counts.clear()
    greedy(model, job["prompt"], 2)
    ranks.counts.subtract(once)
    counts = dict(ranks.counts)
    logits = next_logits(model, job["prompt"], model.new_cache()).tolist()
    model.end()
    return {"ids": written, "logits": logits, "held": held_by, "counts": counts}


def main(meeting: str, rank: int, size: int, jobs: Path) -> None:
    ranks = Counting(CPU, rank, size, Path(meeting))
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        saved = dict(splits.TABLE), Share.kv_heads, Share.counted, split.SplitEmbedding.forward
        if job.get("sabotage"):
            SABOTAGE[job["sabotage"]]()
        result = run(job, ranks)
        splits.TABLE.update(saved[0])
        Share.kv_heads, Share.counted, split.SplitEmbedding.forward = saved[1:]  # type: ignore[method-assign]
        if result is not None:
            print(json.dumps(result), flush=True)
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
