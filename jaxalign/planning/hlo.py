"""What a compiled program sends between devices, read from its optimised HLO text.

XLA writes the body of a loop once; what stands in it counts as often as the loops that hold it run. A collective that
XLA splits into steps and weaves into other work (``async_collective_fusion`` on TPU) keeps its channel in every step
and counts once.

Bytes are those that one device sends, with the algorithms that send least: of an array of `B` bytes (whole, as gathered
or before it is scattered) over groups of `n` devices, all-gather, reduce-scatter and all-to-all send ``B (n - 1) / n``,
all-reduce twice that, collective-permute the array it is given.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxalign.planning.hlo_groups import axes_of, groups_of

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
"""The collectives. Longer names first where one contains another."""

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "bf16": 2}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([^\s,}]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_WHILE = re.compile(r"condition=%?([^\s,}]+), body=%?([^\s,}]+)")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes along which it talks, joined by ``+``; ``""`` where it talks to nobody else.
      devices: in a group.
      array: bytes of the whole array: gathered, or before it is scattered or exchanged.
      sent: bytes that a device sends each time.
      times: how often it runs in one call of the program.
      where: the operation it comes from, as JAX names it.
    """

    kind: str
    axes: str
    devices: int
    array: float
    sent: float
    times: float
    where: str


@dataclass
class _Instruction:
    name: str
    type: str
    op: str
    rest: str
    root: bool


@dataclass
class _Computation:
    name: str
    instructions: list[_Instruction] = field(default_factory=list)

    def named(self, name: str) -> _Instruction | None:
        return next((i for i in self.instructions if i.name == name), None)

    @property
    def root(self) -> _Instruction | None:
        return next((i for i in self.instructions if i.root), None)


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of a program.

    Args:
      text: of `jax.stages.Compiled.as_text`.
      mesh: its axes and their sizes, in order: device i of the program is the i-th of the mesh.
    """
    computations, entry = _parse(text)
    times = _times(computations, entry)
    found: list[Collective] = []
    steps: dict[tuple[Any, ...], list[Collective]] = defaultdict(list)
    woven: set[tuple[Any, ...]] = set()
    for name, computation in computations.items():
        for instruction in computation.instructions:
            kind = _kind(instruction.op)
            if kind is None or not times[name]:
                continue
            collective = _collective(kind, instruction, times[name], mesh, name)
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            if channel is None:
                found.append(collective)
                continue
            # Several collectives of `shard_map` may share a channel.
            origin = _origin(instruction)
            one = channel[1], collective.kind, collective.devices, collective.array, origin
            steps[one].append(collective)
            if "async_collective" in name:
                woven.add(one)
    for one, parts in steps.items():
        # Steps of one collective may stand in inner loops, where they run more often than it does.
        found += [min(parts, key=lambda part: part.times)] if one in woven else parts
    return found


def sent_by_axis(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Bytes that a device sends in one call, by mesh axes and kind; axes and kinds without any are left out."""
    table: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for each in found:
        if each.axes and each.sent:
            table[each.axes][each.kind] += each.sent * each.times
    return {axes: dict(kinds) for axes, kinds in table.items()}


def loops(text: str) -> list[tuple[str, int]]:
    """The loops of a program, by the name of their body, and how often each body runs when it is entered."""
    computations, _ = _parse(text)
    return [(body, trips) for _, body, trips in _whiles(computations)]


def array_bytes(type_text: str) -> float:
    """Bytes of an HLO type; of a tuple, of all its arrays."""
    total = 0.0
    for kind, dims in _ARRAY.findall(type_text):
        size = math.prod(int(d) for d in dims.split(",") if d)
        total += size * _width(kind)
    return total


def _width(kind: str) -> float:
    if kind in _BYTES:
        return _BYTES[kind]
    digits = re.match(r"[a-z]+(\d+)", kind)
    return int(digits[1]) / 8 if digits else 0.0


def _kind(op: str) -> str | None:
    name = op.removesuffix("-start")
    return name if name in KINDS else None


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith((" ", "}")):
            header = _HEADER.match(line)
            if header is not None and not line.startswith("HloModule"):
                current = computations.setdefault(header[2], _Computation(header[2]))
                entry = header[2] if header[1] else entry
            continue
        if line.startswith("}"):
            current = None
            continue
        match = _INSTRUCTION.match(line)
        if match is not None:
            root, name, type_text, op, rest = match.groups()
            current.instructions.append(_Instruction(name, type_text, op, rest, bool(root)))
    return computations, entry or next(reversed(computations), "")


def _times(computations: Mapping[str, _Computation], entry: str) -> dict[str, float]:
    """How often each computation runs in one call of the program."""
    calls: dict[str, list[tuple[str, float]]] = defaultdict(list)  # callee -> callers
    trips = {body: (cond, count) for cond, body, count in _whiles(computations)}
    for name, computation in computations.items():
        for instruction in computation.instructions:
            if instruction.op == "while":
                match = _WHILE.search(instruction.rest)
                if match is not None:
                    calls[match[2]].append((name, trips[match[2]][1]))
                continue
            called = set(_CALLED.findall(instruction.rest))
            for group in _BRANCHES.findall(instruction.rest):
                called |= {part.strip().lstrip("%") for part in group.split(",")}
            for callee in called & computations.keys():
                calls[callee].append((name, 1))
    known: dict[str, float] = {}

    def times(name: str) -> float:
        if name not in known:
            known[name] = 1.0 if name == entry else 0.0
            known[name] += sum(times(caller) * count for caller, count in calls[name])
        return known[name]

    return {name: times(name) for name in computations}


