"""The machines that a plan is reckoned for: memory, arithmetic and interconnect of their devices, as published.

Rates are peaks that no program reaches; times made from them are bounds. Sources: for TPUs the chips' pages of
docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), and for the memory that a program gets of a chip, what libtpu's
compiler says when a program does not fit; for GPUs NVIDIA's data sheets of the SXM boards, dense rates.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from jaxalign.errors import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Target:
    """Some equal devices.

    Attributes:
      name: as people rent them.
      devices: how many JAX sees.
      memory: of a device that a program can use, bytes.
      flops: bfloat16 operations of a device in a second, dense matrix products.
      bandwidth: bytes that a device reads from its memory in a second.
      link: bytes that a device sends to one neighbour of a torus in a second, or, of GPUs behind a switch, to all
        others together.
      shape: of the torus; empty for GPUs behind a switch.
      wrapped: of each dimension of the torus, whether its ends are connected.
      kind: ``tpu`` or ``gpu``.
      chip: its name alone.
    """

    name: str
    devices: int
    memory: float
    flops: float
    bandwidth: float = math.inf
    link: float = math.inf
    shape: tuple[int, ...] = ()
    wrapped: tuple[bool, ...] = ()
    kind: str = "tpu"
    chip: str = ""


@dataclass(frozen=True)
class Chip:
    """One kind of device, see `Target`.

    Attributes:
      dimensions: of its torus; 0 = a switch.
      ring: length from which on a dimension of the torus is closed: 16 for the 2D pods; for the 3D ones 4, where the
        slice is made of whole cubes of 4 x 4 x 4.
      most: chips of a pod.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    dimensions: int
    ring: int = 0
    most: int = 8


TPUS = {
    # Links: the page's bidirectional bandwidth of a chip, over its ports (4, or 6 of a 3D torus) and 2 directions.
    # v5e: 400 GB/s, v6e: 800 GB/s, v5p: 1200 GB/s; v4: 6 links of 50 GB/s (Jouppi et al. 2023, arXiv 2304.01433).
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 50e9, 3, 4, 4096),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 50e9, 2, 16, 256),
    "v5p": Chip(95.73 * GIB, 459e12, 2765e9, 100e9, 3, 4, 6144),
    "v6e": Chip(31.24 * GIB, 918e12, 1638e9, 100e9, 2, 16, 256),
}
GPUS = {
    # CUDA, NCCL and fragmentation take some memory: 90 % are counted. Links: half of NVLink's bidirectional rate.
    "A100": Chip(0.9 * 80e9, 312e12, 2039e9, 300e9, 0),
    "A100-40": Chip(0.9 * 40e9, 312e12, 1555e9, 300e9, 0),
    "H100": Chip(0.9 * 80e9, 989e12, 3350e9, 450e9, 0),
    "H200": Chip(0.9 * 141e9, 989e12, 4800e9, 450e9, 0),
}
EXAMPLES = ("v5e:4x4", "v5e:8x8", "v4:2x2x4", "v5p:2x2x4", "v6e:4x4", "8xH100", "8xH200", "8xA100")
"""Some names of targets; those that a plan takes where none is given are the first of each kind of machine."""


def target(name: str) -> Target:
    """The machine of a name: ``v5e:8x8`` (chips along each dimension of the torus) or ``8xH100`` (boards in a host).

    Raises:
      ConfigError: there is none, with the nearest name.
    """
    text = name.strip()
    gpu = re.fullmatch(r"(\d+)x([A-Za-z][\w-]*)", text)
    if gpu is not None:
        return _gpus(name, int(gpu[1]), gpu[2])
    chip, _, topology = text.partition(":")
    chip = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "trillium": "v6e"}.get(chip.lower(), chip.lower())
    if chip not in TPUS:
        near = did_you_mean(text, EXAMPLES) or did_you_mean(chip, [*TPUS, *(f"8x{gpu}" for gpu in GPUS)])
        raise ConfigError(
            f"--target: got {name!r}, expected a TPU topology ({', '.join(TPUS)}) such as v5e:8x8, or GPUs "
            f"({', '.join(GPUS)}) such as 8xH100.{near}"
        )
    shape = tuple(int(size) for size in topology.split("x") if size.isdigit())
    facts = TPUS[chip]
    if len(shape) != len(topology.split("x")) or len(shape) != facts.dimensions or not math.prod(shape):
        expected = "x".join("4" * facts.dimensions)
        raise ConfigError(
            f"--target: got {name!r}, expected the chips along each of its {facts.dimensions} dimensions, such as "
            f"{chip}:{expected}."
        )
    if math.prod(shape) > facts.most:
        raise ConfigError(f"--target: got {name!r}, {math.prod(shape)} chips, expected at most {facts.most}.")
    whole = facts.ring == 16 or all(size % 4 == 0 for size in shape)
    wrapped = tuple(whole and size >= facts.ring and size % facts.ring == 0 for size in shape)
    return Target(
        f"{chip}:{'x'.join(map(str, shape))}",
        math.prod(shape),
        facts.memory,
        facts.flops,
        facts.bandwidth,
        facts.link,
        shape,
        wrapped,
        "tpu",
        chip,
    )


def _gpus(name: str, count: int, chip: str) -> Target:
    known = {gpu.lower(): gpu for gpu in GPUS}
    if chip.lower() not in known:
        near = did_you_mean(chip.upper(), GPUS)
        raise ConfigError(f"--target: got {name!r}, expected GPUs of {', '.join(GPUS)}, such as 8xH100.{near}")
    if not 1 <= count <= 8:
        raise ConfigError(f"--target: got {name!r}, expected 1 to 8 GPUs: networks between hosts are not modelled.")
    chip = known[chip.lower()]
    facts = GPUS[chip]
    return Target(f"{count}x{chip}", count, facts.memory, facts.flops, facts.bandwidth, facts.link, (), (), "gpu", chip)


def _named(name: str, of: str) -> Target:
    return dataclasses.replace(target(of), name=name)


TARGETS = (
    _named("v5e-64", "v5e:8x8"),
    # The number counts TensorCores: 16 chips, each one device.
    _named("v4-32", "v4:2x2x4"),
    target("8xH100"),
)
"""The machines that a study is priced for."""
