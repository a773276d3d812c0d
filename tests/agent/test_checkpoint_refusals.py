"""Parts that are not in the saved file, and what ``load`` refuses."""

import sys
import textwrap
import types
import zipfile

import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

import sb3_mbrl
from sb3_mbrl import MBPO
from sb3_mbrl.agent.manifest import DamagedError
from sb3_mbrl.envs.known_functions.classic_control import PendulumReward
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import MLPModel
from sb3_mbrl.plugins import UnknownPartError, reset_registry
from tests.helpers.agents import OffersMLP, learned
from tests.helpers.saved_agents import Offers, ScaledModel, quick, same_parameters

# ---- parts that are not in the zip


def test_a_world_model_given_as_an_instance(tmp_path):
    model = EnsembleModel(
        PendulumModel.env_spaces[0], PendulumModel.env_spaces[1], members=2, elites=1, hidden=[16], device="cpu"
    )
    agent = quick(world_model=model, world_model_kwargs=None).learn(30)
    agent.save(tmp_path / "agent")
    assert agent.world_model_class is model
    with pytest.raises(
        UnknownPartError,
        match=r"was given as an instance of sb3_mbrl.models.ensemble:EnsembleModel, which is not stored. Give it",
    ):
        MBPO.load(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"was saved with the world model 'EnsembleModel' .* and load.. was given 'pendulum'"):
        MBPO.load(tmp_path / "agent", world_model="pendulum")
    fresh = EnsembleModel(model.observation_space, model.action_space, members=2, elites=1, hidden=[16], device="cpu")
    loaded = MBPO.load(tmp_path / "agent", world_model=fresh, env=make_vec_env("Pendulum-v1"))
    assert loaded.world_model is fresh
    same_parameters(agent, loaded)
    assert fresh.elites == model.elites
    loaded.learn(5, reset_num_timesteps=False)
    loaded.save(tmp_path / "again")
    same_parameters(loaded, MBPO.load(tmp_path / "again", world_model=fresh))


def test_an_instance_in_the_place_of_the_class_it_was_saved_with(agent, path):
    fresh = EnsembleModel(
        agent.observation_space, agent.action_space, members=2, elites=1, hidden=[16], reward_fn=PendulumReward(2.0),
        termination_fn=agent.parts.known.termination_fn, device="cpu",
    )  # fmt: skip
    loaded = MBPO.load(path, world_model=fresh)
    assert loaded.world_model is fresh
    same_parameters(agent, loaded)


def test_a_world_model_given_as_a_local_function(tmp_path):
    def make(observation_space, action_space, **kwargs):
        return MLPModel(observation_space, action_space, hidden=[8], **kwargs)

    agent = quick(world_model=make, world_model_kwargs=None)
    agent.save(tmp_path / "agent")
    with pytest.raises(UnknownPartError, match=r"which cannot be imported. Give it again: load\(..., world_model=...\)"):
        MBPO.load(tmp_path / "agent")
    same_parameters(agent, MBPO.load(tmp_path / "agent", world_model=make))


