import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))

import planted

from elastic_jax import report


@pytest.fixture(scope="session")
def measures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    return planted.write(folder / "measures.parquet", *planted.table())


@pytest.fixture(scope="session")
def rendered(measures):
    return Path(report.render(measures, measures.parent / "report"))


@pytest.fixture
def render_of(tmp_path):
    """Plant, and a function that changes its rows -> path of the page."""

    def make(plant=None, change=None):
        rows, metadata = planted.table(plant or planted.Plant(seeds=(0, 1), volumes=(256, 1024)))
        path = planted.write(tmp_path / "measures.parquet", change(rows) if change else rows, metadata)
        return Path(report.render(path, tmp_path / "report"))

    return make
