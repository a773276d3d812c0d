"""The library's own parts: each record leads to a class of its kind, and tells which spaces that class takes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_mbrl
from sb3_mbrl import builtin
from sb3_mbrl.contracts import CONTRACT_VERSION, EnvFunctions, Imagination, Planner, UnsupportedSpace, WorldModel
from sb3_mbrl.plugins.selection import import_target
from sb3_mbrl.testing import CASES

WORLD_MODELS = {spec.name: spec for spec in builtin.sb3_mbrl_world_models()}
PLANNERS = {spec.name: spec for spec in builtin.sb3_mbrl_planners()}
RECORDS = [
    *((spec, BaseAlgorithm) for spec in builtin.sb3_mbrl_algorithms()),
    *((spec, WorldModel) for spec in WORLD_MODELS.values()),
    *((spec, Planner) for spec in PLANNERS.values()),
    *((spec, Imagination) for spec in builtin.sb3_mbrl_imaginations()),
]


@pytest.mark.parametrize(("spec", "kind"), RECORDS, ids=lambda value: getattr(value, "name", ""))
def test_a_record_leads_to_a_class_of_its_kind(spec, kind):
    cls = import_target(spec.factory, spec.name)
    assert issubclass(cls, kind)
    assert cls.__module__ == spec.factory.split(":")[0] or cls.__module__.startswith(spec.factory.split(":")[0] + ".")
    assert spec.contract == CONTRACT_VERSION
    assert spec.summary
    assert len(spec.summary.splitlines()) == 1


def test_algorithms_are_the_public_classes_and_name_their_base():
    classes = {spec.name: import_target(spec.factory, spec.name) for spec in builtin.sb3_mbrl_algorithms()}
    assert {name: cls.__name__ for name, cls in classes.items()} == {
        "mbpo": "MBPO",
        "dhmbpo": "DHMBPO",
        "svg": "SVG",
        "dyna": "Dyna",
        "pets": "PETS",
        "dreamer_v3": "DreamerV3",
        "muzero": "MuZero",
        "dyna_q": "DynaQ",
    }
    assert all(getattr(sb3_mbrl, cls.__name__) is cls for cls in classes.values())
    bases = {spec.name: spec.base for spec in builtin.sb3_mbrl_algorithms() if spec.base}
    assert bases == {"mbpo": "SAC", "dhmbpo": "SAC", "svg": "SAC", "dyna": "DQN"}


@pytest.mark.parametrize("specs", [hook for name, hook in vars(builtin).items() if name.startswith("sb3_mbrl_")])
def test_names_within_a_kind_are_unique(specs):
    names = [spec.name for spec in specs()]
    assert len(names) == len(set(names)) > 0


def test_auto_knows_one_candidate():
    assert {name: spec.auto_rank for name, spec in WORLD_MODELS.items() if spec.auto_rank is not None} == {"ensemble": 100}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["ensemble", "mlp", "rssm", "muzero", "tabular"])
def test_supports_says_what_the_constructor_does(name, case):
    """Spaces that ``supports`` takes can be built with; those that it refuses are refused by the class too."""
    spec, arguments = WORLD_MODELS[name], (case.observation_space, case.action_space)
    cls, settings = import_target(spec.factory, name), {"size": "tiny"} if name == "rssm" else {}
    reason = spec.supports(*arguments)
    if reason is None:
        assert cls(*arguments, device="cpu", **settings).observation_space == case.observation_space
    else:
        with pytest.raises(UnsupportedSpace):
            cls(*arguments, device="cpu", **settings)


def test_the_spaces_that_each_model_takes():
    taken = {
        name: {case.name for case in CASES if WORLD_MODELS[name].supports(case.observation_space, case.action_space) is None}
        for name in ("ensemble", "rssm", "tabular", "oracle")
    }
    names = {case.name for case in CASES}
    assert taken == {"ensemble": names - {"image"}, "rssm": names, "tabular": {"discrete"}, "oracle": names}


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("pendulum", "Pendulum-v1"),
        ("cartpole", "CartPole-v1"),
        ("cartpole-balance", "CartPoleBalance-v0"),
        ("cartpole-swing-up", "CartPoleSwingUp-v0"),
    ],
)
def test_a_twin_takes_the_spaces_of_its_environment_alone(name, env_id):
    env, spec = gym.make(env_id), WORLD_MODELS[name]
    assert spec.supports(env.observation_space, env.action_space) is None
    other = spaces.Box(-1, 1, (7,), np.float32)
    reason = spec.supports(other, env.action_space)
    assert reason == f"it is for observations {env.observation_space} and actions {env.action_space}"


def test_the_spaces_that_planners_refuse():
    """Gradients need continuous actions (and for iLQR observations), a search tree discrete actions."""
    box, discrete = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
    refused = {
        name: [case for case in ((box, discrete), (discrete, box), (box, box)) if spec.supports(*case) is not None]
        for name, spec in PLANNERS.items()
    }
    assert {name: cases for name, cases in refused.items() if cases} == {
        "gradient": [(box, discrete)],
        "ilqr": [(box, discrete), (discrete, box)],
        "mcts": [(discrete, box), (box, box)],
    }


def test_env_functions_know_pendulum():
    spec = {spec.name: spec for spec in builtin.sb3_mbrl_env_functions()}["pendulum"]
    functions = spec.factory(gym.make("Pendulum-v1"))
    assert isinstance(functions, EnvFunctions)
    assert functions.reward_fn is not None
