"""`branch`: every node against transformers reading its path from the start; and no token is read twice."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch

from llmcli.errors import LlmcliError
from llmcli.explain import continuations as module
from llmcli.explain.continuations import BranchReport, Node, branch
from llmcli.files.ndjson import write_line
from llmcli.generation.generation_config import Defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.render import json_forms
from llmcli.render.views.branch import print_branch
from llmcli.storage.quantize import Quantization, quantize
from tests.explain.reference import IDS, forget, loaded
from tests.parity import CLOSE
from tests.tiny import CONTEXT, KINDS, ROPE_ORIGINAL, VOCAB, Tiny, TinyFactory, random_ids

WIDTH, DEPTH = 2, 3


def report_of(
    case: Tiny, ids: list[int] = IDS, width: int = WIDTH, depth: int = DEPTH, model: Transformer | None = None
) -> BranchReport:
    return branch(loaded(case, model), ids, width=width, depth=depth)


def nodes(children: tuple[Node, ...]) -> Iterator[Node]:
    for node in children:
        yield node
        yield from nodes(node.children)


def inner(report: BranchReport) -> list[tuple[tuple[int, ...], tuple[Node, ...], float]]:
    """Every path that has children: the path, its children, and the probability of the others."""
    found: list[tuple[tuple[int, ...], tuple[Node, ...], float]] = [((), report.children, report.others)]
    for node in nodes(report.children):
        if node.others is not None:
            found.append((node.path, node.children, node.others))
    return found


def error_of(report: BranchReport, case: Tiny, ids: list[int]) -> float:
    """The largest difference of a child's p from that of transformers."""
    errors = []
    for path, children, others in inner(report):
        forget(case)
        with torch.no_grad():
            probs = case.reference(torch.tensor([[*ids, *path]])).logits[0, -1].double().softmax(-1)
        best = probs.sort(descending=True, stable=True).indices[: len(children)].tolist()
        assert [child.path for child in children] == [(*path, id) for id in best]
        errors += [abs(child.p - float(probs[child.piece.id])) for child in children]
        errors.append(abs(others - float(1 - probs[best].sum())))
    return max(errors)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "llama-dynamic"])
