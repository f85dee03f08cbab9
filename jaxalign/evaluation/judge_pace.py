"""When the next request to a judge may be sent: limits a minute, pauses that the endpoint asks for, growing waits."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

MINUTE = 60.0


class Pace:
    """Holds requests back so that no window of 60 s has more of them, or more tokens, than allowed.

    Threads share it. A request's tokens are estimated when it is sent and put right by `settle` when it is answered.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """None = no limit. `clock` and `sleep` are in seconds."""
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._sent: deque[list[float]] = deque()  # [time, tokens]
        self._not_before = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: float = 0.0) -> list[float]:
        """Returns when a request of this many tokens may be sent; the result is for `settle`."""
        while True:
            with self._lock:
                now = self._clock()
                delay = self._delay(now, tokens)
                if delay <= 0:
                    ticket = [now, tokens]
                    self._sent.append(ticket)
                    return ticket
            self._sleep(delay)

    def settle(self, ticket: list[float], tokens: float) -> None:
        """Says how many tokens the request really was."""
        with self._lock:
            ticket[1] = tokens

    def pause(self, seconds: float) -> None:
        """Nothing is sent for this long, by any thread: the endpoint has asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)

    def _delay(self, now: float, tokens: float) -> float:
        while self._sent and self._sent[0][0] <= now - MINUTE:
            self._sent.popleft()
        delay = self._not_before - now
        if self._requests is not None and len(self._sent) >= self._requests:
            delay = max(delay, self._sent[0][0] + MINUTE - now)
        if self._tokens is not None and self._sent:
            # A request that is larger than the limit alone goes when the window is empty.
            excess = sum(used for _, used in self._sent) + tokens - self._tokens
            for sent, used in self._sent:
                if excess <= 0:
                    break
                delay = max(delay, sent + MINUTE - now)
                excess -= used
        return delay


def growing_wait(attempt: int, first: float, longest: float) -> float:
    """Seconds before retry number `attempt` (from 0): doubling, with a random part so that threads do not meet."""
    return min(first * 2**attempt, longest) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, if it does: ``retry-after-ms``, ``retry-after`` (seconds or a date)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            return max(float(text) * unit, 0.0)
        except ValueError:
            pass
        try:
            return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
        except (TypeError, ValueError):
            continue
    return None
