"""``model_based``: every off-policy class of SB3 and sb3-contrib, with a model."""

import inspect
import pickle
import subprocess
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import ARS, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ, model_based
from sb3_mbrl.algorithms import model_based as factory
from sb3_mbrl.algorithms.base import ModelBasedMixin
from tests.helpers.agents import LEARNED
from tests.helpers.model_free import BASES, env_id, quick_settings

IMAGINE = {"imagination_kwargs": {"freq": 20, "starts_per_step": 4, "max_age": 100}, "fit_freq": 60}


def test_settings_are_not_written_into():
    """SB3 adds ``use_sde`` to the dictionary it is given, which then breaks TD3."""
    settings = quick_settings()
    for base in (SAC, TD3, TQC):
        model_based(base)("MlpPolicy", "Pendulum-v1", **settings)
    assert settings == quick_settings()


@pytest.mark.parametrize("base", BASES)
def test_it_fits_imagines_trains_saves_and_loads(base, tmp_path):
    cls = model_based(base)
    agent = cls("MlpPolicy", env_id(base), **{**quick_settings(), **LEARNED, **IMAGINE})
    agent.trainer.trusted = True
    agent.trainer.judge = lambda *_: {}  # two epochs make no good model; what is imagined is not the point here
    agent.learn(200)
    assert agent.world_model.n_fits >= 2
    assert agent._n_updates > 0
    actions = agent.imagined.draw(50)["action"]
    assert actions.shape == (50, 1)
    assert actions.is_floating_point() == isinstance(agent.action_space, gym.spaces.Box)
    del agent.trainer.judge
    agent.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent", env=gym.make(env_id(base)))
    obs = np.stack([agent.observation_space.sample() / 1e3 for _ in range(8)])
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert th.equal(agent.world_model.network.layers[0].weight, loaded.world_model.network.layers[0].weight)
    loaded.learn(30, reset_num_timesteps=False)


def test_one_class_for_each_base():
    assert model_based(SAC) is MBPO
    assert model_based(DQN) is Dyna
    assert model_based(TQC) is model_based(TQC)
    assert model_based(TQC).__name__ == "ModelBasedTQC"
    assert model_based(model_based(TQC)) is model_based(TQC)
    assert model_based(TD3) is not model_based(DDPG)


@pytest.mark.parametrize("base", BASES)
def test_the_class_pickles(base):
    cls = model_based(base)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cloudpickle.loads(cloudpickle.dumps(cls)) is cls


def test_a_pickled_class_is_found_in_a_fresh_process(tmp_path):
    (tmp_path / "cls.pkl").write_bytes(pickle.dumps(model_based(CrossQ)))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'cls.pkl')!r}, 'rb')))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "<class 'sb3_mbrl.algorithms.model_based.ModelBasedCrossQ'>"
    with pytest.raises(AttributeError, match=r"call model_based\(MyOwn\) before unpickling"):
        factory.ModelBasedMyOwn  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        factory.nonsense  # noqa: B018


@pytest.mark.parametrize("base", BASES)
def test_the_signature_is_the_true_one(base):
    """Every argument of the base with its default, in its order, then the model's by keyword."""
    of_base = inspect.signature(base).parameters
    ours = inspect.signature(model_based(base)).parameters
    assert list(ours)[: len(of_base)] == list(of_base)
    for name, parameter in of_base.items():
        if base in (SAC, DQN) and name in ("learning_starts", "gradient_steps"):
            continue
        assert ours[name].default == parameter.default, name
    extra = list(ours)[len(of_base) :]
    assert extra[0] == "world_model"
    assert set(extra) == {p.name for p in inspect.signature(MBPO).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extra)


def test_the_docstring_tells_of_both():
    doc = inspect.getdoc(model_based(TQC))
    assert "world_model" in doc
    assert ":param top_quantiles_to_drop_per_net:" in doc


def test_a_class_of_ones_own(tmp_path):
    class Careful(TD3):
        """Takes smaller steps."""

        def __init__(self, *args, care=0.5, **kwargs):
            self.care = care
            super().__init__(*args, **kwargs)

    cls = model_based(Careful)
    agent = cls("MlpPolicy", "Pendulum-v1", care=0.25, **{**quick_settings(), **LEARNED, **IMAGINE})
    agent.learn(80)
    assert agent.care == 0.25
    assert agent.world_model.fitted
    assert pickle.loads(pickle.dumps(cls)) is cls


