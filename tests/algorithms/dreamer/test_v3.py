"""Sizes and presets of DreamerV3."""

import inspect

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_mbrl import Dreamer, DreamerV3
from sb3_mbrl.models.rssm import SIZES


def test_size1m_is_the_authors():
    """640,867 parameters on walker's proprioception, as the report lists them."""
    box = {name: spaces.Box(-np.inf, np.inf, (n,)) for name, n in {"height": 1, "orientations": 14, "velocity": 9}.items()}

    class Walker(gym.Env):
        observation_space, action_space = spaces.Dict(box), spaces.Box(-1, 1, (6,))

    agent = DreamerV3("MultiInputPolicy", Walker(), size="size1m", buffer_size=100, device="cpu")
    parts = {"actor": agent.policy.actor, "critic": agent.policy.critic, "model": agent.world_model}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert counts == {"actor": 50_316, "critic": 66_111, "model": 524_440}
    assert sum(counts.values()) == 640_867
    assert sum(p.numel() for group in agent.optimizer.param_groups for p in group["params"]) == 640_867
    assert Dreamer is DreamerV3


@pytest.mark.parametrize(("name", "env_id"), [("size1m", "CartPole-v1"), ("v3-2023", "CartPole-v1")])
def test_presets_learn(name, env_id):
    settings = {**DreamerV3.preset(name), "batch_size": 2, "batch_length": 4, "horizon": 2, "train_freq": 8}
    agent = DreamerV3("MlpPolicy", env_id, **settings, learning_starts=16, buffer_size=100, seed=0, device="cpu").learn(32)
    assert agent._n_updates > 0
    assert agent.optimizer.param_groups[1]["lr"] == pytest.approx(settings["learning_rate"] * agent.behaviour_rate)


def test_all_sizes_have_a_preset():
    """The authors' numbers, none of them left to our defaults."""
    sizes = [name for name in SIZES if name != "tiny"]
    presets = [DreamerV3.preset(name) for name in sizes]
    assert [settings.pop("size") for settings in presets] == sizes
    assert presets[0]["optimizer_kwargs"] == {"warmup": 1000}
    numbers = ("learning_rate", "batch_size", "batch_length", "imagine_last", "ent_coef", "replay_value_scale")
    assert [presets[0][name] for name in numbers] == [4e-5, 16, 64, None, 3e-4, 0.3]
    assert all(settings == presets[0] for settings in presets)
    first, continuous = (DreamerV3.preset(name) for name in ("v3-2023", "v3-2023-continuous"))
    assert continuous == {**first, "actor_gradient": "dynamics"}


def test_the_preset_for_small_problems_is_the_default():
    preset, parameters = DreamerV3.preset("tiny"), inspect.signature(DreamerV3).parameters
    assert preset.pop("optimizer_kwargs") == {"warmup": 200}
    assert preset == {name: parameters[name].default for name in preset}
