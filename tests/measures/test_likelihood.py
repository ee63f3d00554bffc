"""Are the numbers that describe a checkpoint those of their formulas, and their errors honest?"""

import jax
import numpy as np
import pytest
import tiny

from elastic_jax.measures import likelihood
from elastic_jax.measures.likelihood import make_row_sums, ratio, rows_of

MODEL = tiny.decoder("qwen")
BYTES = np.random.default_rng(5).integers(0, 9, tiny.VOCAB).astype(np.int32)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def numpy_sums(params, base, rows):
    log_p, log_q = (log_softmax(tiny.forward(MODEL, p, rows["tokens"][:, :-1])) for p in (params, base))
    targets, mask = rows["tokens"][:, 1:], rows["mask"].astype(np.float64)

    def over(values):
        return (values * mask).sum(1)

    return dict(
        nll=over(-np.take_along_axis(log_p, targets[..., None], -1)[..., 0]),
        tokens=mask.sum(1),
        bytes=over(BYTES[targets]),
        base_model=over((np.exp(log_q) * (log_q - log_p)).sum(-1)),
        model_base=over((np.exp(log_p) * (log_p - log_q)).sum(-1)),
    )


@pytest.fixture(scope="module")
def two():
    return tiny.random_params(MODEL, 0), tiny.random_params(MODEL, 1)


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 2)])
def test_sums_of_rows(cpu_devices, two, axes):
    rows, mesh = tiny.text_batch(7), tiny.mesh(*axes)
    placed = [jax.device_put(params, MODEL.shardings(mesh)) for params in two]
    got = make_row_sums(MODEL, mesh, 4)(*placed, rows, BYTES)
    expected = numpy_sums(*two, rows)
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].shape == (7,) and got[name].dtype == np.float64
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert (expected["base_model"] != expected["model_base"]).all() and expected["base_model"].min() > 0


def test_rows_added_to_fill_a_batch_are_not_counted(two):
    rows = tiny.text_batch(7)
    whole = make_row_sums(MODEL, tiny.mesh(), 7)(*two, rows, BYTES)
    for size in (4, 8):
        got = make_row_sums(MODEL, tiny.mesh(), size)(*two, rows, BYTES)
        for name in whole:
            np.testing.assert_allclose(got[name], whole[name], rtol=1e-6, atol=1e-6)


def test_a_model_is_at_no_distance_from_itself(two):
    got = make_row_sums(MODEL, tiny.mesh(), 4)(two[0], two[0], tiny.text_batch(4), BYTES)
    for name in ("base_model", "model_base"):
        np.testing.assert_allclose(got[name], 0.0, atol=1e-6)


def test_what_a_base_says_is_kept_and_never_taken_for_that_of_another(two, monkeypatch):
    rows, other, third = tiny.text_batch(7), tiny.text_batch(5), tiny.random_params(MODEL, 2)
    asked = []
    real = MODEL.__class__.__call__
    monkeypatch.setattr(MODEL.__class__, "__call__", lambda self, *a: asked.append(1) or real(self, *a))
    kept, fresh = make_row_sums(MODEL, tiny.mesh(), 4), make_row_sums(MODEL, tiny.mesh(), 4, kept_bytes=0)
    for params, base, texts in (
        (third, two[0], rows),
        (third, two[1], rows),
        (third, two[0], other),
        (two[1], two[0], rows),
    ):
        first, second = (row_sums(params, base, texts, BYTES) for row_sums in (kept, fresh))
        for name in first:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6, err_msg=name)
        again = kept(params, base, texts, BYTES)
        assert all((again[name] == first[name]).all() for name in first)
    assert len(asked) == 2 + 2  # traced: one model in each of two programs, and two models in the third


def test_of_many_bases_the_latest_are_kept(two):
    made = []
    kept = likelihood._Kept(ceiling=100)
    for base in (two[0], two[1], two[0], tiny.random_params(MODEL, 2), two[0], two[1]):
        kept.get(base, BYTES, lambda base=base: made.append(base) or [np.zeros(50, np.int8)])
    assert [id(base) for base in made] == [id(two[0]), id(two[1]), id(made[2]), id(two[1])] and made[2] is not two[0]


