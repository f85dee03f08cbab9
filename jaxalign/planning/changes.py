"""What may make a run fit, the change that costs least first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxalign.config import RunConfig, resolve
from jaxalign.config_checks import cross_checks
from jaxalign.models.decoder_config import DecoderConfig


class Change(NamedTuple):
    """One change of a configuration.

    Attributes:
      name: as it is written on the command line.
      values: section -> field -> value.
      harm: of changes that would do, those with the smallest sum are advised.
      cost: what it costs, in words.
    """

    name: str
    values: dict[str, dict[str, Any]]
    harm: float
    cost: str


def _change(harm: float, cost: str, **sections: dict[str, Any]) -> Change:
    names = [f"{section}.{field}={value}" for section, fields in sections.items() for field, value in fields.items()]
    return Change(" ".join(names), sections, harm, cost)


CHANGES: tuple[Change, ...] = (
    _change(1, "nothing: a pass over the data before training, and cheaper steps", reference={"mode": "cached"}),
    _change(2, "some arithmetic is done again", model={"remat": "dots"}),
    _change(2.5, "a third of the arithmetic is done again", model={"remat": "full"}),
    *(
        _change(2.5 + i, "the weights are gathered as many times as often", train={"microbatches": 2**i})
        for i in range(1, 5)
    ),
    _change(20, "other results: weights are rounded to bfloat16 after each step", model={"param_dtype": "bfloat16"}),
)
"""Changes of what a run computes with, without its mesh."""

CHANGES_RESULTS = 20
"""The harm from which on a change is one of what is learned."""
ADAPTERS = _change(30, "other training: low-rank adapters instead of all weights", adapter={"kind": "lora"})


def mesh_changes(config: RunConfig, devices: int, decoder: DecoderConfig) -> tuple[Change, ...]:
    """Other meshes of the same devices: no copies of the weights, and matrix products that share an example.

    Named by what differs from the run's own mesh.
    """

    def change(harm: float, cost: str, tensor: int) -> Change:
        mesh = {"data": 1, "fsdp": -1, "tensor": tensor}
        other = {field: value for field, value in mesh.items() if getattr(config.mesh, field) != value}
        return _change(harm, cost, mesh=other)

    found = [change(0.5, "nothing, if the interconnect keeps up", 1)]
    for i, size in enumerate((2, 4, 8)):
        if devices % size == 0 and shares_heads(decoder, size):
            found.append(change(3 + i, "activations travel in every layer", size))
    return tuple(found)


def shares_heads(decoder: DecoderConfig, tensor: int) -> bool:
    """Whether so many devices can share the heads of attention, also those of the keys, and the hidden layers."""
    return not any(size % tensor for size in (decoder.heads, decoder.kv_heads, decoder.mlp_width))


def candidates(config: RunConfig, changes: Iterable[Change], most: int = 4) -> Iterator[tuple[Change, ...]]:
    """Sets of changes that change this run and let it start, the smallest harm first."""
    useful = [change for change in changes if changed(config, [change]) != config]
    sets = []
    for count in range(1, most + 1):
        for chosen in itertools.combinations(useful, count):
            fields = [(section, field) for change in chosen for section, of in change.values.items() for field in of]
            if len(set(fields)) == len(fields):
                sets.append(chosen)
    known = set(cross_checks(resolve(config)))  # what a plan does without: data, a tokenizer
    # Of equal harm the fewer changes, in the order of the list.
    for chosen in sorted(sets, key=lambda chosen: (sum(change.harm for change in chosen), len(chosen))):
        if known.issuperset(cross_checks(resolve(changed(config, chosen)))):
            yield chosen


def nearest_changes(
    config: RunConfig, fits: Callable[[RunConfig], bool], changes: Sequence[Change] = CHANGES
) -> list[str] | None:
    """The changes of least harm with which a run fits; None where none of them helps.

    Args:
      config: the run, which does not fit.
      fits: ``(changed run) -> bool``.
      changes: what may be changed.
    """
    for chosen in candidates(config, changes):
        if fits(changed(config, chosen)):
            return [change.name for change in chosen]
    return None


def changed(config: RunConfig, changes: Iterable[Change]) -> RunConfig:
    """The configuration with some changes; what would make no sense for it stays as it is."""
    for change in changes:
        for section, values in change.values.items():
            if section == "reference" and config.reference.mode != "live":
                continue
            if section == "train" and not config.train.microbatches < values["microbatches"] <= config.train.batch_size:
                continue
            if "remat" in values and _REMATS.index(config.model.remat) >= _REMATS.index(values["remat"]):
                continue
            config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    return config


_REMATS = ("none", "dots", "full")
"""Each keeps less than the one before."""
