"""How the processes of a study stop: on a signal, and when the process that started them is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CHILD = "JAXALIGN_STUDY_CHILD"
"""Set for a process that a study has started: it stops with the one that started it."""
FAILED_ROWS = 5
"""Exit code: every row was tried, and some of them failed."""
STOPPED = 128 + signal.SIGTERM
"""Exit code: a signal stopped it, with everything saved."""
GRACE = 120.0
"""Seconds that a process has to save what it trains after the one that started it has died."""

_stopped = threading.Event()


class Stopped(BaseException):
    """SIGTERM or SIGINT came. No `Exception`, so that nothing takes it for a measure's failure."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGINT into `Stopped`; while a stage trains, its own handlers save a checkpoint first."""

    def stop(number, frame):
        _stopped.set()
        raise Stopped

    _stopped.clear()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_here() -> None:
    """Raises `Stopped` if a signal came whose exception was lost in code that lets none through."""
    if _stopped.is_set():
        raise Stopped


def stop_with_parent(stdin: int = 0, grace: float = GRACE) -> None:
    """Stops this process when the one that started it dies, however it dies.

    Its end of our standard input closes then. We act as if SIGTERM had come, and leave after `grace` seconds in any
    case; a new run of the study waits for our locks until then.
    """

    def watch() -> None:
        while os.read(stdin, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="stop-with-parent", daemon=True).start()
