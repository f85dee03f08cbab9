"""What the processes of one run on several hosts (``--distributed``) do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxalign.studies.folders import locked


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def agree(decide: Callable[[], bool]) -> bool:
    """What the first process decides; all processes must call it."""
    import jax

    if jax.process_count() == 1:
        return decide()
    import numpy as np
    from jax.experimental import multihost_utils

    mine = decide() if is_first() else False
    return bool(multihost_utils.broadcast_one_to_all(np.int32(mine)))


@contextmanager
def alone(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock for all processes of the run: the first one takes it, the others wait until it has."""
    if not is_first():
        agree(lambda: True)
        yield
        return
    with locked(path, waiting):
        agree(lambda: True)
        yield
