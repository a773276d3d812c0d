"""Held-out rows: no gradient and no store sees them, and the verdict is about them."""

import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl import MBPO
from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.buffers.replay_view import SelectedRows
from sb3_mbrl.contracts import FitBudget, Prediction
from sb3_mbrl.fitting import fit_world_model, split_rows
from sb3_mbrl.holdout import BLOCK, Trial, held_blocks, hold_out
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.models.tabular import TabularModel
from sb3_mbrl.testing import NeighbourToy, RecurrentToy, RewardToy, ToyData, parametrize_with_checks

ACTION = spaces.Box(-1.0, 1.0, (1,))
BUDGET = FitBudget()
ROOT = Path(__file__).parents[1]


def rng(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


class Noise(gym.Env):
    """An environment of pure noise."""

    observation_space, action_space = spaces.Box(-10.0, 10.0, (3,)), ACTION

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        return self._draw(), float(self.np_random.normal()), False, False, {}

    def _draw(self):
        return self.np_random.normal(size=3).astype(np.float32)


def random_steps(env: gym.Env, n: int, seed: int = 0) -> ReplayData:
    env = gym.wrappers.TimeLimit(env, 200)
    env.action_space.seed(seed)
    buffer = ReplayBuffer(n, env.observation_space, ACTION, device="cpu")
    obs, _ = env.reset(seed=seed)
    for _ in range(n):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        scaled = action / env.action_space.high
        buffer.add(obs, next_obs, scaled, np.array([reward]), np.array([terminated or truncated]), [{}])
        obs = env.reset()[0] if terminated or truncated else next_obs
    return ReplayData(buffer)


@pytest.fixture(scope="module")
def noise() -> ReplayData:
    return random_steps(Noise(), 400)


@pytest.fixture(scope="module")
def pendulum() -> ReplayData:
    return random_steps(gym.make("Pendulum-v1").unwrapped, 400)


def of_the_docs() -> list[type]:
    """Return the models that docs/plugins.md shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "plugins.md").read_text(), flags=re.S | re.M)
    # In a module, so that what it defines can be pickled.
    module = sys.modules["docs_plugins"] = types.ModuleType("docs_plugins")
    for block in (block for block in blocks if "(VectorModel)" in block):
        exec(compile(block.partition("agent = ")[0], "docs/plugins.md", "exec"), vars(module))
    return [module.NetworkModel, module.LinearModel]


def gp(*args, **kwargs):
    return pytest.importorskip("sb3_mbrl_gp.model").GPModel(*args, **kwargs)


def template(*args, **kwargs):
    return pytest.importorskip("sb3_mbrl_template.model").FourierModel(*args, **kwargs)


def nearest_neighbour(*args, **kwargs):
    return NeighbourToy(*args, k=1, **kwargs)


def verdict_on(factory, data: ReplayData, budget: FitBudget = BUDGET):
    with th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        model = factory(data.buffer.observation_space, data.buffer.action_space, device="cpu")
    trial = Trial(model, data, budget)
    trial.fit(rng())
    verdict = trial.evaluate()
    assert verdict is not None
    assert verdict.unseen
    return verdict


DOCS = of_the_docs()
MODELS = (EnsembleModel, MLPModel, template, *DOCS, gp, nearest_neighbour)


@pytest.mark.parametrize("factory", [*MODELS, RewardToy, RecurrentToy])
def test_on_pure_noise_imagination_stays_off(factory, noise):
    """On rows that they had learned from, a nearest neighbour scored 3e-6, the template 0.74, the docs' example 0.96."""
    assert not verdict_on(factory, noise).trusted


@pytest.mark.parametrize("factory", [EnsembleModel, MLPModel, gp, nearest_neighbour])
def test_on_pendulums_first_400_random_steps_imagination_comes_on(factory, pendulum):
    assert verdict_on(factory, pendulum, FitBudget(max_batches=300)).trusted


@pytest.mark.parametrize(("env", "trusted"), [(Noise(), False), ("Pendulum-v1", True)])
def test_an_agent_with_a_nearest_neighbour_model(env, trusted):
    quick = {"learning_starts": 100, "gradient_steps": 1, "device": "cpu", "seed": 0}
    env = gym.wrappers.TimeLimit(env, 200) if isinstance(env, gym.Env) else env
    agent = MBPO("MlpPolicy", env, world_model=NeighbourToy, world_model_kwargs={"k": 1}, **quick)
    agent.learn(401)
    assert (len(agent.imagined or ()) > 0) is trusted


@parametrize_with_checks(DOCS)
def test_the_models_of_the_docs_pass_the_kit(part, check):
    check(part)


# ------------------------------------------------------------------------------------------------------- what fit is given


class Recording(NeighbourToy):
    """A model that keeps the data it was given."""

    def fit(self, data, budget=None, *, generator=None):
        self.given, self.budget = data, budget
        self.ids = set(data.row_ids().tolist())
        return {**super().fit(data, budget, generator=generator), "batches": 7.0}


def model_of(data: ReplayData, cls=Recording, **kwargs):
    return cls(data.buffer.observation_space, data.buffer.action_space, device="cpu", **kwargs)


def test_fit_is_given_a_view_without_the_held_out_rows(pendulum):
    model = model_of(pendulum)
    trial = Trial(model, pendulum, BUDGET)
    trial.fit(rng())
    given, held_out = model.given, model.given.held_out()
    everything = set(pendulum.row_ids().tolist())
    held = set(held_out.row_ids().tolist())
    assert 50 < len(held) < 110
    assert model.ids | held == everything
    assert not model.ids & held
    assert len(given) == len(given.transitions().reward) == len(given.row_ids()) == 400 - len(held)
    assert len(trial.split.evaluation.reward) == len(held)
    assert set(given.episode_starts().tolist()) <= model.ids
    # No way to ask for rows leads to the held-out ones.
    for windows in (given.sequences(200, 2, generator=rng()), given.contexts(200, 3, generator=rng())):
        assert set(windows.ids.flatten().tolist()) <= model.ids
    rows = {tuple(obs.tolist()) for obs in held_out.transitions().obs}
    assert not rows & {tuple(obs.tolist()) for obs in given.transitions(300, generator=rng()).obs}


def test_the_same_rows_are_held_out_at_every_fit_and_by_hand():
    short, long = (random_steps(Noise(), n) for n in (200, 400))
    first, second = (hold_out(data, model_of(data), BUDGET).train.held_out().row_ids().tolist() for data in (short, long))
    assert first == [i for i in second if i < 200]
    by_hand = split_rows(long, BUDGET)
    assert th.equal(by_hand[1].obs, hold_out(long, model_of(long), BUDGET).evaluation.obs)
    view = split_rows(hold_out(long, model_of(long), BUDGET).train, BUDGET)
    assert all(th.equal(a, b) for ours, theirs in zip(by_hand, view, strict=True) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_rows_are_not_divided(steps):
    """Rows with ids 0 and 1 are held out by no budget; the model is evaluated on the rows that it has learned from."""
    data = random_steps(Noise(), steps)
    split = hold_out(data, model_of(data), BUDGET)
    assert len(split.train) >= 1
    if not split.unseen:
        assert split.train is data
        assert len(split.evaluation.reward) == steps


def test_a_fit_by_hand_may_have_every_row(pendulum):
    model = model_of(pendulum)
    fit_world_model(model, pendulum)
    assert len(model.ids) == 400
    assert model.given.held_out() is None


# -------------------------------------------------------------------------------------------------------------- refitting


def test_refit_learns_from_everything_once_it_is_judged(pendulum):
    model, budget = model_of(pendulum), FitBudget(refit=True)
    trial = Trial(model, pendulum, budget)
    trial.fit(rng())
    verdict = trial.evaluate()
    assert len(model.ids) < 400
    assert trial.refit(rng()) == {"refit_rows": 400.0}
    assert len(model.ids) == 400
    # For no more gradient steps than the fit took, and nothing is held out once more.
    assert model.budget == replace(budget, refit=False, holdout_ratio=0.0, max_batches=7)
    assert trial.evaluate() is verdict
    assert Trial(model, pendulum, BUDGET).refit(rng()) == {}


def test_after_a_refit_a_model_is_judged_by_steps_that_came_since(pendulum):
    model = model_of(pendulum)
    model.fit(pendulum)  # by heart
    trial = Trial(model, pendulum, FitBudget(refit=True), fresh=0)
    trial.fit(rng())
    assert trial.evaluate() is None, "there is no new step: the last verdict stays"
    trial = Trial(model, pendulum, FitBudget(refit=True), fresh=30)
    assert len(trial.split.evaluation.reward) == 30
    assert set(trial.split.evaluation.obs[:, 2].tolist()) == set(pendulum.transitions().obs[-30:, 2].tolist())


@pytest.mark.parametrize("world_model", ["mlp", NeighbourToy])
def test_an_agent_refits(world_model):
    quick = {"learning_starts": 100, "gradient_steps": 1, "device": "cpu", "seed": 0}
    agent = MBPO("MlpPolicy", "Pendulum-v1", world_model=world_model, fit_kwargs={"refit": True, "max_batches": 50}, **quick)
    agent.learn(101)
    metrics = agent.fit_world_model()
    assert metrics["refit_rows"] == 101
    with pytest.raises(ValueError, match="FitBudget: refit=1: give True or False"):
        FitBudget(refit=1)


# ---------------------------------------------------------------------------------------------------- models that count


class Ring(gym.Env):
    observation_space, action_space = spaces.Discrete(8), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action):
        self.cell = (self.cell + (1 if action else -1)) % 8
        return self.cell, float(self.cell == 0), False, False, {}


def ring(n: int) -> ReplayData:
    env, buffer = Ring(), ReplayBuffer(n, Ring.observation_space, Ring.action_space, device="cpu")
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(n):
        action = env.action_space.sample()
        following, reward, _, _, _ = env.step(action)
        buffer.add(*(np.array([x]) for x in (obs, following, action, reward, False)), [{}])
        obs = following
    return ReplayData(buffer)


def test_a_counting_model_is_judged_on_the_newest_rows_before_it_counts_them():
    data = ring(100)
    model = TabularModel(Ring.observation_space, Ring.action_space, device="cpu")
    trial = Trial(model, data, BUDGET)
    trial.fit(rng())
    assert model.tables.total.sum() == 80
    verdict = trial.evaluate()
    assert verdict.unseen
    assert verdict.trusted
    assert trial.refit(rng()) == {}
    assert model.tables.total.sum() == 100

    class Blind(TabularModel):
        def step(self, *args, **kwargs):
            prediction = super().step(*args, **kwargs)
            return Prediction(*(prediction.state * 0, prediction.reward, prediction.terminated))

    assert not Trial(Blind(Ring.observation_space, Ring.action_space, device="cpu"), data, BUDGET).evaluate().trusted


def test_later_it_is_judged_as_it_is_on_the_steps_since():
    data, looks = ring(100), []
    model = TabularModel(Ring.observation_space, Ring.action_space, device="cpu")
    model.fit(SelectedRows(data, np.arange(100)[:, None] < 70))
    step = model.step
    model.step = lambda *args, **kwargs: looks.append(model.tables.total.sum()) or step(*args, **kwargs)
    trial = Trial(model, data, BUDGET, fresh=30)
    trial.fit(rng())
    assert len(trial.split.evaluation.reward) == 30
    assert set(looks) == {70.0}, "evaluated before it learned"
    assert model.tables.total.sum() == 100
    seen = len(looks)
    trial.evaluate()
    assert len(looks) == seen
    assert trial.refit(rng()) == {}
    assert Trial(model, data, BUDGET, fresh=0).evaluate() is None


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_counting_model_with_few_rows_is_judged_where_it_learned(n):
    split = Trial(TabularModel(Ring.observation_space, Ring.action_space, device="cpu"), ring(n), BUDGET).split
    assert not split.unseen
    assert len(split.train) == n


# ------------------------------------------------------------------------------------------------ models with a context


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("full", [False, True])
def test_training_windows_never_touch_what_a_context_model_is_judged_by(n_envs, full):
    case = spaces.Box(-5.0, 5.0, (3,)), ACTION
    data = ToyData(*case, steps=200, n_envs=n_envs, episode_length=30).in_replay_buffer()
    if full:
        # The write head stands in the middle, so the oldest row lies behind the newest.
        data.buffer.pos, data.buffer.full = 77, True
    model = RecurrentToy(*case, device="cpu")
    split = hold_out(data, model, BUDGET)
    assert split.unseen
    age = np.full((200, n_envs), -1)
    age[data.positions()] = np.arange(200)[:, None]

    def steps_of(windows) -> set:
        rows, envs = data.places(windows.ids.flatten())
        return set(zip(age[rows, envs].tolist(), envs.tolist(), strict=True))

    trained = steps_of(split.train.sequences(3000, 2 * model.context, generator=rng()))
    trained |= steps_of(split.train.contexts(3000, 2 * model.context, generator=rng()))
    evaluated = steps_of(split.evaluation)
    assert len(trained) > 100 * n_envs
    assert evaluated
    for step, env in evaluated:
        near = {(other, env) for other in range(step - model.context, step + model.context + 1)}
        assert not near & trained
    # Windows are of consecutive steps of one environment.
    rows, envs = data.places(split.train.sequences(500, 8, generator=rng()).ids)
    assert (np.diff(age[rows, envs], axis=1) == 1).all()
    assert (envs == envs[:, :1]).all()


def test_a_context_that_follows_a_gap_does_not_reach_across_it():
    case = spaces.Box(-5.0, 5.0, (3,)), ACTION
    data = ToyData(*case, steps=30, n_envs=1, episode_length=100).in_replay_buffer()
    data.buffer.dones[:] = 0
    selected = np.ones((30, 1), dtype=bool)
    selected[10:15] = False
    part = SelectedRows(data, selected)
    window = part.contexts_at(np.array([16]), np.array([0]), 4)
    assert window.ids.tolist() == [[15, 15, 15, 16]]
    assert window.is_first.tolist() == [[True, True, True, False]]
    # The first three steps of the buffer count as a beginning, those after the gap do not.
    assert part.full_contexts(4).tolist() == [*range(10), *range(18, 30)]
    with pytest.raises(ValueError, match="no 16 consecutive steps are selected"):
        part.sequences(1, 16)
    with pytest.raises(NotImplementedError):
        part.newest(1, 1, within=3)


def test_about_a_fifth_of_the_blocks_is_held_out_the_same_ones_at_every_fit():
    context, size = 4, 4 * BLOCK
    small, large = (held_blocks(steps, 3, 3 * steps, context, BUDGET) for steps in (1000, 8000))
    assert (large[:1000] == small).all()
    assert 0.18 < large.mean() < 0.22
    blocks = large.reshape(-1, size, 3)
    assert (blocks.all(1) | ~blocks.any(1)).all()
    # The first rows are for learning, the next ones for judging.
    assert not large[:size].any()
    assert large[size : 2 * size, 0].all()
    # Not always at the same place in time, with which a model could be in step.
    places = blocks.any(1)[: 80 * 5].reshape(-1, 5, 3).argmax(1)
    assert {0, 1, 2, 3, 4} == set(places[1:].flatten().tolist())


def test_with_much_data_fewer_blocks_are_held_out_and_no_new_ones():
    few, many = (held_blocks(50_000, 1, rows, 4, FitBudget(max_holdout=1000)) for rows in (5_000, 50_000))
    assert few.mean() == pytest.approx(0.2, abs=0.01)
    assert many.sum() == pytest.approx(1000, rel=0.4)
    assert not (many & ~few).any()
    assert not held_blocks(500, 1, 500, 4, FitBudget(holdout_ratio=0.0)).any()
    assert not held_blocks(500, 1, 500, 4, FitBudget(max_holdout=0)).any()


@pytest.mark.parametrize("steps", [2, 4 * BLOCK])
def test_a_context_model_with_few_steps_is_judged_where_it_learned(steps):
    case = spaces.Box(-5.0, 5.0, (3,)), ACTION
    data = ToyData(*case, steps=steps, n_envs=1).in_replay_buffer()
    split = hold_out(data, RecurrentToy(*case, device="cpu"), BUDGET)
    assert split.train is data
    assert not split.unseen
    fit_world_model(RecurrentToy(*case, device="cpu"), split.train, FitBudget(max_batches=2), generator=rng())
