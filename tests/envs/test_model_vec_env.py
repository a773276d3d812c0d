"""``ModelVecEnv``: bookkeeping, randomness and values that are not finite."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecMonitor

from sb3_mbrl.contracts import Prediction
from sb3_mbrl.envs.model_vec_env import ModelVecEnv
from sb3_mbrl.imagination.starts import buffer_starts, observation_starts
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.testing import CASES, LinearToy, NeighbourToy, RecurrentToy, TwoPlayerToy
from tests.envs.models import OBS, UNIT, ZERO, fitted, linear

ACT = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 3.0]))


def rollout(env, steps, seed=0):
    """Collect everything that an environment returns under random actions."""
    rng = np.random.default_rng(seed)
    seen = [env.reset()]
    for _ in range(steps):
        action = rng.uniform(env.action_space.low, env.action_space.high, (env.num_envs, *env.action_space.shape))
        seen.append(env.step(action.astype(np.float32)))
    return seen


# ------------------------------------------------------------------------------------------------------------ bookkeeping


def test_first_step_has_the_closed_form_with_actions_in_env_units():
    env = ModelVecEnv(linear(ACT), ZERO, n_envs=2)
    env.reset()
    # Scaled: (1, -1) and (0, 1); B has +1/3 and -1/3 in its columns.
    obs, reward, done, _ = env.step(np.array([[2.0, 0.0], [0.0, 3.0]], dtype=np.float32))
    np.testing.assert_allclose(obs, [[2 / 3] * 3, [-1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(reward, [2.0, -1.0], rtol=1e-6)
    assert reward.dtype == np.float32
    assert not done.any()


@given(horizon=st.integers(1, 7), n_envs=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_truncation_after_exactly_horizon_steps(horizon, n_envs):
    env = ModelVecEnv(linear(), ZERO, n_envs=n_envs, horizon=horizon)
    env.reset()
    for step in range(1, 3 * horizon + 1):
        obs, _, done, infos = env.step(np.ones((n_envs, 2), dtype=np.float32))
        ends = step % horizon == 0
        assert done.tolist() == [ends] * n_envs
        assert [info["TimeLimit.truncated"] for info in infos] == [ends] * n_envs
        assert all(("terminal_observation" in info) == ends for info in infos)
        if ends:
            np.testing.assert_array_equal(obs, np.zeros((n_envs, 3)))


def test_terminal_observation_is_the_successor_and_not_the_reset():
    model = linear()
    env = ModelVecEnv(model, np.full((1, 3), 5.0, dtype=np.float32), horizon=1)
    env.reset()
    obs, _, _, infos = env.step(np.zeros((1, 2), dtype=np.float32))
    np.testing.assert_allclose(infos[0]["terminal_observation"], [4.5] * 3)
    np.testing.assert_allclose(obs, [[5.0] * 3])


def test_termination_at_the_horizon_is_no_truncation():
    env = ModelVecEnv(linear(termination_fn=lambda obs, action, next_obs: next_obs[:, 0] > 0), ZERO, n_envs=2, horizon=1)
    env.reset()
    _, _, done, infos = env.step(np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32))
    assert done.tolist() == [True, True]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]


def test_rows_restart_on_their_own():
    env = ModelVecEnv(linear(termination_fn=lambda obs, action, next_obs: next_obs[:, 0] > 0), ZERO, n_envs=2, horizon=3)
    env.reset()
    actions = np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    dones = np.array([env.step(actions)[2] for _ in range(6)])
    assert dones[:, 0].all()
    assert dones[:, 1].tolist() == [False, False, True] * 2


class _Coin(LinearToy):
    """A model that terminates with probability 0.3."""

    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(terminated=th.full_like(prediction.reward, 0.3))


def test_termination_is_drawn_with_the_models_probability():
    env = ModelVecEnv(_Coin(OBS, UNIT, device="cpu"), ZERO, n_envs=4000, horizon=1000, seed=0)
    env.reset()
    ended = np.mean([env.step(np.zeros((4000, 2), dtype=np.float32))[2].mean() for _ in range(5)])
    assert abs(ended - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
    deterministic_env = ModelVecEnv(_Coin(OBS, UNIT, device="cpu"), ZERO, n_envs=10, deterministic=True)
    deterministic_env.reset()
    assert not deterministic_env.step(np.zeros((10, 2), dtype=np.float32))[2].any()


# ------------------------------------------------------------------------------------------------------------- randomness


def test_same_seed_same_run_to_the_last_bit():
    starts = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)

    def run(seed):
        return rollout(ModelVecEnv(linear(noise=0.3), starts, n_envs=3, horizon=4, seed=seed), 12)

    np.testing.assert_equal(run(1), run(1))
    assert not np.array_equal(run(1)[-1][0], run(2)[-1][0])


def test_seed_takes_effect_at_the_next_reset_as_in_sb3():
    env = ModelVecEnv(linear(noise=0.3), np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32), n_envs=2)
    assert env.seed(7) == [7, 8]
    first = rollout(env, 5)
    second = rollout(env, 5)
    env.seed(7)
    np.testing.assert_equal(rollout(env, 5), first)
    assert not np.array_equal(second[-1][0], first[-1][0])


def test_global_random_streams_are_left_alone():
    th.manual_seed(0)
    np.random.seed(0)
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    env = ModelVecEnv(linear(noise=0.3), ZERO, n_envs=2, horizon=2)
    env.seed(None)
    rollout(env, 5)
    assert th.equal(th.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_deterministic_is_the_mean():
    model = linear(noise=1.0)
    env = ModelVecEnv(model, ZERO, n_envs=2, deterministic=True)
    env.reset()
    obs, *_ = env.step(np.ones((2, 2), dtype=np.float32) * [1, -1])
    np.testing.assert_allclose(obs, model.mean(th.zeros(2, 3), th.tensor([[1.0, -1.0]] * 2)).numpy())


# ------------------------------------------------------------------------------------------------------------- not finite


class _Fragile(LinearToy):
    """A model with NaN in state, reward or probability where a row's first action is near 0.5, 0.7 or 0.9."""

    def step(self, state, action, *, deterministic=False, generator=None):
        assert state.isfinite().all()
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)

        def spoil(value, mark):
            hit = (action[:, 0] - mark).abs() < 1e-3
            return th.where(hit.view(-1, *[1] * (value.dim() - 1)), float("nan"), value)

        return Prediction(spoil(prediction.state, 0.5), spoil(prediction.reward, 0.7), spoil(prediction.terminated, 0.9))


