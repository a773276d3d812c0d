"""The choice of an agent's parts from a user's arguments."""

import copy
import types

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins import (
    BrokenPluginError,
    PluginConflictError,
    PluginWarning,
    UnknownPartError,
    reset_registry,
)
from sb3_mbrl.plugins.errors import PartArgumentError, PluginVersionError
from sb3_mbrl.testing import LinearToy
from tests.helpers.agents import LEARNED, TINY, OffersMLP, learned, quick, tiny

SMALL = LEARNED["world_model_kwargs"]


class PixelEnv(gym.Env):
    """An environment of two grey frames of 36 x 36 pixels."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), float(action[0]), False, self.t >= 10, {}

    def _obs(self):
        return np.full((36, 36, 1), 10 * self.t, np.uint8)


def make_ensemble(observation_space, action_space, **kwargs):
    """Make an ensemble, as a user's factory does."""
    return EnsembleModel(observation_space, action_space, members=3, elites=1, hidden=[8], **kwargs)


# ---- world_model=


def test_auto_picks_the_ensemble():
    agent = learned()
    assert type(agent.world_model) is EnsembleModel
    assert agent.part_references["world_model"]["name"] == "ensemble"
    assert agent.world_model.n_members == 2


@pytest.mark.parametrize(
    ("choice", "kwargs", "kind", "how"),
    [
        ("ensemble", SMALL, EnsembleModel, "name"),
        ("mlp", {"hidden": [8]}, MLPModel, "name"),
        ("sb3-mbrl:mlp", {"hidden": [8]}, MLPModel, "name"),
        ("sb3_mbrl.models.mlp:MLPModel", {"hidden": [8]}, MLPModel, "import"),
        (MLPModel, {"hidden": [8]}, MLPModel, "class"),
        (LinearToy, {"decay": 0.5}, LinearToy, "class"),
        (make_ensemble, {}, EnsembleModel, "factory"),
    ],
)
def test_ways_to_choose_a_world_model(choice, kwargs, kind, how):
    agent = learned(world_model=choice, world_model_kwargs=kwargs)
    assert type(agent.world_model) is kind
    assert agent.part_references["world_model"]["how"] == how
    assert agent.world_model.observation_space == agent.observation_space


def test_an_instance_is_used_as_it_is():
    agent = tiny()
    model = EnsembleModel(agent.observation_space, agent.action_space, members=2, elites=1, hidden=[8], device="cpu")
    assert learned(world_model=model, world_model_kwargs=None).world_model is model


def test_an_instance_of_other_spaces_is_refused():
    model = PendulumModel(device="cpu")
    with pytest.raises(
        ValueError, match=r"The world model was built for the observation_space Box.*, and this agent's is Box"
    ):
        learned("MountainCarContinuous-v0", world_model=model, world_model_kwargs=None)


def test_keywords_for_an_instance_come_too_late():
    with pytest.raises(PartArgumentError, match=r"is an instance: world_model_kwargs .* come too late"):
        tiny(world_model=PendulumModel(device="cpu"), world_model_kwargs={"g": 9.0})


def test_a_misspelt_keyword_is_recognised():
    with pytest.raises(PartArgumentError, match=r"does not take 'member'\. Did you mean 'members'\?"):
        learned(world_model_kwargs={"member": 3})
    with pytest.raises(PartArgumentError, match=r"does not take 'horizn'. Did you mean 'horizon'?"):
        learned(imagination_kwargs={"horizn": 3})


def test_a_misspelt_name_is_recognised():
    with pytest.raises(UnknownPartError, match=r"Did you mean 'ensemble'?"):
        learned(world_model="ensembel")


# ---- images


def test_auto_is_off_for_images_and_says_so(capsys):
    arguments = {key: value for key, value in TINY.items() if key not in ("imagination_kwargs", "fit_freq")}
    arguments |= {"learning_starts": 10, "buffer_size": 100, "batch_size": 4}
    arguments["policy_kwargs"] = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
    plain = SAC("CnnPolicy", PixelEnv(), **arguments).learn(20)
    agent = MBPO("CnnPolicy", PixelEnv(), verbose=1, **arguments)
    assert agent.world_model is None
    assert "world_model='auto': no built-in takes these spaces, so the model is off (ensemble: " in capsys.readouterr().out
    agent.learn(20, log_interval=10**6)
    for one, other in zip(agent.policy.state_dict().values(), plain.policy.state_dict().values(), strict=True):
        assert th.equal(one, other)


