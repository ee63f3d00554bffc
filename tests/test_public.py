"""Do the public names work, and does importing them cost nothing?"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = str(Path(__file__).parent / "study" / "small.py")
HEAVY = ("tensorflow", "torch", "transformers")


def python(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_else():
    loaded = python("import sys, elastic_jax; print(*sorted({name.split('.')[0] for name in sys.modules}))").split()
    assert not {*HEAVY, "jax", "numpy", "flax", "pandas", "ml_collections"} & set(loaded)


def test_every_public_name_exists_and_is_listed():
    import elastic_jax as ej

    for name in ej.__all__:
        assert getattr(ej, name) is not None
    assert set(ej.__all__) <= set(dir(ej))
    with pytest.raises(AttributeError, match="Public names: .*open_study"):
        _ = ej.no_such_name


NOTEBOOK = f"""
import sys
from pathlib import Path
import elastic_jax as ej
import elastic_jax.run, elastic_jax.plan, elastic_jax.report, elastic_jax.measures.protocol, elastic_jax.status
folder = Path(sys.argv[1])
config = ej.load({SMALL!r}, {{"align.volumes": (16,), "perturb.volumes": (8,)}})
study = ej.open_study(config, folder / "w")
assert isinstance(study, ej.Study)
assert [stage.stage for stage in ej.plan(study).stages] == ["pretrain", "align", "perturb"]
page = ej.run(config, folder / "w")
assert page == folder / "w" / "report" / "index.html" and len(page.read_bytes()) > 10_000
found = ej.measures(folder / "w" / "measures.parquet")
assert set(found.studies) == {{"small"}}
again = ej.report(folder / "w" / "measures.parquet", folder / "again")
assert len(Path(again).read_bytes()) > 10_000
try:
    ej.load(config, {{"seed": 1}})
except ej.UserError as error:
    assert "Closest: seeds" in str(error)
print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


def test_a_notebook_runs_a_study_without_heavy_frameworks(tmp_path: Path) -> None:
    """With the modules of the same names imported before: they must not hide the functions."""
    assert python(NOTEBOOK, str(tmp_path)).splitlines()[-1] == "heavy:"


def test_the_names_are_functions_when_nothing_was_imported_before() -> None:
    script = "import elastic_jax as ej; print(*[name for name in ej.__all__ if not callable(getattr(ej, name))])"
    assert python(script) == ""
