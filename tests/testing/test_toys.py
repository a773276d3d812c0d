"""The toys: known results, the kit, and everything that rolls a world model out."""

import io

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.contracts import FitBudget, MissingCapability, UnsupportedSpace
from sb3_mbrl.envs.model_vec_env import ModelVecEnv
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.starts import buffer_starts
from sb3_mbrl.testing import (
    CASES,
    LinearToy,
    NeighbourToy,
    RecurrentToy,
    RewardToy,
    ToyData,
    TwoPlayerToy,
    WeightedToy,
    parametrize_with_checks,
)

OBS = spaces.Box(-np.inf, np.inf, (3,))
BOX, DISCRETE = CASES[0], CASES[2]
HOME = {LinearToy: BOX, TwoPlayerToy: DISCRETE, NeighbourToy: BOX, RecurrentToy: BOX}


def rng(seed=0):
    return th.Generator().manual_seed(seed)


def fitted(cls):
    case = HOME[cls]
    with th.random.fork_rng():
        th.manual_seed(0)
        model = cls(case.observation_space, case.action_space, device="cpu")
    data = ToyData(case.observation_space, case.action_space, steps=40)
    if model.learns:
        fit_world_model(model, data, FitBudget(max_batches=20), generator=rng())
    return model, data


@parametrize_with_checks([LinearToy, TwoPlayerToy, NeighbourToy])
def test_toys_pass_the_kit(part, check):
    check(part)


@parametrize_with_checks([RewardToy, RecurrentToy, WeightedToy])
def test_the_toys_that_learn_by_a_loss_pass_the_kit(part, check):
    check(part)


# ---------------------------------------------------------------------------------------------------------- known answers


@given(
    state=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    action=st.lists(st.floats(-1, 1), min_size=2, max_size=2),
    steps=st.integers(1, 8),
)
@settings(max_examples=20, deadline=None)
def test_linear_mean_is_the_geometric_sum(state, action, steps):
    model = LinearToy(OBS, spaces.Box(-1, 1, (2,)), device="cpu", decay=0.8)
    push = (action[0] - action[1]) / 3
    expected = [0.8**steps * x + push * (1 - 0.8**steps) / 0.2 for x in state]
    mean = model.mean(th.tensor([state]), th.tensor([action]), steps)
    np.testing.assert_allclose(mean[0], expected, atol=1e-5)


def test_linear_samples_have_the_stated_mean_and_variance():
    model = LinearToy(OBS, spaces.Box(-1, 1, (2,)), device="cpu", noise=0.5)
    start, action, generator = th.ones(20_000, 3), th.tensor([[0.5, -0.5]]).expand(20_000, 2), rng()
    state = start
    for _ in range(3):
        state = model.step(state, action, generator=generator).state
    assert model.variance(3) == pytest.approx(0.25 * (1 + 0.81 + 0.6561))
    standard_error = (model.variance(3) / 20_000) ** 0.5
    assert (state.mean(0) - model.mean(start, action, 3)[0]).abs().max() < 5 * standard_error
    assert (state.var(0) / model.variance(3) - 1).abs().max() < 0.05


