"""``DynaQ``: the book's figures, and an SB3 class like any other."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import DynaQ
from sb3_mbrl.envs.mazes import Maze


class Episodes(BaseCallback):
    """A callback that notes the steps of every episode, and stops after some episodes."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.lengths, self.last = n, [], 0

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            self.lengths.append(self.num_timesteps - self.last)
            self.last = self.num_timesteps
        return len(self.lengths) < self.n


def lengths(n: int, runs: int, episodes: int) -> np.ndarray:
    """Return the steps of every episode, ``(runs, episodes)``."""
    lengths = []
    for seed in range(runs):
        callback = Episodes(episodes)
        DynaQ("QTablePolicy", "DynaMaze-v0", gradient_steps=n, seed=seed).learn(10**6, callback=callback)
        lengths.append(callback.lengths)
    return np.array(lengths)


def test_the_maze_with_50_planning_updates():
    """Second and third episode, and the shortest way (Sutton and Barto 2018, figure 8.2); intervals: reference study, 6.1."""
    steps = lengths(50, 10, 15)
    assert 30 <= steps[:, 1].mean() <= 50
    assert steps[:, 2].mean() < 22
    assert steps[:, 5:].mean() < 18.5


def test_planning_beats_learning():
    steps = {n: lengths(n, 3, 4)[:, 1:].sum() for n in (0, 5)}
    assert steps[0] > 3 * steps[5]


@pytest.mark.parametrize("planning", ["dyna_q", "dyna_q_plus", "prioritized_sweeping", "value_iteration"])
def test_every_way_of_planning_finds_the_shortest_way(planning):
    """14 steps."""
    # Much exploration: what was never tried, no plan takes.
    settings = {"exploration_rate": 0.5, "kappa": 1e-4, "gradient_steps": 30}
    agent = DynaQ("QTablePolicy", "DynaMaze-v0", planning=planning, seed=0, **settings)
    agent.learn(4_000)
    mean, _ = evaluate_policy(agent, gym.make("DynaMaze-v0", max_episode_steps=100), n_eval_episodes=1, warn=False)
    assert mean == 1.0
    env = gym.make("DynaMaze-v0")
    obs, _ = env.reset()
    over, step = False, 0
    while not over and step < 20:
        step += 1
        action, _ = agent.predict(obs, deterministic=True)
        obs, _, over, _, _ = env.step(action)
    assert step == 14


def test_value_iteration_has_the_exact_values():
    settings = {"exploration_rate": 1.0, "train_freq": 500, "gradient_steps": 1_000, "theta": 1e-13}
    agent = DynaQ("QTablePolicy", "DynaMaze-v0", planning="value_iteration", seed=0, **settings)
    agent.learn(10_000)
    assert (agent.world_model.tables.n_tried > 0).sum() == 54 - 7 - 1, "everywhere but in walls and at the goal"
    # The value of a step beside the goal is 1; it falls by gamma with every step further away.
    assert agent.policy.table()[2 * 9].max() == pytest.approx(0.95**13, abs=1e-9)


def test_no_planning_is_q_learning():
    """Without a model, or without planning updates: the same to the last bit."""
    off = DynaQ("QTablePolicy", "DynaMaze-v0", world_model=None, gradient_steps=50, seed=3).learn(3_000)
    zero = DynaQ("QTablePolicy", "DynaMaze-v0", gradient_steps=0, seed=3).learn(3_000)
    assert np.array_equal(off.policy.table(), zero.policy.table())
    assert off.world_model is None
    assert zero.world_model.tables.total.sum() == 3_000


def test_terminal_states_and_time_limits():
    """A time limit is no termination: the next state's value counts. A terminal state's does not, whatever the table says."""
    env = gym.make("DynaMaze-v0", max_episode_steps=1)
    agent = DynaQ("QTablePolicy", env, gradient_steps=0, learning_rate=0.5, policy_kwargs={"initial_value": 2.0}, seed=0)
    agent.learn(1)
    changed = agent.policy.table()[18]
    assert changed[changed != 2.0].tolist() == [0.5 * 2.0 + 0.5 * 0.95 * 2.0]
    assert agent.world_model.tables.terminal.sum() == 0

    one_step = Maze(("SG",))
    agent = DynaQ("QTablePolicy", one_step, gradient_steps=0, learning_rate=0.5, policy_kwargs={"initial_value": 2.0}, seed=0)
    agent.learn(400)
    visits = agent.world_model.tables.total[0, 3]
    assert visits > 5
    assert agent.policy.table()[0, 3] == 1.0 + 0.5**visits, "halfway from 2 to 1 at every visit"


