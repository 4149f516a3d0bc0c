"""An engine of the compiled library, with threads of its own, and what it computes with any matrix of a model."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.engine.native.library import Matrix, Model, library
from llmcli.engine.native.matrices import FORMATS, MAX_ROWS, Matrices, check_rows
from llmcli.errors import LlmcliError
from llmcli.model.layers import Embedding, Linear
from llmcli.model.transformer import Transformer
from llmcli.storage.ggml import from_blocks, row_bytes
from llmcli.storage.quantize import QuantizedEmbedding, QuantizedLinear, QuantizedMatrix

MATRICES = (Linear, Embedding, QuantizedLinear, QuantizedEmbedding)


class NativeEngine:
    """An engine for one model, whose parameters must not move while it is in use.

    It restores the model's quantized matrices. Raises LlmcliError if there is not enough memory.
    """

    def __init__(self, model: Transformer, description: Model, threads: int) -> None:
        found = library()
        assert found is not None
        self.library, self._process = found, os.getpid()
        self.lock = threading.Lock()  # the engine's memory serves one call at a time
        self.engine = found.engine_create(ctypes.byref(description), threads)
        if not self.engine:
            raise LlmcliError("there is not enough memory to decode", "close other programs, or use a smaller model")
        for module in model.modules():
            if isinstance(module, QuantizedMatrix):
                module.restore = self.restore
        self._close = weakref.finalize(self, _destroy, found, self.engine, self._process)

    def restore(self, blocks: Tensor, format: str, columns: int, dtype: torch.dtype) -> Tensor:
        """The weights [N, columns] of rows of blocks in ``dtype``, as ``storage.ggml.from_blocks`` computes them."""
        if dtype not in (torch.float32, torch.bfloat16):
            return from_blocks(blocks, format, columns, dtype)
        self.check_process()
        check_rows(blocks, len(blocks), row_bytes(columns, format))
        weights = torch.empty(len(blocks), columns, dtype=dtype)
        stride = blocks.stride(0)
        rows = len(blocks)
        matrix = Matrix(blocks.data_ptr(), None, None, stride, rows, rows, columns, FORMATS[format])
        with self.lock:
            self.library.engine_restore(self.engine, matrix, dtype == torch.bfloat16, weights.data_ptr())
        return weights

    def check_process(self) -> None:
        if os.getpid() != self._process:
            raise LlmcliError("a forked process cannot use its parent's model", "load the model in each process")


class NativeProducts(NativeEngine):
    """Products of a model's matrices with few vectors, for models whose steps C does not compute.

    A vector's product has the same bits whatever the others are. Nothing is rounded to the dtype of the weights.
    """

    def __init__(self, model: Transformer, threads: int) -> None:
        super().__init__(model, Model(hidden=1, heads=1, kv_heads=1, head_dim=1, inner=1), threads)
        self._kept = Matrices()
        self._matrices = {
            module: self._kept.matrix(module, len(module.get_parameter("weight")), _columns(module))
            for module in model.modules()
            if type(module) in MATRICES
        }

    def product(self, module: nn.Module, x: Tensor) -> Tensor:
        """x [..., in] times the matrix of ``module``, plus its bias, fp32 [..., out]."""
        self.check_process()
        matrix, columns = self._matrices[module], _columns(module)
        assert x.shape[-1] == columns
        assert x.device.type == "cpu"
        vectors = F.pad(x.reshape(-1, columns).float(), (0, -columns % 256)).contiguous()  # whole blocks of any format
        products = torch.empty(len(vectors), matrix.rows)
        for start in range(0, len(vectors), MAX_ROWS):
            some = vectors[start : start + MAX_ROWS]
            with self.lock:
                failure = self.library.engine_multiply(
                    self.engine, matrix, some.data_ptr(), some.shape[1], len(some), products[start].data_ptr()
                )
            assert not failure
        return products.view(*x.shape[:-1], -1)


def _columns(module: nn.Module) -> int:
    return module.columns if isinstance(module, QuantizedMatrix) else module.get_parameter("weight").shape[1]


def native_products(model: Transformer) -> NativeProducts | None:
    """The products of ``model``, with as many threads as torch has; None if C cannot compute them here."""
    if library() is None or model.device.type != "cpu" or model.dtype not in FORMATS:
        return None
    return NativeProducts(model, torch.get_num_threads())


def _destroy(found: ctypes.CDLL, engine: int, process: int) -> None:
    if os.getpid() == process:  # the threads are not in a forked process
        found.engine_destroy(engine)
