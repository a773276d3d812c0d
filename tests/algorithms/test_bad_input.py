"""Bad input: a clear error that names the fix, and nothing lost.

One test or more for each kind. More about real data that is not finite is in ``test_seam.py``, about checkpoints in
``test_checkpoint.py``, about known functions in ``test_parts.py``.
"""

import types

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import UnsupportedSpace, WorldModelSpec
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins import (
    BrokenPluginError,
    PluginConflictError,
    PluginContractError,
    PluginWarning,
    UnknownPartError,
    reset_registry,
)
from sb3_mbrl.plugins.errors import PluginVersionError
from sb3_mbrl.testing import LinearToy, NeighbourToy, RecurrentToy
from tests.algorithms.common import TINY, BrokenEnv, DictEnv, learned, tiny

QUICK = {
    "learning_starts": 20,
    "fit_freq": 20,
    "batch_size": 16,
    "fit_kwargs": {"max_batches": 20, "batch_size": 16},
    "imagination_kwargs": {"freq": 10, "starts_per_step": 4, "max_age": 30},
}


def quick(env="Pendulum-v1", **kwargs) -> MBPO:
    return learned(env, **{**QUICK, **kwargs})


def intact(agent: MBPO, steps: int, tmp_path) -> None:
    """Nothing lost: the rows are there, in the user's own buffer, and the agent can be saved and loaded."""
    assert agent.replay_buffer.pos == steps
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent").num_timesteps == agent.num_timesteps


# ---- unsupported spaces by an explicit model name


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


# ---- NaN or infinite real observations or rewards (which env, which key, which step)


@pytest.mark.parametrize(
    ("what", "words"), [("observation", "observation"), ("reward", "reward"), ("terminal", "terminal observation")]
)
def test_real_data_that_is_not_finite_in_one_of_several_environments(what, words, tmp_path):
    def make(i):
        env = gym.make("Pendulum-v1", max_episode_steps=10)
        return (lambda: BrokenEnv(env, 15, what)) if i == 1 else (lambda: env)

    agent = quick(DummyVecEnv([make(i) for i in range(3)]))
    with pytest.raises(ValueError, match=f"Environment 1 returned NaN or infinity in its {words} at real step 45"):
        agent.learn(100)
    intact(agent, 14, tmp_path)


def test_real_data_that_is_not_finite_in_one_key(tmp_path):
    agent = MBPO("MultiInputPolicy", BrokenEnv(DictEnv(), 7, "place"), **TINY)
    with pytest.raises(
        ValueError, match=r"Environment 0 returned NaN or infinity in its observation\['place'\] at real step 7"
    ):
        agent.learn(10)
    intact(agent, 6, tmp_path)


def test_a_replay_buffer_that_is_not_finite():
    agent = quick().learn(15)
    agent.replay_buffer.next_observations[3, 0, 1] = np.nan
    with pytest.raises(ValueError, match=r"The replay buffer holds NaN or infinity in next_obs at row 3, environment 0"):
        agent.fit_world_model()


# ---- a world model that returns wrong shapes


class Wrong(LinearToy):
    """Breaks the contract as it is told."""

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
        ({"change": lambda p: p._replace(state=p.state[:, :2])}, r"turned a state \(2, 3\) into \(2, 2\); shapes must stay"),
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
    """Returns something else than figures from ``fit``."""

    def __init__(self, *args, told=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.told = told

    def fit(self, data, budget=None, *, generator=None):
        super().fit(data, budget, generator=generator)
        return self.told


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (0.3, r"Talkative.fit returned float, expected a dictionary of figures by name"),
        ({"loss": th.zeros(1)}, r"Talkative.fit returned figures that are no plain numbers: {'loss'"),
    ],
)
def test_a_fit_that_returns_no_figures(told, words):
    agent = quick(world_model=Talkative, world_model_kwargs={"told": told})
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


# ---- an unknown, broken, conflicting or outdated plugin


class Offers:
    """Offers one world model."""

    def __init__(self, **record):
        self.record = {"name": "mine", "factory": MLPModel, **record}

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [WorldModelSpec(**self.record)]


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
    with pytest.raises(PluginConflictError, match=r"world model name 'ensemble' is offered by sb3-mbrl .* and Offers"):
        quick(world_model="ensemble", plugins=[Offers(name="ensemble")])


def test_an_outdated_plugin():
    with pytest.raises(
        PluginVersionError, match=r"was written for contract v0; this sb3-mbrl speaks v1(.|\n)*'mine' needs a newer"
    ):
        quick(world_model="mine", plugins=[Offers(contract=0)])


