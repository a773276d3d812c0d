"""Training against compounding error."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.buffers.replay_view import SelectedRows
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.fitting import holdout_mask
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


def rollout_loss(model: MLPModel, data: ReplayData, member: int, first: int, length: int, gradient: bool) -> th.Tensor:
    """Compute the loss of one member's rollout from a row on, step by step: squared errors in units of targets."""
    rows = data.transitions()
    own, total = rows.obs[first : first + 1], th.zeros(())
    for t in range(length):
        known = model.standardiser(model.inputs(own, rows.action[first + t : first + t + 1]))
        raw = model.network(known.expand(model.n_members, -1, -1))[member]
        if t:
            change = (rows.next_obs[first + t] - own[0] - model.heads.standardiser.mean[:2]) / model.heads.standardiser.std[:2]
            aims = th.cat([change, rows.reward[first + t : first + t + 1]])
            termination = th.nn.functional.binary_cross_entropy_with_logits(raw[0, 3], th.zeros(()))
            total = total + (raw[0, :3] - aims).square().mean() + termination
        own = own + (raw[:, :2] * model.heads.standardiser.std[:2] + model.heads.standardiser.mean[:2])
        own = own if gradient else own.detach()
    return total / (length - 1)


@pytest.mark.parametrize("gradient", [True, False])
def test_the_loss_and_its_gradient_are_those_of_each_members_rollout(gradient, generator):
    th.manual_seed(0)
    model = fitted(EnsembleModel(OBS, ACT, members=2, elites=2, hidden=[16], probabilistic=False, device="cpu"))
    data = pendulum(1, 3)
    own = OwnPredictions(model, data, 3, gradient)
    windows = own.draw(3, generator)
    assert windows is not None
    loss = own.loss(windows)
    loss.backward()
    got = [layer.weight.grad.clone() for layer in model.network.layers]
    model.zero_grad()
    expected = sum(rollout_loss(model, data, e, 0, 3, gradient) for e in range(2))
    assert isinstance(expected, th.Tensor)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for layer, gradient_of in zip(model.network.layers, got, strict=True):
        th.testing.assert_close(gradient_of, layer.weight.grad, rtol=1e-4, atol=1e-6)


