"""Batches of windows from a real replay buffer, against what is known of every step."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl.algorithms.muzero.replay import POLICY, VALUE, VERSION
from sb3_mbrl.envs.boards import TicTacToe
from tests.algorithms.muzero.agents import Count, small

GAMMA = 0.9


def collected(length, terminates, n_envs=1, steps=18, **settings):
    env = DummyVecEnv([lambda: Count(length, terminates)] * n_envs)
    return small(env, **{"learning_starts": 1000, **settings}).learn(steps)


def value_of(obs):
    """The target network's values, if they were the observation plus 100."""
    return 100.0 + obs[:, 0].numpy()


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("terminates", [False, True])
def test_every_window_has_the_targets_of_its_episode(terminates, n_envs):
    length, n = 4, 2
    agent = collected(length, terminates, n_envs, steps=18 * n_envs)
    drawn = agent.replay.draw(200, th.Generator().manual_seed(0))
    batch = agent.replay.batch(drawn, value_of)
    newest = agent.replay_buffer.size() - 1
    for row in range(200):
        place, start = drawn.positions[row, 0], int(batch.obs[row, 0, 0])
        assert start == place % length
        for k in range(agent.unroll_steps + 1):
            t, at = start + k, place + k
            # The episode's last step: after it the state is not part of the episode; after the newest nothing is known.
            alive = t < length and at <= newest
            gone = terminates and t >= length and place + (length - start) - 1 <= newest
            assert bool(batch.extra["policy_weight"][row, k]) == alive
            assert bool(batch.extra["value_weight"][row, k]) == (alive or gone)
            if k < agent.unroll_steps:
                assert bool(batch.extra["real"][row, k]) == alive
                assert bool(batch.extra["known"][row, k]) == (alive or gone)
                if alive:
                    assert float(batch.reward[row, k]) == 10.0 * (t + 1)
                    assert float(batch.next_obs[row, k, 0]) == t + 1, "also where the episode ends"
                if gone:
                    assert float(batch.reward[row, k]) == 0.0
                    assert float(batch.terminated[row, k]) == 1.0
            if not alive:
                if gone:
                    assert float(batch.extra["value"][row, k]) == 0.0
                continue
            value, weight = 0.0, 1.0
            for ahead in range(n):
                value += weight * 10.0 * (t + ahead + 1)
                weight *= GAMMA
                if t + ahead + 1 == length or at + ahead == newest:
                    break
            last = t + ahead + 1
            if not (terminates and last == length):
                value += weight * (100.0 + last)
            assert float(batch.extra["value"][row, k]) == pytest.approx(value, rel=1e-5)


def test_stored_values_are_those_of_the_searches():
    agent = collected(4, False)
    agent.real.side.arrays["search.value"][:18] = np.arange(18)[:, None] + 1000.0
    drawn = agent.replay.draw(50, th.Generator().manual_seed(0))
    batch = agent.replay.batch(drawn, value_of, stored_values=True)
    for row in range(50):
        place, start = drawn.positions[row, 0], int(batch.obs[row, 0, 0])
        if start + 2 < 4 and place + 2 < 18:  # both steps within the episode: the search of the state after them
            expected = 10 * (start + 1) + GAMMA * 10 * (start + 2) + GAMMA**2 * (1000 + place + 2)
            assert float(batch.extra["value"][row, 0]) == pytest.approx(expected, rel=1e-5)
        if start == 2:  # the second step ends the episode by a time limit: no search was made of what follows
            expected = 30 + GAMMA * 40 + GAMMA**2 * 104
            assert float(batch.extra["value"][row, 0]) == pytest.approx(expected, rel=1e-5)


def test_without_a_limit_targets_sum_all_rewards_of_the_episode():
    agent = collected(4, True, td_steps=-1)
    drawn = agent.replay.draw(50, th.Generator().manual_seed(0))
    batch = agent.replay.batch(drawn, value_of)
    full = [sum(GAMMA ** (t - s) * 10 * (t + 1) for t in range(s, 4)) for s in range(4)]
    rows = [row for row in range(50) if drawn.positions[row, 0] < 16]
    assert len(rows) > 30
    for row in rows:
        assert float(batch.extra["value"][row, 0]) == pytest.approx(full[int(batch.obs[row, 0, 0])], rel=1e-5)


