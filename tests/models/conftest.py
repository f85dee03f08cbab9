from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.decoder_config import decoder_config
from jaxalign.models.policy import Policy, build_policy


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    return shared_data / "lm-stories260k" / "hf"


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "lm-stories260k" / "golden.json").read_text())


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., tuple[Policy, dict[str, Any]]]:
    """A small random model; keywords are fields of the configuration, `build` keywords of `build_policy`."""

    def make(build: dict[str, Any] | None = None, seed: int = 0, **fields: Any) -> tuple[Policy, dict[str, Any]]:
        values = {
            "vocab_size": 61,
            "width": 24,
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "mlp_width": 40,
            "max_positions": 128,
            **fields,
        }
        policy = build_policy(decoder_config(values), **{"dtype": "float32", **(build or {})})
        # Drawn with numpy: no compilation, and norms and biases that are not neutral as those of a fresh model are.
        rng = np.random.default_rng(seed)
        draw = lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), leaf.dtype)  # noqa: E731
        return policy, jax.tree.map(draw, policy.abstract())

    return make
