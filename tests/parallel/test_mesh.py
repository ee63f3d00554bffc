"""Is every part of an array on the device where the rules put it?"""

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, PartitionSpec

from elastic_jax.errors import UserError
from elastic_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (dict(), (1, 8, 1, 1)),
        (dict(data=2, fsdp=2, tensor=2), (1, 2, 2, 2)),
        (dict(data=1, fsdp=-1, tensor=2), (1, 1, 4, 2)),
        (dict(data=4, fsdp=1, tensor=-1), (1, 4, 1, 2)),
        (dict(data=8, fsdp=-1), (1, 8, 1, 1)),
        (dict(run=2), (2, 4, 1, 1)),
        (dict(run=-1, data=2), (4, 2, 1, 1)),
    ],
)
def test_the_axis_left_open_takes_the_devices_that_remain(cpu_devices, asked, got):
    mesh = mesh_lib.make_mesh(**asked, devices=cpu_devices)
    assert tuple(mesh.shape.values()) == got and mesh.axis_names == ("run", "data", "fsdp", "tensor")
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert list(mesh.devices.flat) == cpu_devices


@pytest.mark.parametrize("asked", [(-1, -1, 1), (3, 1, 1), (-1, 3, 1), (0, 1, 1), (4, 4, 1), (-2, 1, 1)])
def test_sizes_that_do_not_fit_the_devices(cpu_devices, asked):
    with pytest.raises(UserError, match=f"mesh.data={asked[0]}, mesh.fsdp={asked[1]}, mesh.tensor={asked[2]}"):
        mesh_lib.make_mesh(*asked, devices=cpu_devices)


def test_a_wrong_number_of_lanes_of_the_mesh_is_named(cpu_devices):
    with pytest.raises(
        UserError, match=r"mesh.tensor=1, mesh.run=3: .* 3 x n, .* 8 devices.*--config.mesh.run=2, or .*run=4\."
    ):
        mesh_lib.make_mesh(run=3, devices=cpu_devices)


@pytest.mark.parametrize(
    ("asked", "devices", "near"),
    [
        (dict(data=-1, fsdp=3, tensor=1), 8, [(4, 2, 1), (2, 4, 1)]),
        (dict(data=3, fsdp=-1, tensor=1), 8, [(2, 4, 1), (4, 2, 1)]),
        (dict(data=3, fsdp=1, tensor=1), 8, [(8, 1, 1)]),
        (dict(data=4, fsdp=4, tensor=1), 8, [(2, 4, 1)]),
        (dict(data=-1, fsdp=7, tensor=3), 16, [(1, 8, 2)]),
        (dict(data=-1, fsdp=3, tensor=3), 8, [(2, 2, 2), (1, 2, 4), (1, 4, 2)]),
        (dict(data=-1, fsdp=100, tensor=1), 6, [(1, 6, 1)]),
    ],
)
def test_the_nearest_mesh_that_divides(asked, devices, near):
    assert [tuple(sizes.values()) for sizes in mesh_lib.nearest(asked, devices)] == near
    assert all(np.prod(sizes) == devices for sizes in near)


def test_sizes_that_do_not_divide_name_the_nearest_that_do(cpu_devices):
    with pytest.raises(UserError) as error:
        mesh_lib.make_mesh(fsdp=3, devices=cpu_devices)
    assert str(error.value) == (
        "mesh.data=-1, mesh.fsdp=3, mesh.tensor=1: the sizes multiply to 3 x n, but there are 8 devices. The nearest that do: "
        "--config.mesh.data=4 --config.mesh.fsdp=2 --config.mesh.tensor=1, "
        "or --config.mesh.data=2 --config.mesh.fsdp=4 --config.mesh.tensor=1."
    )


def test_specs_follow_the_rules():
    assert mesh_lib.spec(("vocab", "embed")) == PartitionSpec(("tensor",), ("fsdp",))
    assert mesh_lib.spec(("batch", "seq", None)) == PartitionSpec(("data", "fsdp"), None, None)


def test_every_device_holds_its_share_of_the_parameters(cpu_devices):
    model, mesh = tiny.decoder("neox"), tiny.mesh(1, 4, 2)
    params = jax.device_put(tiny.random_params(model), model.shardings(mesh))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        (shape,) = {shard.data.shape for shard in leaf.addressable_shards}
        parts = leaf.size // np.prod(shape)
        name = path[-1].key
        whole = name in ("scale", "bias", "out_bias", "down_bias")
        assert parts == (1 if whole else 2 if name in ("qkv_bias", "up_bias") else 8), name


def test_a_batch_lies_in_blocks_over_data_and_fsdp(cpu_devices):
    rows = np.arange(16, dtype=np.int32).reshape(8, 2)
    for mesh in (tiny.mesh(8), tiny.mesh(2, 2, 2)):
        array = mesh_lib.put_local(dict(tokens=rows), mesh)["tokens"]
        other = mesh_lib.put_global(rows, mesh_lib.batch_sharding(mesh))
        assert array.sharding == other.sharding
        np.testing.assert_array_equal(array, rows)
        np.testing.assert_array_equal(other, rows)
        shares = [tuple(shard.data[:, 0].tolist()) for shard in array.addressable_shards]
        count = mesh_lib.batch_shards(mesh)
        assert sorted(set(shares)) == [tuple(block[:, 0].tolist()) for block in np.split(rows, count)]


def test_shard_does_nothing_without_a_mesh_and_places_with_one(cpu_devices):
    x = np.zeros((8, 4), np.float32)
    assert mesh_lib.shard(x, "batch", None) is x
    with jax.set_mesh(tiny.mesh(4, 1, 2)):
        placed = jax.jit(lambda x: mesh_lib.shard(x, "batch", None))(x)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 4)}


@pytest.mark.parametrize(("size", "cure"), [(12, "8 or 16"), (3, "Use 8,"), (17, "16 or 24")])
def test_a_batch_that_does_not_divide_gets_a_size_that_does(cpu_devices, size, cure):
    with pytest.raises(UserError, match=rf"align\.batch_size={size} does not divide .* = 8.*{cure}"):
        mesh_lib.check_batch("align.batch_size", size, tiny.mesh(4, 2))
    mesh_lib.check_batch("align.batch_size", 16, tiny.mesh(4, 2))


@pytest.mark.parametrize(
    ("fields", "axes", "message"),
    [
        (dict(vocab_size=37), (4, 1, 2), r"'vocab' has size 37, .* tensor = 2.*mesh\.tensor=1"),
        (dict(kv_heads=2), (2, 1, 4), r"'kv_heads' has size 2, .* tensor = 4.*mesh\.tensor=2"),
        (dict(embed=12), (1, 8, 1), r"'embed' has size 12, .* fsdp = 8.*mesh\.fsdp=4"),
    ],
)
def test_a_dim_that_does_not_divide_is_named(cpu_devices, fields, axes, message):
    for layout in ("unroll", "scan"):
        with pytest.raises(UserError, match=message):
            tiny.decoder(layout=layout, **fields).shardings(tiny.mesh(*axes))
