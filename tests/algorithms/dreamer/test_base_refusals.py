"""Mistakes that DreamerV3 refuses, and its messages."""

import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_mbrl import PETS, DreamerV3
from sb3_mbrl.buffers import sequences as sequence_sampler
from sb3_mbrl.contracts import UnsupportedSpace
from tests.helpers.agents import BrokenEnv, DictEnv
from tests.helpers.dreamers import MODEL, ActionEnv, small


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("dreamer") / "agent.zip"
    small().learn(48).save(path)
    return path


def test_buffers_that_hold_no_sequences():
    with pytest.raises(ValueError, match="cannot use HerReplayBuffer"):
        small(replay_buffer_class=HerReplayBuffer)
    with pytest.raises(ValueError, match="cannot use NStepReplayBuffer"):
        small(replay_buffer_class=NStepReplayBuffer)
    with pytest.raises(ValueError, match=r"cannot do without the last observations of episodes.*A smaller buffer_size"):
        small(optimize_memory_usage=True)
    with pytest.raises(ValueError, match=r"batch_length=8: the replay buffer keeps 8 steps per environment \(1 of them share"):
        small(buffer_size=8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"horizon": 0}, "horizon=0: give a whole number from 1"),
        ({"batch_length": 0}, "batch_length=0: give a whole number from 1"),
        ({"size": "size2m"}, "size='size2m': choose one of size1m"),
        ({"gamma": 1.5}, "gamma=1.5: give a discount"),
        ({"world_model": "ensemble", "world_model_kwargs": {}}, "learns in the latent states of its world model"),
        ({"world_model_kwargs": {"size": "size1m"}}, "size='tiny', and world_model_kwargs has size='size1m': give size to"),
        ({"world_model_kwargs": {"reward_fn": len}}, "has 'reward_fn'.*DreamerV3 has no use for it"),
        ({"world_model_kwargs": {**MODEL, "layers": -1}}, "layers=-1: give a whole number from 0"),
        ({"world_model_kwargs": {**MODEL, "bins": 15.0}}, "bins=15.0: give a whole number from 3"),
        ({"world_model_kwargs": {**MODEL, "free_nats": float("nan")}}, "free_nats=nan: give a number from 0"),
        ({"world_model_kwargs": {**MODEL, "kl_balance": 5}}, "kl_balance=5: give a number from 0 up to 1"),
        ({"world_model_kwargs": {**MODEL, "reward_range": 200.0}}, "reward_range=200.0: give a number above 0 up to 85"),
        ({"policy_kwargs": {"unimix": 2.0}}, "unimix=2.0: give a number from 0 up to 1"),
        ({"policy_kwargs": {"value_range": 0.0}}, "value_range=0.0: give a number above 0"),
        ({"batch_size": True}, "batch_size=True: give a whole number"),
        ({"ent_coef": float("nan")}, "ent_coef=nan: give a number from 0"),
        ({"ent_coef": -1.0}, "ent_coef=-1.0: give a number from 0"),
        ({"tau": -0.1}, "tau=-0.1: give a number from 0 up to 1"),
        ({"gae_lambda": "0.9"}, "gae_lambda='0.9': give a number from 0 up to 1"),
        ({"behaviour_rate": -1.0}, "behaviour_rate=-1.0: give a number from 0"),
        ({"replay_value_scale": -1.0}, "replay_value_scale=-1.0: give a number from 0"),
        ({"max_grad_norm": 100.0}, "max_grad_norm=100.0: give two numbers"),
        ({"max_grad_norm": (100.0, -1.0)}, "max_grad_norm=-1.0: give a number above 0"),
    ],
)
def test_choices_that_make_no_sense(given, words):
    with pytest.raises((ValueError, TypeError), match=words):
        small(**given)


def test_a_checkpoint_of_another_size(saved):
    with pytest.raises(
        ValueError, match=r"size='size1m', and world_model_kwargs has size='tiny'.*keeps what it was built with"
    ):
        DreamerV3.load(saved, size="size1m")


def test_a_fault_in_a_dictionary_is_named():
    with pytest.raises(ValueError, match="place"):
        small(BrokenEnv(DictEnv(), 20, "place"), "MultiInputPolicy").learn(40)


def test_a_checkpoint_of_another_algorithm(saved):
    """Regression: the error was a KeyError."""
    with pytest.raises(ValueError, match="was saved by DreamerV3, not by PETS"):
        PETS.load(saved)


