"""The machines that a plan is reckoned for: memory, its bandwidth, and arithmetic of their devices, as published."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """

    name: str
    devices: int
    memory: float
    flops: float
    bandwidth: float = math.inf


TARGETS = (
    # 16 GiB of HBM; the compiler gives programs 15.75.
    Target("v5e-64", 64, 15.75 * GIB, 197e12, 819e9),
    # The number counts TensorCores: 16 chips, each one device of 32 GiB.
    Target("v4-32", 16, 31.75 * GIB, 275e12, 1228e9),
    # 80 GB; CUDA, NCCL and fragmentation take some: 90 % are counted.
    Target("8xH100", 8, 0.9 * 80e9, 989e12, 3.35e12),
)
