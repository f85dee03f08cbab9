"""Progress bars, on the first process only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from tqdm import tqdm


@contextmanager
def bar(title: str, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first call of ``update(done, total)``."""
    shown: list[tqdm] = []

    def update(done: int, total: int) -> None:
        if not shown:
            shown.append(tqdm(total=total, desc=title, disable=not show or jax.process_index() != 0, leave=False))
        shown[0].update(done - shown[0].n)

    try:
        yield update
    finally:
        for each in shown:
            each.close()
