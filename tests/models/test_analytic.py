"""The differentiable twins agree with Gymnasium's environments, and so do their derivatives."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.models.analytic import CartPoleModel, PendulumModel
from sb3_mbrl.trees import batch_size

ANGLES = st.floats(-np.pi, np.pi, exclude_max=True)


def pendulum_state(*rows: tuple[float, float]) -> dict[str, th.Tensor]:
    theta, theta_dot = th.as_tensor(np.array(rows)).unbind(1)
    return {"theta": theta, "theta_dot": theta_dot}


def gym_pendulum(theta: float, theta_dot: float, **kwargs) -> gym.Env:
    env = gym.make("Pendulum-v1", **kwargs).unwrapped
    env.reset()
    env.state = np.array([theta, theta_dot])
    return env


@pytest.mark.parametrize("kwargs", [{}, {"g": 3.7}])
def test_pendulum_follows_the_environment_for_200_steps(kwargs):
    rng = np.random.default_rng(0)
    starts = np.stack([rng.uniform(-np.pi, np.pi, 8), rng.uniform(-8, 8, 8)], 1)
    envs = [gym_pendulum(*start, **kwargs) for start in starts]
    model, state = PendulumModel(device="cpu", **kwargs), pendulum_state(*starts)
    for _ in range(200):
        action = rng.uniform(-1.2, 1.2, (8, 1))  # also beyond the torque limit, where the environment clips
        steps = [env.step(2 * a) for env, a in zip(envs, action, strict=True)]
        prediction = model.step(state, th.as_tensor(action))
        state = prediction.state
        np.testing.assert_allclose(model.decode(state), [obs for obs, *_ in steps], atol=1e-5)
        np.testing.assert_allclose(prediction.reward, [reward for _, reward, *_ in steps], atol=1e-5)
        assert prediction.terminated.sum() == 0


def test_pendulum_from_observations_as_sb3_stores_them():
    """One step at a time in float32, from the observations of the environment itself."""
    env, model = gym.make("Pendulum-v1"), PendulumModel(device="cpu")
    obs, _ = env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(199):
        action = env.action_space.sample()
        state = model.initial(th.as_tensor(obs)[None])
        np.testing.assert_allclose(model.decode(state)[0], obs, atol=1e-6)
        prediction = model.step(state, th.as_tensor(action)[None] / 2)
        obs, reward, *_ = env.step(action)
        assert prediction.reward.dtype == th.float32
        np.testing.assert_allclose(model.decode(prediction.state)[0], obs, atol=1e-5)
        assert prediction.reward.item() == pytest.approx(reward, abs=1e-5)
        assert model.observation_space.contains(model.decode(prediction.state)[0].numpy())


@settings(max_examples=30, deadline=None)
@given(ANGLES, st.floats(-8, 8), st.floats(-2, 2))
def test_pendulum_one_step_anywhere(theta, theta_dot, torque):
    env = gym_pendulum(theta, theta_dot)
    _, reward, *_ = env.step(np.array([torque]))
    action = th.tensor([[torque / 2]], dtype=th.float64)
    prediction = PendulumModel(device="cpu").step(pendulum_state((theta, theta_dot)), action)
    assert [prediction.state[key].item() for key in ("theta", "theta_dot")] == pytest.approx(env.state.tolist(), abs=1e-12)
    # at -pi and pi the angle is the same but its sign is not, and the cost is that of its square
    assert prediction.reward.item() == pytest.approx(float(reward), abs=1e-9)


def test_cart_pole_follows_the_environment_for_200_steps():
    """Two constant-force rows and two that balance with a hand-made controller, from random states."""
    rng = np.random.default_rng(0)
    model = CartPoleModel(device="cpu")
    for row in range(4):
        env = gym.make("CartPole-v1").unwrapped
        env.reset()
        start = rng.uniform(-0.05, 0.05, 4)
        env.state = start
        state = model.initial(th.as_tensor(start)[None])
        steps = 0
        for _ in range(200):
            x, x_dot, theta, theta_dot = env.state
            push = int(theta + 0.5 * theta_dot + 0.02 * x + 0.05 * x_dot > 0) if row >= 2 else row
            obs, reward, terminated, *_ = env.step(push)
            prediction = model.step(state, th.tensor([[push]]))
            state = prediction.state
            np.testing.assert_allclose(model.decode(state)[0], obs, rtol=1e-6, atol=1e-6)
            assert prediction.reward.item() == reward
            assert prediction.terminated.item() == terminated
            steps += 1
            if terminated:
                break
        assert (steps == 200) == (row >= 2)


def test_cart_pole_one_float32_step_from_random_states():
    rng = np.random.default_rng(3)
    obs = rng.uniform(-1, 1, (64, 4)).astype(np.float32) * np.array([2.6, 3, 0.25, 3], np.float32)
    actions = rng.integers(0, 2, (64, 1))
    model = CartPoleModel(device="cpu")
    prediction = model.step(model.initial(th.as_tensor(obs)), th.as_tensor(actions))
    env = gym.make("CartPole-v1").unwrapped
    terminated = []
    for i in range(64):
        env.reset()
        env.state = obs[i].astype(np.float64)
        next_obs, _, end, *_ = env.step(actions[i, 0])
        np.testing.assert_allclose(model.decode(prediction.state)[i], next_obs, rtol=1e-5, atol=1e-5)
        terminated.append(float(end))
    assert prediction.terminated.tolist() == terminated
    assert 5 < sum(terminated) < 60


def test_cart_pole_sutton_barto_reward():
    model = CartPoleModel(device="cpu", sutton_barto_reward=True)
    state = model.initial(th.tensor([[0.0, 0.0, 0.0, 0.0], [2.39, 3.0, 0.0, 0.0]]))
    assert model.step(state, th.tensor([[1], [1]])).reward.tolist() == [0.0, -1.0]


def test_cart_pole_decodes_members_of_the_space_long_after_the_end():
    model = CartPoleModel(device="cpu")
    state = model.initial(th.zeros(1, 4))
    for _ in range(300):
        state = model.step(state, th.tensor([[1]])).state
        assert model.observation_space.contains(model.decode(state)[0].numpy())


@pytest.mark.parametrize(("theta", "theta_dot"), [(0.3, -1.0), (2.5, 4.0), (-1.2, 0.1)])
def test_pendulum_gradients_through_ten_steps(theta, theta_dot):
    """The return's derivatives by every action and by the start, against central differences (float64)."""
    model = PendulumModel(device="cpu")

    def total(actions: th.Tensor, theta: th.Tensor, theta_dot: th.Tensor) -> th.Tensor:
        state, value = {"theta": theta, "theta_dot": theta_dot}, th.zeros(1, dtype=th.float64)
        for action in actions:
            prediction = model.step(state, action[None])
            state, value = prediction.state, value + prediction.reward
        return value

    actions = (0.1 * th.arange(-5.0, 5.0, dtype=th.float64)[:, None]).requires_grad_()
    start = [th.tensor([value], dtype=th.float64, requires_grad=True) for value in (theta, theta_dot)]
    assert th.autograd.gradcheck(total, (actions, *start))


