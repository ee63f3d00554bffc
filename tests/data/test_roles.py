import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.data.roles import Pool, Row, check_disjoint, deduplicate, halves, text_key
from elastic_jax.errors import UserError


def rows_of(answers, label="aligned"):
    return [Row(f"{label}-{i}", "", (answer,), label) for i, answer in enumerate(answers)]


def pools(aligned=20, opposite=20, seed=0):
    rows = rows_of([f"a{i}" for i in range(aligned)]) + rows_of([f"o{i}" for i in range(opposite)], "opposite")
    groups, _, _ = deduplicate(rows)
    return Pool(groups, seed, "data.train")


@pytest.mark.parametrize(
    "other",
    ["the  Film\nwas ok", "THE FILM WAS OK", " the film was ok ", "the film was\u00a0ok", "the ﬁlm was ok"],
)
def test_same_content_in_another_form(other):
    assert text_key("", other) == text_key("", "the film was ok")


def test_other_content():
    assert text_key("", "the film was ok.") != text_key("", "the film was ok")
    assert text_key("a", "b") != text_key("", "b")


def test_repetitions_and_known_texts_are_removed_and_counted():
    rows = rows_of(["one", "Two", "two", "ONE", "three"])
    groups, repeated, foreign = deduplicate(rows, frozenset([text_key("", "three")]))
    assert [[row.id for row in group] for group in groups] == [["aligned-0"], ["aligned-1"]]
    assert (repeated, foreign) == (2, 1)


pair = st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5))


@settings(max_examples=200, deadline=None)
@given(st.lists(pair, max_size=25))
def test_rows_that_share_a_text_share_a_group(triples):
    rows = [Row(str(i), f"p{p}", (f"a{c}", f"a{r}")) for i, (p, c, r) in enumerate(triples)]
    groups, repeated, foreign = deduplicate(rows)
    assert sum(map(len, groups)) + repeated == len(rows) and foreign == 0
    assert repeated == len(triples) - len(set(triples))
    texts = [{key for row in group for key in row.keys} for group in groups]
    assert sum(map(len, texts)) == len(set().union(*texts))  # no text in two groups
    for group in groups:  # and a group is no larger than it must be: its rows hang together
        reached, waiting = set(group[0].keys), list(group[1:])
        while any(reached & set(row.keys) for row in waiting):
            near = [row for row in waiting if reached & set(row.keys)]
            waiting = [row for row in waiting if row not in near]
            reached.update(key for row in near for key in row.keys)
        assert not waiting


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**31))
def test_roles_share_nothing_and_larger_ones_begin_with_smaller(few, many, seed):
    few, many = sorted((few, many))
    small, large = pools(seed=seed), pools(seed=seed)
    first = small.take("x", "f", {"aligned": few})
    second = large.take("x", "f", {"aligned": many})
    assert [row.id for row in second][:few] == [row.id for row in first]
    assert len(second) == many and all(row.label == "aligned" for row in second)
    rest = {row.id for row in large.rows()}
    assert rest.isdisjoint(row.id for row in second) and len(rest) == 40 - many


def test_order_is_random_and_depends_on_the_seed_alone():
    ids = [[row.id for row in pools(seed=seed).rows()] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert sorted(ids[0]) == sorted(ids[2]) != ids[0]


def test_a_group_serves_one_role():
    rows = [Row("1", "p", ("x", "y")), Row("2", "p", ("y", "z")), Row("3", "p", ("u", "v"))]
    groups, _, _ = deduplicate(rows)
    pool = Pool(groups, 0, "data.train")
    taken = pool.take("one", "f", {"": 1})
    left = {key for row in pool.rows() for key in row.keys}
    assert left.isdisjoint(taken[0].keys)


def test_too_few_rows_says_how_many_and_which_field():
    pool = pools(aligned=5)
    pool.take("scorer", "data.rows.scorer", {"aligned": 2})
    with pytest.raises(
        UserError, match=r"data\.rows\.align: 4 rows with label aligned.*data\.train has only 3 left"
    ) as caught:
        pool.take("align", "data.rows.align", {"aligned": 4})
    assert "scorer 2" in str(caught.value) and "Lower data.rows.align" in str(caught.value)


def test_split_off_shares_nothing():
    pool = pools()
    other = pool.split_off(0.2, "x")
    assert (len(pool), len(other)) == (32, 8)
    assert {row.id for row in pool.rows()}.isdisjoint(row.id for row in other.rows())


def test_halves():
    assert halves(5, ["a", "b"]) == {"a": 3, "b": 2}
    assert halves(5, ["a"]) == {"a": 5}


def test_overlap_is_refused():
    check_disjoint(dict(a=[b"1"], b=[b"2"], c=[]))
    with pytest.raises(UserError, match="align and perturb overlap in 1 texts"):
        check_disjoint(dict(align=[b"1", b"2"], other=[b"4"], perturb=[b"2", b"3"]))
