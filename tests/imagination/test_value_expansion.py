"""Value expansion against a computation by hand, on a known model."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import CrossQ
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import MBPO, Dyna, model_based
from sb3_mbrl.contracts import LearnerView
from sb3_mbrl.imagination.value_expansion import ValueExpansion, scaled_reward
from sb3_mbrl.testing import LinearToy

OBS, ACTION = spaces.Box(-10.0, 10.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
GAMMA = 0.9


def known(**kwargs):
    return LinearToy(OBS, ACTION, device="cpu", **kwargs)


def policy(obs):
    """Act deterministically."""
    return th.tanh(obs[:, :2])


def filled(buffer_class=ReplayBuffer, **kwargs):
    buffer, rng = buffer_class(32, OBS, ACTION, device="cpu", **kwargs), np.random.default_rng(0)
    for t in range(32):
        obs, after = rng.uniform(-1, 1, (2, 1, 3)).astype(np.float32)
        done = t % 5 == 4
        infos = [{"TimeLimit.truncated": t % 10 == 9}]
        buffer.add(obs, after, rng.uniform(-1, 1, (1, 2)), rng.uniform(-1, 1, 1), np.array([done]), infos)
    return buffer


def view(model):
    return LearnerView(model, policy, GAMMA, 0.5, th.Generator().manual_seed(0), lambda: None)


def by_hand(model, row, horizon, first_discount):
    """Compute the return of one row, its last state and the discount of that state's value, step by step in plain numbers."""
    total, discount, state = row["reward"], first_discount * (1 - row["done"]), row["next_obs"]
    for _ in range(horizon):
        prediction = model.step(state[None], policy(state[None]))
        total += discount * float(prediction.reward)
        discount *= GAMMA * (1 - float(prediction.terminated))
        state = model.decode(prediction.state)[0]
    return total, state, discount


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("ends", [False, True])
def test_targets_are_those_of_a_computation_by_hand(horizon, ends):
    model = known(termination_fn=(lambda obs, action, next_obs: next_obs[:, 0] > 0.3) if ends else None)
    buffer = filled()
    np.random.seed(3)
    real = buffer.sample(20)
    np.random.seed(3)
    batch = ValueExpansion(horizon).sampler(view(model), buffer).sample(20)
    assert real.dones.sum() > 0
    assert th.equal(batch.observations, real.observations)
    assert th.equal(batch.actions, real.actions)
    assert (batch.dones == 0).all()
    for i in range(20):
        row = {"reward": float(real.rewards[i]), "done": float(real.dones[i]), "next_obs": real.next_observations[i]}
        total, state, discount = by_hand(model, row, horizon, GAMMA)
        assert float(batch.rewards[i]) == pytest.approx(total, abs=1e-5)
        assert float(batch.discounts[i]) == pytest.approx(discount, abs=1e-6)
        th.testing.assert_close(batch.next_observations[i], state)


def test_rows_of_several_steps_keep_their_own_discount():
    buffer = filled(NStepReplayBuffer, n_steps=3, gamma=GAMMA)
    np.random.seed(3)
    real = buffer.sample(20)
    np.random.seed(3)
    batch = ValueExpansion().sampler(view(known()), buffer).sample(20)
    expected = real.discounts * (1 - real.dones) * GAMMA
    th.testing.assert_close(batch.discounts, expected)


def test_no_global_stream_moves():
    buffer = filled()
    sampler = ValueExpansion().sampler(view(known()), buffer)
    before = th.random.get_rng_state()
    sampler.sample(4)
    assert th.equal(th.random.get_rng_state(), before)


def test_it_trains_an_agent_and_stores_nothing():
    agent = MBPO(
        "MlpPolicy",
        "Pendulum-v1",
        imagination=ValueExpansion,
        world_model="pendulum",
        learning_starts=20,
        gradient_steps=1,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    ).learn(40)
    assert agent._n_updates > 0
    assert agent.imagined is None
    assert agent.trainer.trusted


def test_a_horizon_of_nothing_is_the_real_buffer_itself():
    assert ValueExpansion(0).sampler(view(known()), filled()) is None
    with pytest.raises(ValueError, match="horizon=-1: give a whole number from 0"):
        ValueExpansion(-1)


@pytest.mark.parametrize("name", ["mve", "steve"])
def test_a_share_of_real_rows_is_refused(name):
    with pytest.raises(ValueError, match=r"real_ratio=0.2: \w+ does not mix rows by it"):
        MBPO("MlpPolicy", "Pendulum-v1", imagination=name, real_ratio=0.2, world_model="ensemble")


def test_rewards_are_normalised_step_by_step():
    """VecNormalize clips: a sum of three rewards of 4 is 12, and would be 10 if it were clipped as a whole."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), norm_obs=False, clip_reward=10.0)
    env.ret_rms.var = np.array(1.0)
    reward = th.full((5,), 4.0)
    assert float(scaled_reward(reward, filled(), env).sum()) == pytest.approx(20.0, rel=1e-4)
    assert float(scaled_reward(100 * reward, filled(), env)[0]) == 10.0


@pytest.mark.parametrize(
    ("name", "message"), [("mve", "expands targets"), ("steve", "expands targets"), ("mopo", "lowers rewards")]
)
def test_hindsight_replay_is_refused(name, message):
    """The model's rewards know the real goals only; nobody computed those of other goals anew."""
    with pytest.raises(ValueError, match=message):
        MBPO(
            "MultiInputPolicy",
            BitFlippingEnv(continuous=True, n_bits=3),
            replay_buffer_class=HerReplayBuffer,
            imagination=name,
            world_model="ensemble",
        )


def test_targets_follow_the_policy_without_random_actions_and_noise():
    agent = Dyna("MlpPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    agent.exploration_rate = 1.0
    obs = th.randn(200, 4)
    greedy = agent._act_in_imagination(obs, explores=False)
    assert th.equal(greedy, agent.policy._predict(obs, deterministic=True).reshape(-1, 1))
    assert not th.equal(agent._act_in_imagination(obs), greedy)


def test_imagined_states_leave_batch_statistics_alone():
    """CrossQ's actor has batch renormalisation; each imagined step once moved its statistics."""
    agent = model_based(CrossQ)("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", world_model="pendulum")
    agent.policy.set_training_mode(True)
    before = {name: value.clone() for name, value in agent.actor.state_dict().items()}
    agent._act_in_imagination(th.randn(20, 3))
    assert agent.actor.training
    assert all(th.equal(value, before[name]) for name, value in agent.actor.state_dict().items())
