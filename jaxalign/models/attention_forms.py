"""The forms of attention by name, and the choice among them."""

from __future__ import annotations

from jaxtyping import Array

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.kernels.spans import spans
from jaxalign.kernels.tree_attention import sharded
from jaxalign.mesh_axes import platform
from jaxalign.models.attention import AttentionForm, Ranges, Window, dense
from jaxalign.models.chunked_attention import chunked

DENSE_LENGTH = 64
"""Longest row, in tokens, that goes as one block: its scores are ``[R, H, T, T]``."""


def kernel(
    query: Array,
    key: Array,
    value: Array,
    ranges: Ranges,
    window: Window,
    *,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Array:
    """The kernel of the devices at hand, each on its own rows and heads (`jaxalign.kernels.tree_attention`).

    Raises:
      ModelError: there is none for these devices.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    of = spans(*ranges, window)
    return sharded(query, key, value, of, scale=scale, soft_cap=soft_cap, platform=platform())


def automatic(
    query: Array,
    key: Array,
    value: Array,
    ranges: Ranges,
    window: Window,
    *,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Array:
    """The dense form for rows of up to `DENSE_LENGTH` tokens; for longer ones the kernel on a TPU, else the chunked.

    The GPU's kernel has been run by no GPU yet: it is used where it is asked for by name.
    """
    form = FORMS[form_name("auto", query.shape[1], platform())]
    return form(query, key, value, ranges, window, soft_cap=soft_cap, scale=scale)


FORMS: dict[str, AttentionForm] = {"auto": automatic, "dense": dense, "chunked": chunked, "kernel": kernel}


def attention_form(name: str) -> AttentionForm:
    """The form of that name.

    Raises:
      ModelError: there is none.
    """
    if name not in FORMS:
        raise ModelError(f"attention {name!r} is unknown, expected one of {tuple(FORMS)}.{did_you_mean(name, FORMS)}")
    return FORMS[name]


def form_name(name: str, length: int, platform: str) -> str:
    """The form that a name stands for: "auto" depends on a row's tokens and on the devices ("cpu", "gpu", "tpu")."""
    if name != "auto":
        return name
    if length <= DENSE_LENGTH:
        return "dense"
    return "kernel" if platform == "tpu" else "chunked"
