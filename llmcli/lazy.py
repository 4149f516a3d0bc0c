"""Lazy package faces: a package lists its exports and imports a module when one of its names is first used (PEP 562).

So ``from llmcli import explain`` takes no time, and ``explain.lens`` then imports PyTorch. A package's ``__init__.py``
looks like this. The imports under TYPE_CHECKING are for type checkers and editors; tests/test_lazy.py checks that the
lists agree::

    if TYPE_CHECKING:
        from llmcli.explain.lenses.logit_lens import lens as lens

    __all__ = ["lens"]
    __getattr__, __dir__ = lazy.exports(__name__, {"lens": "logit_lens"})

A name must differ from its module's: importing a submodule sets an attribute of that name on the package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def exports(
    package: str, modules: Mapping[str, str], submodules: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of ``package``.

    ``modules`` maps each exported name to the module that defines it, relative to the package. ``submodules`` can be
    used as attributes of the package without being imported first.
    """

    def get_attribute(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def list_names() -> list[str]:
        face = vars(sys.modules[package])
        return sorted({*(name for name in face if name.startswith("__")), *face["__all__"]})

    return get_attribute, list_names
