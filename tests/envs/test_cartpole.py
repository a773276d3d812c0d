"""CartPole with a continuous force, its twins, and what is known of it."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_checker import check_env

import sb3_mbrl  # noqa: F401
from sb3_mbrl.models.analytic import CartPoleBalanceModel, CartPoleSwingUpModel
from sb3_mbrl.plugins import get_registry
from sb3_mbrl.testing import check_world_model

IDS = ["CartPoleBalance-v0", "CartPoleSwingUp-v0"]
TWINS = dict(zip(IDS, [CartPoleBalanceModel, CartPoleSwingUpModel], strict=True))


@pytest.mark.parametrize("env_id", IDS)
def test_it_is_a_proper_environment(env_id):
    check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_it_is_drawn_as_gymnasium_draws_its_own(env_id, monkeypatch, recwarn):
    env = gym.make(env_id, render_mode="rgb_array")
    assert not recwarn.list, "a render mode that does not exist"
    assert env.metadata["render_fps"] == {"CartPoleBalance-v0": 50, "CartPoleSwingUp-v0": 25}[env_id]
    env.reset(seed=0)
    env.step(np.ones(1, np.float32))
    drawing, drawn = env.unwrapped._drawing, []
    monkeypatch.setattr(drawing, "render", lambda: drawn.append(drawing.state))
    env.render()
    np.testing.assert_array_equal(drawn, [env.unwrapped.state])
    shown = gym.make(env_id, render_mode="human").unwrapped
    monkeypatch.setattr(shown._drawing, "render", lambda: drawn.append(shown._drawing.state))
    shown.reset(seed=1)
    shown.step(np.ones(1, np.float32))
    assert len(drawn) == 3


def test_full_force_is_gymnasiums_cart_pole():
    """The same state, the same push: the same next state."""
    rng = np.random.default_rng(0)
    theirs, ours = gym.make("CartPole-v1").unwrapped, gym.make("CartPoleBalance-v0").unwrapped
    theirs.reset(), ours.reset()
    for _ in range(50):
        theirs.state = ours.state = rng.uniform(-0.2, 0.2, 4)
        theirs.steps_beyond_terminated = None
        action = int(rng.integers(2))
        expected, _, terminated, *_ = theirs.step(action)
        obs, reward, done, *_ = ours.step(np.array([2.0 * action - 1.0], np.float32))
        np.testing.assert_allclose(obs, expected, rtol=1e-6)
        assert (reward, done) == (1.0, terminated)


@pytest.mark.parametrize("env_id", IDS)
def test_200_steps(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    truncated = [env.step(np.zeros(1, np.float32))[3] for _ in range(200)] if env_id == IDS[1] else None
    assert env.spec.max_episode_steps == 200
    if truncated:
        assert truncated == [False] * 199 + [True]


def test_the_swing_ups_reward():
    """Hanging: two lengths away. Upright in the middle: 1."""
    env = gym.make("CartPoleSwingUp-v0").unwrapped
    env.reset(seed=0)
    env.state = np.array([0.0, 0.0, np.pi, 0.0])
    assert env.step(np.zeros(1, np.float32))[1] == pytest.approx(np.exp(-4.0), rel=1e-3)
    env.state = np.zeros(4)
    assert env.step(np.zeros(1, np.float32))[1] == pytest.approx(1.0)
    env.state = np.zeros(4)
    assert env.step(np.ones(1, np.float32))[1] == pytest.approx(0.99, abs=1e-3)


def test_the_cart_stops_at_the_ends_of_the_swing_ups_track_and_the_pole_swings_on():
    env = gym.make("CartPoleSwingUp-v0").unwrapped
    env.reset(seed=0)
    for side in (-1.0, 1.0):
        env.state = np.array([2.39 * side, 2.0 * side, np.pi, 0.0])
        obs = env.step(np.zeros(1, np.float32))[0]
        assert obs[0] == pytest.approx(2.4 * side)
        assert obs[1] == pytest.approx(0.0, abs=0.05)  # the swinging pole may pull it off again
        # 4/3 l theta' is kept relative to the ground: 2 m/s over 2/3 m; the lower end keeps moving, so theta turns against x.
        assert obs[4] == pytest.approx(-3.0 * side, abs=0.01)
        assert env.observation_space.contains(obs)
    for _ in range(100):
        obs = env.step(np.ones(1, np.float32))[0]
    assert obs[0] == pytest.approx(2.4)


def test_the_twin_stops_there_too():
    env, model = gym.make("CartPoleSwingUp-v0"), CartPoleSwingUpModel(device="cpu")
    obs, _ = env.reset(seed=1)
    state, at_the_end = model.initial(th.as_tensor(obs)[None]), 0
    for _ in range(100):
        obs = env.step(np.ones(1, np.float32))[0]
        state = model.step(state, th.ones(1, 1)).state
        np.testing.assert_allclose(model.decode(state)[0], obs, atol=2e-3)
        at_the_end += obs[0] == np.float32(2.4)
    assert 10 < at_the_end < 100


@pytest.mark.parametrize("env_id", IDS)
def test_the_twin_and_the_known_functions_follow_the_environment(env_id):
    env, rng = gym.make(env_id), np.random.default_rng(0)
    model, known = TWINS[env_id](device="cpu"), get_registry().env_functions(env)
    obs, _ = env.reset(seed=1)
    state = model.initial(th.as_tensor(obs)[None])
    for _ in range(30):
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        next_obs, reward, terminated, *_ = env.step(action)
        prediction = model.step(state, th.as_tensor(action)[None])
        batch = [th.as_tensor(value)[None] for value in (obs, action, next_obs)]
        np.testing.assert_allclose(model.decode(prediction.state)[0], next_obs, atol=2e-4)
        assert float(prediction.reward) == pytest.approx(reward, abs=1e-3)
        assert float(known.reward_fn(*batch)) == pytest.approx(reward, abs=1e-5)
        assert bool(known.termination_fn(*batch)) == bool(prediction.terminated) == terminated
        obs, state = next_obs, prediction.state
        if terminated:
            break


@pytest.mark.parametrize("env_id", IDS)
def test_the_twins_pass_the_kit(env_id):
    check_world_model(TWINS[env_id](device="cpu"))
