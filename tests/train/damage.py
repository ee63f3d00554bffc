"""What does a damaged checkpoint answer? One line of JSON per kind of damage.

A process of its own, because orbax leaves failed reads behind whose complaints reach whoever runs next.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import tiny

from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.checkpoint import Checkpoints, Damaged

TX = optim.make(optim.OptimConfig(), 10)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit turned": flip,
}
ITEMS = ("params", "opt_state", "meta")


def answer(read):
    try:
        read()
    except Damaged as error:
        return str(error)
    return ""


def main(folder):
    model, mesh = tiny.decoder(layers=1, embed=32, mlp=256, vocab_size=200), tiny.mesh()
    state = state_lib.create(jax.device_put(tiny.random_params(model)), TX)
    # Zeros would be stored inside the index, whose checksum is another one.
    noise = iter(jax.random.split(jax.random.key(0), 100))
    state = jax.tree.map(lambda x: x + jax.random.normal(next(noise), x.shape) if x.ndim > 1 else x, state)
    checkpoints = Checkpoints(folder / "c", model, mesh)
    for number in (1, 2):
        checkpoints.save(state, number, dict(tokens=number))
    checkpoints.wait()
    shutil.copytree(folder / "c" / "2", folder / "good")

    def tell(what, checkpoints, number):
        full = answer(lambda: checkpoints.restore(number, TX))
        params = answer(lambda: checkpoints.restore_params(number))
        print(json.dumps(dict(what=what, full=full, params=params)), flush=True)

    for item in ITEMS:
        for damage, act in DAMAGE.items():
            files = [
                file for file in (folder / "c" / "2" / item).rglob("*") if file.is_file() and "commit" not in file.name
            ]
            act(max(files, key=lambda file: file.stat().st_size))
            tell(f"{item} {damage}", checkpoints, 2)
            shutil.rmtree(folder / "c" / "2")
            shutil.copytree(folder / "good", folder / "c" / "2")
    tell("repaired", checkpoints, 2)
    tell("the other", checkpoints, 1)
    tell("not there", checkpoints, 3)
    checkpoints.close()
    other = Checkpoints(folder / "c", tiny.decoder(layers=1, embed=32, mlp=64, vocab_size=200), mesh)
    tell("another model", other, 2)
    other.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
