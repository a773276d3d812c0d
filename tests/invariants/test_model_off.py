"""Without a model an agent is its base class, to the last bit; and a model that is not used changes nothing."""

import pytest
import torch as th
from stable_baselines3 import SAC

from sb3_mbrl import model_based
from sb3_mbrl.agent.model_trainer import ModelTrainer
from tests.helpers.agents import TINY, learned, same, tiny
from tests.helpers.model_free import BASES, env_id, quick_settings


@pytest.mark.parametrize("base", BASES)
def test_with_the_model_off_it_is_its_base_to_the_last_bit(base):
    """1,000 steps; the issue's promise for all seven."""
    plain = base("MlpPolicy", env_id(base), **quick_settings()).learn(1_000)
    ours = model_based(base)("MlpPolicy", env_id(base), **quick_settings(), gradient_steps=1, world_model=None).learn(1_000)
    assert isinstance(ours, base)
    assert ours.num_timesteps == plain.num_timesteps
    assert ours._n_updates == plain._n_updates > 0
    for name, state in plain.policy.state_dict().items():
        assert th.equal(state, ours.policy.state_dict()[name]), name


SAC_ARGUMENTS = {key: value for key, value in TINY.items() if key not in ("imagination_kwargs", "fit_freq")}


@pytest.fixture(scope="module")
def plain_sac():
    return SAC("MlpPolicy", "Pendulum-v1", **SAC_ARGUMENTS).learn(300)


@pytest.mark.parametrize("off", [{"world_model": None}, {"real_ratio": 1.0}])
def test_with_the_model_off_it_is_sac_to_the_last_bit(plain_sac, off):
    assert same(learned(**off).learn(300), plain_sac)


def test_a_model_that_is_fitted_but_not_trusted_does_not_disturb_the_random_stream(plain_sac, monkeypatch):
    monkeypatch.setattr(ModelTrainer, "judge", lambda self, model, trial: {})
    agent = learned().learn(300)
    assert agent.world_model.n_fits >= 3
    assert same(agent, plain_sac)


def test_the_model_changes_what_is_learned(plain_sac):
    assert not same(tiny().learn(300), plain_sac)
