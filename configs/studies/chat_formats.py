"""Measures in each model's chat format: aligned ones bring their own, some of the hub's have none, or another one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxalign.studies.study import Measure, Subject


def in_its_format(make: Callable[..., Measure], formats: Mapping[str, Mapping[str, Any]]) -> Measure:
    """A measure whose options differ for some models as they are on the hub.

    Args:
      make: of the measure.
      formats: model -> options of `make`, such as its ``chat_template``, where they are not the defaults.
    """
    own = make()
    others = {model: make(**options) for model, options in formats.items()}

    def run(subject: Subject) -> Any:
        return others.get(subject.model, own).run(subject)

    settings = {model: other.settings for model, other in others.items()}
    return replace(own, run=run, settings=_Both(own.settings, settings))


class _Both(Mapping[str, Any]):
    """A measure's settings and those for other models; files are read once they are asked for, as in either."""

    def __init__(self, own: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]):
        self._own, self._others = own, others

    def __getitem__(self, name: str) -> Any:
        if name == "formats":
            return {model: dict(settings) for model, settings in self._others.items()}
        return self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, "formats"))

    def __len__(self) -> int:
        return len(self._own) + 1
