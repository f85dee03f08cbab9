"""The TPU kernel compiled for chips that are not at hand: no array is T x T, and a mesh gathers nothing."""

from __future__ import annotations

import functools
import importlib.util
import os

import pytest

from jaxalign.kernels.tree_attention_tpu import Blocks, Tile

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None or "TPU_SKIP_MDS_QUERY" not in os.environ,
        # Without the variables libtpu asks a metadata server that is not there, as soon as jax is imported.
        reason="needs libtpu (extra: plan) and TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost",
    ),
    pytest.mark.filterwarnings("ignore"),  # libtpu's own
    pytest.mark.slow,
]
BLOCKS = Blocks(*[Tile(128, 128)] * 3)


@pytest.fixture(scope="module")
def benchmark(repository):
    path = repository / "benchmarks" / "attention.py"
    spec = importlib.util.spec_from_file_location("attention_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_it_compiles_and_memory_grows_linearly(benchmark, chip):
    model = benchmark.Model(4, 2, 128, window=1024)
    for length in (2048, 4096):
        compiled = benchmark.compile_ahead(chip, model, length, blocks=BLOCKS)
        memory, text = compiled.memory_analysis(), compiled.as_text()
        assert set(benchmark.vector_memory(text)) == {"forward", "dquery", "dkey"}
        assert not benchmark.squares(text, length)
        # Transposed copies of inputs and results, and a few numbers a token.
        assert memory.temp_size_in_bytes < 3 * memory.argument_size_in_bytes


def test_default_blocks_fit_the_widest_heads(benchmark):
    compiled = benchmark.compile_ahead("v5e", benchmark.MODELS["gemma-2-9b"], 2048)
    assert max(benchmark.vector_memory(compiled.as_text()).values()) < 16 * 2**20


def test_a_mesh_gathers_nothing(benchmark, monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.setenv(name, "1" if "SKIP" in name else "localhost")
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxalign.kernels.spans import Spans
    from jaxalign.kernels.tree_attention import sharded

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = Mesh(np.array(devices).reshape(1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def array(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    def step(query, key, value, dout, *seen):
        attend = functools.partial(sharded, spans=Spans(*seen), scale=0.1, platform="tpu", blocks=BLOCKS)
        out, pull = jax.vjp(attend, query, key, value)
        return out, pull(dout)

    axes = (("data", "fsdp"), None, "tensor", None)
    query = array((4, 512, 4, 128), jnp.bfloat16, *axes)
    key = array((4, 512, 2, 128), jnp.bfloat16, *axes)
    seen = [array((4, 512), jnp.int32, ("data", "fsdp"))] * 3
    with jax.set_mesh(mesh):
        text = jax.jit(step).lower(query, key, key, query, *seen).compile().as_text()
    assert text.count("tpu_custom_call") >= 3
    for gathering in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert gathering not in text
