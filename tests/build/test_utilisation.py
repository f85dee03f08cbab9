"""What a run with adapters counts as its operations and its peak; `assert_utilisation` looks at runs without."""

from __future__ import annotations

import importlib

import jax
import pytest

from jaxalign.build.data import architecture, column_names, training_steps
from jaxalign.build.model import make_policy
from jaxalign.build.reference import RunReference
from jaxalign.build.row_layout import lay_out
from jaxalign.config import resolve
from jaxalign.methods import get_method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import flops
from jaxalign.training import references
from jaxalign.training.mesh import make_mesh
from tests.build.utilisation import PEAK, batches_of, read_by

train = importlib.import_module("jaxalign.build.train")


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
@pytest.mark.parametrize("other", [None, "itself", "larger"])
def test_adapters_other_references_and_all_devices_count(configure, tmp_path, other):
    """The object of a run with adapters on eight devices, without the run."""
    config = resolve(configure(adapter__kind="lora", adapter__rank=2))
    plan = make_mesh(devices=jax.devices()[:8])
    method = get_method(config.method.name)
    batches, data = batches_of(config)
    policy = make_policy(config, architecture(config), plan, method)
    decoder = policy.config
    larger = DecoderConfig(
        vocab_size=900, width=48, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=80, max_positions=256,
        tied_embeddings=True,
    )  # fmt: skip
    reference = {None: None, "itself": decoder, "larger": larger}[other]
    held = RunReference(references.none(), {}, {}, False, reference, {})
    throughput = train._throughput(train._Run(config, tmp_path, data, method, plan, policy), held)
    packer = lay_out(batches, 8, None, training_steps(config, data)).packer(column_names(method, ()), plan.local_rows)
    needed = 0.0
    factors = 2 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    for step in range(4):
        packed, read = packer(batches(step)), read_by(batches, step)
        counts = {"scored": packed.scored, "attended": packed.attended}
        assert {"tokens": packed.tokens, **counts} == pytest.approx(read)
        throughput.add(packed.tokens, len(packed.example_ids), **counts)
        if step:  # the first starts the clock
            needed += flops.step(decoder, reference, **read, factors=factors)
    rates = throughput.rates()
    seconds = 3 * rates["perf/seconds_per_step"]
    assert rates["perf/mfu"] == pytest.approx(needed / seconds / (8 * PEAK), rel=1e-6)
