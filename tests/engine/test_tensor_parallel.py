"""A model split among 2 or 4 processes generates the same text as in one, and each process holds only its part."""

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
from llmcli.generation.reading import next_logits
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.partition import Partition, read_slice
from tests.tiny import SPLIT, WINDOW, TinyFactory, greedy, random_ids

PROMPT = random_ids(WINDOW + 8, seed=3)[0].tolist()  # too long for a message
COUNT = 8
SABOTAGED = [  # case, ranks, name of the sabotage in ranks_program.py
    ("llama-biases", 2, "bias on every rank"),
    ("llama", 2, "wrong key/value heads"),
    ("olmo2", 4, "heads counted twice"),
    ("gemma2", 2, "embedding without communication"),
    ("qwen3", 2, "gate and up split as one"),
]


# A case of every family.
FAMILIES = (
    *("llama-biases", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "gpt2"),
    *("gpt_neox-six", "olmo2", "granite", "stablelm-parallel", "starcoder2", "cohere-normed", "mixtral"),
    *("qwen3_moe", "olmoe", "gpt_oss", "olmo3", "ministral3", "seed_oss", "arcee", "nanochat", "cohere2", "exaone4"),
    *("glm4", "ernie4_5", "hunyuan_v1_dense", "apertus", "qwen2_moe"),
    *("gemma", "olmo", "helium", "gpt_neo", "opt", "phi", "gptj", "bloom", "falcon-grouped", "llama4_text"),
)
COMMUNICATION = ("llama-biases", "gemma2", "olmo2")  # cases whose communication is counted
BFLOAT16 = ("llama", "gemma2", "gpt2")
# Cases with at least four heads that together have every kind of split.
FOUR = ("llama-biases", "gemma2", "phi3", "gpt2", "gpt_neox-six", "olmo2", "stablelm-parallel", "qwen3_moe", "gpt_oss")
SPLITS = [(name, 2) for name in (*FAMILIES, "llama", "llama-llama3")] + [(name, 4) for name in FOUR]


def run(size: int, jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The results of the jobs, as printed by the first of ``size`` ranks."""
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
    output, _ = ranks[0].communicate()
    assert [rank.wait() for rank in ranks] == [0] * size
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def results(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[tuple[str, str], Any]]:
    """The results by case and sabotage or dtype, for a number of ranks, which start only once for all of them."""

    @cache
    def results_of(size: int) -> dict[tuple[str, str], Any]:
        wanted = [(name, "") for name, ranks in SPLITS if ranks == size] + [
            (name, sabotage) for name, ranks, sabotage in SABOTAGED if ranks == size
        ]
        wanted += [(name, "bfloat16") for name in BFLOAT16 if size == 2]
        jobs = [
            {
                "folder": str(tiny(name).folder),
                "prompt": PROMPT,
                "count": 0 if variant else COUNT,
                "dtype": "bfloat16" if variant == "bfloat16" else "float32",
                "sabotage": "" if variant == "bfloat16" else variant,
                "communication": name in COMMUNICATION and not variant,
            }
            for name, variant in wanted
        ]
        return dict(zip(wanted, run(size, jobs, tmp_path_factory.mktemp("ranks")), strict=True))

    return results_of


@pytest.mark.parametrize(("name", "size"), SPLITS)
def test_ids_and_logits_match_one_process(name: str, size: int, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    model, found = tiny(name).load(), results(size)[name, ""]
    assert found["ids"] == greedy(model, PROMPT, COUNT)
    expected = next_logits(model, PROMPT, model.new_cache())
    assert torch.allclose(torch.tensor(found["logits"]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_logits_are_close_to_exact_ones(name: str, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    model = tiny(name).load().to(torch.bfloat16).float()
    expected = next_logits(model, PROMPT, model.new_cache())
    found = torch.tensor(results(2)[name, "bfloat16"]["logits"])
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


def test_every_family_is_split(tiny: TinyFactory) -> None:
    tested = {tiny(name).load().config.model_type for name in FAMILIES}
    assert tested == {tiny(name).load().config.model_type for name in SPLIT}


@pytest.mark.parametrize(("name", "size", "sabotage"), SABOTAGED)
def test_a_mistake_shows(name: str, size: int, sabotage: str, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    model = tiny(name).load()
    expected = next_logits(model, PROMPT, model.new_cache())
    assert (torch.tensor(results(size)[name, sabotage]["logits"]) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["llama-biases", "gpt2", "qwen3_moe", "olmo2"])
def test_a_rank_holds_only_its_part(name: str, size: int, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    """Its part of every matrix, and all small parameters, in bytes counted here from the whole model's shapes."""
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


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_make_up_the_whole(name: str, size: int, tiny: TinyFactory) -> None:
    """The slices that the ranks read, put together, are the parameters that one process reads."""
    folder = tiny(name).folder
    model = tiny(name).load()
    weights, config, rules = Checkpoint.read(folder).locate()
    parameters = dict(model.named_parameters())
    for rule in rules:
        whole = parameters[rule.target]
        assembled = torch.full_like(whole, torch.nan)
        for rank in range(size):
            partition = Partition(config, rank, size)
            kept = partition.slice_of(rule.target)
            read = read_slice(weights, rule, partition, whole.shape, torch.float32)
            if kept.once and rank > 0:
                assert not read.any()
                continue
            rows = torch.cat([torch.arange(len(whole))[r.start : r.stop] for r in kept.rows or (range(len(whole)),)])
            columns = slice(None) if kept.columns is None else slice(kept.columns.start, kept.columns.stop)
            assert torch.equal(read, whole[rows][:, columns] if whole.dim() > 1 else whole[rows])
            if whole.dim() > 1:
                assembled[rows, columns] = read
            else:
                assembled[rows] = read
        assert torch.equal(assembled, whole)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", COMMUNICATION)
def test_communication_per_token(name: str, size: int, tiny: TinyFactory, results: Callable[..., Any]) -> None:
    """Bytes: 2 L + 1 vectors are summed, one is broadcast, and the logits are gathered in equal parts, rounded up."""
    config = tiny(name).load().config
    norms = 2 * config.num_hidden_layers if config.qk_norm == "full" else 0  # one number each
    assert results(size)[name, ""]["communication"] == {
        "sum": 4 * ((2 * config.num_hidden_layers + 1) * config.hidden_size + norms),
        "broadcast": 4 * config.hidden_size,
        "gather": 4 * -(-config.vocab_size // size),
        "send": 2,
    }


def test_layers_that_share_keys_and_values_are_rejected(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="that share keys and values"):
        Partition(Checkpoint.read(tiny("gemma4_text").folder).config, 0, 2)


def test_more_ranks_than_heads_are_rejected(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match="has 6 attention heads, too few for 7 ranks"):
        Partition(Checkpoint.read(tiny("llama").folder).config, 0, 7)