# ---- options that contradict each other (more in test_seam.py and test_parts.py)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"real_ratio": -0.1}, "real_ratio=-0.1: give the share of real rows"),
        ({"real_ratio": "0.5"}, "real_ratio='0.5'"),
        ({"fit_freq": "250"}, "fit_freq='250'"),
        ({"fit_freq": None}, "fit_freq=None"),
        ({"fit_freq": -1}, "fit_freq=-1: give the real environment steps between two fits"),
        ({"reward_fn": "known"}, "reward_fn='known': give a function, 'auto'"),
        ({"imagination_kwargs": {"horizon": "5"}}, "horizon='5': give a whole number"),
        ({"imagination_kwargs": {"observation": "features"}}, "policy acts on observations"),
        ({"world_model_kwargs": {"members": 2, "elites": 3}}, "elites=3 of members=2: give 1 <= elites <= members"),
        ({"world_model_kwargs": {"hidden": [8], "weight_decay": [0.1]}}, "weight_decay has 1 entries, but the network has 2"),
        ({"world_model_kwargs": {"target": "both"}}, "target='both': choose 'delta' or 'next'"),
        ({"fit_kwargs": {"holdout_ratio": 1.0}}, "holdout_ratio=1.0: nothing would be left to learn from"),
        ({"world_model_kwargs": {"hidden": 64}}, "hidden=64: give the units of each hidden layer"),
        ({"world_model_kwargs": {"hidden": [0]}}, r"hidden=\[0\]: give the units"),
        ({"world_model_kwargs": {"reward_fn": print}}, "give reward_fn to MBPO"),
        ({"world_model_kwargs": {"device": "cpu"}}, "give device to MBPO"),
        ({"imagination_kwargs": {"starts_per_step": float("nan")}}, "starts_per_step=nan: give a number above 0"),
        ({"imagination_kwargs": {"starts_per_step": float("inf")}}, "starts_per_step=inf: give a number above 0"),
        ({"imagination_kwargs": {"max_age": float("inf")}}, "max_age=inf: give a whole number"),
        ({"imagination_kwargs": {"freq": 2.5}}, "freq=2.5: give a whole number"),
    ],
)
def test_options_that_contradict_each_other(wrong, words):
    with pytest.raises(ValueError, match=words):
        quick(**wrong)


@pytest.mark.parametrize("plugins", ["my_plugin", types, 5])
def test_plugins_are_a_list(plugins):
    with pytest.raises(TypeError, match=r"plugins=.*: give a list: plugins=\[...\]"):
        quick(plugins=plugins)


# ---- checkpoints


def test_a_checkpoint_saved_with_another_world_model(tmp_path):
    quick().save(tmp_path / "agent")
    with pytest.raises(
        ValueError, match=r"saved with the world model 'ensemble' .* was given 'mlp' .* Weights of one do not fit the other"
    ):
        MBPO.load(tmp_path / "agent", world_model="mlp")


def test_a_checkpoint_with_a_missing_plugin(tmp_path):
    # One of an installed distribution: test_checkpoint.py:test_a_checkpoint_names_the_distribution_that_is_missing
    module = types.ModuleType("notebook")
    module.sb3_mbrl_world_models = Offers().sb3_mbrl_world_models
    quick(world_model="mine", world_model_kwargs={"hidden": [8]}, plugins=[module]).save(tmp_path / "agent")
    with pytest.raises(
        UnknownPartError, match=r"'mine' came from a plugin that was given to the agent. Give it again: load\(..., plugins"
    ):
        MBPO.load(tmp_path / "agent")


def test_mbpo_load_of_a_sac_file(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"looks like a plain SAC file. Load it with the class it was saved with"):
        MBPO.load(tmp_path / "sac")


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
    assert not agent._trusted
    state = agent.world_model.initial(th.as_tensor(agent.replay_buffer.observations[0]))
    prediction = agent.world_model.step(state, th.zeros(1, 1))
    assert prediction.state["obs"].isfinite().all()
    assert prediction.reward.isfinite().all()


def test_one_transition_at_a_time():
    agent = quick(learning_starts=0, buffer_size=1, batch_size=1).learn(5)
    assert agent.num_timesteps == 5
    assert all(value.isfinite().all() for value in agent.policy.state_dict().values())


# ---- Ctrl-C during a model fit (what the loaded agent does then: test_checkpoint.py)


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
