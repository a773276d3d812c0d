"""Real steps: nothing is stored that did not happen, whatever environments, callbacks and users do."""

import warnings

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_mbrl import MBPO, Dyna, DynaQ
from tests.helpers.agents import LEARNED, TINY, BrokenEnv, Counter, DictEnv, intact, learned, quick, tiny
from tests.helpers.resumed import CLASSES


class Cells(Counter):
    """A counter whose observations are categories from ``start`` on, with a wrong one at one step."""

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
    """SB3 returns before the step is stored, and continues from the observation before it."""
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


def test_a_second_learn_is_no_end_of_an_episode_that_the_model_misses(recwarn):
    """SB3's test_save_load.py::test_warn_buffer: with optimize_memory_usage, the cut between two calls counted as one."""
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


# ---- NaN and infinity: which environment, which key, which step


@pytest.mark.parametrize(
    ("what", "words"), [("observation", "observation"), ("reward", "reward"), ("terminal", "terminal observation")]
)
def test_real_data_that_is_not_finite_in_one_of_several_environments(what, words, tmp_path):
    def make(i):
        env = gym.make("Pendulum-v1", max_episode_steps=10)
        return (lambda: BrokenEnv(env, 15, what)) if i == 1 else (lambda: env)

    agent = quick(DummyVecEnv([make(i) for i in range(3)]))
    with pytest.raises(ValueError, match=f"Environment 1 returned NaN or infinity in its {words} at real step 45"):
        agent.learn(100)
    intact(agent, 14, tmp_path)


def test_real_data_that_is_not_finite_in_one_key(tmp_path):
    agent = MBPO("MultiInputPolicy", BrokenEnv(DictEnv(), 7, "place"), **TINY)
    with pytest.raises(
        ValueError, match=r"Environment 0 returned NaN or infinity in its observation\['place'\] at real step 7"
    ):
        agent.learn(10)
    intact(agent, 6, tmp_path)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("observation", "Environment 0 returned NaN or infinity in its observation at real step 70"),
        ("reward", "Environment 0 returned NaN or infinity in its reward at real step 70"),
        ("terminal", "Environment 0 returned NaN or infinity in its terminal observation at real step 70"),
    ],
)
def test_real_data_that_is_not_finite_is_an_error_and_costs_nothing(what, words, tmp_path):
    agent = tiny(BrokenEnv(gym.make("Pendulum-v1"), 70, what))
    with pytest.raises(ValueError, match=words):
        agent.learn(200)
    assert agent.replay_buffer.pos == 69
    agent.save(tmp_path / "agent")
    assert type(agent).load(tmp_path / "agent").num_timesteps == 70


def test_the_key_of_a_dict_observation_is_named():
    agent = MBPO("MultiInputPolicy", BrokenEnv(DictEnv(), 10, "place"), **TINY)
    with pytest.raises(ValueError, match=r"in its observation\['place'\] at real step 10"):
        agent.learn(100)


@pytest.mark.parametrize("what", ["reward", "terminal"])
def test_learning_after_refused_data_joins_no_two_episodes(what):
    """The environment is a step ahead of the buffer then: the row that would join both sides is not a transition."""
    agent = tiny(BrokenEnv(gym.make("Pendulum-v1"), 70, what))
    with pytest.raises(ValueError, match="NaN or infinity"):
        agent.learn(100)
    agent.learn(30, reset_num_timesteps=False)
    rows = agent.model_data.transitions()
    predicted = agent.world_model.decode(agent.world_model.step(agent.world_model.initial(rows.obs), rows.action).state)
    assert (predicted - rows.next_obs).abs().max() < 1e-3
    assert agent.replay_buffer.dones[68, 0] == agent.replay_buffer.timeouts[68, 0] == 1


def test_infinity_is_refused_also_where_vec_normalize_clips_it():
    env = VecNormalize(make_vec_env(lambda: BrokenEnv(gym.make("Pendulum-v1"), 70, "observation")), training=False)
    agent = tiny(env)
    with pytest.raises(ValueError, match="NaN or infinity in its observation at real step 70"):
        agent.learn(100)


# ---- vectorised environments that leave something out


class Leaves(VecEnvWrapper):
    """A wrapper that changes rewards and infos."""

    def __init__(self, n_envs: int, change, discrete: bool = False) -> None:
        super().__init__(DummyVecEnv([(lambda: Cells(5)) if discrete else (lambda: Counter(5))] * n_envs))
        self.change = change

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, self.change(rewards, infos), dones, infos


