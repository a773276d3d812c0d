"""Toy data: known dynamics in every space, and the same rows as in a replay buffer."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.testing import CASES, ToyData, ToySystem

BOX, DISCRETE = CASES[0], CASES[2]


def rng(seed=0):
    return th.Generator().manual_seed(seed)


def data(case=BOX, **kwargs):
    return ToyData(case.observation_space, case.action_space, **kwargs)


# ---- the system


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_toy_system_stays_in_its_space(case):
    system, generator = ToySystem(case.observation_space, case.action_space), rng()
    obs = system.sample_starts(6, generator)

    def contains(obs):
        def row(space, value, i):
            return value[i].numpy().reshape(space.shape).astype(space.dtype)

        if isinstance(case.observation_space, spaces.Dict):
            named = case.observation_space.spaces.items()
            return all(case.observation_space.contains({k: row(s, obs[k], i) for k, s in named}) for i in range(6))
        return all(case.observation_space.contains(row(case.observation_space, obs, i)) for i in range(6))

    for _ in range(5):
        assert contains(obs)
        obs, reward, terminated = system.step(obs, system.sample_actions(6, generator))
        assert reward.shape == terminated.shape == (6,)
    assert contains(obs)


def test_continuous_values_move_as_the_docstring_says():
    """Bounds of ±5, so z = obs / 5; one action value, so u is plus or minus the action."""
    system = ToySystem(spaces.Box(-5, 5, (1,)), spaces.Box(-1, 1, (1,)))
    obs, action = th.tensor([[2.0], [-4.0]]), th.tensor([[0.5], [-1.0]])
    sign = float(system._mixing[""].sign())
    z = 0.6 * obs / 5 + 0.4 * sign * action
    next_obs, reward, terminated = system.step(obs, action)
    th.testing.assert_close(next_obs, 5 * z)
    th.testing.assert_close(reward, z[:, 0])
    assert terminated.tolist() == (z[:, 0] > 0.25).float().tolist()


def test_categories_move_by_at_most_one():
    system = ToySystem(DISCRETE.observation_space, DISCRETE.action_space)
    obs = th.arange(6)[:, None].repeat_interleave(3, 0)
    action = th.arange(3)[:, None].repeat(6, 1)
    next_obs, reward, _ = system.step(obs, action)
    moved = (next_obs - obs) % 6
    assert set(moved.flatten().tolist()) == {0, 1}
    assert moved.view(6, 3).eq(moved.view(6, 3)[:1]).all(), "whether it moves depends on the action alone"
    th.testing.assert_close(reward, 2.0 * next_obs[:, 0] / 5 - 1)


def test_actions_are_scaled_ones():
    """The environment's own bounds are others, so that a model that mixes up the two fails."""
    drawn = ToySystem(BOX.observation_space, BOX.action_space).sample_actions(1_000, rng())
    assert drawn.shape == (1_000, 2)
    assert -1 <= drawn.min() < -0.9
    assert 0.9 < drawn.max() <= 1
    assert BOX.action_space.low.tolist() == [-2.0, 0.0]
    assert BOX.action_space.high.tolist() == [2.0, 3.0]


# ---- rows


def test_toy_data_agrees_with_replay_data_on_the_same_rows():
    """The kit's data and the library's view on SB3's buffer mean the same by windows, contexts and terminations."""
    steps = 30
    toy = data(steps=steps, n_envs=2, episode_length=7)
    rows, real = toy._rows, toy.in_replay_buffer()
    assert len(real) == len(toy)
    for ours, theirs in zip(toy.transitions(), real.transitions(), strict=True):
        np.testing.assert_allclose(ours, theirs)
    index = {tuple(obs.tolist()): i for i, obs in enumerate(rows.obs.flatten(0, 1))}

    def described(context):
        """Map the last row of each window to its rows and flags."""
        where = [[index[tuple(obs.tolist())] for obs in window] for window in context.obs]
        return {
            w[-1]: (w, first.tolist(), last.tolist())
            for w, first, last in zip(where, context.is_first, context.is_last, strict=True)
        }

    ours, theirs = (described(view.contexts(600, 4, generator=rng())) for view in (toy, real))
    assert len(ours) == len(toy)
    assert ours == theirs
    ours, theirs = (described(view.sequences(600, 5, generator=rng())) for view in (toy, real))
    assert len(ours) == (steps - 4) * 2
    assert ours == theirs


def test_time_limits_are_no_terminations():
    rows = data(steps=50, n_envs=2, episode_length=5)._rows
    ends = rows.is_last
    assert (ends & (rows.terminated == 0)).any()
    assert (ends & (rows.terminated == 1)).any()
    assert (rows.terminated[~ends] == 0).all()


def test_ids_are_no_indices():
    ids = data(steps=3, n_envs=2).row_ids()
    assert ids.tolist() == list(range(10_000, 10_006))
    toy = data(steps=30, n_envs=2)
    window = toy.sequences(5, 4, generator=rng())
    assert (window.ids[:, 1:] - window.ids[:, :-1] == 2).all(), "rows of two environments lie side by side"
    assert set(toy.episode_starts().tolist()) == {10_000 + int(i) for i in toy._rows.is_first.flatten().nonzero()}


def test_extra_values_come_along_with_their_rows():
    toy = data(steps=20, n_envs=2, extra={"weight": (3,)})
    window = toy.sequences(6, 4, extra=("weight",), generator=rng())
    assert window.extra["weight"].shape == (6, 4, 3)
    step, env = (window.ids - 10_000) // 2, (window.ids - 10_000) % 2
    th.testing.assert_close(window.extra["weight"], toy._side["weight"][step, env])
    assert toy.sequences(2, 4).extra == {}
    real = toy.in_replay_buffer().sequences(6, 4, extra=("weight",), generator=rng())
    place = real.ids // 2, real.ids % 2
    th.testing.assert_close(real.extra["weight"], toy._side["weight"][place])


def test_constant_data_does_not_change():
    rows = data(constant=True, steps=10)._rows
    assert rows.obs.eq(rows.obs[:1]).all()
    assert rows.next_obs.eq(rows.obs).all()
    assert not rows.reward.any()


def test_noise_has_nothing_to_learn():
    """Next observations have no correlation with the present ones, nor rewards with anything."""
    rows = data(noise=True, steps=500).transitions()
    both = np.corrcoef(np.concatenate([rows.obs, rows.next_obs, rows.reward[:, None]], 1).T)
    assert np.abs(both[:3, 3:]).max() < 0.08
    assert not rows.terminated.any()


def test_windows_longer_than_the_data_are_refused():
    with pytest.raises(ValueError, match="Windows of 9 steps were asked for, but there are 8 per environment"):
        data(steps=8).sequences(1, 9)


def test_the_same_seed_is_the_same_data():
    one, same, other = data(), data(), data(seed=1)
    assert all(th.equal(a, b) for a, b in zip(one.transitions(), same.transitions(), strict=True))
    assert not th.equal(one.transitions().obs, other.transitions().obs)
