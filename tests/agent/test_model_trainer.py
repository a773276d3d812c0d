"""Fits of the world model: when they happen, what a model may return, when it is trusted, and what an error leaves."""

import io
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat, Logger

from sb3_mbrl import MBPO
from sb3_mbrl.agent.model_trainer import ModelTrainer
from sb3_mbrl.agent.recorder import Recorder
from sb3_mbrl.contracts import Transitions
from sb3_mbrl.diagnostics import ModelQualityWarning
from sb3_mbrl.holdout import Verdict, trusted_below
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins import (
    PluginContractError,
)
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.testing import LinearToy, NeighbourToy, RecurrentToy
from tests.helpers.agents import NoiseEnv, intact, learned, quick, tiny


def test_a_replay_buffer_that_is_not_finite():
    agent = quick().learn(15)
    agent.replay_buffer.next_observations[3, 0, 1] = np.nan
    with pytest.raises(ValueError, match=r"The replay buffer holds NaN or infinity in next_obs at row 3, environment 0"):
        agent.fit_world_model()


# ---- a world model that returns wrong shapes


class Wrong(LinearToy):
    """A model that breaks the contract in one way."""

    def __init__(self, *args, change=None, decoded=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.change, self.decoded = change or (lambda p: p), decoded or (lambda obs: obs)

    def step(self, state, action, **kwargs):
        return self.change(super().step(state, action, **kwargs))

    def decode(self, state):
        return self.decoded(super().decode(state))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"change": lambda p: p._replace(reward=p.reward[:, None])},
            r"Wrong.step returned reward of shape \(2, 1\), expected \(2,\)",
        ),
        (
            {"change": lambda p: p._replace(terminated=p.reward > 0)},
            r"Wrong.step returned terminated as torch.bool, expected floats",
        ),
        ({"change": lambda p: p._replace(terminated=p.reward * 0 + 7)}, r"terminated = 7, expected a probability in \[0, 1\]"),
        (
            {"change": lambda p: p._replace(discount=p.reward[:1])},
            r"Wrong.step returned discount of shape \(1,\), expected \(2,\)",
        ),
        ({"change": lambda p: p._replace(state=p.state[:, :2])}, r"turned a state \(2, 3\) into \(2, 2\)"),
        ({"change": lambda p: (p.state, p.reward)}, r"Wrong.step returned tuple, expected sb3_mbrl.contracts.Prediction"),
        ({"decoded": lambda obs: obs[:, :2]}, r"Wrong.decode returned \(2, 2\), expected \(2, 3\)"),
        ({"decoded": lambda obs: obs.long()}, r"Wrong.decode returned torch.int64, expected torch.float32"),
        ({"decoded": lambda obs: {"x": obs}}, r"Wrong.decode returned {x: \(2, 3\)}, expected \(2, 3\)"),
    ],
)
def test_a_world_model_that_returns_wrong_shapes(wrong, words, tmp_path):
    agent = quick(world_model=Wrong, world_model_kwargs=wrong)
    buffer = agent.replay_buffer
    with pytest.raises(PluginContractError, match=words):
        agent.learn(100)
    # At the first fit, after the first steps.
    assert agent.num_timesteps == 21
    assert agent.replay_buffer is buffer
    intact(agent, 21, tmp_path)


def test_a_world_model_without_decode():
    # For its kind of learner it must decode; the words say what else it is good for.
    with pytest.raises(TypeError, match=r"RecurrentToy does not decode observations\. Use it where features are enough"):
        quick(world_model=RecurrentToy, world_model_kwargs={"hidden": 8}, termination_fn=None).learn(30)


class Talkative(NeighbourToy):
    """A model whose ``fit`` returns something else than metrics."""

    def __init__(self, *args, result=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.result = result

    def fit(self, data, budget=None, *, generator=None):
        super().fit(data, budget, generator=generator)
        return self.result


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (0.3, r"Talkative.fit returned float, expected a dictionary of metrics by name"),
        ({"loss": th.zeros(1)}, r"Talkative.fit returned metrics that are no plain numbers: 'loss'"),
    ],
)
def test_a_fit_that_returns_no_metrics(result, words):
    agent = quick(world_model=Talkative, world_model_kwargs={"result": result})
    with pytest.raises(PluginContractError, match=words):
        agent.learn(30)
    assert agent.world_model.fitted


def test_a_world_model_that_fails_in_a_fit(tmp_path):
    agent = quick(world_model=FailsToFit, world_model_kwargs={"hidden": [8]})
    with pytest.raises(ZeroDivisionError):
        agent.learn(100)
    intact(agent, 21, tmp_path)


class FailsToFit(MLPModel):
    def fit(self, data, budget=None, *, generator=None):
        return {"loss": 1 / 0}


# ---- little data


def test_an_empty_buffer():
    agent = quick()
    with pytest.raises(ValueError, match=r"holds no usable transition: collect some with learn\(\), .* or load some"):
        agent.fit_world_model()
    assert not agent.world_model.fitted
    with pytest.raises(ValueError, match=r"This MBPO has no world model \(world_model=None\): nothing to fit"):
        quick(world_model=None).fit_world_model()