def test_cart_pole_gradients_through_ten_steps():
    model = CartPoleModel(device="cpu")

    def last_obs(obs: th.Tensor) -> th.Tensor:
        state = model.initial(obs)
        for i in range(10):
            state = model.step(state, th.tensor([[i % 2]])).state
        return model.decode(state)

    assert th.autograd.gradcheck(last_obs, th.tensor([[0.01, -0.02, 0.03, 0.1]], dtype=th.float64, requires_grad=True))


def test_given_functions_replace_those_of_the_twin():
    """They see what a plugin's functions are promised: batched raw observations, actions in the environment's units."""
    seen = []

    def reward_fn(obs, action, next_obs):
        seen.append((obs, action, next_obs))
        return action[:, 0] * 10

    model = PendulumModel(device="cpu", reward_fn=reward_fn, termination_fn=lambda obs, action, next_obs: next_obs[:, 2] > 0)
    state = pendulum_state((0.0, 1.0), (0.0, -1.0))
    prediction = model.step(state, th.tensor([[0.5], [-0.25]], dtype=th.float64))
    assert prediction.reward.tolist() == [10.0, -5.0]
    assert prediction.terminated.tolist() == [1.0, 0.0]
    obs, _, next_obs = seen[0]
    assert obs.tolist() == [[1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]
    assert next_obs[:, 2].tolist() == pytest.approx([1.15, -1.075])


def test_twins_are_world_models_that_need_no_fitting():
    for model, env_id in ((PendulumModel(device="cpu"), "Pendulum-v1"), (CartPoleModel(device="cpu"), "CartPole-v1")):
        env = gym.make(env_id)
        assert (model.observation_space, model.action_space) == (env.observation_space, env.action_space)
        assert model.fitted
        assert list(model.parameters()) == []
        state = model.initial(th.as_tensor(np.stack([env.reset(seed=i)[0] for i in range(3)])))
        assert batch_size(state) == 3
        assert model.features(state).shape[0] == 3
        with pytest.raises(UnsupportedSpace, match="twin"):
            type(model)(spaces.Box(-1, 1, (7,)), env.action_space)
        with pytest.raises(UnsupportedSpace, match="dictionary"):
            model.initial({"obs": th.zeros(1, 3)})
