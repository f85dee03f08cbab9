"""The rate of large matrix products that a device reaches: what the utilisation of training is a share of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.files import cache_folder, compiled_folder, write_text

MATMULS = 8
"""Products in one timed call, so that its dispatch hardly counts."""
_log = logging.getLogger("jaxalign")


def matmul_peak(dtype: str = "bfloat16") -> float:
    """FLOPs per second of one device, measured once on a machine and kept in the user's cache, folder ``peaks``.

    So a run starts sooner, and the utilisations of several runs are shares of the same number. One that was measured
    while the machine was busy is too low: without its file the next run measures again.

    Args:
      dtype: of the factors.
    """
    device = jax.devices()[0]
    about = {
        "platform": device.platform,
        "device": device.device_kind,
        "host": compiled_folder().name,  # two kinds of CPU have one name
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "dtype": dtype,
        "jax": jax.__version__,
    }
    path = cache_folder() / "peaks" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["flops_per_second"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = measure_matmul_peak(dtype)
    try:
        write_text(path, json.dumps(about | {"flops_per_second": found}) + "\n")
    except OSError as error:  # a home that cannot be written: the next process measures again
        _log.debug("%s cannot be written: %s", path, error)
    return found


def measure_matmul_peak(dtype: str | jnp.dtype = "bfloat16", *, seconds: float = 0.02) -> float:
    """The FLOPs per second that one device reaches on large square matrix products in `dtype`.

    The size doubles until a product of it takes long enough to be timed, at most 8192; then the best of five timings
    counts. It takes well under a second on accelerators, and about a second on a slow CPU.

    Args:
      dtype: of the factors.
      seconds: how long a timed call of `MATMULS` products should take at least.
    """

    @jax.jit
    def products(x, w):
        return jax.lax.fori_loop(0, MATMULS, lambda _, x: x @ w, x)

    size = 256
    draw = np.random.default_rng(0)  # on the host: nothing to compile for every size
    while True:
        values = draw.standard_normal((size, size), np.float32)
        x = jnp.asarray(values, dtype)
        w = jnp.asarray(values / np.sqrt(size), dtype)  # keeps the products' size, so that nothing overflows
        products(x, w).block_until_ready()  # compiles
        best = min(_timed(lambda x=x, w=w: products(x, w).block_until_ready()) for _ in range(5))
        if best >= seconds or size >= 8192:
            return MATMULS * 2 * size**3 / best
        size *= 2


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
