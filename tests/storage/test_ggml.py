"""Blocks of every format against the package ``gguf``, bit for bit; those of some formats it restores itself."""

from __future__ import annotations

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from llmcli.files.gguf import BLOCKS
from llmcli.storage.ggml import PACKED, restore


@pytest.mark.parametrize("format", PACKED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales are infinite or NaN, too
def test_blocks_of_any_bytes_are_restored_as_gguf_restores_them(format: str) -> None:
    data = numpy.random.default_rng(0).integers(0, 256, (1000, BLOCKS[format][1]), dtype=numpy.uint8)
    data[0], data[1] = 0, 255
    expected = dequantize(data, GGMLQuantizationType[format]).reshape(-1)
    restored = restore(torch.from_numpy(data), format).numpy()
    same = (restored.view(numpy.uint32) == expected.view(numpy.uint32)) | (
        numpy.isnan(restored) & numpy.isnan(expected)
    )
    assert restored.dtype == numpy.float32
    assert restored.shape == expected.shape
    assert same.all()
