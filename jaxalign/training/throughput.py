"""How fast training goes: unique tokens and pairs per second, and the share of the device's measured peak in use."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throughput:
    """Rates between two looks at the clock.

    The first step of all only starts the clock, because it compiles.

    Args:
      flops: model FLOPs that a unique token costs, those that a scored token costs more (the output head), and those
        of each key that a token looks at; None = no utilisation.
      peak_flops: FLOPs per second of all devices together, e.g. ``matmul_peak() * jax.device_count()``.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        flops: tuple[float, float, float] | None = None,
        peak_flops: float | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._flops = flops
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
        self._waited = self._attended = 0.0

    def add(
        self,
        tokens: int,
        examples: int,
        waited: float = 0.0,
        *,
        places: int = 0,
        scored: int = 0,
        slots: int = 0,
        attended: float = 0.0,
    ) -> None:
        """Counts a step that has been computed.

        Args:
          tokens: unique tokens in it, over all processes.
          examples: examples (pairs) in it, over all processes.
          waited: seconds in which the devices waited for its data.
          places: token places of its rows, padding included; 0 = unknown.
          scored: scored tokens in it, over all processes.
          slots: scored slots of its rows, those that are empty included; 0 = unknown.
          attended: keys that its tokens look at, together, over all processes.
        """
        if self._start is None:
            self._start = self._clock()
            return
        self._tokens += tokens
        self._examples += examples
        self._places += places
        self._scored += scored
        self._slots += slots
        self._attended += attended
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
          (model FLOPs, `jaxalign.planning.flops`, over the measured peak).
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
        if self._flops is not None and self._peak is not None:
            counts = self._tokens, self._scored, self._attended
            needed = sum(count * each for count, each in zip(counts, self._flops, strict=True))
            rates["perf/mfu"] = needed / elapsed / self._peak
        self._zero()
        return rates
