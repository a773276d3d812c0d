"""Spaces: integer actions are whole numbers, and spaces that nothing can be learned in are refused at construction by name."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.noise import NormalActionNoise

from sb3_mbrl import MBPO, PETS, DreamerV3, Dyna, model_based
from sb3_mbrl.contracts import UnsupportedSpace
from tests.helpers.random_spaces import CLASSES, AnyEnv

BOX, WHOLE = spaces.Box(-1, 1, (2,)), spaces.Box(-2, 4, (2,), np.int32)
BY_NAME = {"MBPO": MBPO, "PETS": PETS, "DreamerV3": DreamerV3}


def agent_of(name: str, observation_space=BOX, action_space=WHOLE, policy="MlpPolicy", **kwargs):
    cls, settings = CLASSES[name]
    return cls(policy, AnyEnv(observation_space, action_space), seed=0, device="cpu", **{**settings, **kwargs})


def env_of(agent) -> AnyEnv:
    return agent.get_env().envs[0].unwrapped


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("noise", [False, True])
def test_integer_actions_are_whole_in_training_and_in_predict(name, noise, tmp_path):
    """MBPO gave 3.7 to the environment, and SB3's buffer stored what was left of the scaled action: -1, 0 or 1."""
    given = []
    step = AnyEnv.step
    more = {} if name == "DreamerV3" or not noise else {"action_noise": NormalActionNoise(np.zeros(2), 0.3 * np.ones(2))}
    agent = agent_of(name, **more)
    env_of(agent).step = lambda action: (given.append(np.array(action)), step(env_of(agent), action))[1]
    agent.learn(40)
    given = np.array(given[:40])
    assert (given % 1 == 0).all()
    assert len(np.unique(given)) == 7
    stored = agent.replay_buffer.actions[:40, 0]
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, (given + 2) / 3 - 1, atol=1e-6)
    agent.save(tmp_path / "agent")
    for one in (agent, BY_NAME[name].load(tmp_path / "agent")):
        action, _ = one.predict(BOX.sample(), deterministic=True)
        assert WHOLE.contains(action)


def test_imagined_actions_are_whole():
    agent = agent_of("MBPO", learning_starts=20)
    agent.trainer.judge = lambda *args: setattr(agent.trainer, "trusted", True) or {}
    agent.learn(40)
    units = (agent.imagined.draw(50)["action"] + 1) * 3
    th.testing.assert_close(units, units.round(), atol=1e-5, rtol=0)


def test_integer_actions_without_a_model_are_those_of_sb3_with_one_warning():
    settings = {"learning_starts": 10, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, "buffer_size": 100}
    with pytest.warns(UserWarning, match=r"The actions Box\(-2, 4, \(2,\), int32\) are whole numbers. Without a world model"):
        ours = MBPO("MlpPolicy", AnyEnv(BOX, WHOLE), world_model=None, gradient_steps=1, **settings).learn(30)
    theirs = SAC("MlpPolicy", AnyEnv(BOX, WHOLE), **settings).learn(30)
    assert np.array_equal(ours.replay_buffer.actions, theirs.replay_buffer.actions)
    assert np.array_equal(*(agent.predict(np.zeros(2, np.float32), deterministic=True)[0] for agent in (ours, theirs)))


def test_actions_of_half_precision_are_members():
    space = spaces.Box(-0.1, 0.7, (2,), np.float16)
    agent = agent_of("MBPO", BOX, space).learn(30)
    action, _ = agent.predict(BOX.sample())
    assert space.contains(action)
    assert agent.replay_buffer.actions.dtype == np.float32


def test_an_agent_with_whole_actions_becomes_model_free():
    agent = agent_of("MBPO").learn(30)
    plain = agent.to_model_free()
    assert type(plain) is SAC
    assert plain.predict(np.zeros(2, np.float32), deterministic=True)[0].dtype.kind == "f"  # as SB3 does


EMPTY = spaces.Box(-1, 1, (0,))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("observation_space", "action_space", "words"),
    [
        (spaces.Dict(wheels=BOX, arms=EMPTY), BOX, r"key 'arms': Box\(\[\], \[\], \(0,\), float32\) holds no numbers"),
        (spaces.Dict({7: BOX}), BOX, r"key 7 of Dict"),
        (BOX, EMPTY, r"Box\(\[\], \[\], \(0,\), float32\)"),
        (BOX, spaces.Box(-np.inf, 1, (1,)), r"finite lower and upper bound, and is Box\(-inf"),
        (spaces.Dict(name=spaces.Text(3), x=BOX), BOX, r"key 'name': Text\(1, 3"),
        (spaces.Graph(BOX, None), BOX, r"Graph\("),
    ],
)
def test_spaces_are_refused_at_construction_by_name(name, observation_space, action_space, words):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    if name in ("Dyna", "DynaQ"):
        words = "but Box" if action_space is EMPTY else words  # the class takes no such actions at all
        action_space = spaces.Discrete(2) if action_space is BOX else action_space
    with pytest.raises((ValueError, AssertionError, NotImplementedError), match=words):
        agent_of(name, observation_space, action_space, "QTablePolicy" if name == "DynaQ" else policy)


def test_categories_that_start_elsewhere():
    for observation_space in (spaces.Discrete(5, start=1), spaces.MultiDiscrete([3, 2], start=[0, -2])):
        with pytest.raises(UnsupportedSpace, match="counts categories from 0: let the space start there"):
            agent_of("MBPO", observation_space, BOX)
        agent_of("PETS", observation_space, BOX)  # its networks are ours
        MBPO("MlpPolicy", AnyEnv(observation_space, BOX), world_model=None)  # SAC's own affair
    with pytest.raises(UnsupportedSpace, match=r"Discrete\(2, start=1\): Stable-Baselines3 counts actions from 0"):
        agent_of("Dyna", BOX, spaces.Discrete(2, start=1))


def test_every_model_based_class_refuses_what_its_networks_fail_on():
    from stable_baselines3 import TD3

    with pytest.raises(UnsupportedSpace, match=r"key 'c.d' of Dict\("):
        model_based(TD3)("MultiInputPolicy", AnyEnv(spaces.Dict({"c.d": BOX}), BOX))
    with pytest.raises(UnsupportedSpace, match=r"give it the shape \(1,\)"):
        Dyna("MlpPolicy", AnyEnv(spaces.Box(-1, 1, ()), spaces.Discrete(2)))


def test_ordinary_spaces_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent_of("MBPO", spaces.Dict({"a b": BOX, "n": spaces.Discrete(3)}), BOX, "MultiInputPolicy")
