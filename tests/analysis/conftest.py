import planted
import pytest

from elastic_jax.analysis import table


@pytest.fixture(scope="session")
def plant():
    return planted.Plant()


@pytest.fixture
def study_of(tmp_path):
    """Plant (or rows and metadata) -> the study read back from a file."""

    def make(plant=None, change=None):
        rows, metadata = planted.table(plant or planted.Plant())
        if change:
            rows = change(rows)
        return table.select(table.load(planted.write(tmp_path / "measures.parquet", rows, metadata)))

    return make
