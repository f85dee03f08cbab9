"""Alignment of language models in JAX: methods are pure functions, models are pure functions over dicts of arrays.

The names below are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.methods import METHODS as METHODS
    from jaxalign.models.huggingface import load_policy as load_policy
    from jaxalign.models.huggingface import save_pretrained as save_pretrained

__version__ = "0.1.0"

_HOMES = {
    "METHODS": "jaxalign.methods",
    "load_policy": "jaxalign.models.huggingface",
    "save_pretrained": "jaxalign.models.huggingface",
}

__all__ = ["METHODS", "__version__", "load_policy", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
