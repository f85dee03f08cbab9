"""The values that a number may take, declared where the number is: ``Annotated[float, Range(gt=0.0)]``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Bounds of a number; each that is not None must hold. A value that is not a number (nan) is in no range.

    >>> 0.5 in Range(ge=0.0, lt=0.5)
    False
    >>> print(Range(ge=0.0, lt=0.5))
    >= 0 and < 0.5
    """

    gt: float | int | None = None
    ge: float | int | None = None
    lt: float | int | None = None
    le: float | int | None = None

    def __contains__(self, value: float) -> bool:
        return (
            value == value
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        bounds = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