def test_dyna_q_plus_finds_the_shortcut_and_dyna_q_does_not():
    returns = {}
    for planning in ("dyna_q", "dyna_q_plus"):
        gains = []
        for seed in range(3):
            agent = DynaQ(
                "QTablePolicy",
                "ShortcutMaze-v0",
                learning_rate=1.0,
                gradient_steps=50,
                planning=planning,
                kappa=1e-3,
                world_model_kwargs={"memory": 0.0},
                seed=seed,
            )
            counter = Episodes(10**6)
            agent.learn(6_000, callback=counter)
            gains.append(len(counter.lengths))
        returns[planning] = np.mean(gains)
    assert returns["dyna_q_plus"] > returns["dyna_q"]


def test_a_bonus_grows_over_calls_of_learn():
    """Regression: bonuses vanished with every ``learn``, which resets ``num_timesteps`` but not the clock."""
    agent = DynaQ("QTablePolicy", "BlockingMaze-v0", planning="dyna_q_plus", world_model_kwargs={"memory": 0.0}, seed=0)
    agent.learn(300)
    agent.learn(100)
    assert (agent.num_timesteps, agent.tabular.clock) == (100, 400)
    last = agent.world_model.tables.last
    assert last.max() == 400
    assert (last[agent.world_model.tables.total > 0] > 0).all()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_prioritised_sweeping_updates_predecessors_with_any_step_size(alpha):
    """
    A corridor of four, a reward at its end. With a step size of 1 the real update leaves no error, but its
    predecessors must be queued all the same.
    """
    agent = DynaQ(
        "QTablePolicy",
        Corridor(),
        planning="prioritized_sweeping",
        learning_rate=alpha,
        gradient_steps=200,
        gamma=0.5,
        theta=1e-6,
        exploration_rate=0.0,
        seed=0,
    )
    agent.learn(4)
    np.testing.assert_allclose(agent.policy.table()[:4, 0], [0.125, 0.25, 0.5, 1.0], atol=1e-5)
    assert agent.tabular.queue.size[0] == 0


class Corridor(gym.Env):
    """One action, one cell further; the last cell ends the episode with a reward of 1, or with ``cut`` a time limit does."""

    observation_space = gym.spaces.Discrete(5)
    action_space = gym.spaces.Discrete(1)

    def __init__(self, cut: int = 99) -> None:
        self.cut = cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return self.t, float(self.t == 4), self.t == 4, self.t == self.cut, {}


def test_a_time_limit_bootstraps_from_what_came_last_not_from_the_reset():
    agent = DynaQ("QTablePolicy", Corridor(cut=2), learning_rate=1.0, gamma=0.5, world_model=None, seed=0)
    agent.policy.table()[:, 0] = [10.0, 20.0, 30.0, 40.0, 50.0]
    agent.learn(2)
    np.testing.assert_allclose(agent.policy.table()[:, 0], [10.0, 15.0, 30.0, 40.0, 50.0])


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"])
def test_gymnasiums_tables(env_id, tmp_path):
    if env_id not in gym.registry:
        pytest.skip(f"this Gymnasium has no {env_id}")
    agent = DynaQ("QTablePolicy", env_id, gradient_steps=10, seed=0)
    agent.learn(500)
    assert agent.world_model.tables.total.sum() == 500
    agent.save(tmp_path / "agent")
    loaded = DynaQ.load(tmp_path / "agent", env=gym.make(env_id))
    assert np.array_equal(loaded.policy.table(), agent.policy.table())
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.world_model.tables.total.sum() == 550


def test_a_loaded_agent_continues_to_the_last_bit(tmp_path):
    """Model, queue and random stream come back: both continuations are the same to the last bit."""
    agent = DynaQ("QTablePolicy", "DynaMaze-v0", planning="prioritized_sweeping", gradient_steps=5, seed=0)
    agent.learn(3_000)
    agent.save(tmp_path / "agent")
    first, second = (DynaQ.load(tmp_path / "agent", env=gym.make("DynaMaze-v0")) for _ in range(2))
    assert np.array_equal(first.tabular.queue.heap, agent.tabular.queue.heap)
    assert first.tabular.rng.bit_generator.state == agent.tabular.rng.bit_generator.state
    for loaded in (first, second):
        loaded.learn(1_000, reset_num_timesteps=False)
    assert np.array_equal(first.policy.table(), second.policy.table())
    assert not np.array_equal(first.policy.table(), agent.policy.table())


