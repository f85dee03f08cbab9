"""What tests of objectives share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def trl() -> Any:
    """TRL's losses as functions of tokens; see `tests.objectives.trl_stage`."""
    pytest.importorskip("torch")
    pytest.importorskip("trl")
    from tests.objectives import trl_stage

    return trl_stage