def without_ends(rewards, infos):
    for info in infos:
        info.pop("terminal_observation", None)
    return rewards


@pytest.mark.parametrize("cls", [MBPO, DynaQ])
def test_the_last_observation_of_an_episode_is_missing(cls):
    """DynaQ failed with KeyError: 'terminal_observation'; the others learned the next episode's first one, without a word."""
    env = Leaves(2, without_ends, discrete=cls is DynaQ)
    agent = MBPO("MlpPolicy", env, **SMALL) if cls is MBPO else DynaQ("QTablePolicy", env, seed=0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        agent.learn(30)
    said = [str(one.message) for one in seen if "terminal_observation" in str(one.message)]
    assert len(said) == 1
    assert said[0].startswith("Environment 0 ended an episode without infos[0]['terminal_observation']")


def test_rewards_of_another_shape():
    """ValueError: could not broadcast input array, from SB3's buffer."""
    agent = MBPO("MlpPolicy", Leaves(2, lambda rewards, infos: rewards[:, None]), **SMALL)
    with pytest.raises(ValueError, match=r"returned rewards of the shape \(2, 1\), and not one number each, \(2,\), at real"):
        agent.learn(10)


def test_truncated_is_none():
    """SB3 stores NaN as a time limit; the error came 20 steps later, from the replay buffer."""

    class Undecided(Counter):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, None, None, info

    agent = MBPO("MlpPolicy", Undecided(), **SMALL)
    with pytest.raises(ValueError, match="Environment 0 returned truncated=None, which is neither True nor False, at real"):
        agent.learn(10)
    assert agent.replay_buffer.pos == 0


def test_returns_survive_a_load_and_a_save_without_training(tmp_path):
    """The agent was loaded, saved again and loaded: VecNormalize scaled rewards by returns of zero."""
    agent = MBPO("MlpPolicy", VecNormalize(DummyVecEnv([Counter] * 2)), **SMALL).learn(16)
    returns = agent.real.state_dict()["returns"]
    assert (returns != 0).any()
    agent.save(tmp_path / "a")
    MBPO.load(tmp_path / "a").save(tmp_path / "b")
    np.testing.assert_array_equal(MBPO.load(tmp_path / "b").real.state_dict()["returns"], returns)


class Clock(gym.Env):
    """An environment whose observation is the number of steps since the reset, as one number or as a place."""

    def __init__(self, places: bool, actions: gym.Space) -> None:
        self.observation_space = spaces.Discrete(500) if places else spaces.Box(0, 500, (1,))
        self.action_space, self.places = actions, places

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), 0.0, False, False, {}

    def _obs(self):
        return self.t if self.places else np.array([self.t], np.float32)


class SaveAt(BaseCallback):
    """A callback that saves the agent after a step, before the step is stored, as SB3's own does."""

    def __init__(self, at: int, folder) -> None:
        super().__init__()
        self.at, self.folder = at, folder

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            self.model.save(self.folder / "agent")
            self.model.save_replay_buffer(self.folder / "buffer")
            (self.folder / "env").write_bytes(cloudpickle.dumps(self.model.get_env().unwrapped))
        return True


@pytest.mark.parametrize("name", CLASSES)
def test_a_save_in_a_callback_in_the_middle_of_a_step(tmp_path, name):
    """The kept environment was a step ahead: the first row after load led from before the lost step to after the next."""
    kind = CLASSES[name].kind
    actions = spaces.Discrete(2) if kind in (Dyna, DynaQ) else spaces.Box(-1, 1, (1,))
    agent = CLASSES[name].make(DummyVecEnv([lambda: Clock(kind is DynaQ, actions)]))
    agent.learn(70, callback=SaveAt(60, tmp_path))
    env = cloudpickle.loads((tmp_path / "env").read_bytes())
    loaded = kind.load(tmp_path / "agent", env=env, device="cpu", force_reset=False)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert (loaded.num_timesteps, loaded.replay_buffer.pos) == (60, 59)
    loaded.learn(12, reset_num_timesteps=False)
    buffer, n = loaded.replay_buffer, 59 + loaded.num_timesteps - 60
    obs, following = (rows[:n].reshape(n).tolist() for rows in (buffer.observations, buffer.next_observations))
    assert obs == [*range(59), *range(n - 59)]
    assert following == [t + 1 for t in obs]
    assert buffer.dones[58] == 1  # cut off
