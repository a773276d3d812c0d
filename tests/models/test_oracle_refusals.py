"""Mistakes that an oracle refuses, and the contract that it keeps."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.trees import tree_repeat
from tests.models.oracles import advance, as_obs, oracle_of


def test_subproc_vec_env_is_refused():
    oracle = OracleModel(*spaces_of("Pendulum-v1"), env="Pendulum-v1")
    vec_env = SubprocVecEnv([lambda: gym.make("Pendulum-v1")], start_method="fork")
    try:
        with pytest.raises(ValueError, match=r"SubprocVecEnv cannot be reached.*vec_env_cls=DummyVecEnv"):
            oracle.capture_vec(vec_env)
    finally:
        vec_env.close()


def spaces_of(env_id: str) -> tuple[gym.Space, gym.Space]:
    env = gym.make(env_id)
    return env.observation_space, env.action_space


def test_snapshot_is_required_and_must_fit():
    oracle = OracleModel(*spaces_of("Pendulum-v1"), env="Pendulum-v1", device="cpu")
    size = oracle.snapshot_size
    with pytest.raises(ValueError, match=r"capture_vec\(vec_env\).*side store"):
        oracle.initial(th.zeros(2, 3))
    with pytest.raises(ValueError, match=f"are \\(B, {size}\\) torch.float64, got .* torch.float32"):
        oracle.initial(th.zeros(2, 3), th.zeros(2, size))
    with pytest.raises(ValueError, match="same leading batch axis"):
        oracle.initial(th.zeros(3, 3), th.zeros(2, size, dtype=th.float64))
    with pytest.raises(ValueError, match=r"oracle is a .*PendulumEnv, .* is a .*CartPoleEnv"):
        oracle.capture(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="before its first reset"):
        OracleModel(*spaces_of("CartPole-v1"), env="CartPole-v1").capture(gym.make("CartPole-v1"))


def test_other_spaces_are_refused():
    env = gym.make("Pendulum-v1")
    stacked = VecFrameStack(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), 2)
    with pytest.raises(UnsupportedSpace, match="Wrappers of a VecEnv"):
        OracleModel(stacked.observation_space, env.action_space, env=env)
    with pytest.raises(UnsupportedSpace, match="acts in"):
        OracleModel(env.observation_space, spaces.Discrete(2), env=env)


def test_images_are_shown_channel_first_where_the_agent_sees_them_so():
    class Camera(gym.Env):
        observation_space, action_space = spaces.Box(0, 255, (36, 40, 3), np.uint8), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.image = self.np_random.integers(0, 255, (36, 40, 3), dtype=np.uint8)
            return self.image, {}

        def step(self, action):
            self.image = self.image[::-1].copy()
            return self.image, 1.0, False, False, {}

    env = Camera()
    oracle = OracleModel(spaces.Box(0, 255, (3, 36, 40), np.uint8), env.action_space, env=env, device="cpu")
    image, _ = env.reset(seed=1)
    obs = th.as_tensor(image).permute(2, 0, 1)[None]
    prediction = oracle.step(oracle.initial(obs, oracle.capture(env)[None]), th.zeros(1, 1, dtype=th.long))
    assert oracle.decode(prediction.state).dtype == th.uint8
    assert th.equal(oracle.decode(prediction.state), obs.flip(2))


def test_given_functions_replace_those_of_the_environment():
    env = gym.make("Pendulum-v1")
    oracle = oracle_of(
        env, reward_fn=lambda obs, action, _: action[:, 0] + obs[:, 2], termination_fn=lambda *_: th.tensor([True])
    )
    obs = advance(env, 3)
    prediction = oracle.step(oracle.initial(as_obs(env, obs), oracle.capture(env)[None]), th.tensor([[0.5]]))
    assert prediction.reward.item() == pytest.approx(1.0 + obs[2])
    assert prediction.terminated.item() == 1.0
    after = oracle.step(prediction.state, th.tensor([[0.5]]))
    assert (after.reward.item(), after.terminated.item()) == (0.0, 1.0)
    assert th.equal(after.state["obs"], prediction.state["obs"])


def test_action_that_is_not_finite_makes_a_reward_that_is_not():
    """Callers mask such rows; the environment is not asked."""
    env = gym.make("Pendulum-v1")
    oracle = oracle_of(env)
    state = tree_repeat(oracle.initial(as_obs(env, advance(env, 3)), oracle.capture(env)[None]), 2)
    prediction = oracle.step(state, th.tensor([[float("nan")], [0.0]]))
    assert prediction.reward.isnan().tolist() == [True, False]
    assert th.equal(prediction.state["obs"][0], state["obs"][0])


def test_saved_snapshots_are_read_by_another_oracle():
    """The reference that snapshots are compressed against travels in ``extra_state``."""
    env = gym.make("FrozenLake-v1")
    first = oracle_of(env)
    obs = advance(env, 2, seed=11)
    state = first.initial(as_obs(env, obs), first.capture(env)[None])
    other = gym.make("FrozenLake-v1")
    other.unwrapped.note = "another history, so another reference"
    second, action = oracle_of(other), th.tensor([[1]])
    with pytest.raises(ValueError, match=r"not a snapshot of .* given its extra_state"):
        second.step(state, action)
    second.load_extra_state(first.extra_state())
    assert th.equal(first.step(state, action).state["obs"], second.step(state, action).state["obs"])


def test_oracles_need_no_fitting():
    oracle = OracleModel(*spaces_of("Pendulum-v1"), env="Pendulum-v1")
    assert oracle.fitted
    assert oracle.needs_snapshot
    assert list(oracle.parameters()) == []
