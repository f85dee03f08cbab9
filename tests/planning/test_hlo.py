"""Traffic read from compiled programs: texts with known answers, and programs compiled here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.planning import hlo
from jaxalign.training.mesh import make_mesh

MESH = {"data": 2, "fsdp": 4, "tensor": 1}

TPU = """\
HloModule jit_step, is_scheduled=true

%async_collective_fusion.1 (p0: f32[1,256], p1: f32[1,1024]) -> f32[1,1024] {
  %p0 = f32[1,256]{1,0} parameter(0)
  ROOT %all-gather.5 = f32[1,1024]{1,0} all-gather(%p0), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}
}

%async_collective_fusion.2 (q0: f32[1,256], q1: f32[1,1024]) -> f32[1,1024] {
  %q0 = f32[1,256]{1,0} parameter(0)
  ROOT %all-gather.6 = f32[1,1024]{1,0} all-gather(%q0), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}
}

%inner_body (wide: (s32[], f32[8])) -> (s32[], f32[8]) {
  %wide = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%wide), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = f32[8]{0:T(128)} get-tuple-element(%wide), index=1
  %part = f32[1,1024]{1,0} fusion(%x, %x), kind=kCustom, calls=%async_collective_fusion.1
  %moved = (bf16[4,256]{1,0:T(8,128)(2,1)}, bf16[4,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %there = bf16[4,256]{1,0} collective-permute-done(%moved)
  ROOT %out = (s32[], /*index=1*/f32[8]) tuple(%next, %x)
}

%inner_condition (wide.1: (s32[], f32[8])) -> pred[] {
  %wide.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%wide.1), index=0
  %eight = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%count, %eight), direction=LT
}

%outer_body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]) parameter(0)
  %j = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %later = s32[] add(%j, %one)
  %y = f32[8] get-tuple-element(%state), index=1
  %start = (s32[], f32[8]) tuple(%j, %y)
  %loop = (s32[], f32[8]) while(%start), condition=%inner_condition, body=%inner_body
  %begun = f32[1,1024]{1,0} fusion(%y, %y), kind=kCustom, calls=%async_collective_fusion.2
  %sum = (f32[16]{0}, bf16[8]{0}) all-reduce(%y, %y), channel_id=8, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %done = (s32[], f32[8]) tuple(%later, %y)
}

%outer_condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]) parameter(0)
  %k = s32[] get-tuple-element(%state.1), index=0
  %three = s32[] constant(3)
  ROOT %fewer = pred[] compare(%k, %three), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (z: f32[8]) -> f32[8] {
  %z = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[8]) tuple(%zero, %z)
  %outer = (s32[], f32[8]) while(%first), condition=%outer_condition, body=%outer_body
  %scattered = f32[32]{0} reduce-scatter(%z), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %exchanged = f32[64]{0} all-to-all(%z), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %alone = f32[64]{0} all-reduce(%z), channel_id=3, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %result = f32[8] get-tuple-element(%outer), index=1
}
"""  # noqa: E501


def test_a_tpu_program_is_read_loop_by_loop():
    collectives = hlo.collectives(TPU, MESH)
    found = {(each.kind, each.axes): each for each in collectives}
    assert len(found) == len(collectives) == 6
    assert dict(hlo.loops(TPU)) == {"inner_body": 4, "outer_body": 3}
    # Woven into two computations, it still is one collective of the outer loop; another may have its channel.
    gather = found["all-gather", "fsdp"]
    assert (gather.array, gather.sent, gather.times, gather.devices) == (4096, 3072, 3, 4)
    moved = found["collective-permute", "fsdp"]
    assert (moved.sent, moved.times) == (2048, 12)
    summed = found["all-reduce", "data"]
    assert (summed.array, summed.sent, summed.times) == (80, 80, 3)
    scattered = found["reduce-scatter", "fsdp"]
    assert (scattered.array, scattered.sent, scattered.times) == (512, 384, 1)
    assert found["all-to-all", "data"].sent == 128
    assert found["all-reduce", ""].sent == 0
    assert hlo.sent_by_axis(list(found.values())) == {
        "fsdp": {"all-gather": 9216, "collective-permute": 24576, "reduce-scatter": 384},
        "data": {"all-reduce": 240, "all-to-all": 128},
    }


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", "fsdp"),
        ("{{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("[1,8]<=[8]", "data+fsdp"),
        ("[2,4]<=[8]", "fsdp"),
        ("[4,2]<=[2,4]T(1,0)", "data"),
        ("mesh['a'=2,'b'=4] {'b'}", "fsdp"),
        ("mesh['a'=2,'b'=4] {'a','b'}", "data+fsdp"),
        ("mesh['a'=8] {'a':(1)2}", "data"),
        ("mesh['a'=8] {'a':(2)4}", "fsdp"),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", "data"),
        ("{}", "data+fsdp"),
    ],
)
def test_groups_of_devices_become_axes(groups, expected):
    line = f"  ROOT %y = f32[8] all-reduce(%x), replica_groups={groups}, to_apply=%a"
    (found,) = hlo.collectives(f"ENTRY %m (x: f32[8]) -> f32[8] {{\n{line}\n}}", MESH)
    assert found.axes == expected


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_a_scan_gathers_each_layer_once():
    """Weights split over eight devices, five layers: each is gathered in the loop, which XLA writes once."""
    plan = make_mesh(2, 4, 1, devices=jax.devices()[:8])

    def run(weights, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, plan.replicated)
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    weights = jax.ShapeDtypeStruct(
        (5, 64, 64), jnp.float32, sharding=NamedSharding(plan.mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=plan.rows_sharding())
    with jax.set_mesh(plan.mesh):
        text = jax.jit(run, out_shardings=plan.rows_sharding()).lower(weights, x).compile().as_text()
    sent = hlo.sent_by_axis(hlo.collectives(text, dict(plan.mesh.shape)))
    assert sent == {"fsdp": {"all-gather": 5 * 64 * 64 * 4 * 3 / 4}}