def test_several_environments_callbacks_and_the_progress_bar(tmp_path):
    env = make_vec_env("DynaMaze-v0", n_envs=3, seed=0)
    agent = DynaQ("QTablePolicy", env, gradient_steps=20, seed=0)
    evaluations = EvalCallback(gym.make("DynaMaze-v0", max_episode_steps=60), eval_freq=200, n_eval_episodes=1, verbose=0)
    checkpoints = CheckpointCallback(300, str(tmp_path), save_replay_buffer=True)
    agent.learn(3_000, callback=[evaluations, checkpoints])
    assert evaluations.best_mean_reward == 1.0
    assert len(list(tmp_path.glob("*.zip"))) == 3
    assert agent.world_model.tables.total.sum() == 3_000


def test_the_same_seed_gives_the_same_table():
    tables = []
    for _ in range(2):
        agent = DynaQ("QTablePolicy", "DynaMaze-v0", seed=7)
        agent.learn(700)
        tables.append(agent.policy.table().copy())
    assert np.array_equal(*tables)


def test_epsilon_is_per_row_and_ties_are_random():
    agent = DynaQ("QTablePolicy", "DynaMaze-v0", exploration_rate=0.0, seed=0)
    obs = np.full(4_000, 18)
    actions, _ = agent.predict(obs)
    assert np.bincount(actions, minlength=4).min() > 850
    assert (agent.predict(obs, deterministic=True)[0] == 0).all()
    agent.policy.table()[18, 2] = 1.0
    assert (agent.predict(obs)[0] == 2).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"planning": "best"}, "planning='best': choose one of dyna_q"),
        ({"gradient_steps": -1}, "gradient_steps=-1: give a whole number from 0"),
        ({"exploration_rate": 2.0}, "exploration_rate=2.0: give a number from 0 up to 1"),
        ({"theta": 0.0}, "theta=0.0: give a number above 0"),
        ({"world_model": "ensemble"}, "DynaQ plans on 'tabular', or not at all"),
        ({"world_model_kwargs": {"memory": -1}}, "memory=-1: give a number from 0"),
        ({"world_model_kwargs": {"memry": 1}}, "DynaQ's model takes memory, not {'memry'}"),
        ({"gamma": float("nan")}, "gamma=nan: give a number from 0 up to 1"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"kappa": float("inf")}, "kappa=inf"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": 3.0}, "learning_rate=3.0"),
        ({"gradient_steps": 2.5}, "gradient_steps=2.5"),
        ({"policy_kwargs": {"initial_value": float("nan")}}, "initial_value=nan"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        DynaQ("QTablePolicy", "DynaMaze-v0", **settings)


def test_other_spaces_are_pointed_to_dyna():
    with pytest.raises(ValueError, match=r"it takes Discrete observations, not Box.*there is Dyna"):
        DynaQ("QTablePolicy", "CartPole-v1")


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match=r"policy='MlpPolicy': DynaQ acts on a table, DynaQ\('QTablePolicy', env\)"):
        DynaQ("MlpPolicy", "DynaMaze-v0")


@pytest.mark.parametrize("given", [{"world_model": "tabular"}, {"world_model_kwargs": {"memory": 0.0}}])
def test_a_saved_model_goes_with_its_table(given, tmp_path):
    DynaQ("QTablePolicy", "DynaMaze-v0", seed=0).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="the saved model goes with the table"):
        DynaQ.load(tmp_path / "agent", **given)


def test_a_misspelt_setting_does_not_go_unnoticed_in_load(tmp_path):
    DynaQ("QTablePolicy", "DynaMaze-v0", seed=0).save(tmp_path / "agent")
    with pytest.raises(TypeError, match=r"DynaQ.load\(..., gamme=...\): there is no such argument. Did you mean 'gamma'"):
        DynaQ.load(tmp_path / "agent", gamme=0.5)
    assert DynaQ.load(tmp_path / "agent", gamma=0.5, custom_objects={}, force_reset=False).gamma == 0.5


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("observation", [float("nan"), 1.5, 54, -1])
def test_what_is_no_row_of_the_table(observation, deterministic):
    agent = DynaQ("QTablePolicy", "DynaMaze-v0", seed=0)
    with pytest.raises(ValueError, match="is not in Discrete"):
        agent.predict(np.array([observation]), deterministic=deterministic)
    assert agent.predict(np.array([1.0]), deterministic=deterministic)[0].shape == (1,)


def test_masks_are_refused_and_not_ignored():
    agent = DynaQ("QTablePolicy", "DynaMaze-v0")
    for deterministic in (True, False):
        with pytest.raises(TypeError, match=r"DynaQ.predict takes no action_masks: leave it out"):
            agent.predict(np.array(0), deterministic=deterministic, action_masks=np.ones((1, 4)))
