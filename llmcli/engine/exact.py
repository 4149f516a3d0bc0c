"""Products of torch as the compiled engine computes them: in fp32, whatever the dtype of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from llmcli.model.layers import Linear
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import QuantizedLinear


@contextmanager
def exact_products(model: Transformer) -> Iterator[None]:
    """Let the model's matrices multiply in fp32: their inputs are not rounded to the dtype of the weights."""
    modules = [module for module in model.modules() if isinstance(module, (Linear, QuantizedLinear))]
    for module in modules:
        vars(module)["forward"] = partial(_product, module)  # stands before the method of the class
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["forward"]


def _product(module: Linear | QuantizedLinear, x: Tensor) -> Tensor:
    y = module.unembed(x)
    return y if module.bias is None else y + module.bias.float()