@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.Discrete(3, start=2)])
def test_linear_best_action_beats_every_other(action_space):
    model = LinearToy(OBS, action_space, device="cpu")
    state = th.randn(1, 3, generator=rng())
    grid = (
        [th.tensor([[a, b]]) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
        if isinstance(action_space, spaces.Box)
        else [th.tensor([[int(action_space.start) + i]]) for i in range(3)]
    )

    def gained(action, horizon):
        total, now = 0.0, state
        for _ in range(horizon):
            now, reward, *_ = model.step(now, action)
            total += float(reward)
        return total

    for horizon in (1, 4):
        best = gained(model.best_action(), horizon)
        assert best == pytest.approx(float(model.best_return(state, horizon)), rel=1e-5)
        assert best == pytest.approx(max(gained(action, horizon) for action in grid), rel=1e-5)


@given(stones=st.integers(1, 12), takes=st.integers(1, 4), gamma=st.sampled_from([1.0, 0.9]))
@settings(max_examples=40, deadline=None)
def test_nim_value_is_that_of_exhaustive_search(stones, takes, gamma):
    model = TwoPlayerToy(spaces.Discrete(13), spaces.Discrete(takes), gamma=gamma, device="cpu")

    def search(pile):
        """Search by negamax over the model's own steps: max_a reward + discount * value."""
        options = []
        for action in range(takes):
            prediction = model.step(th.tensor([[pile]]), th.tensor([[action]]))
            following = int(prediction.state)
            later = search(following) if following else 0.0
            options.append(float(prediction.reward) + float(prediction.discount) * later)
        return max(options)

    # Perfect play is cheap to search only for small piles.
    pile = min(stones, 8)
    assert float(model.value(th.tensor([[pile]]))) == pytest.approx(search(pile))


def test_nim_signs():
    model = TwoPlayerToy(spaces.Discrete(13), spaces.Discrete(3), gamma=0.9, device="cpu")
    prediction = model.step(th.tensor([[2], [5], [0]]), th.tensor([[1], [0], [0]]))
    assert prediction.reward.tolist() == [1.0, 0.0, 0.0]
    assert prediction.terminated.tolist() == [1.0, 0.0, 1.0]
    np.testing.assert_allclose(prediction.discount, [0.0, -0.9, 0.0], atol=1e-7)
    assert model.value(th.tensor([[4], [8], [3], [0]])).tolist() == pytest.approx([-0.9, -(0.9**3), 1.0, 0.0])


def test_one_neighbour_repeats_what_it_saw():
    case = BOX
    model = NeighbourToy(case.observation_space, case.action_space, k=1, device="cpu")
    data = ToyData(case.observation_space, case.action_space, steps=20)
    fit_world_model(model, data)
    rows = data.transitions()
    prediction = model.step(model.initial(rows.obs), rows.action, deterministic=True)
    np.testing.assert_allclose(model.decode(prediction.state), rows.next_obs, atol=1e-5)
    np.testing.assert_allclose(prediction.reward, rows.reward, atol=1e-6)
    np.testing.assert_array_equal(prediction.terminated, rows.terminated)


def test_recurrent_state_remembers_the_context():
    model, data = fitted(RecurrentToy)
    context = data.contexts(16, 4, generator=rng())
    is_first = th.zeros(16, 4, dtype=th.bool)
    is_first[:, 0] = True
    belief, last = model.filter(context.obs, context.action, is_first)["belief"]
    assert belief.shape == (16, 32)
    assert last.shape == (16, 3)
    forgetful = is_first.clone()
    forgetful[:, -1] = True
    expected = model.initial(context.obs[:, -1])["belief"][0]
    assert th.allclose(model.filter(context.obs, context.action, forgetful)["belief"][0], expected)
    assert not th.allclose(belief, expected, atol=1e-3)


def test_recurrent_filter_is_observe_step_by_step():
    model, data = fitted(RecurrentToy)
    window = data.sequences(8, 4, generator=rng())
    state = model.initial(window.obs[:, 0])
    for t in range(1, 4):
        state = model.observe(state, window.action[:, t - 1], window.obs[:, t], window.is_first[:, t])
    expected = model.filter(window.obs, window.action, window.is_first)
    assert th.allclose(state["belief"][0], expected["belief"][0], atol=1e-6)


@pytest.mark.parametrize("cls", [LinearToy, TwoPlayerToy, NeighbourToy, RecurrentToy])
def test_toys_refuse_images(cls):
    with pytest.raises(UnsupportedSpace, match=r"image"):
        cls(CASES[-1].observation_space, CASES[-1].action_space)


# -------------------------------------------------------------------------------------------- through everything that comes


@pytest.mark.parametrize("cls", [LinearToy, NeighbourToy])
def test_toys_that_decode_pass_through_model_vec_env(cls):
    model, data = fitted(cls)
    env = ModelVecEnv(model, data, n_envs=3, horizon=4, seed=0)
    obs = env.reset()
    action = np.tile(np.float32([0.0, 1.5]), (3, 1))  # scaled: zero
    expected = model.step(model.initial(th.as_tensor(obs)), th.zeros(3, 2), deterministic=True)
    if cls is LinearToy:
        np.testing.assert_allclose(env.step(action)[0], model.decode(expected.state), atol=1e-5)
    ends = [env.step(action)[2] for _ in range(8)]
    assert np.any(ends)


def test_recurrent_toy_passes_through_model_vec_env_by_features():
    model, data = fitted(RecurrentToy)
    env = ModelVecEnv(model, data, n_envs=3, horizon=2, observation="features", seed=0)
    env.reset()
    state = buffer_starts(model, data)(3, rng(0))
    action = np.tile(np.float32([0.0, 1.5]), (3, 1))
    expected = model.step(state, th.zeros(3, 2))
    obs, reward, done, _ = env.step(action)
    np.testing.assert_allclose(reward, expected.reward.detach(), atol=1e-6)
    np.testing.assert_allclose(obs[~done], model.features(expected.state).detach()[~th.as_tensor(done)], atol=1e-6)


def test_two_player_toy_is_refused_by_model_vec_env():
    model, _ = fitted(TwoPlayerToy)
    env = ModelVecEnv(model, lambda n, generator: th.full((n, 1), 5), n_envs=3, seed=0)
    env.reset()
    with pytest.raises(MissingCapability, match="TwoPlayerToy predicts a negative discount"):
        env.step(np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize("cls", [LinearToy, TwoPlayerToy, NeighbourToy, RecurrentToy])
def test_toys_pass_through_branched_rollouts(cls):
    model, data = fitted(cls)
    starts = buffer_starts(model, data)(8, rng())
    observation = "features" if cls is RecurrentToy else "decoded"
    actions = [data.system.sample_actions(8, rng(t)) for t in range(5)]
    script = iter(actions)
    with th.no_grad():
        imagined = BranchedRollouts(observation=observation).imagine(
            model, starts, lambda obs: next(script), 5, generator=rng()
        )
        first = model.step(starts, actions[0], deterministic=True)
    assert imagined.valid.shape == (5, 8)
    assert imagined.valid[0].all()
    if cls is TwoPlayerToy:
        assert (imagined.discount[imagined.valid] <= 0).all()
        piles = imagined.obs[..., 0].float()
        taken = (imagined.action[..., 0] + 1).float()
        np.testing.assert_array_equal(imagined.next_obs[..., 0][imagined.valid], (piles - taken).clamp(min=0)[imagined.valid])
    else:
        assert imagined.discount is None
    if cls is not NeighbourToy:  # which draws a neighbour
        np.testing.assert_allclose(imagined.reward[0], first.reward, atol=1e-6)


@pytest.mark.parametrize("cls", [LinearToy, TwoPlayerToy, NeighbourToy, RecurrentToy])
def test_toys_survive_a_file(cls):
    model, data = fitted(cls)
    file = io.BytesIO()
    th.save({"extra": model.extra_state(), "weights": model.state_dict()}, file)
    file.seek(0)
    stored = th.load(file, weights_only=False)
    twin = cls(model.observation_space, model.action_space, device="cpu")
    twin.load_extra_state(stored["extra"])
    twin.load_state_dict(stored["weights"])
    assert twin.fitted
    context, action = data.contexts(16, model.context, generator=rng()), data.system.sample_actions(16, rng())
    first, second = (
        m.step(m.filter(context.obs, context.action, context.is_first), action, generator=rng()) for m in (model, twin)
    )
    assert th.equal(first.reward, second.reward)
    assert th.equal(model.features(first.state), twin.features(second.state))
