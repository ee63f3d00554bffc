"""Does an on-policy objective, which samples its own batches, train through the same loop?"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.models.config import ModelConfig
from elastic_jax.models.decoding import generate
from elastic_jax.models.filters import Choice
from elastic_jax.models.transformer import Decoder
from elastic_jax.objectives import Objective
from elastic_jax.parallel.mesh import make_mesh, put_local
from elastic_jax.train import loop, optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.step import make_train_step

VOCABULARY, LENGTH, WANTED = 11, 6, 7


def reinforce() -> Objective:
    """Policy gradient for a reward that counts one token, with the batch mean as its baseline (Williams 1992)."""

    def rollout(policy, params, batch, key):
        prompts = batch["tokens"][:, :1]
        answers = generate(policy, params, prompts, key, length=LENGTH, choice=Choice(never=(0,)))
        reward_b = jnp.sum(answers == WANTED, axis=-1).astype(jnp.float32)
        return {
            "tokens": jnp.concatenate([prompts, answers], axis=1),
            "mask": (answers != 0).astype(jnp.uint8),
            "reward": reward_b,
            "advantage": reward_b - jnp.mean(reward_b),  # here, where the batch is whole
        }

    def loss(policy, params, batch, key):
        del key
        log_prob_bt = policy.log_probs(params, batch["tokens"][:, :-1], batch["tokens"][:, 1:], batch["mask"])
        weight = jnp.asarray(len(log_prob_bt), jnp.float32)
        return -jnp.sum(batch["advantage"] * jnp.sum(log_prob_bt, -1)), weight, {"reward": jnp.sum(batch["reward"])}

    return Objective("reinforce", "text", loss, rollout=rollout)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1)])
def test_reward_grows(cpu_devices, sizes):
    mesh = make_mesh(*sizes, devices=cpu_devices[: int(np.prod(sizes))])
    model = Decoder(ModelConfig(VOCABULARY, LENGTH, layers=1, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32))
    objective = reinforce()
    tx = optim.make(optim.OptimConfig(lr=2e-2), 0)
    step = make_train_step(model, objective, tx, mesh)
    create = jax.jit(lambda p: state_lib.create(p, tx), out_shardings=state_lib.shardings(model, tx, mesh))
    sample = jax.jit(lambda params, batch, key: objective.rollout(model, params, batch, key))

    def rollout(params, batch, number):
        with jax.set_mesh(mesh):
            return sample(params, batch, jax.random.fold_in(jax.random.key(1), number))

    rewards: list[float] = []
    hooks = loop.Hooks(
        put=lambda batch: put_local(batch, mesh),
        rollout=rollout,
        measure=lambda *_: None,
        save=lambda *_: None,
        log=lambda number, metrics, tokens: rewards.append(metrics["reward"]),
    )
    prompts = {"tokens": np.ones((64, LENGTH + 1), np.int32), "row": np.arange(64)}
    stream = (dict(prompts) for _ in itertools.count())
    state = create(model.init(jax.random.key(0), mesh))
    loop.train(state, step, stream, jax.random.key(2), start=0, stop=30, tokens=0, hooks=hooks)
    # Uniform over ten tokens the reward is about LENGTH / 10; a policy that learnt writes the wanted token mostly.
    assert np.mean(rewards[:3]) < 1.0
    assert np.mean(rewards[-3:]) > 3.0
