"""AlphaZero: the same search in the true environment, by ``search_model="oracle"``; learned games are in test_policy."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_mbrl import MuZero
from sb3_mbrl.algorithms.muzero.replay import SNAPSHOT
from sb3_mbrl.envs.boards import TIC_TAC_TOE, Position, TicTacToe
from sb3_mbrl.envs.boards.minimax import solve
from tests.algorithms.muzero.agents import small

BOARD = {"gamma": 1.0, "td_steps": -1, "num_simulations": 6, "search_model": "oracle"}


def board(n_envs: int = 2, **settings) -> MuZero:
    return small(make_vec_env("TicTacToe-v0", n_envs), **{**BOARD, **settings})


def won_in_one(position: Position) -> list[int]:
    return [move for move in TIC_TAC_TOE.legal(position) if TIC_TAC_TOE.won(TIC_TAC_TOE.play(position, move))]


def test_an_untrained_agent_wins_where_one_move_wins():
    """The learned dynamics know nothing yet; the rules do."""
    at_hand = [position for position in solve(TIC_TAC_TOE) if won_in_one(position)]
    rows = np.random.default_rng(0).choice(len(at_hand), 200, replace=False)
    chosen = [at_hand[row] for row in rows]
    obs = np.stack([TIC_TAC_TOE.planes(position) for position in chosen])
    masks = np.stack([TIC_TAC_TOE.mask(position) for position in chosen])
    agent = board(num_simulations=64, search_kwargs={"q_norm": "none"})
    moves, _ = agent.predict(obs, deterministic=True, action_masks=masks)
    assert all(move in won_in_one(position) for move, position in zip(moves, chosen, strict=True))
    agent = board(num_simulations=64, search_kwargs={"q_norm": "none"}, search_model="learned")
    moves, _ = agent.predict(obs, deterministic=True, action_masks=masks)
    assert not all(move in won_in_one(position) for move, position in zip(moves, chosen, strict=True))


def test_only_legal_moves_are_edges_at_every_depth():
    agent = board(num_simulations=40)
    env = TicTacToe()
    obs, _ = env.reset(options={"moves": [4, 0, 8]})
    tree = agent.search(obs).tree
    assert tree.depth[0] >= 2
    for node in np.flatnonzero(tree.total[0] > 0):
        snapshot = tree.states["game"]["snapshot"][node, 0].numpy()
        env.restore(snapshot)
        over = TIC_TAC_TOE.over(env.position)
        legal = np.ones(9, bool) if over else env.action_masks()
        assert ((tree.prior[0, node, :9] > 0) == legal).all()
        if node:
            ends = 0.0 if over else -1.0
            assert tree.discount[0, node] == ends
            assert tree.reward[0, node] == float(TIC_TAC_TOE.won(env.position))


def test_states_are_stored_beside_their_steps_and_searched_again():
    agent = board(reanalyze_ratio=0.5).learn(60)
    stored, masks = agent.real.side.arrays[SNAPSHOT][:30], agent.real.side.arrays["search.mask"][:30]
    env = TicTacToe()
    for snapshot, mask, obs in zip(
        stored.reshape(60, -1), masks.reshape(60, -1), agent.replay_buffer.observations[:30].reshape(60, 2, 3, 3), strict=True
    ):
        env.restore(snapshot)
        assert (env.observe() == obs).all()
        assert (env.action_masks() == mask).all()
        assert (env.snapshot_of(obs) == snapshot).all()


def test_resuming_continues_the_run(tmp_path):
    """The environments are kept, in the middle of their games."""
    agent = board(reanalyze_ratio=0.5).learn(40)
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    env = copy.deepcopy(agent.env)
    agent.learn(40, reset_num_timesteps=False)
    loaded = MuZero.load(tmp_path / "agent", env=env, force_reset=False, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(40, reset_num_timesteps=False)
    assert np.array_equal(agent.replay_buffer.observations[:40], loaded.replay_buffer.observations[:40])
    for own, other in zip(agent.latent_model.parameters(), loaded.latent_model.parameters(), strict=True):
        assert th.equal(own, other)


def test_load_may_choose_the_learned_model(tmp_path):
    agent = board(num_simulations=64).learn(30)
    agent.save(tmp_path / "agent")
    obs = TIC_TAC_TOE.planes(Position(0, 0))
    with pytest.raises(ValueError, match=r"the agent has none: load it with load\(\.\.\., env=\.\.\.\)"):
        MuZero.load(tmp_path / "agent", device="cpu").predict(obs)
    learned = MuZero.load(tmp_path / "agent", device="cpu", search_model="learned")
    assert "game" not in learned.search(obs).tree.states
    late = MuZero.load(tmp_path / "agent", device="cpu")
    late.set_env(make_vec_env("TicTacToe-v0", 2))
    assert np.array_equal(late.search(obs).policy, agent.search(obs).policy)


class Coin(gym.Env):
    """One step of which the observation says nothing: action 1 pays where the hidden coin is heads."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.heads = bool(self.np_random.integers(2))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action == self.heads), True, False, {}


def test_a_state_that_observations_do_not_show():
    """In training the environment's own state is searched; to predict there is only the observation."""
    agent = small(DummyVecEnv([Coin] * 2), search_model="oracle", num_simulations=8).learn(60)
    rewards = agent.replay_buffer.rewards[:30]
    assert rewards.mean() > 0.8, "the search sees the coin"
    with pytest.raises(ValueError, match="cannot tell the environment's state from an observation"):
        agent.predict(np.zeros(1, np.float32))


def test_environments_in_other_processes_are_refused():
    env = SubprocVecEnv([Coin])
    try:
        with pytest.raises(ValueError, match="in other processes: use DummyVecEnv"):
            small(env, search_model="oracle")
    finally:
        env.close()


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="search_model='true': choose 'learned' or 'oracle'"):
        board(search_model="true")
