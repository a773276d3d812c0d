"""The estimate before a run: numbers by hand, and a trial that leaves no trace."""

import copy
import random

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ, hookimpl, model_based
from sb3_mbrl.agent.agent import UpdateRatioWarning
from sb3_mbrl.agent.estimate import Costs, Estimate, _sample, describe_pace, duration, size, updates_per_step
from sb3_mbrl.algorithms.dreamer.v3 import DreamerV3
from tests.helpers.agents import LEARNED, DictEnv, learned, same

SMALL = {"seed": 0, "device": "cpu", "buffer_size": 300}


def several(n_envs, **kwargs):
    return learned(make_vec_env("Pendulum-v1", n_envs=n_envs), **kwargs)


@pytest.mark.filterwarnings("ignore::sb3_mbrl.agent.agent.UpdateRatioWarning")
@pytest.mark.parametrize(
    ("n_envs", "settings", "ratio"),
    [
        (1, {"gradient_steps": 20}, 20.0),
        (4, {"gradient_steps": 20}, 5.0),
        (4, {"gradient_steps": 20, "train_freq": 2}, 2.5),
        (4, {"gradient_steps": -1}, 1.0),
        (1, {"gradient_steps": 20, "train_freq": (1, "episode")}, None),
    ],
)
def test_updates_per_real_step(n_envs, settings, ratio):
    assert updates_per_step(several(n_envs, **settings)) == ratio


def test_several_environments_say_how_many_updates_that_is():
    """A preset's 20 updates per real step became 5, and nothing said so."""
    said = r"4 environments: 5 updates per real step.*gradient_steps=80 makes it 20"
    with pytest.warns(UpdateRatioWarning, match=said) as seen:
        agent = several(4, gradient_steps=20).learn(8)
    assert len(seen) == 1, "once"
    assert seen[0].filename.endswith("agents.py"), "where the agent was made"
    assert agent.gradient_steps == 20, "SB3's meaning"


def test_what_one_environment_and_a_model_that_is_off_say(recwarn):
    several(1)
    several(4, gradient_steps=-1)
    several(4, gradient_steps=4)  # SB3's idiom
    several(4, world_model=None)
    assert describe_pace(several(1)) is None
    assert not [warning for warning in recwarn if warning.category is UpdateRatioWarning]


def test_the_numbers_of_a_run():
    agent = MBPO("MlpPolicy", "Pendulum-v1", **MBPO.preset("Pendulum-v1", buffer_size=1000), seed=0, device="cpu")
    result = agent.estimate(1000)
    assert (result.steps, result.learning_steps, result.updates, result.decisions) == (1000, 800, 16_000, 0)
    # At 201 steps, and at 250, 300, ..., 1000.
    assert (result.fits, result.fit_batches) == (17, 2000)
    # 1000 rows of 3 + 3 observations, an action, a reward, done and timeout, four bytes each.
    assert result.memory["replay buffer"] == 1000 * 4 * (3 + 3 + 1 + 1 + 1 + 1)
    # 20 starts a step * 200 steps * horizon 10, rows of 3 + 3 + 1 + reward + termination.
    assert result.memory["imagined transitions"] == 40_000 * 4 * 9
    assert 0 < result.costs.update < 5
    assert 0 < result.costs.batch < 5
    assert result.step_seconds == pytest.approx(20 * result.costs.update)
    assert result.fit_seconds == pytest.approx(2000 * result.costs.batch)
    assert agent.estimate(500).costs is result.costs, "one trial per agent"
    assert agent.estimate(100).updates == 0


