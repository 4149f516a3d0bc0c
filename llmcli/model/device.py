"""Where a model runs and in which dtype."""

from __future__ import annotations

import torch

from llmcli.errors import usage_error


def pick_device(name: str) -> torch.device:
    """The device asked for; "auto" is a GPU if there is one. Errors: a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((device for device in ("cuda", "mps") if there[device]), "cpu"))
    if not there[name]:
        usable = ", ".join(device for device, is_there in there.items() if is_there)
        raise usage_error(f"device {name} is not available on this machine", f"available: {usable}")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype asked for; "auto" keeps the stored one where the device computes it at full speed.

    On a CPU, float16 runs as bfloat16 (float16 prefill is ten times slower), and both as float32
    where the processor has no bfloat16 instructions.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu" and stored != torch.float32:
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return stored
