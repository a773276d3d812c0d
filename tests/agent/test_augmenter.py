"""Imagined and real rows in the batches of the base class."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MBPO
from sb3_mbrl.imagination import BranchedRollouts
from tests.helpers.agents import tiny, weights


@pytest.mark.parametrize("rate", [0.25, 0.9, 1.5])
def test_start_states_per_real_step_are_neither_lost_nor_gained(rate, monkeypatch):
    """Rounded at every call, 0.9 starts per step became 0 or 1."""
    agent = tiny(imagination_kwargs={"freq": 1, "starts_per_step": rate, "max_age": 20, "horizon": 1})
    asked = []
    original = MBPO._start_states
    monkeypatch.setattr(MBPO, "_start_states", lambda self, n, generator: asked.append(n) or original(self, n, generator))
    agent.learn(250)
    asked = asked[1:]  # the first are to validate the model
    # For the newest 20 of the first 51 steps, and for every step since.
    assert sum(asked) == int(rate * 250) - int(rate * 31)


def test_imagined_rewards_are_normalised_when_sampled():
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    agent = tiny(env, real_ratio=0.0).learn(80)
    scale = float(np.sqrt(env.ret_rms.var + env.epsilon))
    assert scale > 2  # or this could not fail
    raw = agent.imagined.draw(64, th.Generator().manual_seed(1))["reward"]
    batch = agent.imagined.sample(64, agent.replay_buffer, env, th.Generator().manual_seed(1))
    th.testing.assert_close(batch.rewards.flatten(), raw.flatten() / scale)


def test_batches_hold_real_and_imagined_rows(monkeypatch):
    agent = tiny(real_ratio=0.25)
    agent.learn(100)
    seen = []

    def look(self, gradient_steps, batch_size):
        seen.append(self.replay_buffer.sample(batch_size))

    monkeypatch.setattr(SAC, "train", look)
    agent.learn(1, reset_num_timesteps=False)
    real = {tuple(row) for row in agent.replay_buffer.observations[: agent.replay_buffer.pos, 0].round(5)}
    # Rollouts of one step start in real states; what tells them apart is the action.
    actions = {float(a) for a in agent.replay_buffer.actions[: agent.replay_buffer.pos, 0, 0]}
    batch = seen[0]
    assert {tuple(row) for row in batch.observations.numpy().round(5)} <= real
    assert sum(float(a) in actions for a in batch.actions[:, 0]) == 8


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_steps": 3}, {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}],
    ids=["plain", "n_step", "memory"],
)
def test_every_way_to_store_real_data(n_envs, options):
    env = make_vec_env("Pendulum-v1", n_envs=n_envs, seed=0)
    agent = tiny(env, train_freq=2, **options).learn(150)
    assert agent.num_timesteps == 150
    assert len(agent.imagined) > 0
    assert all(value.isfinite().all() for value in weights(agent))


def test_vec_normalize_imagined_rows_are_stored_raw_and_sampled_normalised():
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    agent = tiny(env, real_ratio=0.0).learn(200)
    rows = agent.imagined.draw(500)
    # Raw: the first two columns are cosine and sine.
    th.testing.assert_close(rows["obs"][:, :2].square().sum(1), th.ones(500))
    sampled = agent.imagined.sample(500, agent.replay_buffer, env).observations
    assert abs(float(sampled.mean())) < 0.7
    expected = env.normalize_obs(rows["obs"].numpy())
    raw = agent.imagined.draw(500, th.Generator().manual_seed(0))["obs"].numpy()
    again = agent.imagined.sample(500, agent.replay_buffer, env, th.Generator().manual_seed(0)).observations
    np.testing.assert_allclose(again.numpy(), env.normalize_obs(raw), rtol=1e-5)
    assert expected.shape == (500, 3)


def test_no_imagined_row_is_used_beyond_its_age():
    agent = tiny(imagination_kwargs={"freq": 50, "starts_per_step": 1, "max_age": 200}).learn(400)
    # The oldest rows in store after the last imagination at 400; the buffer's own capacity must not be what drops them.
    assert min(birth for birth, _ in agent.imagined._batches) == 250


def test_rollouts_that_are_all_masked_are_not_repeated_at_every_step(monkeypatch):
    calls = []

    def nothing(self, model, starts, act, horizon, *, generator=None):
        calls.append(len(starts["theta"]))
        imagined = imagine(self, model, starts, act, horizon, generator=generator)
        return imagined._replace(valid=th.zeros_like(imagined.valid))

    imagine = BranchedRollouts.imagine
    monkeypatch.setattr(BranchedRollouts, "imagine", nothing)
    agent = tiny(imagination_kwargs={"freq": 50, "starts_per_step": 1, "max_age": 200}).learn(200)
    assert len(calls) == 4
    assert len(agent.imagined) == 0
