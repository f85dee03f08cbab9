"""Which reference a run holds beside its policy."""

from __future__ import annotations

from jaxalign.config import RunConfig
from jaxalign.methods import get_method
from jaxalign.models.decoder_config import DecoderConfig

NO_MODEL = ("auto", "policy", "none", "prior", "columns")
"""What `reference.source` may say beside the name of another model."""


def other_model(config: RunConfig) -> str | None:
    """The model that `reference.source` names, if it names one."""
    return None if config.reference.source in NO_MODEL else config.reference.source


def computed(config: RunConfig, own: DecoderConfig, other: DecoderConfig | None) -> DecoderConfig | None:
    """The architecture of the reference that each step computes; None where it computes none.

    What it adds to a device's memory says `jaxalign.planning.memory.resident_bytes`.

    Args:
      config: the run, resolved.
      own: the policy's architecture.
      other: that of `other_model`, if there is one.
    """
    needed = get_method(config.method.name).needs_reference and config.reference.source != "none"
    if not needed or config.reference.mode not in ("live", "moving"):
        return None
    return own if other is None else other