def _whiles(computations: Mapping[str, _Computation]) -> Iterator[tuple[str, str, int]]:
    for computation in computations.values():
        for instruction in computation.instructions:
            match = _WHILE.search(instruction.rest) if instruction.op == "while" else None
            if match is None:
                continue
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
            yield match[1], match[2], int(known[1]) if known else _trips(computations, match[1], match[2])


def _trips(computations: Mapping[str, _Computation], condition: str, body: str) -> int:
    """Of ``while (i < n)``, with i counting from 0; 1 where the condition says something else."""
    found = _bound(computations, condition)
    if found is None:
        return 1
    index, bound, inclusive = found
    count = (bound + inclusive) / _stride(computations, body, index)
    return max(1, math.ceil(count))


def _bound(computations: Mapping[str, _Computation], condition: str) -> tuple[int | None, int, bool] | None:
    """Which element of the loop's tuple is compared, with what, and whether it may reach it."""
    computation = computations.get(condition)
    root = computation.root if computation is not None else None
    if computation is None or root is None:
        return None
    compare, arguments = root, _arguments(root.rest)
    if root.op in ("fusion", "call"):  # the comparison stands in a computation of its own
        called = _CALLED.search(root.rest)
        inner = computations.get(called[1]) if called else None
        compare = inner.root if inner is not None else None
        if inner is None or compare is None or compare.op != "compare":
            return None
        parameters = {
            i.name: int(i.rest.partition(")")[0]) for i in inner.instructions if i.op == "parameter"
        }  # fmt: skip
        resolved = []
        for name in _arguments(compare.rest):
            given = parameters.get(name)
            resolved.append(arguments[given] if given is not None else name)
        lookup, arguments = [computation, inner], resolved
    else:
        lookup = [computation]
    if compare.op != "compare" or len(arguments) != 2:
        return None

    def find(name: str) -> _Instruction | None:
        return next((hit for c in lookup if (hit := c.named(name)) is not None), None)

    index, bound = None, None
    for name in arguments:
        instruction = find(name)
        while instruction is not None and instruction.op in ("copy", "convert", "bitcast"):
            instruction = find(_arguments(instruction.rest)[0])
        if instruction is None:
            return None
        if instruction.op == "constant":
            digits = re.match(r"(-?\d+)\)", instruction.rest)
            bound = int(digits[1]) if digits else None
        elif instruction.op == "get-tuple-element":
            at = re.search(r"index=(\d+)", instruction.rest)
            index = int(at[1]) if at else None
    direction = re.search(r"direction=(\w+)", compare.rest)
    if bound is None or direction is None or direction[1] not in ("LT", "LE", "NE"):
        return None
    return index, bound, direction[1] == "LE"


def _stride(computations: Mapping[str, _Computation], body: str, index: int | None) -> int:
    """What the body adds to the counter: 1, but for a loop that was unrolled."""
    computation = computations.get(body)
    root = computation.root if computation is not None else None
    if computation is None or root is None or root.op != "tuple" or index is None:
        return 1
    arguments = _arguments(root.rest)
    instruction = computation.named(arguments[index]) if index < len(arguments) else None
    while instruction is not None and instruction.op in ("copy", "convert", "bitcast"):
        instruction = computation.named(_arguments(instruction.rest)[0])
    if instruction is None or instruction.op != "add":
        return 1
    for name in _arguments(instruction.rest):
        constant = computation.named(name)
        if constant is not None and constant.op == "constant":
            digits = re.match(r"(\d+)\)", constant.rest)
            return max(1, int(digits[1])) if digits else 1
    return 1


def _arguments(rest: str) -> list[str]:
    """The operands' names, of what stands behind the opening bracket of an instruction."""
    depth, inside = 1, []
    for character in rest:
        depth += (character in "([{") - (character in ")]}")
        if not depth:
            break
        inside.append(character)
    text = re.sub(r"/\*.*?\*/", "", "".join(inside))
    return re.findall(r"%([^\s,()]+)", text) or [part.strip() for part in text.split(",") if part.strip()]


def _origin(instruction: _Instruction) -> str:
    """The operation that an instruction comes from, as JAX names it; "" where the compiler does not say."""
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    return name[1] if name else ""


def _collective(kind: str, instruction: _Instruction, times: float, mesh: Mapping[str, int], where: str) -> Collective:
    parts = _top_level(instruction.type)
    origin = _origin(instruction) or where
    if kind == "collective-permute":
        array = array_bytes(parts[0])
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.rest)
        numbers = [int(n) for n in re.findall(r"\d+", pairs[1])] if pairs else []
        moves = _pairs(numbers)
        axes, devices = axes_of(moves, mesh), math.prod(mesh.values())
        return Collective(kind, axes, 2, array, array * min(1.0, len(moves) / devices), times, origin)
    started = instruction.op.endswith("-start") and len(parts) > 1 and kind == "all-gather"
    array = array_bytes(parts[1] if started else instruction.type)
    groups = groups_of(instruction.rest, mesh)
    size = len(groups[0]) if groups else 1
    if kind == "reduce-scatter":
        array *= size
    share = (size - 1) / size * (2 if kind == "all-reduce" else 1)
    return Collective(kind, axes_of(groups, mesh), size, array, array * share, times, origin)


def _pairs(numbers: Sequence[int]) -> list[tuple[int, ...]]:
    return [(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a != b]


def _top_level(type_text: str) -> list[str]:
    """The elements of a tuple type, or the type itself."""
    if not type_text.startswith("("):
        return [type_text]
    depth, parts, start = 0, [], 1
    for i, character in enumerate(type_text):
        depth += (character in "([{") - (character in ")]}")
        if (depth == 1 and character == ",") or depth == 0:
            parts.append(type_text[start:i])
            start = i + 1
        if depth == 0:
            break
    return parts