def test_rows_that_are_not_finite_end_as_truncated_and_are_never_shown():
    env = ModelVecEnv(_Fragile(OBS, UNIT, device="cpu"), np.ones((1, 3), dtype=np.float32), n_envs=4)
    env.reset()
    for _ in range(2):
        obs, reward, done, infos = env.step(np.array([[0.5, 0], [0.7, 0], [0.9, 0], [0.1, 0]], dtype=np.float32))
        assert np.isfinite(obs).all()
        assert done.tolist() == [True, True, True, False]
        assert [info["TimeLimit.truncated"] for info in infos] == [True, True, True, False]
        assert [info.get("imagination_nonfinite") for info in infos] == [1, 1, 1, None]
        np.testing.assert_array_equal(reward[:3], 0)
        for info in infos[:3]:
            np.testing.assert_array_equal(info["terminal_observation"], np.ones(3))
        np.testing.assert_array_equal(obs[:3], np.ones((3, 3)))
    assert env.nonfinite == 6


def test_a_healthy_row_is_not_touched_by_a_broken_neighbour():
    env = ModelVecEnv(_Fragile(OBS, UNIT, device="cpu"), np.ones((1, 3), dtype=np.float32), n_envs=2)
    alone = ModelVecEnv(_Fragile(OBS, UNIT, device="cpu"), np.ones((1, 3), dtype=np.float32), n_envs=1)
    env.reset()
    alone.reset()
    for _ in range(3):
        obs, *_ = env.step(np.array([[0.5, 0], [0.1, 0]], dtype=np.float32))
        np.testing.assert_array_equal(obs[1], alone.step(np.array([[0.1, 0]], dtype=np.float32))[0][0])


def test_start_states_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="start state is not finite"):
        ModelVecEnv(linear(), lambda n, generator: th.full((n, 3), float("nan")))


# ----------------------------------------------------------------------------------------------------------------- starts


def test_starts_from_a_replay_buffer_are_its_observations():
    case = CASES[0]
    model, data = fitted(NeighbourToy, case)
    buffer = ReplayBuffer(64, case.observation_space, case.action_space, device="cpu", n_envs=1)
    rows = data.transitions()
    for i in range(20):
        obs, next_obs = rows.obs[i : i + 1].numpy(), rows.next_obs[i : i + 1].numpy()
        buffer.add(obs, next_obs, rows.action[i : i + 1].numpy(), rows.reward[i : i + 1].numpy(), np.zeros(1), [{}])
    env = ModelVecEnv(model, buffer, n_envs=200, seed=0)
    known = {tuple(row) for row in rows.obs[:20].numpy()}
    starts = {tuple(row) for row in env.reset()}
    assert starts == known