@pytest.mark.parametrize("world_model", ["ensemble", "mlp"])
def test_one_transition(world_model):
    agent = quick(world_model=world_model, world_model_kwargs={"hidden": [8]}).learn(1)
    agent.fit_world_model()
    assert agent.world_model.n_fits == 1
    # One row says nothing about quality.
    assert not agent.trainer.trusted
    state = agent.world_model.initial(th.as_tensor(agent.replay_buffer.observations[0]))
    prediction = agent.world_model.step(state, th.zeros(1, 1))
    assert prediction.state["obs"].isfinite().all()
    assert prediction.reward.isfinite().all()


def test_one_transition_at_a_time():
    agent = quick(learning_starts=0, buffer_size=1, batch_size=1).learn(5)
    assert agent.num_timesteps == 5
    assert all(value.isfinite().all() for value in agent.policy.state_dict().values())


# ---- Ctrl-C during a model fit (what the loaded agent does then: ``test_checkpoint.py``)


def test_ctrl_c_during_a_model_fit(tmp_path, monkeypatch):
    agent = quick()
    buffer = agent.replay_buffer
    epoch = MLPModel._epoch

    def interrupted(self, *args):
        yield next(epoch(self, *args))
        raise KeyboardInterrupt

    monkeypatch.setattr(MLPModel, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(100)
    assert agent.replay_buffer is buffer
    intact(agent, 21, tmp_path)
    monkeypatch.setattr(MLPModel, "_epoch", epoch)
    loaded = MBPO.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1"))
    loaded.learn(25, reset_num_timesteps=False)
    assert loaded.num_timesteps == 46


# ---- when a model is trusted, and warnings about the data


def test_imagination_waits_while_the_model_is_worse_than_trivial():
    agent = learned(NoiseEnv(), fit_kwargs={"max_epochs": 1}, learning_starts=100, fit_freq=150)
    with pytest.warns(ModelQualityWarning, match="predicts no better than a trivial predictor") as caught:
        agent.learn(1000)
    assert len(caught) == 1
    assert agent.imagined is None


def test_data_is_fitted_before_the_first_step_when_there_is_some(tmp_path):
    source = tiny(world_model=None).learn(200)
    source.save_replay_buffer(tmp_path / "buffer")
    agent = learned(learning_starts=100)
    agent.load_replay_buffer(tmp_path / "buffer")
    fitted_at = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            fitted_at.append(agent.world_model.n_fits)
            return len(fitted_at) < 3

    agent.learn(10, callback=Look())
    assert fitted_at[0] == 1


def test_few_rows_do_no_harm():
    agent = learned(learning_starts=0, buffer_size=1, batch_size=1).learn(30)
    assert agent.num_timesteps == 30
    agent = learned(learning_starts=1, batch_size=4).learn(30)
    # At 2, 4, 8 and 16 rows: whenever the data has doubled (SB3 trains once there are more steps than learning_starts).
    assert agent.world_model.n_fits == 4


def test_terminations_that_memory_optimisation_loses_are_warned_of():
    options = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    with pytest.warns(ModelQualityWarning, match="keeps no last observations of episodes"):
        learned(NoiseEnv(), fit_kwargs={"max_epochs": 1}, learning_starts=100, **options).learn(150)


def test_an_environment_that_leaves_its_space_is_warned_of():
    class Wide(NoiseEnv):
        observation_space = spaces.Box(-1, 1, (3,))

    with pytest.warns(ModelQualityWarning, match=r"leaves its observation space: obs\[\d\] was -?[12]\."):
        learned(Wide(), fit_kwargs={"max_epochs": 1}).learn(60)


def test_a_model_is_not_trusted_for_its_luck_with_a_few_rows():
    """Regression: with QRDQN on random observations, some of the first verdicts, on 1 to 20 rows, were good by chance."""
    assert trusted_below(3) == 0.0
    assert trusted_below(100) == pytest.approx(0.9)
    assert trusted_below(3, learned=False) == 1.0
    for seed in range(5):
        agent = learned(NoiseEnv(), learning_starts=0, seed=seed, fit_kwargs={"max_batches": 5})
        agent.learn(200)
        assert agent.imagined is None


def test_an_oracle_of_another_environment_is_refused():
    agent = tiny(gym.make("Pendulum-v1", g=1.0), world_model="oracle", world_model_kwargs={"env": "Pendulum-v1"})
    with pytest.raises(ValueError, match=r"OracleModel repeats \d+ of 16 real transitions with another result"):
        agent.learn(60)


# ---- verdicts


class Shop(gym.Env):
    """One-step episodes: a visitor is offered a price; the last observation is the next visitor, whom nothing predicts."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._visitor(), {}

    def step(self, price):
        reward = -float((price[0] - self.now[0]) ** 2)
        return self._visitor(), reward, True, False, {}

    def _visitor(self):
        self.now = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.now


def test_one_step_episodes_are_imagined():
    """What follows an end matters to nobody, and decided that a model with exact rewards was not trusted."""
    agent = learned(
        Shop(),
        learning_starts=300,
        fit_freq=1000,
        fit_kwargs={"max_batches": 400},
        world_model_kwargs={"members": 2, "elites": 2, "hidden": (32, 32)},
    )
    agent.learn(310)
    assert agent.trainer.trusted
    assert len(agent.imagined) > 0


def trainer(space: spaces.Space | None = None) -> ModelTrainer:
    return ModelTrainer(space or spaces.Box(-np.inf, np.inf, (2,)), RandomStream(0), Recorder(), "It waits.", False)


def silent(function, *arguments) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(*arguments)


def rows_of(obs, action=None) -> Transitions:
    zeros = th.zeros(len(obs))
    return Transitions(obs, zeros[:, None] if action is None else action, obs, zeros, zeros)


def test_observations_of_very_different_scales_get_one_warning():
    judge, g = trainer(), th.Generator().manual_seed(0)
    obs = th.randn(500, 2, generator=g) * th.tensor([1.0, 1e5])
    with pytest.warns(ModelQualityWarning, match=r"obs\[1\] is about 1e\+05, obs\[0\] about 1. .* VecNormalize"):
        judge.warn_of_scales(rows_of(obs))
    silent(judge.warn_of_scales, rows_of(obs))
    for fine in (th.tensor([1.0, 1e3]), th.tensor([1e-6, 1.0]), th.tensor([1e5, 1e5]), th.tensor([0.0, 1.0])):
        silent(trainer().warn_of_scales, rows_of(th.randn(500, 2, generator=g) * fine))
    keys = trainer(spaces.Dict(b=spaces.Box(-1e9, 1e9, (1,)), n=spaces.Discrete(9), a=spaces.Box(-1, 1, (1,))))
    parts = {"b": obs[:, 1:], "n": th.zeros(500, 1).long(), "a": obs[:, :1]}
    with pytest.warns(ModelQualityWarning, match=r"b\[0\] is about 1e\+05, a\[0\] about 1"):
        keys.warn_of_scales(Transitions(parts, *rows_of(obs)[1:]))


def test_a_policy_stuck_at_its_bounds_gets_one_warning():
    g, space = th.Generator().manual_seed(0), spaces.Box(-1, 1, (2,))
    obs, free = th.zeros(500, 2), 2 * th.rand(500, 1, generator=g) - 1
    stuck = th.cat([free, th.ones(500, 1)], 1)
    judge = trainer()
    with pytest.warns(ModelQualityWarning, match=r"action\[1\] was at a bound in 100% of the last 400 real steps"):
        judge.warn_of_stuck_actions(rows_of(obs, stuck), space, 1000)
    silent(judge.warn_of_stuck_actions, rows_of(obs, stuck), space, 1000)
    warn = trainer().warn_of_stuck_actions
    silent(warn, rows_of(obs, stuck), space, 100)  # most of them were random
    silent(warn, rows_of(obs, free), space, 1000)
    silent(warn, rows_of(obs, stuck), spaces.Box(0, 1, (2,), np.int8), 1000)
    silent(warn, rows_of(obs, stuck.long()), spaces.MultiBinary(2), 1000)


@pytest.mark.parametrize(
    ("trusted", "error", "copy", "explained"),
    [
        (True, 0.5, 0.8, False),
        (True, 1.2, 0.8, True),
        (False, 1.2, 0.8, False),
        (False, 0.5, 0.8, True),
        (True, 1.1, 3.0, True),
    ],
)
def test_figures_that_contradict_each_other_are_explained_in_the_log(trusted, error, copy, explained):
    judge, file = trainer(), io.StringIO()
    judge.recorder.logger, judge.trusted = Logger(None, [HumanOutputFormat(file)]), trusted
    metrics = {"vs_trivial": 0.5, "vs_trivial_obs": 0.4, "vs_trivial_reward": 0.9, "error_1": error, "copy_error_1": copy}
    judge._explain(metrics, False)
    text = file.getvalue()
    assert bool(text) == explained
    if explained:
        assert "observations 0.40, reward 0.90" in text
        assert "the model before this fit" in text
    judge._explain({"vs_trivial": 0.5}, False)
    assert file.getvalue() == text


def test_a_verdict_is_said_when_it_is_new():
    """Regression: a short run on noise said nothing of its model, which had been left out all the time."""
    judge, file = trainer(), io.StringIO()
    judge.recorder.logger = Logger(None, [HumanOutputFormat(file)])
    for trusted, relative in ((False, 1.02), (False, 0.99), (True, 0.03), (True, 0.02)):
        judge.trusted = trusted
        judge._say_verdict(320, Verdict({"vs_trivial": relative, "vs_trivial_obs": relative}, 0.93, True))
    first, second = file.getvalue().strip().splitlines()
    assert "is not trusted after 320 real transitions: its squared error is 1.02 of" in first
    assert first.endswith(judge.when_untrusted)
    assert "is trusted after 320 real transitions" in second
    assert "0.03 of the better trivial predictor's (observations 0.03), and on so many rows the limit is 0.93." in second
