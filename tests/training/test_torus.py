"""Weights and gradients moved along the dimensions of a torus arrive."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.policy import build_policy
from jaxalign.models.product import product
from jaxalign.training.mesh import make_mesh
from jaxalign.training.torus import TorusMesh, torus_grid, torus_mesh
from tests.training import conftest
from tests.training.conftest import CONFIG, assert_same, examples_for, one_step

PRODUCTS = {
    "query": ("nd,dhc->nhc", (16, 4, 6), ("embed", "heads", "head")),
    "output": ("nhc,hcd->nd", (4, 6, 16), ("heads", "head", "embed")),
    "up": ("nd,df->nf", (16, 10), ("embed", "mlp")),
    "down": ("nf,fd->nd", (10, 16), ("mlp", "embed")),
    "undivided": ("nd,df->nf", (6, 10), ("embed", "mlp")),
}
MESHES = [((1, 8, 1), (2, 4)), ((1, 8, 1), (4, 2)), ((1, 8, 1), (2, 2, 2)), ((2, 4, 1), (2, 2)), ((1, 4, 2), (2, 2))]


@pytest.mark.parametrize(("sizes", "grid"), MESHES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name, sizes, grid):
    """Values and both gradients, and each of them where autodiff's would be."""
    equation, shape, axes = PRODUCTS[name]
    plan = make_mesh(*sizes)
    inputs, _ = equation.split(",")
    sizes_of = dict(zip(equation.split(",")[1].split("->")[0], shape, strict=True))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=[24, *(sizes_of[letter] for letter in inputs[1:])]), jnp.float32)
    kernel = jax.device_put(jnp.asarray(rng.normal(size=shape), jnp.float32), plan.sharding(axes, shape))
    x = jax.device_put(x, plan.rows_sharding())

    def loss(x, kernel, torus):
        y = product(equation, x, kernel, axes, torus=torus, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(jnp.sin(y))

    def run(torus):
        return jax.jit(lambda x, kernel: jax.value_and_grad(loss, (0, 1))(x, kernel, torus))(x, kernel)

    (value, (of_x, of_kernel)), (expected, (plain_x, plain_kernel)) = run(TorusMesh(plan, grid)), run(None)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(of_x, plain_x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, plain_kernel, rtol=1e-5, atol=1e-5)
    assert of_kernel.sharding.is_equivalent_to(plan.sharding(axes, shape), len(shape))


def test_what_is_kept_of_a_frozen_weight_is_its_piece():
    """Also without remat, for the backward pass of a base under adapters."""
    plan, axes = make_mesh(1, 8, 1), ("embed", "mlp")
    kernel = jax.device_put(jnp.ones((3, 16, 10)), plan.sharding((None, *axes), (3, 16, 10)))

    def run(x, kernel):
        torus = TorusMesh(plan, (2, 4))

        def layer(x, kernel):
            return jnp.sin(product("nd,df->nf", x, kernel, axes, torus=torus, trained=False)) @ jnp.ones((10, 16)), None

        return jnp.sum(jax.lax.scan(layer, x, kernel)[0])

    x = jax.device_put(jnp.ones((24, 16)), plan.rows_sharding())
    of_x, of_kernel = jax.jit(jax.grad(run, (0, 1)))(x, kernel)
    assert np.all(of_kernel == 0)
    assert np.any(of_x != 0)
    kept = jax.tree.leaves(jax.vjp(run, x, kernel)[1])
    assert all(leaf.sharding.shard_shape(leaf.shape)[1] == 2 for leaf in kept if leaf.shape == (3, 16, 10))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_training_step(remat, monkeypatch):
    """In the decoder, under scan and remat, in micro-batches: every parameter's gradient."""
    summed = []

    class Counted(TorusMesh):
        def scatter(self, parts, axes):
            summed.append(axes)
            return super().scatter(parts, axes)

    def policy(outputs, language, small, plan):
        on_mesh = {} if plan is None else {"constrain": plan.constrain, "torus": Counted(plan, (2, 2))}
        return build_policy(CONFIG, dtype="float32", remat=remat, **on_mesh)

    packed = one_step("dpo", examples_for("dpo"))
    monkeypatch.setattr(conftest, "_policy", policy)
    assert_same(packed, one_step("dpo", examples_for("dpo"), plan=make_mesh(1, 4, 2), microbatches=2))
    assert len(set(summed)) == 5  # queries, keys and values, output, up and gate, down


def devices(coords):
    return [SimpleNamespace(coords=at) for at in coords]


def test_torus_grid():
    square = [(x, y, 0) for x in range(2) for y in range(4)]
    assert torus_grid(devices(square)) == (2, 4)
    assert torus_grid(devices([(x, y, 0) for y in range(4) for x in range(2)])) == (4, 2)
    assert torus_grid(devices([(x, y, z) for z in range(2) for x in range(3) for y in range(4)])) == (2, 3, 4)
    # Every second row of a larger slice: along `fsdp` beside a mesh axis that has the others.
    assert torus_grid(devices([(x, y, 0) for x in (0, 4) for y in range(8)])) == (2, 8)


def test_no_torus():
    assert torus_grid(jax.devices()) == (8,)  # CPUs have no coordinates
    assert torus_grid(devices([(x, 0, 0) for x in range(4)])) == (4,)
    ring = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0), (2, 1, 0), (1, 1, 0), (0, 1, 0)]
    assert torus_grid(devices(ring)) == (8,)
    assert torus_grid(devices([(0, 0, 0)] * 4)) == (4,)
    two_slices = [(x, y, 0) for _ in range(2) for x in range(2) for y in range(2)]
    assert torus_grid(devices(two_slices)) == (8,)
    assert torus_mesh(make_mesh()) is None


AHEAD = """
import re
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jaxalign.models.product import product
from jaxalign.training.mesh import make_mesh
from jaxalign.training.torus import torus_mesh

plan = make_mesh(devices=topologies.get_topology_desc(platform="tpu", topology_name="v5e:8x8").devices)
torus = torus_mesh(plan)
assert torus.grid == (8, 8), torus

def gradient(x, kernel, y, axes):
    return jax.vjp(lambda kernel: product("nd,df->nf", x, kernel, axes, torus=torus), kernel)[1](y)

def shapes(axes):
    kernel = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=plan.sharding(axes, (1024, 1024)))
    x = jax.ShapeDtypeStruct((64 * 64, 1024), jnp.bfloat16, sharding=plan.rows_sharding())
    return x, kernel, x

for axes in (("embed", "mlp"), ("mlp", "embed")):
    text = jax.jit(gradient, static_argnums=3).lower(*shapes(axes), axes).compile().as_text()
    print(len(re.findall(r" reduce-scatter[.-]?[a-z]*\\(", text)), len(re.findall(r" all-reduce[.-]?[a-z]*\\(", text)))
"""


@pytest.mark.plan
def test_on_64_chips_it_is_a_reduce_scatter(for_tpus):
    """Two of them and no all-reduce, whichever axis of the kernel is sharded."""
    assert for_tpus("-c", AHEAD).splitlines() == ["2 0", "2 0"]