def test_a_recurrent_model_filters_its_context():
    case = CASES[0]
    model, data = fitted(RecurrentToy, case)
    starts = buffer_starts(model, data)
    drawn = starts(5, th.Generator().manual_seed(3))
    context = data.contexts(5, 4, generator=th.Generator().manual_seed(3))
    expected = model.filter(context.obs, context.action, context.is_first)
    assert th.equal(drawn["belief"][0], expected["belief"][0])
    assert not th.allclose(drawn["belief"][0], model.initial(context.obs[:, -1])["belief"][0])


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros((4, 2), dtype=np.float32), r"expected shape \(N, 3\)"),
        (np.zeros((0, 3), dtype=np.float32), "there are none"),
        (np.full((4, 3), np.nan, dtype=np.float32), "not finite in 4 rows"),
        ({"a": np.zeros((4, 3))}, "got a dictionary"),
    ],
)
def test_start_observations_that_do_not_fit_are_refused(obs, message):
    with pytest.raises(ValueError, match=message):
        observation_starts(linear(), obs)


def test_start_observations_take_the_layout_of_buffer_arrays():
    model = TwoPlayerToy(spaces.Discrete(6), spaces.Discrete(3), device="cpu")
    stored = np.arange(6).reshape(3, 2, 1)
    for array in (stored, stored.reshape(-1, 1), stored.reshape(-1)):
        drawn = observation_starts(model, array)(300, th.Generator().manual_seed(0))
        assert drawn.shape == (300, 1)
        assert sorted(drawn.unique().tolist()) == list(range(6))


def test_dict_start_observations_are_drawn_row_by_row():
    case = CASES[5]
    model, _ = fitted(NeighbourToy, case)
    obs = {"mode": np.array([[0], [1], [2]]), "position": np.array([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]], dtype=np.float32)}
    shown = ModelVecEnv(model, obs, n_envs=30, seed=0).reset()
    np.testing.assert_allclose(shown["position"][:, 0], shown["mode"] * 0.1, atol=1e-6)
    with pytest.raises(ValueError, match="keys of different lengths"):
        observation_starts(model, {**obs, "mode": obs["mode"][:2]})
    with pytest.raises(ValueError, match=r"expected a dictionary with the keys \['mode', 'position'\]"):
        observation_starts(model, {"mode": obs["mode"]})


# ------------------------------------------------------------------------------------------------------------ VecEnv, spaces


def test_vec_env_attributes_are_shared():
    env = ModelVecEnv(linear(), ZERO, n_envs=3)
    assert env.get_attr("horizon") == [50] * 3
    env.set_attr("horizon", 2)
    assert env.horizon == 2
    with pytest.raises(ValueError, match="share 'horizon'"):
        env.set_attr("horizon", 5, indices=0)
    assert env.has_attr("nonfinite")
    assert not env.has_attr("no_such_thing")
    assert env.env_is_wrapped(VecMonitor) == [False] * 3
    assert env.env_method("get_images", indices=[0]) == [[None] * 3]
    env.close()


@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.name)
def test_observations_are_members_of_the_space(case):
    model, data = fitted(NeighbourToy, case)
    env = ModelVecEnv(model, data, n_envs=5, horizon=3, seed=0)
    case.action_space.seed(0)

    def rows(obs):
        return [{k: v[i] for k, v in obs.items()} for i in range(5)] if isinstance(obs, dict) else list(obs)

    assert all(env.observation_space.contains(row) for row in rows(env.reset()))
    for _ in range(7):
        obs, _, _, infos = env.step(np.stack([case.action_space.sample() for _ in range(5)]))
        assert all(env.observation_space.contains(row) for row in rows(obs))
        assert all(env.observation_space.contains(info.get("terminal_observation", rows(obs)[0])) for info in infos)


def test_out_of_bounds_predictions_are_clipped():
    env = ModelVecEnv(linear(observation_space=spaces.Box(-0.1, 0.1, (3,))), ZERO)
    env.reset()
    obs, *_ = env.step(np.array([[1.0, -1.0]], dtype=np.float32))
    assert env.observation_space.contains(obs[0])
    np.testing.assert_allclose(obs, np.full((1, 3), 0.1))