@pytest.mark.parametrize(
    ("make", "measured"),
    [
        (
            lambda: model_based(TD3)("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, **SMALL, **LEARNED),
            "update batch",
        ),
        (lambda: Dyna("MlpPolicy", "CartPole-v1", **SMALL, **LEARNED), "update batch"),
        (lambda: DynaQ("QTablePolicy", "FrozenLake-v1", seed=0), "update"),
        (lambda: PETS("MlpPolicy", "Pendulum-v1", **SMALL, **LEARNED), "decision batch"),
        (lambda: DreamerV3("MlpPolicy", "Pendulum-v1", batch_size=2, batch_length=4, **SMALL), "update"),
        (lambda: MBPO("MultiInputPolicy", DictEnv(), **SMALL, **LEARNED), "update batch"),
        (lambda: learned(world_model=None), "update"),
    ],
)
def test_every_class_is_measured(make, measured):
    agent = make()
    costs = agent.estimate(5000).costs
    assert costs.failure == ""
    assert {name for name in ("update", "decision", "batch") if getattr(costs, name)} == set(measured.split())


def test_a_trial_leaves_no_trace():
    calls = []

    class Counts:
        @hookimpl
        def sb3_mbrl_before_policy_update(self, agent, gradient_steps, batch_size):
            calls.append(gradient_steps)

        @hookimpl
        def sb3_mbrl_before_model_fit(self, agent):
            calls.append("fit")

    agent, control = learned(plugins=[Counts()]), learned()
    streams = random.getstate(), np.random.get_state()[1].copy(), th.get_rng_state().clone()
    before = copy.deepcopy(agent.policy.state_dict())
    agent.estimate(1000)
    assert calls == []
    assert random.getstate() == streams[0]
    assert np.array_equal(np.random.get_state()[1], streams[1])
    assert th.equal(th.get_rng_state(), streams[2])
    assert all(th.equal(before[key], value) for key, value in agent.policy.state_dict().items())
    assert (agent.replay_buffer.size(), agent.num_timesteps, agent._n_updates) == (0, 0, 0)
    for one in (agent, control):
        one.set_random_seed(0)
        one.learn(120)
    assert same(agent, control)


def test_a_failed_trial_is_said_and_harms_nothing():
    class Fussy(MBPO):
        def trial_update(self, batch_size):
            raise RuntimeError("no\n  trial")

    agent = Fussy("MlpPolicy", "Pendulum-v1", **SMALL, **LEARNED)
    assert "no times, since the trial failed: RuntimeError: no trial" in agent.estimate(1000).lines()


def test_lines_of_an_estimate():
    costs = Costs(update=0.011, decision=0.25, batch=0.004)
    lines = Estimate(1000, 800, 5.0, 800, 17, 2000, {"replay buffer": 40_000}, costs).lines()
    assert lines[0] == "1,000 real steps, the first 200 of them without learning"
    assert lines[1] == "updates: 4,000 (5 per real step), 11 ms each: 44 s"
    assert lines[2] == "planning: 800 decisions, 250 ms each: 3.3 min"
    assert lines[3] == "world model: about 17 fits of at most 2,000 batches, 4 ms each: at most 2.3 min"
    assert lines[4] == "memory of the buffers when they are full: replay buffer 40 kB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.34, "340 ms"),
        (9.04, "9.0 s"),
        (45, "45 s"),
        (600, "10 min"),
        (7500, "2.1 h"),
        (260_000, "3.0 days"),
    ],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(512, "512 bytes"), (40_000_000, "40 MB"), (1.5e12, "1.5e+03 GB")])
def test_sizes_in_words(n, text):
    assert size(n) == text


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2, 3)),
        spaces.Box(-3.4e38, 3.4e38, (2,), np.float32),
        spaces.Box(100.0, np.inf, (2,), np.float64),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Box(-5, 2**62, (2,), np.int64),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiBinary([2, 2]),
        gym.spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,))),
    ],
)
def test_random_rows_are_members(space):
    rows = _sample(space, 20, np.random.default_rng(0))
    for i in range(20):
        row = {key: value[i] for key, value in rows.items()} if isinstance(rows, dict) else rows[i]
        assert space.contains(np.asarray(row, space.dtype) if not isinstance(row, dict) else row)
    values = [rows] if not isinstance(rows, dict) else list(rows.values())
    assert all(np.abs(value.astype(float)).max() <= 255 for value in values)
