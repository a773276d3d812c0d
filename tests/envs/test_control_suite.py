"""Tasks of the control suite. Those that need dm_control run where the extra ``dmc`` is installed."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from sb3_mbrl import MBPO
from sb3_mbrl.envs.control_suite import TASKS, ActionRepeat, make


class Pays(gym.Env):
    """Pays 1, 2, 3, ...; the fifth step ends the episode."""

    observation_space, action_space = spaces.Box(0, 9, (1,)), spaces.Box(-1, 1, (1,))

    def __init__(self, terminates):
        self.terminates = terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == 5
        return np.full(1, self.t, np.float32), float(self.t), over and self.terminates, over and not self.terminates, {}


@pytest.mark.parametrize("terminates", [True, False])
def test_rewards_of_a_repeated_action_are_summed_until_the_end(terminates):
    env = ActionRepeat(Pays(terminates), 2)
    env.reset()
    steps = [env.step(np.zeros(1)) for _ in range(3)]
    assert [float(step[1]) for step in steps] == [3.0, 7.0, 5.0]
    assert [float(step[0][0]) for step in steps] == [2.0, 4.0, 5.0]
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (terminates, not terminates)]


def test_tasks_are_registered_and_the_extra_is_named(monkeypatch):
    assert all(f"dmc/{task}-v0" in gym.registry for task in TASKS)
    monkeypatch.setitem(__import__("sys").modules, "shimmy", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-mbrl\[dmc\]"'):
        gym.make("dmc/cheetah-run-v0")


def test_actions_are_repeated_at_least_once():
    with pytest.raises(ValueError, match="action_repeat=0"):
        make("cheetah-run", action_repeat=0)


class TestWithTheExtra:
    @pytest.fixture(autouse=True)
    def extra(self):
        pytest.importorskip("dm_control", reason="the extra dmc is not installed")

    def test_a_task_is_what_sb3_expects(self):
        env = gym.make("dmc/cartpole-swingup-v0")
        assert env.observation_space == spaces.Box(-np.inf, np.inf, (5,), np.float32)
        assert env.action_space == spaces.Box(-1.0, 1.0, (1,), np.float64)
        check_env(env.unwrapped if env.unwrapped is env else env, warn=False)

    def test_episodes_are_cut_off_after_1000_steps_of_the_simulation(self):
        env = gym.make("dmc/cheetah-run-v0", action_repeat=4)
        env.reset(seed=0)
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(250)]
        assert ends[-1] == (False, True)
        assert set(ends[:-1]) == {(False, False)}

    def test_repeating_is_stepping_twice(self):
        twice, once = gym.make("dmc/finger-spin-v0"), gym.make("dmc/finger-spin-v0", action_repeat=1)
        first, second = twice.reset(seed=3)[0], once.reset(seed=3)[0]
        assert np.array_equal(first, second)
        action = np.array([0.3, -0.8])
        obs, reward, *_ = twice.step(action)
        both = [once.step(action) for _ in range(2)]
        assert np.array_equal(obs, both[1][0])
        assert reward == pytest.approx(sum(float(step[1]) for step in both))

    def test_mbpo_learns_in_one_with_its_preset(self):
        settings = MBPO.preset("dmc/cartpole-swingup-v0", learning_starts=100, fit_kwargs={"max_batches": 20})
        assert settings["world_model_kwargs"]["target"] == "next"
        assert settings["world_model_kwargs"]["normalize_targets"] is True
        agent = MBPO("MlpPolicy", "dmc/cartpole-swingup-v0", seed=0, device="cpu", **{**settings, "gradient_steps": 1})
        agent.learn(150)
        assert agent.world_model.fitted
        assert agent.num_timesteps == 150

    def test_other_tasks_are_listed(self):
        with pytest.raises(ValueError, match=r"task='cheetah-fly': the control suite has .*cheetah-run"):
            make("cheetah-fly")