def test_an_imagination_given_as_an_instance(tmp_path):
    mine = BranchedRollouts(horizon=3, starts_per_step=1)
    agent = quick(imagination=mine, imagination_kwargs=None)
    agent.save(tmp_path / "agent")
    with pytest.raises(
        UnknownPartError, match=r"imagination was given as an instance .* Give it again: load\(..., imagination=...\)"
    ):
        MBPO.load(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent", imagination=mine).imagination is mine


def test_a_plugin_given_to_the_agent_is_given_again(tmp_path):
    module = types.ModuleType("my_plugin")
    module.sb3_mbrl_world_models = Offers().sb3_mbrl_world_models
    agent = learned(world_model="scaled", plugins=[module])
    assert type(agent.world_model) is ScaledModel
    agent.save(tmp_path / "agent")
    with pytest.raises(UnknownPartError) as caught:
        MBPO.load(tmp_path / "agent")
    assert str(caught.value) == f"{tmp_path / 'agent'} cannot be loaded: " + (
        "the saved agent's world model 'scaled' came from a plugin that was given to the agent. "
        "Give it again: load(..., plugins=[...])"
    )
    for again in ([module], [Offers]):
        same_parameters(agent, MBPO.load(tmp_path / "agent", plugins=again))


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Install a distribution that offers the world model 'scaled', and return a function that removes it."""
    folder = tmp_path / "site"
    info = folder / "sb3_mbrl_scaled-1.2.dist-info"
    info.mkdir(parents=True)
    (folder / "sb3_mbrl_scaled.py").write_text(
        "from sb3_mbrl import hookimpl\nfrom sb3_mbrl.contracts import WorldModelSpec\n\n\n"
        "@hookimpl\ndef sb3_mbrl_world_models():\n"
        "    return [WorldModelSpec(name='scaled', factory='tests.helpers.saved_agents:ScaledModel')]\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sb3-mbrl-scaled\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[sb3_mbrl]\nscaled = sb3_mbrl_scaled\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        reset_registry()

        def uninstall():
            patch.undo()
            reset_registry()

        yield uninstall
    reset_registry()


def test_a_checkpoint_names_the_distribution_that_is_missing(distribution, tmp_path):
    agent = learned(world_model="scaled")
    assert agent.part_references["world_model"]["distribution"] == "sb3-mbrl-scaled"
    agent.save(tmp_path / "agent")
    same_parameters(agent, MBPO.load(tmp_path / "agent"))
    distribution()
    with pytest.raises(UnknownPartError) as caught:
        MBPO.load(tmp_path / "agent")
    assert str(caught.value) == f"{tmp_path / 'agent'} cannot be loaded: " + (
        "the saved agent's world model 'scaled' needs sb3-mbrl-scaled 1.2, which is not installed. "
        "Run `pip install sb3-mbrl-scaled`."
    )


# ---- what load refuses


def test_load_of_a_sac_file_says_what_to_do(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac")
    with pytest.raises(
        ValueError, match=r"sac was not saved by a model-based class: it looks like a plain SAC file\. Load it with"
    ):
        MBPO.load(tmp_path / "sac")


@pytest.mark.parametrize("content", ["no zip", "another zip"])
def test_load_of_something_else(tmp_path, content):
    file = tmp_path / "thing.zip"
    if content == "no zip":
        file.write_text("hello")
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match=r"thing.zip is not an agent that was saved with save\(\)"):
        MBPO.load(file)
    with pytest.raises(FileNotFoundError):
        MBPO.load(tmp_path / "nothing")


def test_load_with_another_world_model(path):
    with pytest.raises(
        ValueError, match=r"saved with the world model 'ensemble' \(sb3_mbrl.models.ensemble:EnsembleModel\), and load\(\)"
    ):
        MBPO.load(path, world_model="mlp")
    assert type(MBPO.load(path, world_model="ensemble").world_model) is EnsembleModel
    with pytest.raises(ValueError, match=r"the checkpoint holds a world model"):
        MBPO.load(path, world_model=None)


def test_load_with_the_model_off_cannot_switch_it_on(tmp_path):
    quick(world_model=None).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"was saved with its world model off"):
        MBPO.load(tmp_path / "agent", world_model="ensemble")


def test_load_with_other_known_functions(agent, path):
    def mine(obs, action, next_obs):
        return th.zeros(len(obs))

    # The reward was known, so no head was learned: another function may take its place.
    assert MBPO.load(path, reward_fn=mine).world_model.reward_fn is mine
    with pytest.raises(ValueError, match=r"saved with a known reward_fn: load\(..., reward_fn=None\) cannot learn it"):
        MBPO.load(path, reward_fn=None)


def test_load_cannot_replace_a_learned_reward(tmp_path):
    quick().save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"saved with a learned reward_fn: load\(..., reward_fn=...\) cannot replace it"):
        MBPO.load(tmp_path / "agent", reward_fn=PendulumReward(2.0))


def vanishing(tmp_path, **kwargs) -> types.ModuleType:
    """Save an agent with parts from a module, and delete the module."""
    module = types.ModuleType("gone_tomorrow")
    source = """
        import torch
        from sb3_mbrl.models.mlp import MLPModel

        class Model(MLPModel):
            pass

        def reward(obs, action, next_obs):
            return torch.zeros(len(obs))
        """
    exec(textwrap.dedent(source), vars(module))
    sys.modules["gone_tomorrow"] = module
    try:
        quick(**{name: getattr(module, value) for name, value in kwargs.items()}, world_model_kwargs={"hidden": [8]}).save(
            tmp_path / "x"
        )
    finally:
        del sys.modules["gone_tomorrow"]
    return module


def test_a_class_whose_module_is_gone(tmp_path):
    module = vanishing(tmp_path, world_model="Model")
    with pytest.raises(UnknownPartError, match=r"is gone_tomorrow:Model, which .*trust=\['gone_tomorrow:Model'\]"):
        MBPO.load(tmp_path / "x")
    with pytest.raises(
        UnknownPartError, match=r"there is no module 'gone_tomorrow'\)\. Give it again: load\(..., world_model=...\)"
    ):
        MBPO.load(tmp_path / "x", trust=["gone_tomorrow"])
    assert type(MBPO.load(tmp_path / "x", world_model=module.Model).world_model) is module.Model


def test_a_known_function_whose_module_is_gone(tmp_path):
    module = vanishing(tmp_path, world_model="Model", reward_fn="reward")
    with pytest.raises(ModuleNotFoundError, match=r"gone_tomorrow") as caught:
        MBPO.load(tmp_path / "x", world_model=module.Model)
    assert "give what was known again instead: load(..., reward_fn=..., termination_fn=...)" in caught.value.__notes__[0]

    def never(obs, action, next_obs):
        return th.zeros(len(obs), dtype=th.bool)

    again = {"reward_fn": module.reward, "termination_fn": never}
    loaded = MBPO.load(tmp_path / "x", world_model=module.Model, **again)
    assert (loaded.world_model.reward_fn, loaded.world_model.termination_fn) == tuple(again.values())


class Fragile:
    """A function that cannot be unpickled with another version of its library."""

    def __call__(self, obs, action, next_obs):
        return th.zeros(len(obs))

    def __reduce__(self):
        return int, ("not", "at", "all")


def test_a_known_function_that_cannot_be_unpickled_is_asked_for(tmp_path):
    quick(reward_fn=Fragile(), termination_fn=None).save(tmp_path / "agent")
    with (
        pytest.warns(UserWarning, match=r"Could not deserialize object"),
        pytest.raises(ValueError, match=r"could not be unpickled .* Give it again: load\(..., reward_fn=...\)"),
    ):
        MBPO.load(tmp_path / "agent")
    mine = Fragile()
    assert MBPO.load(tmp_path / "agent", reward_fn=mine).world_model.reward_fn is mine


def test_the_version_is_in_the_reference(agent):
    assert agent.part_references["world_model"]["version"] == sb3_mbrl.__version__


@pytest.mark.parametrize("name", ["model_based", "world_model_kwargs"])
def test_what_load_needs_cannot_be_excluded(agent, tmp_path, name):
    with pytest.raises(ValueError, match=rf"exclude=\['{name}'\]\): the agent could not be loaded again"):
        agent.save(tmp_path / "agent", exclude=[name])
    assert not list(tmp_path.iterdir())


# ---- attributes given to load


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"real_ratio": 5.0}, "real_ratio=5.0: give the share"),
        ({"real_ratio": "0.5"}, "real_ratio='0.5': give the share"),
        ({"fit_freq": 0}, "fit_freq=0: give the real"),
        ({"fit_freq": None}, "fit_freq=None: give the real"),
        ({"fit_kwargs": {"patience": -1}}, "FitBudget: patience=-1: give a whole number from 0 on"),
        ({"fit_kwargs": {"max_epoch": 1}}, "does not take 'max_epoch'. Did you mean 'max_epochs'"),
        ({"fit_kwargs": {"max_batches": "5"}}, "max_batches='5' is not a number"),
        ({"termination_fn": True}, "termination_fn=True: give a function"),
        ({"reward_fn": "zzz"}, "reward_fn='zzz': give a function"),
        ({"world_model_kwargs": {"members": 3}}, "world_model_kwargs=.*start a new agent for another model"),
    ],
)
def test_what_load_is_given_is_checked(path, given, words):
    with pytest.raises((ValueError, TypeError), match=words):
        MBPO.load(path, **given)


def test_fit_kwargs_given_to_load_become_the_budget(agent, path):
    loaded = MBPO.load(path, fit_kwargs={"max_batches": 7}, world_model_kwargs=agent.world_model_kwargs)
    assert loaded.fit_kwargs == {"max_batches": 7}


# ---- other choices than those saved


def test_a_checkpoint_saved_with_another_world_model(tmp_path):
    quick().save(tmp_path / "agent")
    with pytest.raises(
        ValueError, match=r"saved with the world model 'ensemble' .* was given 'mlp' .* Weights of one do not fit the other"
    ):
        MBPO.load(tmp_path / "agent", world_model="mlp")


def test_a_checkpoint_with_a_missing_plugin(tmp_path):
    # One of an installed distribution: test_a_checkpoint_names_the_distribution_that_is_missing
    module = types.ModuleType("notebook")
    module.sb3_mbrl_world_models = OffersMLP().sb3_mbrl_world_models
    quick(world_model="mine", world_model_kwargs={"hidden": [8]}, plugins=[module]).save(tmp_path / "agent")
    with pytest.raises(
        UnknownPartError, match=r"'mine' came from a plugin that was given to the agent. Give it again: load\(..., plugins"
    ):
        MBPO.load(tmp_path / "agent")


def test_mbpo_load_of_a_sac_file(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"looks like a plain SAC file. Load it with the class it was saved with"):
        MBPO.load(tmp_path / "sac")


def test_a_buffer_of_other_environments_is_refused_with_the_way_out():
    agent, other = learned(), learned(make_vec_env("Pendulum-v1", n_envs=3))
    with pytest.raises(ValueError, match=r"n_envs 3; this agent has 1\. Make the agent .*n_envs=3.*fit_world_model\("):
        agent.take_replay_buffer(other.replay_buffer)
    assert agent.replay_buffer.n_envs == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_envs": 3}, r"was saved with n_envs=1. Did you mean env=make_vec_env\(..., n_envs=3\)\?"),
        ({"observation_space": 3}, "it is the environment's: give env="),
        ({"policy": "CnnPolicy"}, "was saved with policy='MlpPolicy'"),
        ({"policy_class": int}, "the file names its policy"),
        ({"use_sde": True}, "was saved with use_sde=False"),
        ({"lr_schedule": float}, "Did you mean learning_rate="),
        ({"world_model_class": "mlp"}, "did you mean world_model="),
        ({"model_based": {}}, "it is the state in the file"),
        ({"_n_updates": 3}, "this is a private attribute"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_contradict_the_file(path, wrong, words):
    """SB3 put them into ``__dict__``: most were ignored, and ``n_envs=3`` failed in the first step."""
    with pytest.raises(TypeError, match=rf"MBPO.load\(..., {next(iter(wrong))}=.*{words}"):
        MBPO.load(path, **wrong)


def test_arguments_that_agree_with_the_file_and_sb3s_custom_objects_are_taken(agent, path):
    custom = {"observation_space": agent.observation_space, "learning_rate": 0.5}
    loaded = MBPO.load(path, n_envs=1, policy="MlpPolicy", use_sde=False, batch_size=8, custom_objects=custom)
    assert (loaded.batch_size, loaded.learning_rate) == (8, 0.5)


def test_a_change_that_does_not_fit_the_weights_is_not_called_damage(path):
    changes = {"policy_kwargs": {"net_arch": [9]}}
    with pytest.raises(ValueError, match=r"agent cannot be loaded: .*policy kwargs") as caught:
        MBPO.load(path, **changes)
    assert not isinstance(caught.value, DamagedError)