def test_features_are_the_observations_of_a_latent_learner():
    model, data = fitted(RecurrentToy, CASES[0])
    env = ModelVecEnv(model, data, n_envs=2, observation="features", seed=0)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (32 + 3,), np.float32)
    obs = env.reset()
    state = buffer_starts(model, data)(2, th.Generator().manual_seed(0))
    np.testing.assert_array_equal(obs, model.features(state).detach().numpy())


def test_the_models_mode_is_left_as_it_was():
    model, data = fitted(RecurrentToy, CASES[0])
    modes = []
    model.cell.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    env = ModelVecEnv(model.train(), data, observation="features")
    env.reset()
    env.step(np.zeros((1, 2), dtype=np.float32))
    assert model.training
    assert not any(modes)


def test_the_pendulum_twin_inside_shows_what_pendulum_shows():
    real = gym.make("Pendulum-v1")
    obs, _ = real.reset(seed=0)
    env = ModelVecEnv(PendulumModel(device="cpu"), obs[None], horizon=25)
    np.testing.assert_array_equal(env.reset()[0], obs)
    rng = np.random.default_rng(0)
    for _ in range(24):
        action = rng.uniform(-2.0, 2.0, 1).astype(np.float32)
        obs, reward, *_ = real.step(action)
        imagined, imagined_reward, done, _ = env.step(action[None])
        np.testing.assert_allclose(imagined[0], obs, atol=1e-4)
        assert imagined_reward[0] == pytest.approx(reward, abs=1e-3)
        assert not done[0]


# ------------------------------------------------------------------------------------------------------------------- masks


def masked(space, masks, n_envs=2):
    model = MLPModel(OBS, space, hidden=[8], device="cpu")
    model.fitted = True  # any dynamics will do
    return ModelVecEnv(model, np.full((1, 3), 1.0, np.float32), n_envs=n_envs, action_masks=masks, seed=0)


def test_masks_are_a_function_of_the_observations_shown():
    env = masked(spaces.Discrete(3), lambda obs: np.stack([obs[:, 0] > 0.9, obs[:, 0] <= 0.9, obs[:, 0] < 9], axis=1))
    env.reset()
    assert env.action_masks().tolist() == [[True, False, True]] * 2
    obs = env.step(np.array([0, 2]))[0]
    expected = [[x > 0.9, x <= 0.9, True] for x in obs[:, 0]]
    assert env.env_method("action_masks") == [pytest.approx(row) for row in expected]
    assert env.env_method("action_masks", indices=[1])[0].tolist() == expected[1]


def test_maskable_ppo_never_takes_a_masked_action():
    contrib = pytest.importorskip("sb3_contrib")
    env = masked(spaces.MultiDiscrete([2, 3]), lambda obs: np.tile([True, False, False, True, True], (len(obs), 1)), 3)
    assert not ModelVecEnv(linear(spaces.Discrete(3)), ZERO).has_attr("action_masks")
    taken = []
    step = env.step_async
    env.step_async = lambda actions: (taken.append(actions), step(actions))
    contrib.MaskablePPO("MlpPolicy", VecMonitor(env), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(48)
    actions = np.concatenate(taken)
    assert len(actions) >= 48
    assert set(actions[:, 0]) == {0}
    assert set(actions[:, 1]) == {1, 2}


@pytest.mark.parametrize(
    ("space", "masks", "message"),
    [
        (spaces.Discrete(3), lambda obs: np.ones((len(obs), 2), bool), r"shape \(2, 2\), expected booleans of shape \(2, 3\)"),
        (spaces.Discrete(3), lambda obs: np.full((len(obs), 3), 0.5), "float64 of shape"),
        (spaces.Discrete(3), lambda obs: np.zeros((len(obs), 3), bool), "allows no action in environment 0"),
        (spaces.MultiDiscrete([2, 2]), lambda obs: np.tile([1, 0, 0, 0], (len(obs), 1)), "allows no action in environment 0"),
    ],
)
def test_wrong_masks_are_refused(space, masks, message):
    env = masked(space, masks)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.action_masks()


def test_masks_that_cannot_be_are_refused_at_construction():
    with pytest.raises(ValueError, match="only discrete ones"):
        masked(ACT, lambda obs: obs)
    with pytest.raises(TypeError, match="give a function"):
        masked(spaces.Discrete(3), np.ones((2, 3)))
    env = ModelVecEnv(linear(spaces.Discrete(3)), ZERO)
    with pytest.raises(AttributeError, match="give action_masks="):
        env.get_attr("action_masks")
    with pytest.raises(ValueError, match="give action_masks="):
        env.action_masks()
