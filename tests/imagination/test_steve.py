"""STEVE's targets against a computation by hand, on known members and critics."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl import MBPO, Dyna, model_based
from sb3_mbrl.contracts import LearnerView, MissingCapability
from sb3_mbrl.imagination.acting import target_values
from sb3_mbrl.imagination.steve import EnsembleValueExpansion, weighted
from sb3_mbrl.testing import EnsembleToy

OBS, ACTION = spaces.Box(-50.0, 50.0, (2,)), spaces.Box(-1.0, 1.0, (1,))
GAMMA = 0.9


def policy(obs):
    return th.tanh(obs[:, :1])


def critics(obs):
    """Two critics, which disagree by the square of the observation."""
    return th.stack([obs.sum(1), obs.sum(1) + obs.square().sum(1)])


def test_weights_are_inverse_variances():
    """Two horizons, two candidates each: variances 1 and 4, means 1 and 12, so T = (1 * 4 + 12 * 1) / 5."""
    targets = th.tensor([[[0.0], [2.0]], [[10.0], [14.0]]])
    assert float(weighted(targets)) == pytest.approx((1 / 1 * 1 + 1 / 4 * 12) / (1 + 1 / 4))
    certain = th.tensor([[[3.0], [3.0]], [[10.0], [14.0]]])
    assert float(weighted(certain)) == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("horizon", [1, 3])
def test_targets_are_those_of_a_computation_by_hand(horizon):
    model = EnsembleToy(
        OBS, ACTION, spread=0.2, device="cpu", termination_fn=lambda obs, action, next_obs: 0.2 * th.sigmoid(next_obs[:, 0])
    )
    buffer, rng = ReplayBuffer(32, OBS, ACTION, device="cpu"), np.random.default_rng(0)
    for t in range(32):
        obs, after = rng.uniform(-1, 1, (2, 1, 2)).astype(np.float32)
        buffer.add(obs, after, rng.uniform(-1, 1, (1, 1)), rng.uniform(-1, 1, 1), np.array([t % 5 == 4]), [{}])
    view = LearnerView(model, policy, GAMMA, 0.5, th.Generator().manual_seed(0), lambda: None, critics)
    np.random.seed(3)
    real = buffer.sample(20)
    np.random.seed(3)
    sampler = EnsembleValueExpansion(horizon).sampler(view, buffer)
    assert sampler is not None
    batch = sampler.sample(20)
    assert th.equal(batch.observations, real.observations)
    assert (batch.discounts == 0).all(), "nothing is added to the target"
    for i in range(20):
        candidates = [[] for _ in range(horizon + 1)]
        for e in range(2):
            total, discount = float(real.rewards[i]), GAMMA * (1 - float(real.dones[i]))
            state = real.next_observations[i][None]
            for h in range(horizon + 1):
                candidates[h] += [total + discount * float(value) for value in critics(state)]
                prediction = model.member_step(state, policy(state), th.tensor([e]))
                total += discount * float(prediction.reward)
                discount *= GAMMA * (1 - float(prediction.terminated))
                state = prediction.state
        precision = [1 / max(np.var(row), 1e-8) for row in candidates]
        expected = sum(w * np.mean(row) for w, row in zip(precision, candidates, strict=True)) / sum(precision)
        assert float(batch.rewards[i]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def small(cls, **kwargs):
    settings = {"learning_starts": 120, "gradient_steps": 1, "policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu"}
    model = {"world_model": "ensemble", "world_model_kwargs": {"members": 2, "elites": 2, "hidden": [16]}}
    return cls("MlpPolicy", "Pendulum-v1", **settings, **model, imagination="steve", **kwargs)


@pytest.mark.parametrize("base", [None, TD3, DDPG])
def test_it_trains_agents_with_target_critics(base):
    agent = small(MBPO if base is None else model_based(base)).learn(130)
    assert agent._n_updates > 0
    assert agent.imagined is None


def test_the_values_of_a_td3_agent_are_those_of_its_targets():
    agent = small(model_based(TD3), target_policy_noise=0.0)
    obs = th.randn(5, 3)
    expected = agent.critic_target(obs, agent.actor_target(obs))
    th.testing.assert_close(target_values(agent, obs), th.cat(expected, 1).T)


def test_sacs_values_have_its_entropy():
    agent = small(MBPO, ent_coef=0.3)
    obs = th.randn(5, 3)
    th.manual_seed(1)
    action, log_prob = agent.actor.action_log_prob(obs)
    expected = th.cat(agent.critic_target(obs, action), 1).T - 0.3 * log_prob
    th.manual_seed(1)
    th.testing.assert_close(target_values(agent, obs), expected)


def test_classes_without_target_critics_are_refused_when_they_are_built():
    for base in (CrossQ, TQC):
        with pytest.raises(MissingCapability, match="needs the target critics of SAC, TD3 or DDPG"):
            small(model_based(base))
    with pytest.raises(MissingCapability, match="needs the target critics"):
        Dyna("MlpPolicy", "CartPole-v1", imagination="steve")


def test_members_and_critics_that_agree_weigh_all_horizons_alike():
    """Noise of the model and luck of the policy are no disagreement: candidates of equal members are equal."""
    model = EnsembleToy(OBS, ACTION, spread=0.0, noise=5.0, device="cpu")
    buffer = ReplayBuffer(8, OBS, ACTION, device="cpu")
    for t in range(8):
        buffer.add(*(np.full((1, n), t / 8, np.float32) for n in (2, 2, 1)), np.zeros(1), np.zeros(1, bool), [{}])

    def drawn(obs):
        return th.tanh(obs[:, :1] + th.randn(len(obs), 1))

    def equal(obs):
        value = obs.sum(1) + th.randn(len(obs))
        return th.stack([value, value])

    view = LearnerView(model, drawn, GAMMA, 0.5, th.Generator().manual_seed(0), lambda: None, equal)
    sampler = EnsembleValueExpansion(2).sampler(view, buffer)
    assert sampler is not None
    rows = buffer.sample(4)
    with th.no_grad():
        candidates = sampler._candidates(rows.next_observations, rows.rewards[:, 0], th.full((4,), GAMMA), None)
    assert candidates.shape == (3, 4, 4)
    assert candidates.var(1).max() < 1e-10


def test_a_model_without_members_is_refused():
    with pytest.raises(MissingCapability, match="EnsembleValueExpansion compares the members of an ensemble, and MLPModel"):
        MBPO("MlpPolicy", "Pendulum-v1", world_model="mlp", imagination="steve")
