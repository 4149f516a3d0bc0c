"""The fingerprint: equal for what is equal, wherever it lies, and another after the smallest change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.model.transformer import Transformer
from llmcli.storage import fingerprint as module
from llmcli.storage.fingerprint import ROW, WORD, digest, fingerprint
from llmcli.storage.quantize import Kind, quantize
from tests.tiny import CASES, TinyFactory

ROWS = 5  # of ``ROW`` bytes, and a rest


def noise(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Random bits, a few rows and a rest."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(256, (ROWS * ROW + 6 * WORD,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype)


def told(tensor: Tensor) -> str:
    return digest({"x": tensor})


@pytest.fixture(params=["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def model(request: pytest.FixtureRequest, tiny: TinyFactory) -> Transformer:
    return tiny(request.param).load()


def test_the_same_model_has_the_same_and_every_other_another(tiny: TinyFactory) -> None:
    found = {name: fingerprint(tiny(name).load()) for name in CASES}
    assert len(set(found.values())) == len(CASES)
    assert found["llama"] == fingerprint(tiny("llama").load())


def test_any_changed_bit_of_any_parameter_changes_it(model: Transformer) -> None:
    before = fingerprint(model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(-1).view(torch.uint8)
        place = int(torch.randint(len(bits), (), generator=generator))
        bits[place] ^= 1 << place % 8
        assert fingerprint(model) != before, name
        bits[place] ^= 1 << place % 8
    assert fingerprint(model) == before


def test_a_changed_config_changes_it(model: Transformer) -> None:
    before = fingerprint(model)
    model.config = replace(model.config, norm_eps=model.config.norm_eps * (1 + 1e-12))
    assert fingerprint(model) != before


def test_the_dtype_counts_where_the_bits_are_the_same(model: Transformer) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert fingerprint(model.to(torch.float16)) != fingerprint(model.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounded_weights_have_their_own_and_always_the_same(tiny: TinyFactory, kind: Kind) -> None:
    models = [tiny("llama").load() for _ in range(3)]
    for rounded in models[1:]:
        quantize(rounded, kind)
    plain, first, second = map(fingerprint, models)
    assert plain != first == second
    for name, tensor in models[1].state_dict().items():
        bits = tensor.view(-1).view(torch.uint8)
        bits[0] ^= 1
        assert fingerprint(models[1]) != first, name
        bits[0] ^= 1


@given(place=st.integers(0, ROWS * ROW + 6 * WORD - 1), bit=st.integers(0, 7))
def test_any_changed_bit_changes_a_digest(place: int, bit: int) -> None:
    tensor = noise()
    before = told(tensor)
    tensor.view(torch.uint8)[place] ^= 1 << bit
    assert told(tensor) != before


words = st.integers(0, ROWS * ROW // WORD + 5)


@given(a=words, b=words, bit=st.integers(0, 63))
def test_two_words_that_change_places_change_a_digest(a: int, b: int, bit: int) -> None:
    """Even two that differ in the one bit which sums lose most easily."""
    numbers = torch.zeros(len(noise(torch.int64)), dtype=torch.int64)
    numbers[a] = 1 << bit if bit < 63 else -(2**63)
    before = told(numbers)
    numbers[[a, b]] = numbers[[b, a]]
    assert (told(numbers) == before) == (a == b)


@pytest.mark.parametrize("shape", [(7, 576), (64, 64), (3, ROW), (1000, 6)])
def test_rows_and_columns_that_change_places_change_a_digest(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    others = [matrix.flip(0), matrix.flip(1), matrix.roll(1, 0), matrix.roll(1, 1)]
    others += [matrix[[1, 0, *range(2, len(matrix))]], matrix.t().contiguous(), matrix.view(-1)]
    assert len({told(other) for other in (matrix, *others)}) == len(others) + 1


def test_names_and_what_belongs_to_them_count() -> None:
    a, b = noise(seed=0), noise(seed=1)
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a}) != digest({"a": b, "b": a})
    assert digest({"a": a}) != digest({"b": a})
    assert digest({}) != digest({"a": a[:0]})


@given(cut=st.integers(0, 40), rows=st.integers(1, ROWS))
def test_it_does_not_matter_where_a_tensor_lies_nor_in_what_pieces_it_is_read(cut: int, rows: int) -> None:
    tensor = noise()[cut:]  # at an odd place, as mapped weights may be
    expected = told(tensor.clone())
    assert told(tensor) == expected
    assert told(torch.stack((tensor, tensor), dim=-1)[:, 0]) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", rows * ROW)
        assert told(tensor) == expected


def test_sums_are_as_python_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hashed, by whole numbers without end: every row's sum, every column's, and the rest."""
    hashed: list[bytes] = []

    class Hash:
        def update(self, data: bytes) -> None:
            hashed.append(data)

        def hexdigest(self) -> str:
            return ""

    fake: Any = type("hashlib", (), {"sha256": Hash})
    monkeypatch.setattr(module, "hashlib", fake)
    tensor = noise(torch.int64)
    told(tensor)
    numbers, columns = tensor.tolist(), ROW // WORD
    rows = [numbers[n * columns : (n + 1) * columns] for n in range(ROWS)]
    sums = [sum(row) for row in rows] + [sum(column) for column in zip(*rows, strict=True)]
    expected = [(number % 2**64).to_bytes(8, "little") for number in (*sums, *numbers[ROWS * columns :])]
    assert b"".join(hashed[1:]) == b"".join(expected)


@pytest.mark.parametrize("lost", ["rows", "columns", "rest"])
def test_nothing_of_that_could_be_left_out(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Sabotage: without one of the three, a change above goes unseen."""
    real, shapes = module._bytes, {"rows": ROWS, "columns": ROW // WORD}

    def partly(tensor: Tensor) -> bytes:
        kind = next(
            (kind for kind, count in shapes.items() if tensor.dtype == torch.int64 and len(tensor) == count), "rest"
        )
        return b"" if kind == lost else real(tensor)

    monkeypatch.setattr(module, "_bytes", partly)
    tensor = noise(torch.int64)
    before = told(tensor)
    a, b = {"rows": (0, ROW // WORD), "columns": (0, 1), "rest": (len(tensor) - 2, len(tensor) - 1)}[lost]
    tensor[[a, b]] = tensor[[b, a]]
    assert told(tensor) == before
