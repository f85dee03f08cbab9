"""The values an option may take, declared once, in the signature: ``beta: Annotated[float, Range(gt=0.0)] = 0.1``."""

from typing import Annotated

from jaxalign.ranges import Range

Positive = Annotated[float, Range(gt=0.0)]
NonNegative = Annotated[float, Range(ge=0.0)]
Fraction = Annotated[float, Range(ge=0.0, le=1.0)]
Smoothing = Annotated[float, Range(ge=0.0, lt=0.5)]
"""The assumed share of flipped labels; at one half the labels would say nothing."""
PositiveSmoothing = Annotated[float, Range(gt=0.0, lt=0.5)]
"""The same where 0 would make a loss infinite."""
