"""Meshes, the rule table, and where arrays come to lie on eight devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from conftest import chips
from jax.sharding import NamedSharding, PartitionSpec

from jaxmm import per_device, sharding, zigzag
from jaxmm.errors import UserError
from jaxmm.models.multimodal import flat_axes
from jaxmm.models.routing import ExpertSpec


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, None),
        ({"data": -1}, (8, 1, 1, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2, 1)),
        ({"data": 1, "expert": 4, "tensor": 2}, (1, 1, 4, 2, 1)),
        ({"data": 3}, None),
        ({"fsdp": -1, "tensor": 3}, None),
        ({"data": -1, "fsdp": -1}, None),
        ({"data": 0, "fsdp": 8}, None),
    ],
)
def test_a_mesh_fills_the_devices_or_is_refused(sizes, shape):
    if shape is None:
        with pytest.raises(UserError, match=r"config\.mesh"):
            sharding.make_mesh(sizes)
    else:
        mesh = sharding.make_mesh(sizes)
        assert mesh.devices.shape == shape
        assert mesh.axis_names == sharding.AXES


def test_a_mesh_that_does_not_divide_says_so_with_both_numbers():
    with pytest.raises(UserError, match=r"data=3.* does not divide the 8 devices"):
        sharding.make_mesh({"data": 3})


@pytest.mark.parametrize(
    ("sizes", "shape", "crossing"),
    [
        ({"data": 2, "fsdp": -1}, (2, 16, 1, 1, 1), "data"),
        ({"fsdp": -1, "tensor": 4}, (1, 8, 1, 4, 1), "fsdp"),
        ({"fsdp": 2, "expert": -1}, (1, 2, 16, 1, 1), "fsdp"),
        ({"data": 4, "fsdp": 2, "context": 4}, (4, 2, 1, 1, 4), "data"),
    ],
)
def test_slices_are_joined_by_rows_of_a_batch_and_nothing_else_crosses_them(sizes, shape, crossing):
    mesh = sharding.make_mesh(sizes, chips(2))
    assert mesh.devices.shape == shape
    assert len(set(mesh.devices.flat)) == 32
    for dim, axis in enumerate(sharding.AXES):
        lines = np.moveaxis(mesh.devices, dim, -1).reshape(-1, shape[dim])
        assert {len({chip.slice_index for chip in line}) for line in lines} == {2 if axis == crossing else 1}


def test_axes_that_no_side_of_a_torus_has_are_parts_of_sides():
    mesh = sharding.make_mesh({"fsdp": -1, "expert": 8}, chips(1))
    assert mesh.devices.shape == (1, 2, 8, 1, 1)
    assert len(set(mesh.devices.flat)) == 16
    assert all(len({chip.coords[1] for chip in line}) == 2 for line in mesh.devices[0, :, :, 0, 0]), "neighbours"


def test_a_mesh_that_would_cross_slices_by_another_axis_is_refused():
    with pytest.raises(UserError, match="cannot be laid over 2 slices: make data, or data x fsdp, a multiple of 2"):
        sharding.make_mesh({"tensor": 8, "context": 4}, chips(2))


def test_an_unknown_axis_is_named():
    with pytest.raises(UserError, match="no axis 'tensr'"):
        sharding.make_mesh({"tensr": 8})


def test_a_batch_that_does_not_divide_is_refused_with_the_multiple_it_needs():
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
    sharding.check_rows(mesh, 32, 4)
    with pytest.raises(UserError, match="multiple of 32"):
        sharding.check_rows(mesh, 24, 4)


def test_a_mesh_of_experts_needs_a_model_whose_experts_it_divides():
    mesh = sharding.make_mesh({"data": 2, "expert": 4})
    sharding.check_experts(mesh, ExpertSpec(8, 2, 16))
    sharding.check_experts(sharding.make_mesh({"data": 8}), None)
    for experts, told in ((ExpertSpec(6, 2, 16), "expert 4 does not divide the 6 experts"), (None, "has no experts")):
        with pytest.raises(UserError, match=told):
            sharding.check_experts(mesh, experts)


def test_a_mesh_axis_used_twice_on_one_array_raises():
    mesh = sharding.make_mesh({"tensor": 8})
    with pytest.raises(ValueError, match="mesh axis 'tensor' is used twice"):
        sharding.partition(("heads", "mlp"), (8, 8), mesh)
    with pytest.raises(ValueError, match="mesh axis 'fsdp' is used twice"):
        sharding.partition(("rows", "embed"), (8, 8), mesh)


def test_axes_that_do_not_fit_the_shape_raise():
    with pytest.raises(ValueError, match="do not fit shape"):
        sharding.partition(("heads",), (8, 8), sharding.make_mesh({"tensor": 8}))


def test_a_dim_that_the_mesh_does_not_divide_stays_whole_and_is_reported():
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
    assert sharding.partition(("embed", "kv_heads", None), (32, 2, 8), mesh) == PartitionSpec("fsdp", None, None)
    assert sharding.replicated_dims(("embed", "kv_heads", None), (32, 2, 8), mesh) == ["kv_heads"]
    (line,) = sharding.report_replicated(mesh, {("decoder", "key"): ((32, 2, 8), ("embed", "kv_heads", None))})
    assert "kv_heads of decoder.key (32, 2, 8)" in line


def test_rows_that_context_cannot_split_are_reported_with_the_multiple_they_need():
    mesh = sharding.make_mesh({"data": 2, "context": 4})
    assert zigzag.report_whole_rows(mesh, {"seq_len": 512}) == []
    (line,) = zigzag.report_whole_rows(mesh, {"seq_len": 512, "patch_budget": 640 + 64})
    assert "rows of 704; give config.patch_budget as a multiple of 128" in line
    assert zigzag.report_whole_rows(sharding.make_mesh({"data": 8}), {"seq_len": 100}) == []


def bytes_per_device(tree) -> dict:
    held = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return held


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_parameters_take_their_share_of_each_device(tiny, sizes):
    mesh = sharding.make_mesh(sizes)
    arrays = {}
    for path, (shape, axes) in flat_axes(tiny.spec).items():
        where = NamedSharding(mesh, sharding.partition(axes, shape, mesh))
        arrays[path] = jax.device_put(np.zeros(shape, np.float32), where)
    total = sum(a.nbytes for a in arrays.values())
    held = bytes_per_device(arrays)
    # Only norms, biases and what has no rule are whole: a few percent of this tiny model.
    assert max(held.values()) == min(held.values()) < 1.3 * total / 8


def test_rows_are_dealt_over_data_and_fsdp_in_order():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert sharding.local_rows(mesh, 8) == list(range(8))
    batch = {"x": np.arange(8 * 3).reshape(8, 3)}
    placed = sharding.place_batch(batch, mesh)["x"]
    np.testing.assert_array_equal(placed, batch["x"])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_an_activation_is_pinned_where_a_mesh_is_set_and_left_alone_elsewhere():
    x = np.zeros((8, 4), np.float32)
    pin = jax.jit(lambda x: sharding.constrain(x, "rows", None))
    assert len(pin(x).sharding.device_set) == 1
    with jax.set_mesh(sharding.make_mesh({"data": 4, "fsdp": 2})):
        found = jax.jit(lambda x: sharding.constrain(x + 1, "rows", None))(x)
    assert {shard.data.shape for shard in found.addressable_shards} == {(1, 4)}


def test_each_device_runs_attention_on_its_own_rows_and_heads():
    seen = []

    def look(q, k, v, start, end):
        seen.append((q.shape, k.shape, start.shape))
        return q

    q, kv, edge = np.zeros((8, 16, 4, 8)), np.zeros((8, 16, 2, 8)), np.zeros((8, 16), np.int32)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        jax.jit(per_device.over_queries(look, heads=2))(q, kv, kv, edge, edge)
    assert seen[-1] == ((2, 16, 2, 8), (2, 16, 1, 8), (2, 16))
