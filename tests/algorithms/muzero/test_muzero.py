"""The agent: learning, two players, saving, refusals."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import MuZero
from sb3_mbrl.agent.joint_update import JointUpdate
from sb3_mbrl.algorithms.muzero.replay import EXPLORED, MASK, POLICY, SIGN, VALUE
from sb3_mbrl.envs.boards import Opponent, RandomPlayer
from tests.algorithms.muzero.agents import SMALL, Count, small


class Bandit(gym.Env):
    """One step; action 2 pays."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(action == 2), True, False, {}


def test_it_learns_which_action_pays():
    agent = small(Bandit(), learning_rate=3e-3, batch_size=32).learn(250)
    result = agent.search(np.zeros(2, np.float32))
    assert int(result.action[0]) == 2
    assert agent.predict(np.zeros(2, np.float32), deterministic=True)[0] == 2
    _, value = agent.latent_model.policy_value(agent.latent_model.initial(th.zeros(1, 2)))
    assert float(value.detach()) == pytest.approx(1.0, abs=0.3)


def test_results_of_searches_lie_beside_their_steps():
    agent = small(DummyVecEnv([Count] * 2)).learn(30)
    side = agent.real.side
    assert np.allclose(side.arrays[POLICY][:15].sum(-1), 1.0, atol=1e-5)
    assert side.written(VALUE)[:15].all()
    assert SIGN not in side.arrays
    assert MASK not in side.arrays


def test_every_update_is_of_the_budget_of_collected_steps():
    agent = small(DummyVecEnv([Count] * 2), gradient_steps=-1).learn(60)
    assert agent._n_updates == 60 - 20


def test_targets_are_of_a_network_that_is_copied_from_time_to_time():
    agent = small(gradient_steps=0, target_update_interval=3).learn(30)
    own, target = agent.latent_model, agent.policy.target
    for update in range(1, 8):
        agent.train(1)
        same = all(th.equal(one, other) for one, other in zip(own.parameters(), target.parameters(), strict=True))
        assert same == (update % 3 == 0)
    with th.no_grad():
        target.predictions.out.weight[2:] = 0.0
        target.predictions.out.bias[2:] = 10.0 * target.output.two_hot(th.tensor(3.0))
    expected = float(target.output.mean(target.predictions.out.bias[2:]))
    assert agent._target_value(th.zeros(2, 4)) == pytest.approx(expected)
    assert expected > 2.0


def test_rows_count_by_their_importance_weights(monkeypatch):
    agent, given = small(gradient_steps=0, alpha=1.0, beta=1.0).learn(30), []
    agent.replay.priorities.values[:30, 0] = np.arange(1, 31)
    call = JointUpdate.__call__
    monkeypatch.setattr(JointUpdate, "__call__", lambda *args, **kwargs: given.append(args[1]) or call(*args, **kwargs))
    agent.train(1, batch_size=8)
    rows, weights = given[0]
    assert 0 < weights.min() < weights.max() == 1.0
    one_by_one = th.stack([agent._losses(rows, one, None)[0] for one in th.eye(8)])  # each counts for an eighth of the mean
    assert float(agent._losses(rows, weights, None)[0]) == pytest.approx(float((weights * one_by_one).sum()), rel=1e-4)


def test_boards_are_played_for_both_players():
    agent = small(make_vec_env("TicTacToe-v0", 2), gamma=1.0, td_steps=-1, num_simulations=6).learn(60)
    assert agent.players == 2
    assert agent.latent_model.step_discount == -1.0
    assert (agent.real.side.arrays[SIGN][:30] == -1).all()
    masks = agent.real.side.arrays[MASK][:30]
    assert (np.take_along_axis(masks, agent.replay_buffer.actions[:30].astype(int), 2)).all(), "no illegal move was made"
    assert (agent.real.side.arrays[POLICY][:30][~masks] == 0).all()
    # Who wins gets 1, so the mover before would have had -1.
    drawn = agent.replay.draw(64, th.Generator().manual_seed(0))
    batch = agent.replay.batch(drawn, agent._target_value)
    decided = (drawn.steps.reward[:, 0] == 0) & (drawn.steps.reward[:, 1] == 1) & (drawn.steps.discount[:, 0] != 0)
    assert decided.any()
    assert np.allclose(batch.extra["value"][decided, 0], -1.0)


def test_save_and_load_without_an_environment(tmp_path):
    agent = small().learn(40)
    agent.save(tmp_path / "agent")
    loaded = MuZero.load(tmp_path / "agent", device="cpu")
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert th.equal(agent.policy.target.predictions.out.weight, loaded.policy.target.predictions.out.weight)


def test_explain_writes_the_tree(tmp_path):
    agent = small(num_simulations=6).learn(40)
    path = agent.explain(np.zeros(4, np.float32), tmp_path / "tree.html", labels=["left", "right"])
    page = path.read_text(encoding="utf-8")
    assert "6 simulations" in page
    assert "MuZero after 40 real steps" in page
    with pytest.raises(ValueError, match="was given 2 observations: give one"):
        agent.explain(np.zeros((2, 4), np.float32), tmp_path / "tree.html")


