"""Training against compounding error."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.correction import OwnPredictions, disturbed
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import MLPModel

OBS, ACT = spaces.Box(-100, 100, (2,)), spaces.Box(-1, 1, (1,))


def pendulum(episodes: int = 20, length: int = 30, seed: int = 0) -> ReplayData:
    """Episodes of a damped oscillator, x' = x + 0.3 v and v' = 0.95 v - 0.3 sin(x) + 0.1 a, with time limits only."""
    rng = np.random.default_rng(seed)
    buffer = ReplayBuffer(episodes * length, OBS, ACT, device="cpu")
    for _ in range(episodes):
        x, v = rng.uniform(-2, 2, 2)
        for t in range(length):
            action = rng.uniform(-1, 1)
            after = (x + 0.3 * v, 0.95 * v - 0.3 * np.sin(x) + 0.1 * action)
            end = t == length - 1
            rows = (np.array([value], dtype=np.float32) for value in ((x, v), after, (action,)))
            buffer.add(*rows, np.array([x]), np.array([end]), [{"TimeLimit.truncated": end}])
            x, v = after
    return ReplayData(buffer)


def fitted(model: MLPModel) -> MLPModel:
    """Set the scales of a model's inputs and targets, which a fit learns."""
    model.standardiser.set(th.tensor([0.5, -1.0, 0.0]), th.tensor([2.0, 0.5, 1.0]))
    model.heads.standardiser.set(th.tensor([0.1, 0.0, 0.0]), th.tensor([0.3, 0.4, 1.0]))
    return model.eval()


def test_own_predictions_are_each_members_rollout_along_real_actions(generator):
    th.manual_seed(0)
    model, data = fitted(EnsembleModel(OBS, ACT, members=2, elites=2, hidden=[16], device="cpu")), pendulum(1, 3)
    rows = OwnPredictions(model, data, 3).draw(2, generator)
    assert rows is not None
    real = data.transitions()
    for e in range(2):
        own, expected = real.obs[:1], []
        for t in range(3):
            known = model.standardiser(model.inputs(own, real.action[t : t + 1]))
            if t:
                change = (real.next_obs[t] - own[0] - model.heads.standardiser.mean[:2]) / model.heads.standardiser.std[:2]
                expected.append((known[0], change, real.reward[t]))
            raw = model.network(known.expand(2, -1, -1))[e]
            own = own + (raw[:, :2] * model.heads.standardiser.std[:2] + model.heads.standardiser.mean[:2])
        got = sorted(zip(rows.inputs[e], rows.targets.numbers[e], strict=True), key=lambda row: float(row[0][0].detach()))
        for (inputs, numbers), (known, change, reward) in zip(
            got, sorted(expected, key=lambda row: float(row[0][0].detach())), strict=True
        ):
            th.testing.assert_close(inputs, known.detach())
            th.testing.assert_close(numbers, th.cat([change, reward[None]]).detach(), rtol=1e-4, atol=1e-5)
    assert rows.weight.tolist() == [[1.0] * 2] * 2


def test_rows_after_the_end_of_an_episode_are_not_learned_from(generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    rows = OwnPredictions(model, pendulum(30, 2), 4).draw(300, generator)
    assert rows is not None
    # Episodes have two steps. A window of four begins at a first step, which leaves one row of three, or at a last one: none.
    assert 0.1 < float(rows.weight.mean()) < 0.23


def test_a_rollout_that_diverges_is_not_learned_from(generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    with th.no_grad():
        model.network.layers[-1].bias[:] = 40.0
    rows = OwnPredictions(model, pendulum(), 4).draw(100, generator)
    assert rows is not None
    assert rows.weight.sum() == 0.0
    assert rows.inputs.isfinite().all()


def test_no_windows_no_corrections(generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    assert OwnPredictions(model, pendulum(1, 3), 5).draw(10, generator) is None
    model = MLPModel(OBS, ACT, hidden=[16], device="cpu", multi_step=5)
    assert model.fit(pendulum(1, 3), FitBudget(max_epochs=1), generator=generator)["batches"] >= 1


@pytest.mark.parametrize("target", ["delta", "next"])
def test_a_disturbed_row_aims_at_the_same_next_observation(target, generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], target=target, device="cpu"))
    rows = pendulum().transitions()
    inputs, targets = model.encode_rows(rows)
    known, aims = model.standardiser(inputs), model.heads.standardised(targets)
    new, moved = disturbed(known, aims, 0.2, model.heads, model.standardiser, generator)
    added = (new - known)[:, :2]
    assert 0.15 < float(added.std()) < 0.25
    assert th.equal(new[:, 2:], known[:, 2:]), "actions are not disturbed"
    obs = new[:, :2] * model.standardiser.std[:2] + model.standardiser.mean[:2]
    numbers = model.heads.standardiser.inverse(moved.numbers)
    aim = numbers[:, :2] + (obs if target == "delta" else 0.0)
    th.testing.assert_close(aim, rows.next_obs, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(numbers[:, 2], rows.reward, rtol=1e-4, atol=1e-4)


def open_loop_error(model: MLPModel, data: ReplayData, steps: int) -> float:
    """Return the mean squared error after some steps along real actions, from the first step of every episode."""
    rows = data.transitions()
    first = data.episode_starts().long()
    state = model.initial(rows.obs[first])
    with th.no_grad():
        for t in range(steps):
            state = model.step(state, rows.action[first + t], deterministic=True).state
    return float((model.decode(state) - rows.next_obs[first + steps - 1]).square().mean())


def test_learning_from_own_predictions_lowers_the_error_of_long_rollouts():
    """Data as demonstrator on a system that the network is too small for: errors compound, and corrections limit them."""
    errors = []
    for multi_step in (1, 10):
        error = 0.0
        for seed in range(3):
            th.manual_seed(seed)
            model = MLPModel(OBS, ACT, hidden=[4], multi_step=multi_step, probabilistic=False, device="cpu")
            budget = FitBudget(max_batches=600, patience=100)
            model.fit(pendulum(seed=seed), budget, generator=th.Generator().manual_seed(seed))
            error += open_loop_error(model, pendulum(100, seed=9), 25) / 3
        errors.append(error)
    assert errors[1] < 0.8 * errors[0], errors
