"""llmcli runs a language model on your own machine and shows how it works.

As a library::

    import llmcli

    loaded = llmcli.load()  # the model that comes with llmcli
    for step, text in llmcli.generate(loaded, "Once upon a time", max_new_tokens=50, temperature=0.7, seed=1):
        print(text, end="", flush=True)

``load`` opens a model, ``generate`` continues a text, and ``steps`` is the loop underneath. ``llmcli.explain`` has a
function for each view, and ``llmcli.render`` draws their reports. Importing llmcli is fast: each of these loads PyTorch
when it is first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    import torch

    from llmcli import explain as explain
    from llmcli import render as render
    from llmcli.generation.generate import generate as generate
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.steps import steps as steps
    from llmcli.storage.quantize import Quantization

__all__ = ["__version__", "explain", "generate", "load", "render", "steps"]
__version__ = "0.2.0"


def load(
    name: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: Quantization | None = None,
    offline: bool = False,
) -> LoadedModel:
    """Open a model: its transformer, its tokenizer, its stop tokens and its sampling defaults.

    ``name`` is a folder, a GGUF file, the name of a model that comes with llmcli or that ``llmcli models`` lists, or
    org/name or org/name:Q4_K_M on the Hugging Face Hub, which is downloaded unless ``offline``. Without a name, it is
    the model that ``llmcli generate`` uses. ``adapter`` names a LoRA to merge into the weights. ``device`` is "auto",
    "cpu", "cuda" or "mps"; ``dtype`` is "auto" (as stored), "float32", "bfloat16" or "float16", or fp32, bf16 or fp16
    for short; ``quantization`` is "int8" or "int4".

    Raises LlmcliError if the model does not exist or cannot be read.
    """
    from llmcli import hub, render
    from llmcli.errors import LlmcliError
    from llmcli.explain.report import Report
    from llmcli.generation import loaded
    from llmcli.hub import name_of

    for path in (name, adapter):
        if isinstance(path, Path) and not path.expanduser().exists():  # a path is not a name of the hub
            kind = "file" if path.suffix.lower() == ".gguf" else "folder"
            raise LlmcliError(f"there is no {kind} {path}", "check the path, or give the name of a model as a string")
    Report.to_html = lambda report: render.html(report)  # what notebooks show; imports Rich when called
    folder = hub.find(hub.default_model() if name is None else str(name), offline=offline)
    adapter_folder = None if adapter is None else hub.find(str(adapter), offline=offline)
    return loaded.load(
        folder,
        name=" + ".join(name_of(part) for part in (folder, adapter_folder) if part is not None),
        adapter=adapter_folder,
        device=device,
        dtype=dtype,
        quantization=quantization,
    )


__getattr__, __dir__ = lazy.exports(
    __name__,
    {"generate": "generation.generate", "steps": "generation.steps"},
    submodules=("explain", "render"),
)