def test_what_the_mask_leaves_out_has_no_part(two):
    rows = tiny.text_batch(4)
    rows["mask"][:, -4:] = 0
    other = {**rows, "tokens": np.where(np.arange(tiny.LENGTH + 1) >= tiny.LENGTH - 3, 7, rows["tokens"])}
    row_sums = make_row_sums(MODEL, tiny.mesh(), 4)
    first, second = (row_sums(*two, r, BYTES) for r in (rows, other))
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-6)


def test_the_ratio_of_sums_and_its_error_by_hand():
    value, stderr = ratio(np.array([2.0, 9.0]), np.array([1.0, 3.0]))
    assert value == 11 / 4
    # Residuals -0.75 and 0.75: sample variance 1.125; sqrt(2 x 1.125) / 4.
    assert stderr == pytest.approx(0.375)
    value, stderr = ratio(np.array([3.0]), np.array([2.0]))
    assert value == 1.5 and np.isnan(stderr)
    assert ratio(np.array([2.0, 6.0]), np.array([1.0, 3.0])) == (2.0, 0.0)


def test_the_error_of_a_ratio_is_how_much_it_varies():
    rng, rows, repeats = np.random.default_rng(0), 200, 4000
    tokens = rng.integers(1, 30, (repeats, rows)).astype(float)
    nll = tokens * rng.gamma(4.0, 0.5, (repeats, rows)) + rng.normal(0, 1, (repeats, rows))
    values, errors = np.array([ratio(*pair) for pair in zip(nll, tokens, strict=True)]).T
    # The standard deviation of 4,000 values is known to 1/sqrt(8000) = 1.1 percent; the delta method is off by O(1/200).
    assert errors.mean() == pytest.approx(values.std(), rel=0.05)
    assert values.mean() == pytest.approx(2.0, abs=4 * values.std() / np.sqrt(repeats) + 0.002)
    inside = np.abs(values - 2.0) < 1.96 * errors
    assert inside.mean() == pytest.approx(0.95, abs=0.02)


def test_the_error_of_a_ratio_is_that_of_a_bootstrap(two):
    sums = make_row_sums(MODEL, tiny.mesh(), 64)(*two, tiny.text_batch(64), BYTES)
    drawn = np.random.default_rng(0).integers(0, 64, (4000, 64))
    resampled = sums["nll"][drawn].sum(1) / sums["tokens"][drawn].sum(1)
    assert ratio(sums["nll"], sums["tokens"])[1] == pytest.approx(resampled.std(), rel=0.1)


def measured(sums, **options):
    return {row["measure"]: row for row in rows_of(sums, "align", 16, **options)}


SUMS = dict(
    nll=np.array([4.0, 6.0, 2.0]) * np.log(2),
    tokens=np.array([2.0, 3.0, 1.0]),
    bytes=np.array([8.0, 10.0, 6.0]),
    base_model=np.array([0.2, 0.0, 0.4]),
    model_base=np.array([0.1, 0.3, 0.2]),
)


def test_rows_have_the_units_they_name():
    rows = measured(SUMS)
    expected = dict(
        bits_per_token=("bits/token", 2.0),
        bits_per_byte=("bits/byte", 0.5),
        normalised_compression=("bits/token", -2.0),
        kl_base_model=("nats/token", 0.1),
        kl_model_base=("nats/token", 0.1),
    )
    assert {name: row["unit"] for name, row in rows.items()} == {k: v[0] for k, v in expected.items()}
    for name, (_, value) in expected.items():
        assert rows[name]["value"] == pytest.approx(value) and rows[name]["n"] == 3
        assert rows[name]["split"] == "align" and rows[name]["text"] == ""
    assert rows["bits_per_token"]["stderr"] == pytest.approx(0.0, abs=1e-12)  # every row has 2 bits per token
    assert rows["kl_base_model"]["stderr"] > 0


def test_the_distance_to_the_data_is_what_the_model_needs_beyond_the_truth():
    log_prob = np.array([-2.0, -3.0, -1.5])
    row = measured(SUMS, log_prob=log_prob)["kl_data_model"]
    assert row["unit"] == "nats/token"
    assert row["value"] == pytest.approx((12 * np.log(2) - 6.5) / 6)
    perfect = measured(SUMS, log_prob=-SUMS["nll"])["kl_data_model"]
    assert perfect["value"] == 0.0 and perfect["stderr"] == 0.0
    bits = measured(SUMS)["bits_per_token"]["value"]
    assert row["value"] == pytest.approx(bits * np.log(2) + log_prob.sum() / SUMS["tokens"].sum())
