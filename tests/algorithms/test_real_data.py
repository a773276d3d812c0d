"""What real steps leave behind: nothing that did not happen, whatever environments, callbacks and users do."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MBPO, Dyna, DynaQ
from sb3_mbrl.models.oracle import OracleModel
from tests.algorithms.common import LEARNED, TINY, BrokenEnv, learned, tiny


class Counter(gym.Env):
    """Observes how many steps there have been since the reset; an episode has 1,000."""

    observation_space: spaces.Space = spaces.Box(0, 10_000, (1,))
    action_space: spaces.Space = spaces.Box(-1, 1, (1,))

    def __init__(self, length: int = 1_000) -> None:
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), float(self.t), False, self.t >= self.length, {}

    def _obs(self):
        return np.array([self.t], np.float32)


class Cells(Counter):
    """The same as a number, from ``start`` on; and at one step another one."""

    def __init__(self, length: int = 5, start: int = 0, at: int = -1, wrong: int = 0) -> None:
        super().__init__(length)
        self.start, self.at, self.wrong, self.count = start, at, wrong, 0
        self.observation_space = spaces.Discrete(length + 1, start=start)
        self.action_space = spaces.Discrete(2)

    def step(self, action):
        self.count += 1
        obs, *rest = super().step(action)
        return (self.wrong if self.count == self.at else obs, *rest)

    def _obs(self):
        return self.t + self.start


class StopsAt(BaseCallback):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def _on_step(self) -> bool:
        return self.n_calls < self.calls


SMALL = {**TINY, **LEARNED, "learning_starts": 10, "fit_freq": 50}


# ---- observations that are not in the space


@pytest.mark.parametrize(("at", "wrong"), [(7, 6), (10, 6), (10, 10**8), (3, -1)])
def test_a_table_is_not_read_or_written_outside(at, wrong):
    """Compiled code checks no bounds: with numba this corrupted memory (steps 5 and 10 end episodes)."""
    env = Cells(at=at, wrong=wrong)
    agent = DynaQ("QTablePolicy", env, seed=0)
    with pytest.raises(
        ValueError, match=rf"returned the (terminal )?observation {wrong}, which is not in Discrete\(6\), at real"
    ):
        agent.learn(40)
    assert agent.replay_buffer.pos == at - 1
    assert agent.world_model.tables.total.sum() == at - 1
    agent.learn(40, reset_num_timesteps=False)
    assert agent.world_model.tables.total.sum() == at - 1 + 40


def test_a_space_that_begins_at_one():
    """Index -1 would be the last row."""
    agent = DynaQ("QTablePolicy", Cells(start=1), seed=0).learn(20)
    assert agent.world_model.tables.total.sum() == 20
    with pytest.raises(ValueError, match=r"The observation 0 is not in Discrete\(6, start=1\)"):
        agent.predict(np.int64(0), deterministic=True)
    with pytest.raises(ValueError, match=r"The observation \[7\] is not in"):
        agent.predict(np.array([7]))


def test_a_learned_model_is_not_shown_categories_that_there_are_not():
    agent = Dyna("MlpPolicy", Cells(at=23, wrong=9), **SMALL)
    with pytest.raises(ValueError, match=r"Environment 0 returned the observation 9, which is not in Discrete\(6\)"):
        agent.learn(40)
    assert agent.replay_buffer.pos == 22


def test_a_reset_outside_the_space():
    class Lost(Cells):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 77, {}

    with pytest.raises(ValueError, match=r"returned the observation 77, which is not in Discrete\(6\), when it was reset"):
        DynaQ("QTablePolicy", Lost()).learn(10)


@pytest.mark.parametrize("planning", ["dyna_q", "prioritized_sweeping"])
def test_a_table_takes_no_reward_that_is_not_finite(planning):
    env = BrokenEnv(gym.make("DynaMaze-v0"), 30, "reward")
    agent = DynaQ("QTablePolicy", env, planning=planning, seed=0)
    with pytest.raises(ValueError, match="returned NaN or infinity in its reward at real step 30"):
        agent.learn(200)
    assert np.isfinite(agent.policy.table()).all()


# ---- running statistics


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_refused_step_leaves_the_statistics_as_they_were(what):
    env = VecNormalize(make_vec_env(lambda: BrokenEnv(gym.make("Pendulum-v1"), 70, what), seed=0))
    agent = learned(env)
    with pytest.raises(ValueError, match="at real step 70"):
        agent.learn(100)
    # 70 steps and a reset, of which the last step does not count.
    assert env.obs_rms.count == pytest.approx(70, abs=0.01)
    assert np.isfinite(env.obs_rms.mean).all()
    assert np.isfinite(env.ret_rms.var)
    assert np.isfinite(env.returns).all()
    agent.learn(30, reset_num_timesteps=False)
    assert agent.replay_buffer.pos == 69 + 30


# ---- ends of learn()


def transitions(agent):
    buffer = agent.replay_buffer
    rows = np.arange(buffer.pos)
    return (
        buffer.observations[rows, 0, 0],
        buffer.next_observations[rows, 0, 0],
        buffer.dones[rows, 0],
        buffer.timeouts[rows, 0],
    )


def test_a_callback_that_ends_training_joins_no_two_steps():
    """SB3 returns before the step is stored, and goes on from the observation before it."""
    agent = MBPO("MlpPolicy", Counter(), **SMALL)
    for _ in range(4):
        agent.learn(100, callback=StopsAt(7), reset_num_timesteps=False)
    obs, following, _, _ = transitions(agent)
    assert len(obs) == 4 * 6
    np.testing.assert_array_equal(following, obs + 1)


def test_a_callback_that_ends_training_leaves_no_such_outcome_in_a_table():
    agent = DynaQ("QTablePolicy", Cells(length=30), seed=0)
    for _ in range(4):
        agent.learn(100, callback=StopsAt(7), reset_num_timesteps=False)
    tables = agent.world_model.tables
    known = int(tables.sizes[0])
    np.testing.assert_array_equal(tables.state[:known], tables.source[:known] // 2 + 1)


def test_a_second_learn_begins_a_new_episode_in_the_data_too():
    """The environment is reset, and rows on both sides must not look like one episode."""
    agent = MBPO("MlpPolicy", Counter(), **SMALL).learn(30)
    agent.learn(20)
    obs, following, done, timeout = transitions(agent)
    assert (obs[29], following[29], obs[30]) == (29, 30, 0)
    assert (done[29], timeout[29]) == (1, 1)
    assert agent.model_data.episode_starts().tolist() == [0, 30]
    windows = agent.model_data.newest(1_000, 3, within=50)
    assert (windows.next_obs[:, -1, 0] - windows.obs[:, 0, 0] == 3).all()


def test_going_on_in_the_middle_of_an_episode_does_not_end_it():
    agent = MBPO("MlpPolicy", Counter(), **SMALL).learn(30)
    agent.learn(20, reset_num_timesteps=False)
    obs, following, done, _ = transitions(agent)
    np.testing.assert_array_equal(following, obs + 1)
    assert obs[30] == 30
    assert not done.any()


# ---- oracles


def test_an_oracle_of_another_environment_is_refused():
    agent = tiny(gym.make("Pendulum-v1", g=1.0), world_model="oracle", world_model_kwargs={"env": "Pendulum-v1"})
    with pytest.raises(ValueError, match=r"OracleModel repeats \d+ of 16 real transitions with another result"):
        agent.learn(60)


@pytest.mark.parametrize("starts", ["recent", "initial", lambda data, n, generator: data.row_ids()[:1].expand(n)])
def test_a_loaded_oracle_starts_where_it_has_snapshots(starts, tmp_path):
    """Those of rows from before the load are gone."""
    settings = {**TINY["imagination_kwargs"], "starts": starts}
    agent = tiny(world_model="oracle", world_model_kwargs={"env": "Pendulum-v1"}, imagination_kwargs=settings).learn(80)
    assert isinstance(agent.world_model, OracleModel)
    agent.save(tmp_path / "agent", exclude=["imagination_kwargs"] if callable(starts) else None)
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = MBPO.load(tmp_path / "agent", env=gym.make("Pendulum-v1"), imagination_kwargs=settings)
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(60, reset_num_timesteps=False)
    assert len(loaded.imagined) > 0


def test_a_rule_that_forgets_to_return():
    agent = tiny(imagination_kwargs={**TINY["imagination_kwargs"], "starts": lambda data, n, generator: None})
    with pytest.raises(ValueError, match=r"starts=.* returned None, expected \(2,\) integers"):
        agent.learn(60)


# ---- imagination, per real step


@pytest.mark.parametrize("rate", [0.25, 0.9, 1.5])
def test_start_states_per_real_step_are_neither_lost_nor_gained(rate, monkeypatch):
    """Rounded at every call, 0.9 a step was none or one."""
    agent = tiny(imagination_kwargs={"freq": 1, "starts_per_step": rate, "max_age": 20, "horizon": 1})
    asked = []
    original = MBPO._start_states
    monkeypatch.setattr(MBPO, "_start_states", lambda self, n, generator: asked.append(n) or original(self, n, generator))
    agent.learn(250)
    asked = asked[1:]  # the first are to validate the model
    # For the newest 20 of the first 51 steps, and for every step since.
    assert sum(asked) == int(rate * 250) - int(rate * 31)


def test_generalised_exploration_is_every_rows_own():
    """With gSDE all rows of imagination had one exploration matrix, and the same one every time."""
    agent = tiny(use_sde=True).learn(60)
    obs = th.zeros(500, 3)
    kept = agent.actor.action_dist.exploration_mat
    first, second = (agent._imagination_policy(obs) for _ in range(2))
    assert first.std() > 0.01
    assert not th.equal(first, second)
    assert agent.actor.action_dist.exploration_mat is kept


def test_imagined_rewards_are_normalised_when_sampled():
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    agent = tiny(env, real_ratio=0.0).learn(80)
    scale = float(np.sqrt(env.ret_rms.var + env.epsilon))
    assert scale > 2  # or this could not fail
    raw = agent.imagined.draw(64, th.Generator().manual_seed(1))["reward"]
    batch = agent.imagined.sample(64, agent.replay_buffer, env, th.Generator().manual_seed(1))
    th.testing.assert_close(batch.rewards.flatten(), raw.flatten() / scale)


def test_imagination_samples_the_policy_not_its_mean():
    agent = tiny().learn(60)
    obs = th.zeros(500, 3)
    assert agent._imagination_policy(obs).std() > 0.05


def test_a_second_learn_is_no_end_of_an_episode_that_the_model_misses(recwarn):
    """SB3's test_save_load.py::test_warn_buffer: with optimize_memory_usage, the cut between two calls was taken for one."""
    options = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    agent = learned(learning_starts=10, buffer_size=100, fit_freq=20, termination_fn=None, **options)
    agent.learn(50)
    agent.learn(50, reset_num_timesteps=False)
    assert [str(warning.message) for warning in recwarn if "optimize_memory_usage" in str(warning.message)] == []


def test_a_replay_buffer_that_was_deleted_can_be_loaded(tmp_path):
    """SB3's test_her.py::test_save_load_replay_buffer."""
    agent = tiny().learn(60)
    agent.save_replay_buffer(tmp_path / "buffer")
    del agent.replay_buffer
    agent.load_replay_buffer(tmp_path / "buffer")
    assert agent.replay_buffer.size() == 60
