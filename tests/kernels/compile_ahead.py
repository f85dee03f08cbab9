"""Compiles the TPU kernel for chips that are not at hand and prints what came out, as JSON: a process of its own.

libtpu refuses XLA's options for CPUs, which the other tests run under.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.kernels.spans import Spans
from jaxalign.kernels.tree_attention import sharded
from jaxalign.kernels.tree_attention_tpu import Blocks, Tile

BLOCKS = Blocks(*[Tile(128, 128)] * 3)
REPOSITORY = Path(__file__).resolve().parents[2]


def load_benchmark():
    """The module of `benchmarks/attention.py`."""
    spec = importlib.util.spec_from_file_location("attention_benchmark", REPOSITORY / "benchmarks" / "attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_a_mesh() -> str:
    """Forward and backward of `sharded` on v5e:2x4, rows over `fsdp` and heads over `tensor`."""
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
        return jax.jit(step).lower(query, key, key, query, *seen).compile().as_text()


def main() -> None:
    """All programs, one after another."""
    benchmark = load_benchmark()

    def told(chip, model, length, **options):
        compiled = benchmark.compile_ahead(chip, model, length, **options)
        return {
            "arguments": compiled.arguments,
            "temporaries": compiled.temporaries,
            "vector_memory": benchmark.vector_memory(compiled.text),
            "squares": sorted(benchmark.squares(compiled.text, length)),
        }

    small, wide = benchmark.Model(4, 2, 128, window=1024), benchmark.MODELS["gemma-2-9b"]
    found = {
        f"{chip} {length}": told(chip, small, length, blocks=BLOCKS, options=benchmark.IN_HBM)
        for chip in ("v5e", "v5p", "v6e")
        for length in (2048, 8192)
    }
    found["wide"] = told("v5e", wide, 2048)
    found["wide, float32"] = told("v5e", wide, 2048, dtype="float32")
    for width in (64, 96):  # no multiples of the 128 lanes
        found[str(width)] = told("v5e", benchmark.Model(4, 2, width), 1024)
    text = on_a_mesh()
    moves = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    found["mesh"] = {"kernels": text.count("tpu_custom_call"), "moves": [x for x in moves if x in text]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
