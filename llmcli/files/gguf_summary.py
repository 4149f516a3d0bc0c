"""What a GGUF file is, by the few keys at its beginning: its architecture and how its weights are stored.

A list of models needs no more, and reading the vocabularies of all of them would take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.gguf import read_first_keys, read_gguf

# ``general.file_type``: how most of the weights are stored, as llama.cpp numbers it.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
}


def architecture_in(path: Path) -> str | None:
    """llama.cpp's name of the architecture; None if the file cannot be read or does not state it."""
    try:
        found = read_first_keys(path).get("general.architecture")
    except LlmcliError:
        return None
    return found if isinstance(found, str) and found.isprintable() else None


def file_type_in(path: Path) -> str:
    """How most of the weights are stored, such as "Q4_K_M"; "" if the file cannot be read or does not state it."""
    try:
        metadata: Mapping[str, Any] = read_first_keys(path)
        if "general.file_type" not in metadata:  # programs that quantize a file may append it
            metadata = read_gguf(path).metadata
    except LlmcliError:
        return ""
    found = metadata.get("general.file_type")
    return FILE_TYPES.get(found, "") if type(found) is int else ""