@pytest.mark.parametrize("base", [PPO, A2C, TRPO])
def test_on_policy_classes_are_refused_with_a_way_out(base):
    with pytest.raises(TypeError, match=rf"{base.__name__}.*have no replay buffer.*ModelVecEnv"):
        model_based(base)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ARS, "it is no off-policy algorithm class"),
        (dict, "it is no off-policy algorithm class"),
        (OffPolicyAlgorithm, "it is no off-policy algorithm class"),
        ("SAC", "give a class"),
        (None, "give a class"),
    ],
)
def test_anything_else_is_refused(given, words):
    with pytest.raises(TypeError, match=words):
        model_based(given)


class Named:
    """A namespace for a class with a well-known name."""

    class TD3(TD3):
        mine = True


def test_a_class_of_a_well_known_name_is_not_taken_for_it(tmp_path):
    """Pickle looked it up by its name, and found Stable-Baselines3's."""
    own, known = model_based(Named.TD3), model_based(TD3)
    assert own is not known
    assert own.__name__ != known.__name__
    assert pickle.loads(pickle.dumps(own)) is own
    assert pickle.loads(pickle.dumps(known)) is known
    own("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=rf"was saved by {own.__name__}, not by ModelBasedTD3: load it with model_based"):
        known.load(tmp_path / "agent")


def test_an_argument_of_the_same_name_is_refused():
    class Own(SAC):
        def __init__(self, policy, env, real_ratio=3, **kwargs):
            super().__init__(policy, env, **kwargs)

    with pytest.raises(TypeError, match=r"model_based\(Own\): its constructor has arguments of its own called real_ratio"):
        model_based(Own)


@pytest.mark.parametrize("cls", [PETS, DynaQ])
def test_what_plans_with_a_model_already_is_refused(cls):
    with pytest.raises(TypeError, match=rf"model_based\({cls.__name__}\): it plans with a world model already"):
        model_based(cls)


def test_the_mixin_is_no_algorithm():
    with pytest.raises(TypeError, match=r"give an algorithm, e\.g\. TQC"):
        model_based(ModelBasedMixin)


class Noted(TD3):
    def learn(self, total_timesteps, callback=None, note="", **options):
        self.note, self.options = note, options
        return super().learn(total_timesteps, callback, **options)


class Plain(TD3):
    def learn(self, total_timesteps, callback=None, log_interval=4, tb_log_name="Plain", *args):
        self.logged_as = tb_log_name
        return self


def test_a_learn_of_ones_own_keeps_its_arguments():
    cls = model_based(Noted)
    assert list(inspect.signature(cls.learn).parameters) == ["self", "total_timesteps", "callback", "note", "options"]
    agent = cls("MlpPolicy", "Pendulum-v1", buffer_size=30, learning_starts=50, device="cpu")
    assert agent.learn(10, note="mine", log_interval=1).note == "mine"
    assert agent.options == {"log_interval": 1, "tb_log_name": "ModelBasedNoted"}
    assert agent.learn(10, tb_log_name="other").options == {"tb_log_name": "other"}
    agent = model_based(Plain)("MlpPolicy", "Pendulum-v1", buffer_size=30)
    assert agent.learn(10).logged_as == "ModelBasedPlain"
    assert agent.learn(10, None, 1, "other").logged_as == "other"


@pytest.mark.parametrize("base", BASES)
def test_learn_has_the_base_class_arguments(base):
    ours, theirs = (inspect.signature(cls.learn).parameters for cls in (model_based(base), base))
    assert list(ours) == list(theirs)
    assert ours["tb_log_name"].default == model_based(base).__name__
    assert ours["log_interval"].default == theirs["log_interval"].default


def own_class(init):
    return type("Own", (TD3,), {"__init__": init})


@pytest.mark.parametrize(
    "init",
    [
        lambda self, env, **kwargs: TD3.__init__(self, "MlpPolicy", env, **kwargs),
        lambda self, env, *args, **kwargs: TD3.__init__(self, "MlpPolicy", env, *args, **kwargs),
        lambda self, policy, env, learning_rate=1e-3: TD3.__init__(self, policy, env, learning_rate),
    ],
    ids=["no policy", "no policy, others", "no _init_setup_model"],
)
def test_constructors_that_leave_no_room_for_a_model_are_refused(init):
    with pytest.raises(TypeError, match=r"It has to begin with \(policy, env\) and to take _init_setup_model"):
        model_based(own_class(init))


def test_a_class_that_is_defined_again_pickles():
    """As in a notebook, whose cell is run a second time."""

    def define():
        return type("DefinedAgain", (TD3,), {})

    first, second = model_based(define()), model_based(define())
    assert first is not second
    assert pickle.loads(pickle.dumps(second)) is second
