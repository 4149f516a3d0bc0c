"""Products as the compiled engine computes them: in fp32, whatever the dtype of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from llmcli.engine.native import MAX_ROWS, NativeProducts
from llmcli.model.layers import Linear
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import QuantizedLinear


@contextmanager
def exact_products(model: Transformer, compiled: NativeProducts | None) -> Iterator[None]:
    """Let the model's matrices multiply in fp32: their inputs are not rounded to the dtype of the weights.

    Products with few vectors are those of the ``compiled`` engine, if there is one: torch would restore all weights to
    fp32 each time.
    """
    modules = [module for module in model.modules() if isinstance(module, (Linear, QuantizedLinear))]
    for module in modules:
        vars(module)["forward"] = partial(_product, compiled, module)  # stands before the method of the class
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["forward"]


def _product(compiled: NativeProducts | None, module: Linear | QuantizedLinear, x: Tensor) -> Tensor:
    if compiled is not None and few(x):
        return compiled.product(module, x)
    y = module.unembed(x)
    return y if module.bias is None else y + module.bias.float()


def few(x: Tensor) -> bool:
    """Whether the compiled engine multiplies x [..., K] faster than torch."""
    return x.numel() <= MAX_ROWS * x.shape[-1]
