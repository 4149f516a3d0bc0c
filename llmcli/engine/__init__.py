"""Running a model fast: kernels for decoding and prefill, CUDA graphs, batches, tensor parallelism."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.engine.tensor_parallel.process_group import ProcessGroup as ProcessGroup
    from llmcli.engine.tensor_parallel.process_group import device_of as device_of
    from llmcli.engine.transformer import engine_of as engine_of

__all__ = [
    "ProcessGroup",
    "device_of",
    "engine_of",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "ProcessGroup": "tensor_parallel.process_group",
        "device_of": "tensor_parallel.process_group",
        "engine_of": "transformer",
    },
)
