"""Does a topology's name mean what the makers say, and does a wrong one lead to the right one?"""

import math

import pytest

from elastic_jax.errors import UserError
from elastic_jax.parallel import topology
from elastic_jax.parallel.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "devices", "shape"),
    [
        ("v5e:16x16", 256, (16, 16)),
        ("v5p:4x4x4", 64, (4, 4, 4)),
        ("V6E:2x4", 8, (2, 4)),
        ("v4:2x2x1", 4, (2, 2, 1)),
        ("v5p:8x8x8", 512, (8, 8, 8)),
        ("h100:8", 8, ()),
        ("a100-80gb:16", 16, ()),
        ("cpu:8", 8, ()),
    ],
)
def test_a_name_gives_its_devices(name, devices, shape):
    found = topology.parse(name)
    assert (found.devices, found.shape) == (devices, shape)
    assert found.memory > 0


@pytest.mark.parametrize("chip", topology.CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_has_a_peak_and_a_source(chip):
    assert chip.flops == peak_flops(chip.kind)
    assert chip.flops and chip.source
    # Sanity of the units: a byte of memory traffic buys 100 to 1000 FLOP, a byte from a neighbour more.
    assert 100 < chip.flops / chip.hbm < 1000
    assert chip.links < chip.hbm


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", r"--topology=tpu: tpu is a platform, not a device\. Use one of v4, v5e, v5p, v6e\.\n.*v5e:16x16"),
        ("gpu:8", r"gpu is a platform.*Use one of .*h100"),
        ("v5q:16x16", r"--topology=v5q:16x16: no such device\. Closest: v5[pe], v5[pe].*\n.*h100:8.*v5e:16x16"),
        ("v5e:10x16", r"no such slice\. Nearest: .*v5e:8x16"),
        ("v5p:16x16", r"no such slice\. Nearest: v5p:"),
        ("v5e", r"expected the shape of a slice, AxB, for example v5e:16x16"),
        ("v5p:64", r"AxBxC, for example v5p:4x4x4"),
        ("h100", r"expected a number of devices, for example h100:8"),
        ("cpu:none", r"expected a number of devices, for example cpu:8"),
        ("", r"no such device"),
    ],
)
def test_a_wrong_name_says_what_there_is(name, message):
    with pytest.raises(UserError, match=message):
        topology.parse(name)


def test_the_slowest_stretch_is_what_counts():
    assert topology.parse("h100:8").bandwidth == 450e9
    assert topology.parse("h100:16").bandwidth == 50e9  # two machines
    assert topology.parse("v5e:16x16").bandwidth == 200e9
    assert topology.parse("v5e:2x2").bandwidth == 100e9  # no ring: one link of each pair
    assert topology.parse("v5e:1x1").bandwidth == 0


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:4x4x4", "h200:8"])
def test_a_larger_one_is_large_enough_and_exists(name):
    here = topology.parse(name)
    more = topology.larger(here, 3.0)
    assert more is not None and more.devices >= 3 * here.devices
    assert topology.parse(more.name) == more


def test_there_is_none_larger_than_the_largest():
    assert topology.larger(topology.parse("v5e:16x16"), 1.5) is None
    for chip in ("v4", "v5p"):
        shapes = topology.slices(chip)
        assert shapes == sorted(shapes, key=lambda s: (math.prod(s), s)) and len(set(shapes)) == len(shapes)
