"""Products of torch as the compiled engine computes them: in fp32, whatever the dtype of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from llmcli.model.layers import Linear
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import QuantizedLinear


@contextmanager
def exact_products(model: Transformer) -> Iterator[None]:
    """Let the model's matrices multiply in fp32: their inputs are not rounded to the dtype of the weights."""

    def replace(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        assert isinstance(module, (Linear, QuantizedLinear))
        y = module.unembed(args[0])
        return y if module.bias is None else y + module.bias.float()

    modules = [module for module in model.modules() if isinstance(module, (Linear, QuantizedLinear))]
    hooks = [module.register_forward_hook(replace) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
