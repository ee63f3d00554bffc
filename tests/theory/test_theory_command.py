"""Does the command print what the functions say, and refuse what means nothing?"""

import json

import numpy as np
import pytest
from corpora import many
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.theory import Corpus, code_length, grow, summary
from elastic_jax.theory.__main__ import main


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for number, name in enumerate(("pretrain", "align", "perturb")):
        stream = np.minimum(rng.zipf(1.5 + 0.2 * number, 4000 >> number) + 1, 60)
        stream[rng.random(len(stream)) < 0.1] = 1
        np.save(tmp_path / f"{name}.npy", stream)
        paths.append(str(tmp_path / f"{name}.npy"))
    return paths


@pytest.mark.parametrize("cut", ["documents", "blocks", "windows"])
def test_tables_are_those_of_the_trees(files, cut, capsys):
    assert (
        main([f"--tokens={','.join(files)}", "--eos=1", "--depth=3", f"--cut={cut}", "--sizes=50,1,0.1", "--json"]) == 0
    )
    lengths, laws, theorem = json.loads(capsys.readouterr().out).values()
    corpora = [Corpus.from_stream(np.load(path), eos=1) for path in files]
    for depth in (1, 2, 3):
        tree = grow(corpora, depth, cut)
        rows = [row for row in lengths if row["depth"] == depth]
        assert [row["set"] for row in rows] == ["pretrain", "align", "perturb"]
        for number, row in enumerate(rows):
            found = code_length(tree, data_set=number)
            assert row["entropy"] == pytest.approx(found.entropy) and row["leaves"] == found.leaves
            assert row["paths"] == tree.sizes[number]
        found = next(row for row in theorem if row["depth"] == depth)
        assert (found["k"], found["l"]) == (50, 0.1) and abs(found["residual"]) < 1e-12
    assert len(laws) == 9 and all(("favours" in row and row["favours"]) or row["reason"] for row in laws)


def test_people_get_tables(files, capsys):
    assert main([f"--tokens={files[0]}", "--eos=1", "--depth=2"]) == 0
    said = capsys.readouterr().out
    assert "code lengths" in said and "mass distribution" in said and "theorem" not in said


@many
@given(st.integers(1, 300))
def test_depths_double_up_to_the_deepest(deepest):
    found = summary.depths(deepest)
    assert found[0] == 1 and found[-1] == deepest and found == sorted(set(found))
    assert all(b <= 2 * a for a, b in zip(found, found[1:], strict=False))


MISTAKES = {
    "nothing": ([], "--workdir or --tokens: give one of them"),
    "both": (["--workdir=w", "--tokens=t.npy"], "--workdir or --tokens"),
    "no file": (["--tokens=/nowhere/t.npy"], "--tokens=/nowhere/t.npy: expected a file of numpy.save"),
    "floats": (["--tokens=FLOATS"], "float64 of shape (3,); expected integers"),
    "text": (["--tokens=TEXT"], "expected a file of numpy.save"),
    "twice": (["--tokens=FIRST,FIRST"], "two files have the same name"),
    "depth": (["--tokens=FIRST", "--depth=0"], "--depth=0"),
    "eos of a study": (["--workdir=w", "--eos=1"], "--eos has no effect with --workdir"),
    "study of files": (["--tokens=FIRST", "--study=s"], "--study has no effect with --tokens"),
    "sizes of one": (["--tokens=FIRST", "--sizes=1"], "--sizes has no effect with 1 data sets"),
    "sizes": (["--tokens=FIRST", "--sizes=1,x"], "--sizes=1,x: expected 1 numbers above 0"),
    "no workdir": (["--workdir=/nowhere/w"], "no study here"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said(name, files, tmp_path, capsys):
    np.save(tmp_path / "floats.npy", np.zeros(3))
    (tmp_path / "text.npy").write_text("no array")
    words, message = MISTAKES[name]
    given = dict(FLOATS=tmp_path / "floats.npy", TEXT=tmp_path / "text.npy", FIRST=files[0])
    for word, path in given.items():
        words = [each.replace(word, str(path)) for each in words]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