def test_a_name_that_does_not_take_images_is_an_error():
    arguments = {**TINY, "buffer_size": 10}
    with pytest.raises(UnsupportedSpace, match=r"does not take observations Box\(0, 255, .*image(.|\n)*These do: .*oracle"):
        MBPO("CnnPolicy", PixelEnv(), world_model="ensemble", **arguments)


# ---- imagination=


def test_ways_to_choose_an_imagination():
    mine = BranchedRollouts(horizon=3, starts_per_step=1)
    assert tiny(imagination=mine, imagination_kwargs=None).imagination is mine
    agent = tiny(imagination="sb3_mbrl.imagination:BranchedRollouts", imagination_kwargs={"horizon": 7})
    assert agent.imagination.horizon(0) == 7


# ---- copies


def test_a_deep_copy_is_an_agent_of_its_own():
    module = types.ModuleType("given")
    module.sb3_mbrl_on_setup = hookimpl(lambda agent: None, specname="sb3_mbrl_on_setup")
    agent = learned(plugins=[module])
    copied = copy.deepcopy(agent)
    assert copied.registry is agent.registry
    assert copied.world_model is not agent.world_model
    weights, before = next(agent.world_model.parameters()), next(copied.world_model.parameters()).clone()
    with th.no_grad():
        weights += 1
    assert th.equal(next(copied.world_model.parameters()), before)


# ---- spaces that do not fit


class ImageEnv(gym.Env):
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("name", ["ensemble", "mlp"])
def test_unsupported_spaces_by_an_explicit_model_name(name):
    with pytest.raises(
        UnsupportedSpace, match=rf"world model '{name}' .* does not take observations Box\(0, 255(.|\n)*These do: "
    ):
        MBPO("CnnPolicy", ImageEnv(), world_model=name, **{**TINY, "buffer_size": 10})


def test_spaces_of_another_environment():
    with pytest.raises(UnsupportedSpace, match=r"world model .pendulum. .*: it is for observations Box"):
        tiny("MountainCarContinuous-v0")


# ---- plugins


def test_an_unknown_plugin():
    with pytest.raises(UnknownPartError, match=r"'ensembel'.*Did you mean 'ensemble'\?"):
        quick(world_model="ensembel")
    with pytest.raises(UnknownPartError, match=r"no_such_package"):
        quick(world_model="no_such_package.models:Model")
    with pytest.raises(UnknownPartError, match=r"no plugin 'sb3-mbrl-nowhere' is installed"):
        quick(plugins=["sb3-mbrl-nowhere"])


def test_a_broken_plugin(tmp_path, monkeypatch):
    info = tmp_path / "sb3_mbrl_bad-1.0.dist-info"
    info.mkdir()
    (tmp_path / "sb3_mbrl_bad.py").write_text("import no_such_package_anywhere\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sb3-mbrl-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sb3_mbrl]\nbad = sb3_mbrl_bad\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reset_registry()
    try:
        # Others are not harmed.
        with pytest.warns(PluginWarning, match=r"plugin 'bad' .*sb3-mbrl-bad.* is broken and left out"):
            assert quick().world_model is not None
        with pytest.raises(
            BrokenPluginError, match=r"No module named 'no_such_package_anywhere'(.|\n)*SB3_MBRL_BLOCK=sb3-mbrl-bad"
        ):
            quick(world_model="bad")
    finally:
        reset_registry()


def test_a_plugin_that_is_no_plugin():
    with pytest.raises(BrokenPluginError, match=r"it implements no hook; mark its functions with @sb3_mbrl.hookimpl"):
        quick(plugins=[object()])


def test_a_conflicting_plugin():
    with pytest.raises(PluginConflictError, match=r"world model name 'ensemble' is offered by sb3-mbrl .* and OffersMLP"):
        quick(world_model="ensemble", plugins=[OffersMLP(name="ensemble")])


def test_an_outdated_plugin():
    with pytest.raises(
        PluginVersionError, match=r"was written for contract v0; this sb3-mbrl speaks v2(.|\n)*'mine' needs a newer"
    ):
        quick(world_model="mine", plugins=[OffersMLP(contract=0)])


@pytest.mark.parametrize("plugins", ["my_plugin", types, 5])
def test_plugins_are_a_list(plugins):
    with pytest.raises(TypeError, match=r"plugins=.*: give a list: plugins=\[...\]"):
        quick(plugins=plugins)