def test_a_schedule_of_simulations_and_of_temperature():
    agent = small(num_simulations=lambda progress: 2 + 6 * (1 - progress), search="puct").learn(40)
    assert agent.search(np.zeros(4, np.float32)).visits.sum() == 8
    agent._current_progress_remaining = 0.6
    assert (agent._simulations(), agent._temperature()) == (4, 1.0)
    agent._current_progress_remaining = 0.3
    assert agent._temperature() == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"td_steps": 0}, "td_steps=0"),
        ({"unroll_steps": 0}, "unroll_steps=0"),
        ({"reanalyze_ratio": 1.5}, "reanalyze_ratio=1.5"),
        ({"value_bootstrap": "mean"}, "value_bootstrap='mean'"),
        ({"search": "alpha"}, "search='alpha'"),
        ({"num_simulations": 0}, "num_simulations=0"),
        ({"world_model": "ensemble"}, "LatentModel"),
        ({"world_model": None}, "subclass of MuZeroModel, not None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MuZero("MlpPolicy", "CartPole-v1", **{**SMALL, **settings})


def test_a_buffer_without_searches_is_refused(tmp_path):
    from sb3_mbrl import Dyna

    other = Dyna("MlpPolicy", "CartPole-v1", buffer_size=200, learning_starts=10, world_model=None, device="cpu").learn(30)
    other.save_replay_buffer(tmp_path / "buffer")
    agent = small()
    with pytest.raises(ValueError, match="no results of searches"):
        agent.load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_run_is_estimated_before_it_begins(env):
    agent = small(env, n_sampled_actions=5)
    estimate = agent.estimate(100)
    assert estimate.updates == 80
    assert agent._n_updates == 0
    assert agent.replay_buffer.size() == 0


class Masked(gym.Env):
    """An environment with a given mask, and a given reward."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def __init__(self, mask=(True, False, True), reward=1.0):
        self.mask, self.reward = mask, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def action_masks(self):
        return self.mask

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), self.reward, False, self.t == 5, {}


@pytest.mark.parametrize("mask", [None, np.array([np.nan, 0, 1]), np.zeros(3), np.ones(2)])
def test_masks_of_environments_that_say_nothing(mask):
    with pytest.raises(ValueError, match=r"(action_mask (is|holds)|environment 0 (allows|has)) "):
        small(Masked(mask)).learn(2)


def test_rewards_beyond_the_support_are_reported_once():
    """A reward of a million was learned as 20, without a word."""
    agent = small(Masked(reward=1e6), learning_starts=1000)
    with pytest.warns(UserWarning, match=r"a reward of 1e\+06, .* value_range=20 as 20: scale the rewards") as seen:
        agent.learn(12)
    assert len([one for one in seen if "value_range" in str(one.message)]) == 1


def test_rewards_are_judged_as_they_are_stored():
    """Behind ``VecNormalize`` the reward of the step was judged, and the buffer keeps that of before."""
    env = VecNormalize(DummyVecEnv([lambda: Masked(reward=1e6)]), norm_obs=False)
    with pytest.warns(UserWarning, match=r"a reward of 1e\+06, .* value_range=20 as 20: scale the rewards"):
        small(env, learning_starts=1000).learn(3)


def test_steps_after_exploration_are_not_marked_as_random():
    """The marks of the last decision with ``exploration`` were stored with every later step."""
    agent = small(DummyVecEnv([Count] * 2), exploration=1.0, learning_starts=1000).learn(40)
    assert agent.real.side.arrays[EXPLORED][:20].any()
    agent.exploration = 0.0
    agent.learn(40, reset_num_timesteps=False)
    assert not agent.real.side.arrays[EXPLORED][20:40].any()


def test_an_environment_of_other_players_is_refused(tmp_path):
    """Rewards and values had the signs of one player, without a word."""
    alone = small(Opponent(gym.make("TicTacToe-v0"), RandomPlayer()))
    with pytest.raises(ValueError, match="turns=2, and the agent was made for 1: the signs"):
        alone.set_env(gym.make("TicTacToe-v0"))
    alone.save(tmp_path / "alone")
    with pytest.raises(ValueError, match="turns=2, and the agent was made for 1: the signs"):
        MuZero.load(tmp_path / "alone", env=gym.make("TicTacToe-v0"))
    alone.set_env(Opponent(gym.make("TicTacToe-v0"), RandomPlayer(1)))


def test_nothing_is_searched_from_nan():
    """The message was about an episode that is over."""
    agent = small(Masked())
    for ask in (agent.predict, agent.search):
        with pytest.raises(ValueError, match="The observation holds NaN or infinity"):
            ask(np.full(2, np.nan, np.float32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"num_simulations": lambda progress: 3 * progress}, "num_simulations=0: give a whole number from 1 on"),
        ({"num_simulations": lambda progress: None}, "num_simulations=None: give a whole number from 1 on"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan"),
        ({"gamma": float("nan")}, "gamma=nan: give a number from 0 up to 1"),
    ],
)
def test_settings_are_checked_before_the_run(settings, words):
    """They ended training in the middle: a schedule of simulations at its end."""
    with pytest.raises(ValueError, match=words):
        small(**settings)


# ---- bad input, refused at construction


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_simulations": 10**9}, "num_simulations=1000000000: give at most 1000000"),
        ({"search": "x"}, "search='x': choose 'gumbel' or 'puct'"),
        ({"search_kwargs": 3}, "search_kwargs=3: give a dictionary"),
        ({"search_kwargs": {"c_visits": 1}}, "search_kwargs does not take 'c_visits'. Did you mean 'c_visit'"),
        ({"search_kwargs": {"num_simulations": 3}}, "give num_simulations to MuZero"),
        ({"search_kwargs": {"q_norm": [1]}}, r"q_norm=\[1\]: choose one of"),
        ({"unroll_steps": 10**6}, "unroll_steps=1000000: give at most buffer_size=200"),
        ({"td_steps": 10**6}, "td_steps=1000000: give at most buffer_size=200.*-1: all rewards"),
        ({"optimizer_kwargs": 3}, "optimizer_kwargs=3: give a dictionary"),
        ({"optimizer_kwargs": {"lr": 1}}, "give learning_rate to MuZero"),
        ({"world_model": None}, "MuZero learns 'muzero' or a subclass of MuZeroModel, not None"),
        ({"world_model": "ensemble"}, "a subclass of RSSM or MuZeroModel, not 'ensemble'"),
        ({"compile": "x"}, "compile='x': choose 'auto', True or False"),
        ({"mixed_precision": 3}, "mixed_precision=3: choose"),
        ({"prioritized": "x"}, "prioritized='x': choose True or False"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_were_ignored_or_failed_later(wrong, words):
    """A search of a billion simulations filled the memory; names of the search were raw errors of Python."""
    with pytest.raises((ValueError, TypeError), match=words):
        small(**wrong)


def test_more_considered_actions_than_there_are_cost_nothing():
    """A table of a billion rows was computed for three actions."""
    agents = [small(Count(), search_kwargs={"max_considered_actions": n}) for n in (3, 10**9)]
    found = [agent.search(np.zeros(1, np.float32)) for agent in agents]
    assert np.array_equal(found[0].policy, found[1].policy)


def test_a_mask_of_text_in_predict():
    with pytest.raises(ValueError, match="action_mask is 'x': give true where an action is allowed"):
        small(Count()).predict(np.zeros(1, np.float32), action_masks="x")


@pytest.mark.parametrize("labels", [["a"], 3, "abc"])
def test_labels_that_are_none(tmp_path, labels):
    with pytest.raises(ValueError, match=r"labels=.*: give a name for each of the 3 actions"):
        small(Count()).explain(np.zeros(1, np.float32), tmp_path / "tree.html", labels=labels)


def test_load_refuses_an_argument_that_hides_a_method(tmp_path):
    """``load(path, search="puct")`` replaced the method ``search`` by a text, and changed nothing else."""
    small(Count()).save(tmp_path / "agent")
    with pytest.raises(TypeError, match=r"MuZero.load\(..., search=...\): this is a method. Did you mean 'search_"):
        MuZero.load(tmp_path / "agent", search="puct")


def test_a_checkpoint_of_one_player_does_not_play_a_game_of_two(tmp_path):
    """The signs of the values were those of one player, without a word."""
    small(Count()).save(tmp_path / "agent")
    game = Count()
    game.turns = 2
    with pytest.raises(ValueError, match="has turns=2, and the agent was made for 1"):
        MuZero.load(tmp_path / "agent", env=game)
    with pytest.raises(ValueError, match="has turns=2, and the agent was made for 1"):
        MuZero.load(tmp_path / "agent").set_env(game)


def test_load_refuses_settings_of_the_optimiser_that_the_saved_one_would_replace(tmp_path):
    agent = small(Count())
    agent.save(tmp_path / "agent")
    with pytest.raises(
        TypeError, match=r"optimizer_kwargs=.*: the optimiser in .*agent has its own, {'weight_decay': 0.0001}"
    ):
        MuZero.load(tmp_path / "agent", optimizer_kwargs={"weight_decay": 0.0})
    assert MuZero.load(tmp_path / "agent", optimizer_kwargs=agent.optimizer_kwargs).optimizer_kwargs == agent.optimizer_kwargs


def test_whole_floats_are_whole_numbers():
    """They were checked and stored as floats, and ended in an error of numpy or torch at the first update."""
    settings = {"td_steps": 2.0, "unroll_steps": 2.0, "batch_size": 8.0}
    model = {**SMALL["world_model_kwargs"], "latent": 8.0, "units": 16.0, "layers": 1.0, "chance_codes": 4.0}
    agent = small(**settings, world_model_kwargs=model).learn(22)
    assert agent._n_updates > 0
    assert isinstance(agent.td_steps, int)
    agent = small("Pendulum-v1", n_sampled_actions=4.0).learn(22)
    assert agent._n_updates > 0
    with pytest.raises(ValueError, match="norm='foo': choose 'rms', 'layer' or 'none'"):
        small(world_model_kwargs={"norm": "foo"})
