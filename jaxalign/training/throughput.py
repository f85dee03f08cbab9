"""How fast training goes: unique tokens and pairs per second, and the share of the device's measured peak in use."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

MATMULS = 8
"""Products in one timed call, so that its dispatch hardly counts."""


def training_flops_per_token(parameters: int, *, live_reference: bool = False, trained: int | None = None) -> float:
    """Model FLOPs of one token in a training step: 2 N forward, 2 N backward, 2 N for a reference computed live, and 2
    for the gradient of each trained weight.

    Attention's products between tokens, recomputation and padding are not counted, so the utilisation made from it is a
    lower bound of the work done.

    Args:
      parameters: N, the weights a token is multiplied with (the embedding table is a look-up and does not count).
      live_reference: whether each step also runs a reference of the same size.
      trained: how many of them are trained; None = all.
    """
    return float(parameters) * (6 if live_reference else 4) + 2.0 * (parameters if trained is None else trained)


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


class Throughput:
    """Rates between two looks at the clock.

    The first step of all only starts the clock, because it compiles.

    Args:
      flops_per_token: model FLOPs per unique token, e.g. of `training_flops_per_token`; None = no utilisation.
      peak_flops: FLOPs per second of all devices together, e.g. ``measure_matmul_peak() * jax.device_count()``.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._flops_per_token = flops_per_token
        self._peak = peak_flops
        self._clock = clock
        self._start: float | None = None
        self._zero()

    def restart(self) -> None:
        """Forgets what was counted, and starts anew; call it after anything that is not training."""
        self._start = None if self._start is None else self._clock()
        self._zero()

    def _zero(self) -> None:
        self._tokens = self._examples = self._steps = self._places = self._scored = self._slots = 0
        self._waited = 0.0

    def add(
        self, tokens: int, examples: int, waited: float = 0.0, places: int = 0, scored: int = 0, slots: int = 0
    ) -> None:
        """Counts a step that has been computed.

        Args:
          tokens: unique tokens in it, over all processes.
          examples: examples (pairs) in it, over all processes.
          waited: seconds in which the devices waited for its data.
          places: token places of its rows, padding included; 0 = unknown.
          scored: scored tokens in it, over all processes.
          slots: scored slots of its rows, those that are empty included; 0 = unknown.
        """
        if self._start is None:
            self._start = self._clock()
            return
        self._tokens += tokens
        self._examples += examples
        self._places += places
        self._scored += scored
        self._slots += slots
        self._waited += waited
        self._steps += 1

    def rates(self) -> dict[str, float]:
        """The rates since the last call, and starts anew. Call it when the device has caught up; empty without a step.

        Returns:
          ``perf/tokens_per_second`` (a prompt shared by completions counts once), ``perf/pairs_per_second``
          (examples, for methods without pairs), ``perf/seconds_per_step``, ``perf/data_wait`` (share of the time in
          which the devices had no work because the next batch was not there; packing beside a running step does not
          count), ``perf/padding`` (share of the token places that are padding), ``perf/fill`` (the share that are
          tokens), ``perf/scored_fill`` (share of the scored slots that hold a scored token) and ``perf/mfu``
          (model FLOPs over the measured peak).
        """
        if self._start is None:
            return {}
        now = self._clock()
        elapsed, self._start = now - self._start, now
        if self._steps == 0 or elapsed <= 0:
            self._zero()
            return {}
        rates = {
            "perf/tokens_per_second": self._tokens / elapsed,
            "perf/pairs_per_second": self._examples / elapsed,
            "perf/seconds_per_step": elapsed / self._steps,
            "perf/data_wait": self._waited / elapsed,
        }
        if self._places:
            rates["perf/fill"] = self._tokens / self._places
            rates["perf/padding"] = 1.0 - rates["perf/fill"]
        if self._slots:
            rates["perf/scored_fill"] = self._scored / self._slots
        if self._flops_per_token is not None and self._peak is not None:
            rates["perf/mfu"] = rates["perf/tokens_per_second"] * self._flops_per_token / self._peak
        self._zero()
        return rates
