"""Are the losses of pre-training, alignment and perturbation still those of the commit that wrote them down?

After a change that is meant to change them (another initialisation, order of data, or default), write them again with

    ELASTIC_WRITE_GOLDEN=1 pytest tests/study/test_golden.py -n 0

and say in the change why they moved.
"""

import os
from pathlib import Path

import numpy as np
import small_studies

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses_smoke.txt"
HEAD = "# Training losses of tests/study/small.py on one device, nats per token: run, update, loss. See tests/study/test_golden.py.\n"


def test_losses_are_those_that_were_written_down(finished: Path) -> None:
    found = [
        (run, i, loss) for run, losses in small_studies.losses(finished).items() for i, loss in enumerate(losses, 1)
    ]
    if os.environ.get("ELASTIC_WRITE_GOLDEN"):
        GOLDEN.write_text(HEAD + "".join(f"{run} {number} {loss:.7f}\n" for run, number, loss in found))
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    assert [(run, number) for run, number, _ in found] == [(run, int(number)) for run, number, _ in lines]
    # Another CPU has other vector widths, so other orders of float32 sums. See LOSS_RTOL: the same effect, the same size.
    np.testing.assert_allclose(
        [loss for *_, loss in found], [float(loss) for *_, loss in lines], rtol=small_studies.LOSS_RTOL
    )
