"""Does a study give the same numbers on any number of devices, also when they change on the way?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_studies
from small_studies import LOSS_RTOL, stopping

from elastic_jax.train.checkpoint import Checkpoints

EIGHT = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def assert_same_study(workdir: Path, one_device: Path) -> None:
    """Every run of the first has the numbers that it has in the second."""
    found, wanted = small_studies.losses(workdir), small_studies.losses(one_device)
    assert {"pretrain-s0", "align-s0", "perturb-s0-a32"} <= found.keys() <= wanted.keys()
    for run, values in found.items():
        np.testing.assert_allclose(values, wanted[run], rtol=LOSS_RTOL, err_msg=run)
    rows, others = small_studies.table(workdir), small_studies.table(one_device)
    small_studies.assert_close(rows, others[others.run.isin(rows.run)])


MESHES = [
    pytest.param({"mesh.data": 8}, id="data8"),
    pytest.param(EIGHT, id="data2-fsdp2-tensor2", marks=pytest.mark.slow),
    # By default a step of it is compared, in tests/train/test_step.py and tests/models/test_switches.py.
    pytest.param(
        {**EIGHT, "model.layout": "scan", "model.remat": "full"},
        id="data2-fsdp2-tensor2-scan-remat",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_give_the_numbers_of_one(mesh: dict, with_data: Callable[[str], Path], finished: Path) -> None:
    workdir = with_data("w")
    # One run of each stage: compiling for eight devices takes most of the time.
    branch = {"perturb.control": False, "align.volumes": (32,)}
    study = small_studies.run(workdir, overrides={**mesh, **branch}, devices=8)
    assert study.mesh.size == 8
    assert_same_study(workdir, finished)


@pytest.mark.slow
def test_a_study_continues_on_other_devices(with_data: Callable[[str], Path], finished: Path) -> None:
    """8 -> 4 -> 2 -> 1: stopped in the middle of pre-training on eight and on four devices and of alignment on two."""
    workdir = with_data("w")
    often = {"checkpoint_seconds": 1e-9}
    with stopping(Checkpoints, "save", 4, True):
        small_studies.run(workdir, overrides={**often, **EIGHT}, devices=8)
    with small_studies.watched() as trained, stopping(Checkpoints, "save", 2, True):
        small_studies.run(workdir, overrides={**often, "mesh.fsdp": 2, "mesh.tensor": 2}, devices=4)
    assert trained[0].run == "pretrain-s0" and 3 <= trained[0].start <= 4
    with small_studies.watched() as trained, stopping(Checkpoints, "save", 7, True):
        small_studies.run(workdir, overrides={**often, "mesh.fsdp": 2, "model.layout": "scan"}, devices=2)
    assert trained[0].run == "pretrain-s0" and 5 <= trained[0].start <= 6
    with small_studies.watched() as trained:
        small_studies.run(workdir)
    assert trained[0].run == "align-s0" and trained[0].start >= 1
    assert_same_study(workdir, finished)
