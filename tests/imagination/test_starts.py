"""Start states: rules by name, functions, and their use by an agent."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import ImaginationSpec
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.testing.toy_data import ToyData
from tests.helpers.agents import TINY, tiny

SPACES = spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (1,))


@pytest.fixture
def data():
    return ToyData(*SPACES, steps=50, n_envs=2, episode_length=10)


def chosen(data, starts, n=500, **kwargs):
    return BranchedRollouts(starts=starts, **kwargs).choose_starts(data, n, generator=th.Generator().manual_seed(0))


def test_uniform_is_left_to_the_data(data):
    assert chosen(data, "uniform") is None


def test_recent_are_the_newest_max_age_rows(data):
    ids = chosen(data, "recent", freq=10, max_age=10)
    assert set(ids.tolist()) == set(data.row_ids()[-10:].tolist())


def test_initial_are_the_first_rows_of_episodes(data):
    ids = chosen(data, "initial")
    assert set(ids.tolist()) == set(data.episode_starts().tolist())
    assert 2 * 5 <= len(data.episode_starts()) < len(data)  # time limits; the system terminates too


def test_initial_without_any_beginning_takes_all_rows(data):
    data.episode_starts = lambda: th.zeros(0, dtype=th.long)
    assert set(chosen(data, "initial", n=5000).tolist()) == set(data.row_ids().tolist())


def newest_alone(data, n, generator):
    return data.row_ids()[-1:].expand(n)


def agent(imagination="branched", **kwargs):
    small = {"world_model_kwargs": {"members": 2, "elites": 2, "hidden": [8]}, "fit_kwargs": {"max_batches": 2}}
    often = {"learning_starts": 20, "fit_freq": 10, "gradient_steps": 1}
    return MBPO("MlpPolicy", "Pendulum-v1", imagination=imagination, seed=0, device="cpu", **often, **small | kwargs)


@pytest.mark.parametrize(
    "options", [{}, {"world_model": "oracle", "world_model_kwargs": {"env": "Pendulum-v1"}}], ids=["ensemble", "oracle"]
)
def test_an_agent_starts_where_the_rule_says(options):
    """Also where states are snapshots of the environment, from the side store."""
    mbpo = agent(imagination_kwargs={"starts": newest_alone, "starts_per_step": 1, "freq": 10}, **options).learn(25)
    newest = th.as_tensor(mbpo.replay_buffer.observations[mbpo.replay_buffer.pos - 1])
    obs = mbpo.world_model.decode(mbpo._start_states(3, th.Generator().manual_seed(0)))
    assert th.allclose(obs, newest.expand(3, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            lambda data, n, generator: data.row_ids()[:1],
            r"choose_starts returned \(1,\) of torch.int64, expected \(\d+,\) int",
        ),
        (lambda data, n, generator: th.full((n,), 10**6), "chose row 1000000, which is none of data.row_ids"),
        (lambda data, n, generator: th.zeros(n), "of torch.float32, expected"),
    ],
)
def test_a_wrong_rule_is_named(rule, words):
    mbpo = agent(imagination_kwargs={"starts": rule})
    with pytest.raises(ValueError, match=words):
        mbpo.learn(25)


class FromTheStart(BranchedRollouts):
    """The rule of a plug-in."""

    def choose_starts(self, data, n, *, generator=None):
        return data.row_ids()[:1].expand(n)


class StartsPlugin:
    @hookimpl
    def sb3_mbrl_imaginations(self):
        return [ImaginationSpec(name="from-the-start", factory=FromTheStart, summary="the first row")]


def test_a_plugin_brings_its_own_rule():
    mbpo = agent("from-the-start", plugins=[StartsPlugin()]).learn(25)
    states = mbpo._start_states(2, th.Generator())
    first = th.as_tensor(mbpo.replay_buffer.observations[0, 0]).expand(2, -1)
    assert th.allclose(mbpo.world_model.decode(states), first, atol=1e-6)


def test_the_rule_survives_saving(tmp_path):
    mbpo = agent(imagination_kwargs={"starts": "recent"})
    mbpo.learn(25)
    mbpo.save(tmp_path / "agent.zip")
    loaded = MBPO.load(tmp_path / "agent.zip", device="cpu")
    assert loaded.imagination.choose_starts(ToyData(*SPACES), 4, generator=th.Generator()) is not None


@pytest.mark.parametrize("starts", ["recent", "initial", lambda data, n, generator: data.row_ids()[:1].expand(n)])
def test_a_loaded_oracle_starts_where_it_has_snapshots(starts, tmp_path):
    """Snapshots are saved with the replay buffer, so rows from before the load are start states too."""
    settings = {**TINY["imagination_kwargs"], "starts": starts}
    agent = tiny(world_model="oracle", world_model_kwargs={"env": "Pendulum-v1"}, imagination_kwargs=settings).learn(80)
    assert isinstance(agent.world_model, OracleModel)
    agent.save(tmp_path / "agent", exclude=["imagination_kwargs"] if callable(starts) else None)
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = MBPO.load(tmp_path / "agent", env=gym.make("Pendulum-v1"), imagination_kwargs=settings)
    loaded.load_replay_buffer(tmp_path / "buffer")
    before, after = (one.real.side.get("snapshot", np.arange(80), np.zeros(80, int)) for one in (agent, loaded))
    assert th.equal(before, after)
    loaded.learn(60, reset_num_timesteps=False)
    assert len(loaded.imagined) > 0


def test_a_rule_that_forgets_to_return():
    agent = tiny(imagination_kwargs={**TINY["imagination_kwargs"], "starts": lambda data, n, generator: None})
    with pytest.raises(ValueError, match=r"starts=.* returned None, expected \(2,\) integers"):
        agent.learn(60)