def test_nodes_match_transformers(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    report = report_of(case)
    assert report.check.ok
    for path, children, _ in inner(report):
        assert len(children) == WIDTH
        assert {child.others is None for child in children if not child.end} <= {len(path) == DEPTH - 1}
    assert error_of(report, case, IDS) <= CLOSE


def test_rope_frequencies_change_within_the_tree(tiny: TinyFactory) -> None:
    """The original context of longrope ends between the second token and the third."""
    case, ids = tiny("phi3-longrope"), IDS[: ROPE_ORIGINAL - 1]
    report = report_of(case, ids)
    assert report.check.ok
    assert error_of(report, case, ids) <= CLOSE


def test_dynamic_frequencies_are_those_of_the_total_length(tiny: TinyFactory) -> None:
    """transformers uses the frequencies of the text's own length, so each path is padded to the total length."""
    case, worst = tiny("llama-dynamic"), 0.0
    ids = IDS[:20]
    report = report_of(case, ids, depth=DEPTH + 1)
    total = len(ids) + DEPTH + 1
    for path, children, others in inner(report):
        text = [*ids, *path]
        forget(case)
        with torch.no_grad():
            logits = case.reference(torch.tensor([[*text, *[0] * (total - len(text))]])).logits[0, len(text) - 1]
        probs = logits.double().softmax(-1)
        worst = max(worst, *(abs(child.p - float(probs[child.piece.id])) for child in children))
        worst = max(worst, abs(others - 1 + sum(float(probs[child.piece.id]) for child in children)))
    assert report.check.ok
    assert worst <= CLOSE


def test_path_probabilities_are_products(tiny: TinyFactory) -> None:
    report = report_of(tiny("qwen3"), width=3)
    for node in nodes(report.children):
        along = [other.p for other in nodes(report.children) if node.path[: len(other.path)] == other.path]
        assert math.exp(node.logprob) == pytest.approx(math.prod(along), rel=1e-4)
        assert node.text == "".join(f" w{id}" for id in node.path)
    leaves = [node for node in nodes(report.children) if not node.children]
    assert report.best == max(leaves, key=lambda leaf: leaf.logprob)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_the_text_is_read_once_and_each_branch_reads_only_its_own_tokens(
    tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    right = KVCache.advance

    def counted(cache: KVCache, count: int) -> None:
        read.append(count)
        right(cache, count)

    tree = module.Tree(loaded(tiny(name)), IDS, WIDTH, DEPTH)
    monkeypatch.setattr(KVCache, "advance", counted)
    _, children = tree.grow((), 0.0)
    assert read == [len(IDS)] + [1] * sum(node.others is not None for node in nodes(children))
    assert len(read) > WIDTH


def test_a_stop_token_ends_its_branch(tiny: TinyFactory) -> None:
    case = tiny("llama")
    first = report_of(case).children[0].piece.id
    opened = dataclasses.replace(loaded(case), defaults=Defaults((first,), {}, {}))
    report = branch(opened, IDS, width=WIDTH, depth=DEPTH)
    ended, other = report.children
    assert (ended.piece.id, ended.end, ended.children, ended.others) == (first, "stop_token", (), None)
    assert (other.end, len(other.children)) == (None, WIDTH)


def test_the_check_covers_a_tree_of_stop_tokens(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = dataclasses.replace(loaded(tiny("llama")), defaults=Defaults(tuple(range(VOCAB)), {}, {}))
    report = branch(opened, IDS, width=WIDTH, depth=DEPTH)
    assert report.check.ok
    assert [node.end for node in nodes(report.children)] == ["stop_token"] * WIDTH
    right = module.next_logits
    monkeypatch.setattr(module, "next_logits", lambda model, ids, cache: right(model, ids[:-1], cache))
    tree = module.Tree(opened, IDS, WIDTH, DEPTH)
    tree.grow((), 0.0)
    monkeypatch.setattr(module, "next_logits", right)
    assert not tree.fresh_claim().holds


def test_the_check_reads_the_best_path_and_the_last(tiny: TinyFactory) -> None:
    case = tiny("qwen3")
    tree = module.Tree(loaded(case), IDS, 3, 3)
    _, children = tree.grow((), 0.0)
    leaves = [node for node in nodes(children) if not node.children]
    assert tree.kept["best"][0] == max(leaves, key=lambda leaf: leaf.logprob).path[:-1]
    assert tree.kept["last"][0] == [node.path for node in nodes(children) if node.others is not None][-1]
    assert tree.kept["best"][0] != tree.kept["last"][0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_branches_end_with_the_context(tiny: TinyFactory, name: str) -> None:
    ids = random_ids(CONTEXT - 1, seed=6)[0].tolist()
    report = report_of(tiny(name), ids)
    assert report.check.ok
    ends = {len(node.path): node.end for node in nodes(report.children)}
    assert ends == {1: None, 2: "context"}


def test_embedding_rows_without_a_token_are_not_candidates(tiny: TinyFactory) -> None:
    case = tiny("llama")
    opened = loaded(case)
    few = LoadedModel(opened.name, opened.folder, opened.model, _first_tokens(20), opened.defaults)
    report = branch(few, [1, 2, 3], width=30, depth=1)
    assert sorted(child.piece.id for child in report.children) == list(range(20))
    with torch.no_grad():
        probs = case.reference(torch.tensor([[1, 2, 3]])).logits[0, -1].double().softmax(-1)
    assert report.others == pytest.approx(float(probs[20:].sum()), abs=CLOSE)


def _first_tokens(count: int) -> Any:
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import WordLevel

    from llmcli.text.tokenizer import Tokenizer

    return Tokenizer(FastTokenizer(WordLevel({f"w{n}": n for n in range(count)}, unk_token="w0")), "few")


@pytest.mark.parametrize(
    ("width", "depth", "message"),
    [(1001, 1, "1000 nodes"), (10, 3, "1000 nodes"), (2, 9, "1000 nodes"), (1, 101, "100"), (3, 10**9, "100")],
)
def test_a_tree_that_is_too_large_is_an_error(tiny: TinyFactory, width: int, depth: int, message: str) -> None:
    with pytest.raises(LlmcliError, match=message):
        report_of(tiny("llama"), width=width, depth=depth)


def test_the_deepest_tree_can_be_printed_and_written(tiny: TinyFactory) -> None:
    model = tiny("llama").load()
    model.config = dataclasses.replace(model.config, eos_token_ids=())
    report = report_of(tiny("llama"), IDS[:20], width=1, depth=module.MAX_DEPTH, model=model)
    assert report.check.ok
    assert len(report.best.path) == module.MAX_DEPTH
    assert report.best.text == "".join(f" w{id}" for id in report.best.path)
    stream = io.StringIO()
    write_line(json_forms.record(report), stream)
    assert len(json.loads(stream.getvalue())["best"]["path"]) == module.MAX_DEPTH
    print_branch(report, stream)
    assert len([line for line in stream.getvalue().splitlines() if line.count("\t") == 7]) == module.MAX_DEPTH + 1
    assert math.exp(report.best.logprob) < 5e-5
    assert "(0.0000)" not in stream.getvalue()


@pytest.mark.parametrize("kind", ["int8", "int4", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-tied", "mistral", "gpt2"])
def test_quantized_models_pass_the_check(
    tiny: TinyFactory, name: str, kind: Quantization | Literal["bfloat16"]
) -> None:
    model = tiny(name).load()
    if kind == "bfloat16":
        model.to(torch.bfloat16)
    else:
        quantize(model, kind)
    assert report_of(tiny(name), model=model).check.ok


def test_a_text_longer_than_the_context_is_an_error(tiny: TinyFactory) -> None:
    with pytest.raises(LlmcliError, match=str(CONTEXT)):
        report_of(tiny("llama"), random_ids(CONTEXT + 1, seed=6)[0].tolist())
    assert VOCAB > 20


# Mistakes that the check must catch.


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cache_that_is_not_truncated_fails(tiny: TinyFactory, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``truncate`` does nothing: the cache keeps the tokens of the previous branch."""

    def truncate_nothing(cache: KVCache, length: int) -> None:
        kept.append(length)

    kept: list[int] = []
    case = tiny(name)
    model = case.load()
    right = module.next_logits

    def read(model: Transformer, ids: list[int], cache: KVCache) -> torch.Tensor:
        return right(model, ids or [0], cache)

    monkeypatch.setattr(KVCache, "truncate", truncate_nothing)
    monkeypatch.setattr(module, "next_logits", read)
    assert not report_of(case, model=model).check.ok


def test_keys_with_stale_rope_frequencies_fail(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original context of longrope ends within the tree."""
    case, ids = tiny("phi3-longrope"), IDS[: ROPE_ORIGINAL - 1]
    assert report_of(case, ids).check.ok
    monkeypatch.setattr(Transformer, "stale", lambda *_: False)
    assert not report_of(case, ids).check.ok


def test_frequencies_planned_for_another_branch_fail(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned length of a longer branch is used for a shorter one."""
    monkeypatch.setattr(module, "planned_length", lambda rope, prompt, total: total)
    case, ids = tiny("phi3-longrope"), IDS[: ROPE_ORIGINAL - 1]
    with pytest.raises(AssertionError):
        assert error_of(report_of(case, ids), case, ids) <= CLOSE


@pytest.mark.parametrize(
    ("field", "mistake", "claim"),
    [("others", 0.01, 1), ("p", 0.01, 1), ("p", 0.01, 2), ("logprob", 0.01, 2)],
)
def test_probabilities_that_do_not_add_up_fail(
    tiny: TinyFactory, field: str, mistake: float, claim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.Tree._node

    def wrong(tree: module.Tree, path: tuple[int, ...], p: float, logprob: float) -> Node:
        node = right(tree, path, p, logprob)
        value = getattr(node, field)
        return node if value is None or len(path) != 2 else dataclasses.replace(node, **{field: value + mistake})

    monkeypatch.setattr(module.Tree, "_node", wrong)
    report = report_of(tiny("llama"))
    assert not report.check.ok
    assert not report.check.claims[claim].holds