def test_windows_of_large_priority_are_drawn_more_often():
    agent = collected(4, False, alpha=1.0, beta=1.0)
    agent.replay.priorities.values[:18] = 1.0
    agent.replay.priorities.values[7] = 9.0
    drawn = agent.replay.draw(4000, th.Generator().manual_seed(0))
    chosen = drawn.positions[:, 0] == 7
    assert chosen.mean() == pytest.approx(9 / 26, abs=0.03)
    assert drawn.weights[chosen][0] == pytest.approx(drawn.weights[~chosen][0] / 9)
    agent.replay.update(drawn, th.zeros(4000), agent.replay.batch(drawn, value_of))
    # |v - z| of a step in the middle of an episode: 10 (s + 1) + 9 (s + 2) + 0.81 (100 + s + 2).
    assert agent.replay.priorities.values[4, 0] == pytest.approx(10 + 18 + 0.81 * 102, rel=1e-4)


def test_reanalysis_replaces_the_results_of_searches():
    agent = collected(4, False, reanalyze_ratio=1.0)
    drawn = agent.replay.draw(8, th.Generator().manual_seed(0))
    before = agent.real.side.arrays[POLICY].copy()
    agent.real.side.arrays["search.version"][:] = -1
    agent._reanalyze(drawn)
    searched = agent.real.side.arrays["search.version"][:, 0] == 0
    wanted = set(drawn.positions[:, :4].ravel().tolist())
    assert set(np.flatnonzero(searched).tolist()) == wanted
    changed = (agent.real.side.arrays[POLICY] != before).any(-1)[:, 0]
    assert changed[searched].any()
    assert not changed[~searched].any()


def test_reanalysis_searches_each_position_with_its_own_mask_by_the_target_network():
    """
    The target network prefers squares in order and values every state with 0.5, and the other network is as new. Values do not
    count here (``c_scale=0``), so the improved policy is the target's own, over the free squares of the position; the root's
    value is the mean of its own and of two replies: ``(v - v - v) / 3``, or ``(v - v + v) / 3`` if there is one move.
    """
    settings = {"num_simulations": 2, "search_kwargs": {"c_scale": 0.0}, "reanalyze_ratio": 1.0}
    env = make_vec_env("TicTacToe-v0", 2, seed=0)
    agent = small(env, gamma=1.0, td_steps=-1, learning_starts=1000, **settings).learn(100)
    head, output = agent.policy.target.predictions.out, agent.policy.target.output
    with th.no_grad():
        head.bias[:9] = th.arange(9) / 3
        head.bias[9:] = output.two_hot(th.tensor(0.5)).clamp(min=1e-9).log()
    side = agent.real.side
    side.arrays[VERSION][:] = -1
    agent._reanalyze(agent.replay.draw(64, th.Generator().manual_seed(0)))
    searched = np.argwhere(side.arrays[VERSION] == 0)
    assert len(searched) > 80
    for place in map(tuple, searched):
        free = agent.replay_buffer.observations[place].sum(0).ravel() == 0
        expected = np.where(free, np.exp(np.arange(9) / 3), 0.0)
        assert side.arrays[POLICY][place] == pytest.approx(expected / expected.sum(), abs=1e-5)
        assert side.arrays[VALUE][place] == pytest.approx(0.5 / 3 * (1 if free.sum() == 1 else -1), abs=1e-4)


def test_a_window_may_be_longer_than_what_is_stored():
    agent = collected(4, True, steps=2)
    batch = agent.replay.batch(agent.replay.draw(8, th.Generator().manual_seed(0)), value_of)
    assert batch.reward.shape == (8, 3)
    assert batch.extra["real"][:, 0].all()
    assert not batch.extra["real"][:, 2].any()


