"""A model split among 2 and 4 processes writes what it writes in one, and each process holds its share alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli.errors import LlmcliError
from llmcli.generation.steps import next_logits
from llmcli.model.families import FAMILIES
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.partition import Partition, read_slice
from tests.tiny import CASES, WINDOW, TinyFactory, greedy, random_ids

PROMPT = random_ids(WINDOW + 8, seed=3)[0].tolist()  # longer than a message has room for with the tokens to come
COUNT = 16
SPOILT = [
    ("llama-biases", 2, "a bias for every rank"),
    ("llama", 2, "keys of another head"),
    ("olmo2", 4, "keys counted twice"),
    ("gemma2", 2, "an embedding of its own"),
    ("qwen3", 2, "up and gate cut as one"),
]


# A case of every family, which has four heads or more.
FOUR = (
    *("llama-biases", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "gpt2"),
    *("gpt_neox-six", "olmo2", "granite", "stablelm-parallel", "starcoder2", "cohere-normed", "mixtral"),
    *("qwen3_moe", "olmoe"),
)
TRIED = [(name, 2) for name in CASES] + [(name, 4) for name in FOUR]


def run(size: int, jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the first rank of ``size`` told of each job."""
    (folder / "jobs").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "tests.engine.ranks_program", str(folder / "rendezvous")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder / "jobs")],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            encoding="utf-8",
        )
        for rank in range(size)
    ]
    told, _ = ranks[0].communicate(timeout=300)
    assert [rank.wait(timeout=30) for rank in ranks] == [0] * size
    return [json.loads(line) for line in told.splitlines()]


@pytest.fixture(scope="module")
def results(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[tuple[str, str], Any]]:
    """All cases and all that are spoilt, in one run of so many ranks: what came of each."""

    @cache
    def ran(size: int) -> dict[tuple[str, str], Any]:
        wanted = [(name, "") for name, ranks in TRIED if ranks == size] + [
            (name, how) for name, ranks, how in SPOILT if ranks == size
        ]
        jobs = [
            {"folder": str(tiny(name).folder), "prompt": PROMPT, "count": COUNT, "sabotage": sabotage}
            for name, sabotage in wanted
        ]
        return dict(zip(wanted, run(size, jobs, tmp_path_factory.mktemp("ranks")), strict=True))

    return ran


@pytest.mark.parametrize(("name", "size"), TRIED)
def test_ids_are_those_of_one_process(name: str, size: int, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    model, found = tiny(name).load(), results(size)[name, ""]
    assert found["ids"] == greedy(model, PROMPT, COUNT)
    expected = next_logits(model, PROMPT, model.new_cache())
    assert torch.allclose(torch.tensor(found["logits"]), expected, atol=1e-4, rtol=0)


def test_every_family_is_tried_with_four(tiny: TinyFactory) -> None:
    tried = {tiny(name).load().config.model_type for name in FOUR}
    assert tried == {name for name in FAMILIES if name != "gemma3"}  # gemma3 is gemma3_text in a wrapper


@pytest.mark.parametrize(("name", "size", "sabotage"), SPOILT)
def test_a_mistake_shows(name: str, size: int, sabotage: str, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    model = tiny(name).load()
    expected = next_logits(model, PROMPT, model.new_cache())
    assert (torch.tensor(results(size)[name, sabotage]["logits"]) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["llama-biases", "gpt2", "qwen3_moe", "olmo2"])
def test_a_rank_holds_its_share(name: str, size: int, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    """Of every matrix its part, and of what is small all: counted by hand, from the shapes of the whole."""
    model = tiny(name).load()
    config, heads, wide = model.config, model.config.num_attention_heads, model.config.intermediate_size
    for rank, held in enumerate(results(size)[name, ""]["held"]):
        own = [heads * (rank + 1) // size - heads * rank // size]
        first = heads * rank // size
        group = heads // config.num_key_value_heads
        seen = [head // group for head in range(first, first + own[0])]
        kv = len(set(seen)) if len({seen.count(head) for head in seen}) == 1 else len(seen)

        def part(count: int, rank: int = rank) -> int:
            return count * (rank + 1) // size - count * rank // size

        total = 0
        for target, parameter in model.named_parameters():
            rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
            if target in ("embedding.weight", "head.weight"):
                rows = part(rows)
            elif ".qkv." in target:
                rows = (own[0] + 2 * kv) * config.head_dim
            elif target.endswith("attn.out.weight"):
                columns = own[0] * config.head_dim
            elif "q_norm" in target and config.qk_norm != "head":
                rows = own[0] * config.head_dim
            elif "k_norm" in target and config.qk_norm != "head":
                rows = kv * config.head_dim
            elif ".up." in target:
                whole = config.moe.intermediate_size if "experts" in target and config.moe else wide
                rows = rows // whole * part(whole)
            elif ".down.weight" in target:
                columns = part(columns)
            total += 4 * rows * columns
        assert held == total


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [2, 3])
def test_shares_make_the_whole(name: str, size: int, tiny: TinyFactory) -> None:
    """Put together again, what the ranks read is what one process reads, each number in its place."""
    folder = tiny(name).folder
    model = tiny(name).load()
    weights, config, rules = Checkpoint.read(folder).locate()
    parameters = dict(model.named_parameters())
    for rule in rules:
        whole = parameters[rule.target]
        found = torch.full_like(whole, torch.nan)
        for rank in range(size):
            part = Partition(config, rank, size)
            cut = part.slice_of(rule.target)
            read = read_slice(weights, rule, part, whole.shape, torch.float32)
            if cut.once and rank > 0:
                assert not read.any()
                continue
            rows = torch.cat([torch.arange(len(whole))[r.start : r.stop] for r in cut.rows or (range(len(whole)),)])
            columns = slice(None) if cut.columns is None else slice(cut.columns.start, cut.columns.stop)
            assert torch.equal(read, whole[rows][:, columns] if whole.dim() > 1 else whole[rows])
            if whole.dim() > 1:
                found[rows, columns] = read
            else:
                found[rows] = read
        assert torch.equal(found, whole)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["llama-biases", "gemma2", "olmo2"])
def test_bytes_of_a_token(name: str, size: int, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    """2 L + 1 vectors are summed, one is spread, and the logits are collected, in shares rounded up."""
    config = tiny(name).load().config
    norms = 2 * config.num_hidden_layers if config.qk_norm == "full" else 0  # a number each
    assert results(size)[name, ""]["counts"] == {
        "sum": 4 * ((2 * config.num_hidden_layers + 1) * config.hidden_size + norms),
        "broadcast": 4 * config.hidden_size,
        "gather": 4 * -(-config.vocab_size // size),
        "send": 2,
    }


def test_more_ranks_than_heads(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="has 6 attention heads, too few for 7 ranks"):
        Partition(Checkpoint.read(tiny("llama").folder).config, 0, 7)
