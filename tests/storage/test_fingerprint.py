"""Fingerprints are the same for equal models, wherever they are in memory, and differ after the smallest change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.model.transformer import Transformer
from llmcli.storage import fingerprint as module
from llmcli.storage.fingerprint import ROW, WORD, digest, fingerprint
from llmcli.storage.quantize import Quantization, quantize
from tests.tiny import CASES, TinyFactory

ROWS = 5  # whole rows of ``ROW`` bytes in ``noise``, which also has an incomplete one


def noise(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Random bits: ``ROWS`` rows and an incomplete one."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(256, (ROWS * ROW + 6 * WORD,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype)


def digest_of(tensor: Tensor) -> str:
    return digest({"x": tensor})


@pytest.fixture(params=["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def model(request: pytest.FixtureRequest, tiny: TinyFactory) -> Transformer:
    return tiny(request.param).load()


def test_every_model_has_its_own_fingerprint(tiny: TinyFactory) -> None:
    fingerprints = {name: fingerprint(tiny(name).load()) for name in CASES}
    assert len(set(fingerprints.values())) == len(CASES)
    assert fingerprints["llama"] == fingerprint(tiny("llama").load())


def test_a_flipped_bit_in_any_parameter_changes_it(model: Transformer) -> None:
    before = fingerprint(model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(-1).view(torch.uint8)
        index = int(torch.randint(len(bits), (), generator=generator))
        bits[index] ^= 1 << index % 8
        assert fingerprint(model) != before, name
        bits[index] ^= 1 << index % 8
    assert fingerprint(model) == before


def test_a_changed_config_changes_it(model: Transformer) -> None:
    before = fingerprint(model)
    model.config = replace(model.config, norm_eps=model.config.norm_eps * (1 + 1e-12))
    assert fingerprint(model) != before


def test_a_new_field_of_the_config_changes_nothing_until_it_is_used(model: Transformer) -> None:
    @dataclass(frozen=True)
    class Newer(type(model.config)):  # type: ignore[misc]
        new: float = 1.0

    before, values = fingerprint(model), vars(model.config)
    model.config = Newer(**values)
    assert fingerprint(model) == before
    model.config = Newer(**values, new=2.0)
    assert fingerprint(model) != before


def test_it_depends_on_the_dtype_even_if_all_bits_are_equal(model: Transformer) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert fingerprint(model.to(torch.float16)) != fingerprint(model.to(torch.bfloat16))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_weights_have_a_reproducible_fingerprint_of_their_own(
    tiny: TinyFactory, quantization: Quantization
) -> None:
    models = [tiny("llama").load() for _ in range(3)]
    for quantized in models[1:]:
        quantize(quantized, quantization)
    plain, first, second = map(fingerprint, models)
    assert plain != first == second
    for name, tensor in models[1].state_dict().items():
        bits = tensor.view(-1).view(torch.uint8)
        bits[0] ^= 1
        assert fingerprint(models[1]) != first, name
        bits[0] ^= 1


@given(index=st.integers(0, ROWS * ROW + 6 * WORD - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_a_digest(index: int, bit: int) -> None:
    tensor = noise()
    before = digest_of(tensor)
    tensor.view(torch.uint8)[index] ^= 1 << bit
    assert digest_of(tensor) != before


words = st.integers(0, ROWS * ROW // WORD + 5)


@given(a=words, b=words, bit=st.integers(0, 63))
def test_swapping_two_words_changes_a_digest(a: int, b: int, bit: int) -> None:
    """Even if the words differ only in one bit, up to the highest, which overflows most easily."""
    numbers = torch.zeros(len(noise(torch.int64)), dtype=torch.int64)
    numbers[a] = 1 << bit if bit < 63 else -(2**63)
    before = digest_of(numbers)
    numbers[[a, b]] = numbers[[b, a]]
    assert (digest_of(numbers) == before) == (a == b)


@pytest.mark.parametrize("shape", [(7, 576), (64, 64), (3, ROW), (1000, 6)])
def test_moving_rows_or_columns_changes_a_digest(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    others = [matrix.flip(0), matrix.flip(1), matrix.roll(1, 0), matrix.roll(1, 1)]
    others += [matrix[[1, 0, *range(2, len(matrix))]], matrix.t().contiguous(), matrix.view(-1)]
    assert len({digest_of(other) for other in (matrix, *others)}) == len(others) + 1


def test_a_digest_depends_on_which_name_has_which_tensor() -> None:
    a, b = noise(seed=0), noise(seed=1)
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a}) != digest({"a": b, "b": a})
    assert digest({"a": a}) != digest({"b": a})
    assert digest({}) != digest({"a": a[:0]})


@given(cut=st.integers(0, 40), rows=st.integers(1, ROWS))
def test_alignment_strides_and_piece_size_do_not_matter(cut: int, rows: int) -> None:
    tensor = noise()[cut:]  # unaligned, as mapped weights may be
    expected = digest_of(tensor.clone())
    assert digest_of(tensor) == expected
    assert digest_of(torch.stack((tensor, tensor), dim=-1)[:, 0]) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", rows * ROW)
        assert digest_of(tensor) == expected


def test_the_hashed_sums_match_exact_integer_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashed bytes are the sum of each row, the sum of each column, and the incomplete row, modulo 2^64."""
    hashed: list[bytes] = []

    class Hash:
        def update(self, data: bytes) -> None:
            hashed.append(data)

        def hexdigest(self) -> str:
            return ""

    fake: Any = type("hashlib", (), {"sha256": Hash})
    monkeypatch.setattr(module, "hashlib", fake)
    tensor = noise(torch.int64)
    digest_of(tensor)
    numbers, columns = tensor.tolist(), ROW // WORD
    rows = [numbers[n * columns : (n + 1) * columns] for n in range(ROWS)]
    sums = [sum(row) for row in rows] + [sum(column) for column in zip(*rows, strict=True)]
    expected = [(number % 2**64).to_bytes(8, "little") for number in (*sums, *numbers[ROWS * columns :])]
    assert b"".join(hashed[1:]) == b"".join(expected)


@pytest.mark.parametrize("omitted", ["rows", "columns", "rest"])
def test_each_of_the_three_parts_is_necessary(monkeypatch: pytest.MonkeyPatch, omitted: str) -> None:
    """Sabotage: without one of them, one of the swaps above goes unnoticed."""
    to_bytes, lengths = module._bytes, {"rows": ROWS, "columns": ROW // WORD}

    def bytes_of_two_parts(tensor: Tensor) -> bytes:
        part = next(
            (part for part, count in lengths.items() if tensor.dtype == torch.int64 and len(tensor) == count), "rest"
        )
        return b"" if part == omitted else to_bytes(tensor)

    monkeypatch.setattr(module, "_bytes", bytes_of_two_parts)
    tensor = noise(torch.int64)
    before = digest_of(tensor)
    a, b = {"rows": (0, ROW // WORD), "columns": (0, 1), "rest": (len(tensor) - 2, len(tensor) - 1)}[omitted]
    tensor[[a, b]] = tensor[[b, a]]
    assert digest_of(tensor) == before