@pytest.mark.parametrize("stored", [True, False])
def test_windows_follow_each_environment_around_a_full_buffer(stored):
    """
    Two environments with episodes of their own lengths and ends, in a ring that has been filled more than twice, against a
    record of every step: nothing of another episode, environment or lap comes into a target. Before a random move, too, values
    are those of the target network where it is to be: values of old searches once held all values down.
    """
    lengths, terminates = (3, 5), (True, False)
    env = DummyVecEnv([lambda env=env: Count(lengths[env], terminates[env]) for env in range(2)])
    agent = small(env, learning_starts=1000, buffer_size=34, exploration=0.3).learn(90)
    buffer, arrays = agent.replay_buffer, agent.real.side.arrays
    assert buffer.full
    assert buffer.pos == 45 % 17 > 0
    arrays[POLICY][:] = np.random.default_rng(0).dirichlet(np.ones(3), (17, 2))  # those of a new network are all alike
    drawn = agent.replay.draw(300, th.Generator().manual_seed(0))
    batch = agent.replay.batch(drawn, value_of, stored_values=stored)
    explored, searched = arrays["search.explored"] > 0, arrays["search.value"]
    assert explored.any()
    seen = set()

    def target(age, env, n):
        """The value of the state before the step of an age, by recursion; 44 is the newest step."""
        t, slot = age % lengths[env], age % 17
        if n == 0 or (age <= 44 and explored[slot, env]):
            return searched[slot, env] if stored and age <= 44 else 100.0 + t
        reward, last = 10.0 * (t + 1), t + 1 == lengths[env]
        if last and terminates[env]:
            return reward
        return reward + GAMMA * (100.0 + t + 1 if last or age == 44 else target(age + 1, env, n - 1))

    for row in range(300):
        env = int(drawn.envs[row])
        age = next(age for age in range(28, 45) if age % 17 == drawn.positions[row, 0])
        t = age % lengths[env]
        assert int(batch.obs[row, 0, 0]) == t
        seen.add((age, env))
        for k in range(4):
            alive = t + k < lengths[env] and age + k <= 44
            assert bool(batch.extra["policy_weight"][row, k]) == alive
            if alive:
                assert float(batch.extra["value"][row, k]) == pytest.approx(target(age + k, env, 2), rel=1e-5)
                itself = bool(explored[(age + k) % 17, env]) and not stored
                assert bool(batch.extra["value_weight"][row, k]) != itself, "a state's value by the network teaches it nothing"
                assert np.array_equal(batch.extra["policy"][row, k], arrays[POLICY][(age + k) % 17, env])
            if alive and k < 3:
                assert int(batch.obs[row, k, 0]) == t + k
                assert int(batch.next_obs[row, k, 0]) == t + k + 1
                assert int(batch.action[row, k, 0]) == buffer.actions[(age + k) % 17, env, 0]
    assert len(seen) == 34, "every step was the first of a window"


def test_targets_of_games_are_the_results_for_who_moves():
    """
    Games of both players in a full ring: each stored move is played again by the rules, and the value of every state is 1, 0
    or -1 for its mover. LightZero has wrong signs for every other start; muzero-general once had those of all rewards.
    """
    env = make_vec_env("TicTacToe-v0", 2, seed=0)
    agent = small(env, gamma=1.0, td_steps=-1, num_simulations=2, learning_starts=1000, buffer_size=60).learn(100)
    drawn = agent.replay.draw(400, th.Generator().manual_seed(0))
    batch = agent.replay.batch(drawn, lambda obs: np.zeros(len(obs)))
    buffer = agent.replay_buffer
    positions = agent.replay.data.positions()
    results = {}
    for owner in range(2):
        ends = np.flatnonzero(buffer.dones[positions, owner])
        for end in ends:
            table = TicTacToe()
            table.reset()
            table.set_position(table.game.position_of(buffer.observations[positions[end], owner]))
            mover = table.to_move
            *_, info = table.step(int(buffer.actions[positions[end], owner, 0]))
            assert info["winner"] in (mover, None), "the last move of a game wins or draws"
            start = max([one for one in ends if one < end], default=-1) + 1
            for age in range(start, end + 1):
                sign = 1 if (end - age) % 2 == 0 else -1
                results[positions[age], owner] = 0 if info["winner"] is None else sign
    checked = {-1: set(), 0: set(), 1: set()}
    for row in range(400):
        for k in range(4):
            place = drawn.positions[row, k], int(drawn.envs[row])
            if bool(batch.extra["policy_weight"][row, k]) and place in results:
                assert float(batch.extra["value"][row, k]) == results[place]
                checked[results[place]].add(place)
    assert len(checked[1]) > 8
    assert len(checked[-1]) > 8


@pytest.mark.parametrize("setting", [{"optimize_memory_usage": True}, {}])
def test_buffers_that_lose_the_ends_of_episodes_are_refused(setting):
    """Time limits were learned as terminations, and the first observations of the next episodes as the last ones."""
    agent = collected(4, False)
    spaces = agent.observation_space, agent.action_space
    agent.replay_buffer = ReplayBuffer(50, *spaces, "cpu", handle_timeout_termination=False, **setting)
    with pytest.raises(ValueError, match=r"bootstrap through time limits, .* leave them out"):
        agent.learn(2)
