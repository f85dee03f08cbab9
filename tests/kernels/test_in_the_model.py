"""The TPU's kernel, interpreted, in the decoder that trains with it: against the dense form, values and gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.kernels import tree_attention_tpu
from jaxalign.kernels.tree_attention_tpu import Blocks, Tile
from jaxalign.models import attention_forms
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.types import causal_rows
from tests.kernels.row_plans import apart, plan_rows

CONFIG = DecoderConfig(
    vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=16, max_positions=64,
    windows=(None, 5),
)  # fmt: skip
RANGES = plan_rows([[(12, [4, 9]), (0, [3])], [(20, [11, 1])]], 40, full=False)


def test_under_scan_and_remat_with_windows_that_differ(monkeypatch):
    """On a mesh and under full remat every layout goes through it in `tests/training/test_step.py`."""
    monkeypatch.setattr(attention_forms, "platform", lambda: "interpret")
    monkeypatch.setattr(tree_attention_tpu, "default_blocks", lambda *_: Blocks(*[Tile(16, 16)] * 3))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, RANGES.positions.shape)
    rows = dataclasses.replace(causal_rows(tokens), **RANGES._asdict())
    weights = jnp.asarray(rng.normal(size=(*tokens.shape, CONFIG.width)), jnp.float32)

    def run(attention, remat):
        policy = build_policy(CONFIG, dtype="float32", remat=remat, attention=attention)
        drawn = np.random.default_rng(1)
        variables = jax.tree.map(lambda x: jnp.asarray(drawn.normal(0, 0.5, x.shape), x.dtype), policy.abstract())
        loss = lambda variables: (policy.hidden(variables, rows) * weights).sum()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))

    expected = run("dense", "none")
    for remat in ("none", "dots"):
        assert all(apart(*both) < 1e-5 for both in zip(run("kernel", remat), expected, strict=True)), remat
