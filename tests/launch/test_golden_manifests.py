"""Is every manifest, byte for byte, the one that was read and kept?"""

import launches
import pytest


@pytest.mark.parametrize("name", launches.EXAMPLES)
def test_manifests_are_the_ones_that_were_kept(name):
    made = launches.manifest(name).files
    kept = {path.name: path.read_bytes() for path in (launches.GOLDEN / name).iterdir()}
    assert sorted(made) == sorted(kept)
    for file, text in made.items():
        assert text.encode() == kept[file], f"{name}/{file}: to keep the new text, run python tests/launch/launches.py"


def test_every_backend_has_an_example_and_every_folder_is_one():
    assert {example.backend for example in launches.EXAMPLES.values()} == set(launches.backends.BACKENDS)
    assert {path.name for path in launches.GOLDEN.iterdir()} == set(launches.EXAMPLES)