def test_variances_are_not_learned_from_own_predictions(generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    own = OwnPredictions(model, pendulum(), 4, gradient=True)
    windows = own.draw(40, generator)
    assert windows is not None
    own.loss(windows).backward()
    last = model.network.layers[-1].bias.grad[0, 0]
    assert last[:3].abs().min() > 0, "means"
    assert last[3:6].abs().max() == 0, "log-variances"


def test_steps_after_the_end_of_an_episode_are_not_learned_from(generator):
    """Episodes have two steps: of a window of two, either its second step follows the first, or it begins an episode."""
    model, data = fitted(MLPModel(OBS, ACT, hidden=[16], probabilistic=False, device="cpu")), pendulum(2, 2)
    own = OwnPredictions(model, data, 2, gradient=True)
    windows = own.draw(400, generator)
    assert windows is not None
    share = float(windows.begins[:, 1].float().mean())
    assert 0.2 < share < 0.5, "one window of three runs from the first episode into the second"
    losses = [float(rollout_loss(model, data, 0, first, 2, True).detach()) for first in (0, 2)]
    inside = windows.first[:, None].eq(data.transitions().obs[[0, 2]]).all(2).float().mean(0)
    assert float(own.loss(windows).detach()) == pytest.approx(float(inside @ th.tensor(losses)), rel=1e-4)


def test_a_rollout_that_diverges_is_not_learned_from(generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    with th.no_grad():
        model.network.layers[-1].bias[..., :2] = 1e4
    own = OwnPredictions(model, pendulum(), 4, gradient=True)
    windows = own.draw(100, generator)
    assert windows is not None
    assert float(own.loss(windows).detach()) == 0.0


def test_no_windows_no_corrections(generator):
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    assert OwnPredictions(model, pendulum(1, 3), 5, gradient=True).draw(10, generator) is None
    model = MLPModel(OBS, ACT, hidden=[16], device="cpu", multi_step=5)
    assert model.fit(pendulum(1, 3), FitBudget(max_epochs=1), generator=generator)["batches"] >= 1


def test_windows_longer_than_the_data_allows_are_worth_a_warning(generator):
    model = MLPModel(OBS, ACT, hidden=[16], device="cpu", multi_step=30)
    with pytest.warns(UserWarning, match="multi_step=30: no 30 consecutive steps are among the 300 rows"):
        model.fit(selected(), FitBudget(max_epochs=3), generator=generator)


def selected() -> SelectedRows:
    """Return 300 of 310 rows, of which every 30th is held out."""
    data = pendulum(10, 31)
    mask = np.ones((310, 1), dtype=bool)
    mask[29::30] = False
    chosen = SelectedRows(data, mask)
    assert len(chosen) == 300
    return chosen


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
    errors = []
    for multi_step in (1, 6):
        error = 0.0
        for seed in range(3):
            th.manual_seed(seed)
            model = MLPModel(OBS, ACT, hidden=[16], multi_step=multi_step, probabilistic=False, device="cpu")
            budget = FitBudget(max_batches=600, patience=100)
            model.fit(pendulum(seed=seed), budget, generator=th.Generator().manual_seed(seed))
            error += open_loop_error(model, pendulum(100, seed=9), 20) / 3
        errors.append(error)
    assert errors[1] < 0.8 * errors[0], errors


def test_held_out_rows_are_not_learned_from_without_an_agent_either(generator):
    """Windows were drawn from all rows, those for early stopping included."""
    data = pendulum(20, 30)
    held = data.row_ids()[holdout_mask(data.row_ids(), FitBudget(holdout_ratio=0.05))]
    assert len(held) > 10
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    windows = OwnPredictions(model, data, 3, True, held).draw(600, generator)
    assert windows is not None
    gone = data.transitions().next_obs[th.isin(data.row_ids(), held)]
    assert not (windows.next_obs[:, :, None] == gone).all(3).any()


def test_ends_of_episodes_that_a_buffer_has_lost_are_not_learned_from(generator):
    """With ``optimize_memory_usage`` the last step of an episode has its own observation as the next one."""
    buffer = ReplayBuffer(60, OBS, ACT, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False)
    for t in range(60):
        rows = (np.full((1, n), value, np.float32) for n, value in ((2, t % 6), (2, t % 6 + 1), (1, 0.0)))
        buffer.add(*rows, np.zeros(1), np.array([t % 6 == 5]), [{}])
    model = fitted(MLPModel(OBS, ACT, hidden=[16], device="cpu"))
    windows = OwnPredictions(model, ReplayData(buffer), 3, True).draw(300, generator)
    assert windows is not None
    assert th.equal(windows.unknown, (windows.next_obs[..., 0] == 5) & windows.unknown)
    assert windows.unknown.any()
    known = windows.next_obs[~windows.unknown][:, 0]
    assert known.min() >= 1.0


def test_rare_categories_are_not_far_away(generator):
    """One of 200 categories is at a standardised 14, for which rollouts were taken to have diverged."""
    space, rng = spaces.Discrete(200), np.random.default_rng(0)
    buffer = ReplayBuffer(400, space, ACT, device="cpu")
    for _ in range(400):
        rows = (rng.integers(200, size=(1, 1)) for _ in range(2))
        buffer.add(*rows, np.zeros((1, 1), np.float32), np.zeros(1), np.zeros(1, bool), [{}])
    model = MLPModel(space, ACT, hidden=[16], device="cpu", multi_step=4)
    model.fit(ReplayData(buffer), FitBudget(max_epochs=1), generator=generator)
    own = OwnPredictions(model, ReplayData(buffer), 4, True)
    windows = own.draw(100, generator)
    assert windows is not None
    assert float(own.loss(windows).detach()) > 1.0