def test_the_same_choices_again_are_no_others(saved):
    """Regression: the agent's size and discount, saved with the choices, made equal choices look different."""
    assert DreamerV3.load(saved, world_model_kwargs=MODEL).world_model.settings.deter == MODEL["deter"]
    with pytest.raises(ValueError, match="the saved weights belong to a world model"):
        DreamerV3.load(saved, world_model_kwargs={**MODEL, "deter": 32})


def test_the_optimizer_of_a_checkpoint(saved):
    """Regression: new settings were ignored, and another class failed at the first update."""
    agent = DreamerV3.load(saved, optimizer_kwargs={"warmup": 3})
    assert [group["warmup"] for group in agent.optimizer.param_groups] == [3, 3, 3]
    assert agent.optimizer.state
    with pytest.raises(ValueError, match=r"optimizer_class='adam'.*is of 'laprop'"):
        DreamerV3.load(saved, optimizer_class="adam")


@pytest.mark.parametrize("broken", ["reward", "weights"])
def test_what_is_not_finite_ends_training(broken):
    """Regression: an agent whose weights were NaN kept training and acting."""

    class Rich(gym.Wrapper):
        def step(self, action):
            obs, _, *rest = self.env.step(action)
            return obs, 1e38, *rest

    if broken == "reward":
        agent = small(Rich(gym.make("CartPole-v1")), world_model_kwargs={**MODEL, "reward": "normal"})
    else:
        agent = small()
        with th.no_grad():
            agent.policy.actor.out.weight[0, 0] = th.nan
    before = [value.clone() for value in agent.world_model.parameters()]
    with pytest.raises(ValueError, match=r"DreamerV3 after 0 updates: .*the loss not finite. Lower learning_rate"):
        agent.learn(60)
    assert all(map(th.equal, before, agent.world_model.parameters())), "no weight was lost"


def test_actions_without_a_choice():
    """Regression: actions were divided by the distance of their bounds, 0."""
    space = spaces.Box(np.float32([-1, 0]), np.float32([1, 0]))
    with pytest.raises(UnsupportedSpace, match=r"low and high are the same at \[\[1\]\]"):
        small(ActionEnv(space))


def test_convolutions_without_an_image():
    class Floats(ActionEnv):
        observation_space = spaces.Box(0, 1, (16, 16, 3))

    with pytest.raises(ValueError, match=r"CnnPolicy, and there is no image.*uint8\) of three axes. MlpPolicy takes"):
        small(Floats(spaces.Discrete(2)), "CnnPolicy")


def test_any_key_may_be_an_image():
    """Names with a point, or of attributes of modules, used to be refused by torch."""

    class Cameras(gym.Env):
        observation_space = spaces.Dict({key: spaces.Box(0, 255, (1, 12, 12), np.uint8) for key in ("cam.rgb", "train")})
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    assert small(Cameras(), "MultiInputPolicy").learn(48)._n_updates == 1


def test_a_buffer_that_does_not_fit_leaves_the_other_in_place(tmp_path):
    """Regression: it replaced a buffer of 60 steps, and every learn() after that failed."""
    small(buffer_size=6, batch_length=4).learn(30).save_replay_buffer(tmp_path / "small")
    agent = small().learn(64)
    with pytest.raises(ValueError, match="batch_length=8: the replay buffer keeps 6 steps"):
        agent.load_replay_buffer(tmp_path / "small")
    assert agent.replay_buffer.size() == 64
    assert agent.learn(8, reset_num_timesteps=False).replay_buffer.size() == 72


def test_a_policy_is_not_saved_alone(tmp_path):
    with pytest.raises(NotImplementedError, match=r"save the agent \(agent.save\)"):
        small().policy.save(tmp_path / "policy")


def test_what_reset_returns_is_no_observation():
    agent = small()
    with pytest.raises(ValueError, match="predict\\(\\) was given a tuple"):
        agent.predict(gym.make("CartPole-v1").reset())


def test_imagining_nothing():
    agent = small()
    state = agent.world_model.initial(th.zeros(2, 4))
    with pytest.raises(ValueError, match="horizon=0: give a whole number from 1"):
        agent.world_model.imagine(state, lambda features: th.zeros(2, 1), 0)


@pytest.mark.parametrize(("free", "warns"), [(30_000, True), (40_000, False)])
def test_memory_for_latent_states_is_counted(monkeypatch, free, warns):
    """
    The memory is taken as the buffer fills, so a run would fail hours later. 1,000 steps of 16 values of two bytes and three
    categories of one byte are 35,000 bytes.
    """
    psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(sequence_sampler, "psutil", psutil)
    with warnings.catch_warnings(record=True) as caught:
        small().learn(1)
    assert any("latent states of 1000 steps take" in str(warning.message) for warning in caught) == warns
