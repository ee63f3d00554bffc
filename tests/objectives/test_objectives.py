"""Does a stage minimise what its name promises, and is a wrong name answered with the right one?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax import objectives
from elastic_jax.errors import UserError
from elastic_jax.objectives import likelihood

KEY = jax.random.key(0)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def numpy_nll(logits, targets):
    return -np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0]


def pair_batch(rows):
    chosen, rejected = tiny.text_batch(rows, seed=1), tiny.text_batch(rows, seed=2)
    return {
        **{f"chosen_{name}": value for name, value in chosen.items()},
        **{f"rejected_{name}": value for name, value in rejected.items()},
    }


def test_the_likelihood_of_targets():
    rng = np.random.default_rng(0)
    logits = 4 * rng.standard_normal((3, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (3, 5))
    nll = numpy_nll(logits, targets)
    np.testing.assert_allclose(likelihood.token_nll(logits, targets), nll, rtol=1e-5, atol=1e-6)


def test_sft_is_the_mean_over_the_targets_that_count():
    model, batch = tiny.decoder(), tiny.text_batch(4)
    batch["mask"][2] = 0
    params = tiny.random_params(model)
    total, weight, metrics = jax.jit(lambda p, b: objectives.sft().loss(model, p, b, KEY))(params, batch)
    nll = numpy_nll(tiny.forward(model, params, batch["tokens"][:, :-1]), batch["tokens"][:, 1:])
    assert metrics == {}
    assert float(weight) == batch["mask"].sum()
    assert float(total / weight) == pytest.approx((nll * batch["mask"]).sum() / batch["mask"].sum(), rel=1e-5)


def test_a_batch_without_a_target_has_no_loss_and_no_gradient():
    model, batch = tiny.decoder(), tiny.text_batch(2)
    batch["mask"][:] = 0
    value, gradient = jax.jit(jax.value_and_grad(lambda p: objectives.sft().loss(model, p, batch, KEY)[0]))(
        tiny.random_params(model)
    )
    assert float(value) == 0.0 and all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_dpo_starts_at_one_bit_from_its_own_annotations():
    model, batch, dpo = tiny.decoder("qwen"), pair_batch(6), objectives.dpo(beta=0.3)
    params = tiny.random_params(model)
    annotate = dpo.annotate
    assert annotate is not None and dpo.rows == "pair"
    reference = jax.jit(lambda p, b: annotate(model, p, b))(params, batch)
    for side in ("chosen", "rejected"):
        tokens, mask = batch[f"{side}_tokens"], batch[f"{side}_mask"]
        nll = numpy_nll(tiny.forward(model, params, tokens[:, :-1]), tokens[:, 1:])
        np.testing.assert_allclose(reference[f"ref_{side}"], -(nll * mask).sum(1), rtol=1e-5)

    loss = jax.jit(lambda p, b: dpo.loss(model, p, b, KEY))
    total, weight, metrics = loss(params, {**batch, **reference})
    assert float(weight) == 6
    # The same log-probabilities in two programs: at most a few roundings of numbers near 50, times beta.
    assert float(total / weight) == pytest.approx(np.log(2), abs=1e-5)
    assert 0 <= float(metrics["accuracy"] / weight) <= 1 and float(metrics["margin"]) == pytest.approx(0, abs=1e-4)

    lower = {**reference, "ref_chosen": reference["ref_chosen"] - 2.0}
    total, weight, metrics = loss(params, {**batch, **lower})
    assert float(total / weight) == pytest.approx(np.log1p(np.exp(-0.6)), abs=1e-4)
    assert float(metrics["accuracy"] / weight) == 1.0
    assert float(metrics["margin"] / weight) == pytest.approx(0.6, abs=1e-4)


def test_an_update_of_dpo_raises_the_margin():
    model, batch, dpo = tiny.decoder(), pair_batch(6), objectives.dpo(beta=0.3)
    params = tiny.random_params(model)
    annotate = dpo.annotate
    assert annotate is not None
    batch = {**batch, **jax.jit(lambda p: annotate(model, p, batch))(params)}
    loss = jax.jit(jax.value_and_grad(lambda p: dpo.loss(model, p, batch, KEY)[0]))
    before, gradient = loss(params)
    after, _ = loss(jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient))
    assert float(after) < float(before) - 1e-3


def test_make_reads_names_and_settings():
    assert objectives.make("sft").rows == "text"
    assert objectives.make(dict(name="dpo", beta=0.5, label_smoothing=0.1)).name == "dpo"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("dpoo", r"'dpoo': no such method\. Closest: dpo"),
        (dict(beta=0.1), r"objective ''"),
        (dict(name="dpo", betta=0.1), r"objective dpo: .*betta.*Its settings: beta, label_smoothing"),
        (dict(name="sft", beta=0.1), r"objective sft: .*Its settings: none"),
        (dict(name="dpo", beta=0.0), r"beta=0"),
        (dict(name="dpo", label_smoothing=0.5), r"label_smoothing=0\.5"),
    ],
)
def test_a_wrong_section_says_what_exists(section, message):
    with pytest.raises(UserError, match=message):
        objectives.make(section)


def test_losses_do_not_depend_on_the_key():
    model, batch = tiny.decoder(), jax.tree.map(jnp.asarray, tiny.text_batch(2))
    params = tiny.random_params(model)
    loss = jax.jit(lambda key: objectives.sft().loss(model, params, batch, key)[0])
    assert float(loss(jax.random.key(1))) == float(loss(jax.random.key(2)))
