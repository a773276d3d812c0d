"""
Digests of short seeded runs of every algorithm class, to see whether a change of the code changes what is computed.

::

    python -m tests.digests record before.json       # with the old code
    python -m tests.digests compare before.json      # with the new code; exits with 1 where something differs
    python -m tests.digests compare before.json --only dreamer

Every case is a few hundred real steps of one agent. Its weights, optimiser states, replay buffer, imagined rows, logged
values, actions and random streams are recorded as hashes of their bytes, so a comparison says what differs, to the last bit,
but not by how much; a few plain numbers stand beside them. Nothing that depends on wall time is recorded. Bits depend on the
processor and on the versions of PyTorch and NumPy too: record and compare on one machine.

Only what users import is used here, so the tool works before and after a move of modules. Weights and optimiser states that
are the same under other names are reported as renamed, which is no difference.
"""

import argparse
import copy
import hashlib
import io
import json
import pickle
import platform
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

import sb3_mbrl
from sb3_mbrl import MBPO, PETS, DreamerV3, Dyna, DynaQ, LatentVecEnv, ModelVecEnv, model_based

Parts = dict[str, dict[str, str]]
"""Digests by part (``"weights"``) and by name within it"""

RENAMED_IS_FINE = ("weights", "optimisers")
"""Parts whose names follow from attributes of modules"""

SHOWN = 3
"""Differences of a part that are printed"""


# ---------------------------------------------------------------------------------------------------------------- environments


class PointEnv(gym.Env):
    """A point on a line, seen as a dictionary of every kind of vector; the episode ends when it leaves the line."""

    observation_space = spaces.Dict(
        place=spaces.Box(-3, 3, (1,)), side=spaces.Discrete(2), flags=spaces.MultiBinary(2), zone=spaces.MultiDiscrete([2, 3])
    )

    def __init__(self, discrete: bool = False) -> None:
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1, 1)), 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        push = float(action) - 1 if isinstance(self.action_space, spaces.Discrete) else float(action[0])
        self.x, self.t = self.x + 0.5 * push, self.t + 1
        return self._obs(), -abs(self.x), abs(self.x) > 2, self.t >= 20, {}

    def _obs(self) -> dict:
        x = np.clip(self.x, -3, 3)
        return {
            "place": np.array([x], np.float32),
            "side": np.int64(x > 0),
            "flags": np.array([x > 1, x < -1], np.int8),
            "zone": np.array([x > 0, int(np.digitize(x, [-1, 1]))]),
        }


class PictureEnv(gym.Env):
    """A bright column on a dark picture, with its speed beside it; it is to be kept in the middle."""

    observation_space = spaces.Dict(picture=spaces.Box(0, 255, (12, 16, 1), np.uint8), speed=spaces.Box(-1, 1, (1,)))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.x, self.speed, self.t = float(self.np_random.uniform(4, 12)), 0.0, 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.speed, self.t = float(np.clip(self.speed + 0.3 * float(action[0]), -1, 1)), self.t + 1
        self.x += self.speed
        return self._obs(), 1 - abs(self.x - 8) / 8, not 0 <= self.x < 16, self.t >= 15, {}

    def _obs(self) -> dict:
        picture = np.zeros((12, 16, 1), np.uint8)
        picture[:, int(np.clip(self.x, 0, 15))] = 255
        return {"picture": picture, "speed": np.array([self.speed], np.float32)}


class CycleEnv(gym.Env):
    """Observations go round in a circle whatever is done; they are five numbers from a first one on."""

    def __init__(self, action_space: spaces.Space, first: int = 0) -> None:
        self.observation_space, self.action_space, self.first = spaces.Discrete(5, start=first), action_space, first

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self.first, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict]:
        self.t += 1
        return self.first + self.t % 5, float(np.sum(action)), self.t % 9 == 0, False, {}


def pendulum_reward(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Return the reward of ``Pendulum-v1``."""
    angle = th.atan2(obs[:, 1], obs[:, 0])
    return -(angle.square() + 0.1 * obs[:, 2].square() + 0.001 * action[:, 0].clamp(-2, 2).square())


def never(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Return zeros: no transition ends an episode."""
    return th.zeros(len(action), dtype=th.bool, device=action.device)


def vec(env: Any, n: int) -> Any:
    """Return ``n`` environments of a kind in one."""
    return make_vec_env(env, n, seed=0)


# ---------------------------------------------------------------------------------------------------------------------- agents


class Memory(KVWriter):
    """An output of a logger that keeps what it is given."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = defaultdict(list)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for key, value in key_values.items():
            self.values[key].append((step, plain(value)))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class Recorder(Logger):
    """A logger that keeps what is recorded, also where it is overwritten before it is dumped."""

    def __init__(self) -> None:
        self.dumped = Memory()
        self.recorded: dict[str, list[Any]] = defaultdict(list)
        super().__init__(None, [self.dumped])

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.recorded[key].append(plain(value))
        super().record(key, value, exclude)

    def record_mean(self, key: str, value: Any, exclude: Any = None) -> None:
        self.recorded[key].append(plain(value))
        super().record_mean(key, value, exclude)


def trained(agent: Any, steps: int, more: bool = False) -> Any:
    """Train an agent, and keep what it logs."""
    agent.set_logger(Recorder())
    return agent.learn(steps, log_interval=1, reset_num_timesteps=not more)


def reloaded(agent: Any, env: Any, steps: int) -> Any:
    """Save and load an agent with its replay buffer, and continue training."""
    with tempfile.TemporaryDirectory() as folder:
        agent.save(f"{folder}/agent")
        agent.save_replay_buffer(f"{folder}/buffer")
        loaded = type(agent).load(f"{folder}/agent", env=env, device="cpu")
        loaded.load_replay_buffer(f"{folder}/buffer")
    return trained(loaded, steps, more=True)


ENSEMBLE = {"members": 3, "elites": 2, "hidden": [32, 32], "learning_rate": 3e-3}
MIXED: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [32, 32]},
    "learning_starts": 100,
    "gradient_steps": 1,
    "batch_size": 64,
    "buffer_size": 1000,
    "world_model_kwargs": ENSEMBLE,
    "fit_freq": 100,
    "fit_kwargs": {"max_batches": 120, "batch_size": 64},
    "imagination_kwargs": {"freq": 25, "starts_per_step": 8, "max_age": 150, "horizon": [100, 300, 1, 3]},
    "seed": 0,
    "device": "cpu",
}
PLANNING: dict[str, Any] = {
    "learning_starts": 60,
    "buffer_size": 1000,
    "world_model_kwargs": ENSEMBLE,
    "fit_kwargs": {"max_batches": 60, "batch_size": 64},
    "planner_kwargs": {"horizon": 6, "population": 24},
    "seed": 0,
    "device": "cpu",
}
RSSM = {"deter": 16, "units": 8, "stoch": 3, "classes": 4, "hidden": 8, "blocks": 4, "depth": 2, "bins": 15}
DREAMING: dict[str, Any] = {
    "world_model_kwargs": RSSM,
    "policy_kwargs": {"layers": 1, "bins": 15},
    "batch_size": 4,
    "batch_length": 8,
    "horizon": 4,
    "replay_value_scale": 0.3,
    "buffer_size": 1000,
    "train_freq": 4,
    "learning_starts": 40,
    "seed": 0,
    "device": "cpu",
}
TABLE: dict[str, Any] = {"exploration_rate": 0.3, "gradient_steps": 10, "buffer_size": 2000, "seed": 0}
HER = {"replay_buffer_class": sb3.HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 4}}


def mbpo(env: Any = "Pendulum-v1", steps: int = 400, policy: str = "MlpPolicy", **changes: Any) -> Any:
    """Train a small MBPO."""
    return trained(MBPO(policy, env, **{**copy.deepcopy(MIXED), **changes}), steps)


def dyna(env: Any = "CartPole-v1", steps: int = 600, policy: str = "MlpPolicy", kind: Any = Dyna, **changes: Any) -> Any:
    """Train a small Dyna, or another class for discrete actions."""
    settings = {**copy.deepcopy(MIXED), "gradient_steps": 2, "target_update_interval": 100, **changes}
    return trained(kind(policy, env, **settings), steps)


def mixed(base: Any, steps: int = 300, **changes: Any) -> Any:
    """Train the model-based version of a class for continuous actions on Pendulum."""
    return trained(model_based(base)("MlpPolicy", "Pendulum-v1", **{**copy.deepcopy(MIXED), **changes}), steps)


def pets(env: Any = "Pendulum-v1", steps: int = 130, policy: str = "MlpPolicy", **changes: Any) -> Any:
    """Train a small PETS."""
    return trained(PETS(policy, env, **{**copy.deepcopy(PLANNING), **changes}), steps)


def dreamer(env: Any = "Pendulum-v1", steps: int = 240, policy: str = "MlpPolicy", **changes: Any) -> Any:
    """Train a small DreamerV3."""
    return trained(DreamerV3(policy, env, **{**copy.deepcopy(DREAMING), **changes}), steps)


def dyna_q(env: Any = "DynaMaze-v0", steps: int = 1500, **changes: Any) -> Any:
    """Train DynaQ."""
    return trained(DynaQ("QTablePolicy", env, **{**TABLE, **changes}), steps)


def known_model(agent: str, **changes: Any) -> Any:
    """Train on the exact twin of Pendulum, of which nothing is learned."""
    make = {"mbpo": mbpo, "pets": pets}[agent]
    return make(world_model="pendulum", world_model_kwargs={}, **changes)


def upgraded() -> dict[str, Any]:
    """Train SAC, continue with a model, and continue without it again."""
    own = ("policy_kwargs", "learning_starts", "gradient_steps", "batch_size", "buffer_size", "seed", "device")
    settings = copy.deepcopy(MIXED)
    plain_agent = trained(sb3.SAC("MlpPolicy", "Pendulum-v1", **{name: settings.pop(name) for name in own}), 200)
    based = trained(MBPO.from_model_free(plain_agent, **settings), 150, more=True)
    free = trained(based.to_model_free(), 50, more=True)
    return {"from_model_free": based, "to_model_free": free}


def dream(observation: str, agent: Any) -> dict[str, Any]:
    """Train PPO in an agent's world model."""
    env = ModelVecEnv(agent.world_model, agent.replay_buffer, n_envs=4, horizon=20, observation=observation, seed=3)
    learner = sb3.PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu")
    return {"dreamer": agent, "learner": trained(learner, 300)}


def latent() -> Any:
    """Train PPO on what a world model makes of the real environment."""
    env = LatentVecEnv(vec("CartPole-v1", 2), dreamer("CartPole-v1", 120).world_model)
    return trained(sb3.PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu"), 200)


def instance() -> dict[str, Any]:
    """Train with a world model that another agent has fitted."""
    first = mbpo(steps=200)
    return {"first": first, "second": mbpo(steps=200, world_model=first.world_model, world_model_kwargs=None, seed=1)}


def noise(std: float) -> NormalActionNoise:
    """Return action noise for one value."""
    return NormalActionNoise(np.zeros(1), std * np.ones(1))


def goals(n: int, continuous: bool = True) -> Any:
    """Return environments with goals."""
    return vec(lambda: BitFlippingEnv(n_bits=4, continuous=continuous), n)


IMAGINATION = MIXED["imagination_kwargs"]
LATENT_PETS = {"world_model": "rssm", "world_model_kwargs": RSSM, "fit_kwargs": {"max_batches": 15, "batch_size": 8}}
NO_TIMEOUTS = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
QUICK_DISCRETE = {"imagination_kwargs": {**IMAGINATION, "exploration": 0.1}}
TINY = {"buffer_size": 1000, "learning_starts": 60, "batch_size": 4, "batch_length": 16, "seed": 0, "device": "cpu"}

CASES: dict[str, Callable[[], Any]] = {
    # MBPO
    "mbpo": lambda: mbpo(gradient_steps=2),
    "mbpo-seed-1": lambda: mbpo(steps=250, seed=1),
    "mbpo-preset": lambda: mbpo(steps=250, **{**MBPO.preset("Pendulum-v1"), **copy.deepcopy(MIXED)}),
    "mbpo-3-envs": lambda: mbpo(vec("Pendulum-v1", 3), 450, gradient_steps=-1),
    "mbpo-vec-normalize": lambda: mbpo(VecNormalize(vec("Pendulum-v1", 2))),
    "mbpo-her": lambda: mbpo(goals(1), policy="MultiInputPolicy", **HER),
    "mbpo-her-2-envs": lambda: mbpo(goals(2), policy="MultiInputPolicy", **HER),
    "mbpo-dict": lambda: mbpo(PointEnv(), policy="MultiInputPolicy"),
    "mbpo-dict-vec-normalize": lambda: mbpo(
        VecNormalize(vec(PointEnv, 2), norm_obs_keys=["place"]), policy="MultiInputPolicy"
    ),
    "mbpo-n-steps": lambda: mbpo(n_steps=3),
    "mbpo-imagined-n-steps": lambda: mbpo(n_steps=3, imagination_kwargs={**IMAGINATION, "horizon": 3, "n_steps": 3}),
    "mbpo-mlp": lambda: mbpo(world_model="mlp", world_model_kwargs={"hidden": [32, 32], "learning_rate": 3e-3}),
    "mbpo-mlp-deterministic": lambda: mbpo(
        world_model="mlp", world_model_kwargs={"hidden": [32], "probabilistic": False, "target": "next"}
    ),
    "mbpo-off": lambda: mbpo(world_model=None, world_model_kwargs=None),
    "mbpo-real-only": lambda: mbpo(steps=250, real_ratio=1.0),
    "mbpo-imagined-only": lambda: mbpo(steps=250, real_ratio=0.0),
    "mbpo-reward-auto": lambda: mbpo(reward_fn="auto"),
    "mbpo-known-functions": lambda: mbpo(reward_fn=pendulum_reward, termination_fn=never),
    "mbpo-termination-auto": lambda: mbpo("CartPoleBalance-v0", reward_fn="auto"),
    "mbpo-termination-learned": lambda: mbpo("CartPoleBalance-v0", termination_fn=None),
    "mbpo-mujoco": lambda: mbpo("Hopper-v5", 300, reward_fn="auto"),
    "mbpo-pendulum-model": lambda: known_model("mbpo"),
    "mbpo-oracle": lambda: mbpo(
        steps=200,
        world_model="oracle",
        world_model_kwargs={"env": "Pendulum-v1"},
        imagination_kwargs={**IMAGINATION, "starts_per_step": 2},
    ),
    "mbpo-rssm": lambda: mbpo(
        CycleEnv(spaces.Box(-1, 1, (2,))),
        200,
        world_model="rssm",
        world_model_kwargs={**RSSM, "context": 4, "lr": 4e-3, "warmup": 1},
        fit_kwargs={"max_batches": 100, "batch_size": 16},
    ),
    "mbpo-optimize-memory": lambda: mbpo(**NO_TIMEOUTS),
    "mbpo-full-buffer": lambda: mbpo(steps=300, buffer_size=150),
    "mbpo-train-per-episode": lambda: mbpo(train_freq=(1, "episode"), gradient_steps=-1),
    "mbpo-starts-recent": lambda: mbpo(steps=300, imagination_kwargs={**IMAGINATION, "starts": "recent", "exploration": 0.2}),
    "mbpo-starts-initial": lambda: mbpo(
        "CartPoleBalance-v0", 300, imagination_kwargs={**IMAGINATION, "starts": "initial", "horizon": 4}
    ),
    "mbpo-instance": instance,
    "mbpo-sde": lambda: mixed(sb3.SAC, use_sde=True, sde_sample_freq=4),
    "mbpo-continued": lambda: trained(mbpo(steps=250), 150, more=True),
    "mbpo-learn-anew": lambda: trained(mbpo(steps=250), 150),
    "mbpo-saved": lambda: reloaded(mbpo(steps=300), gym.make("Pendulum-v1"), 150),
    "mbpo-saved-dict": lambda: reloaded(mbpo(PointEnv(), 250, "MultiInputPolicy"), PointEnv(), 100),
    "mbpo-upgraded": upgraded,
    # Other classes for continuous actions
    "td3-noise": lambda: mixed(sb3.TD3, action_noise=noise(0.2)),
    "td3-saved": lambda: reloaded(mixed(sb3.TD3, action_noise=noise(0.2)), gym.make("Pendulum-v1"), 100),
    "ddpg": lambda: mixed(sb3.DDPG),
    "tqc": lambda: mixed(sb3_contrib.TQC),
    "crossq": lambda: mixed(sb3_contrib.CrossQ),
    # Dyna
    "dyna": dyna,
    "dyna-2-envs": lambda: dyna(vec("CartPole-v1", 2)),
    "dyna-n-steps": lambda: dyna(n_steps=3),
    "dyna-imagined-n-steps": lambda: dyna(n_steps=3, imagination_kwargs={**IMAGINATION, "horizon": 3, "n_steps": 3}),
    "dyna-exploration": lambda: dyna(**QUICK_DISCRETE),
    "dyna-dict": lambda: dyna(PointEnv(discrete=True), policy="MultiInputPolicy"),
    "dyna-her": lambda: dyna(goals(2, continuous=False), policy="MultiInputPolicy", **HER),
    "dyna-tabular": lambda: dyna("FrozenLake-v1", world_model="tabular", world_model_kwargs={}),
    "dyna-frozen-lake": lambda: dyna("FrozenLake-v1"),
    "dyna-off": lambda: dyna(world_model=None, world_model_kwargs=None),
    "dyna-saved": lambda: reloaded(dyna(steps=300), gym.make("CartPole-v1"), 200),
    "qrdqn": lambda: dyna(steps=250, kind=model_based(sb3_contrib.QRDQN)),
    # DynaQ
    "dyna-q": dyna_q,
    "dyna-q-plus": lambda: dyna_q("BlockingMaze-v0", planning="dyna_q_plus"),
    "dyna-q-prioritized-sweeping": lambda: dyna_q(planning="prioritized_sweeping"),
    "dyna-q-value-iteration": lambda: dyna_q("FrozenLake-v1", planning="value_iteration"),
    "dyna-q-memory": lambda: dyna_q("ShortcutMaze-v0", world_model_kwargs={"memory": 0.0}),
    "dyna-q-off": lambda: dyna_q(world_model=None),
    "dyna-q-2-envs": lambda: dyna_q(vec("FrozenLake-v1", 2), planning="prioritized_sweeping"),
    "dyna-q-saved": lambda: reloaded(dyna_q(planning="prioritized_sweeping"), gym.make("DynaMaze-v0"), 500),
    # PETS
    "pets": pets,
    "pets-cem": lambda: pets(planner="cem"),
    "pets-mppi": lambda: pets(planner="mppi"),
    "pets-random": lambda: pets(planner="random"),
    "pets-gradient": lambda: known_model(
        "pets", steps=90, planner="gradient", planner_kwargs={"horizon": 5, "population": 4, "iterations": 5}
    ),
    "pets-gradient-learned": lambda: pets(
        steps=90, planner="gradient", planner_kwargs={"horizon": 5, "population": 4, "iterations": 5}
    ),
    "pets-ilqr": lambda: known_model("pets", steps=66, planner="ilqr", planner_kwargs={"horizon": 6}),
    "pets-known-model": lambda: known_model("pets", steps=100),
    "pets-2-envs": lambda: pets(vec("CartPole-v1", 2), 160, planner="cem"),
    "pets-discrete": lambda: pets("CartPole-v1"),
    "pets-dict": lambda: pets(PointEnv(), policy="MultiInputPolicy"),
    "pets-vec-normalize": lambda: pets(VecNormalize(vec("Pendulum-v1", 1))),
    "pets-noise": lambda: pets(action_noise=noise(0.1), reward_fn="auto"),
    "pets-ts1": lambda: pets(propagation="ts1", aleatoric=True),
    "pets-tsinf": lambda: pets(propagation="tsinf", aleatoric=True, n_particles=6),
    "pets-mean": lambda: pets(propagation="mean"),
    "pets-moment": lambda: pets(propagation="moment", aleatoric=True),
    "pets-penalty": lambda: pets(penalty=0.5),
    "pets-mlp": lambda: pets(world_model="mlp", world_model_kwargs={"hidden": [32, 32]}, aleatoric=True),
    "pets-rssm": lambda: pets(steps=110, **LATENT_PETS),
    "pets-saved": lambda: reloaded(pets(steps=100), gym.make("Pendulum-v1"), 60),
    # DreamerV3
    "dreamer": dreamer,
    "dreamer-tiny": lambda: trained(
        DreamerV3("MlpPolicy", "Pendulum-v1", **{**DreamerV3.preset("tiny"), **TINY, "train_freq": 8}), 160
    ),
    "dreamer-v3-2023": lambda: dreamer(
        **{**DreamerV3.preset("v3-2023-continuous"), **DREAMING, "world_model_kwargs": {"cell": "gru", **RSSM}}
    ),
    "dreamer-discrete": lambda: dreamer("CartPole-v1"),
    "dreamer-multi-discrete": lambda: dreamer(CycleEnv(spaces.MultiDiscrete([2, 3]), first=2)),
    "dreamer-2-envs": lambda: dreamer(vec("CartPole-v1", 2), 300),
    "dreamer-image": lambda: dreamer(gym.make("Catch-v0", pixels=2), policy="CnnPolicy"),
    "dreamer-dict": lambda: dreamer(PointEnv(), policy="MultiInputPolicy"),
    "dreamer-dict-with-image": lambda: dreamer(PictureEnv(), policy="MultiInputPolicy"),
    "dreamer-memory-cue": lambda: dreamer("MemoryCue-v0"),
    "dreamer-dynamics": lambda: dreamer(actor_gradient="dynamics", optimizer_class="adam", max_grad_norm=(100.0, 10.0)),
    "dreamer-gaussian": lambda: dreamer(
        world_model_kwargs={**RSSM, "latent": "gaussian", "kl": "balanced", "norm": "layer", "cell": "layer_norm_gru"}
    ),
    "dreamer-no-context": lambda: dreamer(online=False, replay_context=False, imagine_last=None),
    "dreamer-vec-normalize": lambda: dreamer(VecNormalize(vec("Pendulum-v1", 1))),
    "dreamer-saved": lambda: reloaded(dreamer("CartPole-v1", 160), gym.make("CartPole-v1"), 80),
    # Other agents in and on world models
    "dream-ppo": lambda: dream("decoded", mbpo(steps=250)),
    "dream-ppo-discrete": lambda: dream("decoded", dyna(steps=250)),
    "dream-ppo-features": lambda: dream("features", dreamer("CartPole-v1", 120)),
    "latent-ppo": latent,
}


# --------------------------------------------------------------------------------------------------------------------- digests


def plain(value: Any) -> str:
    """Write a logged value so that equal bits are equal words."""
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    return repr(value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value)


def digest(value: Any) -> str:
    """Hash a tensor, an array or a plain value, its kind and shape included."""
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        content = f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    else:
        content = repr(value.item() if isinstance(value, np.generic) else value).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors, arrays and plain values of nested containers by path; other objects are left out."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from flat(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and not all(isinstance(child, (int, float)) for child in value):
        for index, child in enumerate(value):
            yield from flat(child, f"{path}.{index}")
    elif isinstance(value, np.ndarray) and value.dtype == object:
        yield from flat(value.ravel().tolist(), path)
    elif value is None or isinstance(value, (bool, int, float, str, list, tuple, np.ndarray, np.generic, th.Tensor)):
        yield path, value


def digests(value: Any) -> dict[str, str]:
    """Hash everything in nested containers."""
    return {path: digest(leaf) for path, leaf in flat(value)}


def numbers_in(value: Any) -> dict[str, Any]:
    """Return the arrays and tensors of nested containers, and no words, which may name what is not the same in every run."""
    return {path: leaf for path, leaf in flat(value) if isinstance(leaf, (np.ndarray, th.Tensor, bool, int, float))}


def parameters(agent: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return weights and optimiser states."""
    weights, optimisers = {}, {}
    for name, value in agent.get_parameters().items():
        into = optimisers if isinstance(value, dict) and "param_groups" in value else weights
        into.update({f"{name}: {path}" if path else name: leaf for path, leaf in digests(value).items()})
    return weights, optimisers


def stored(agent: Any) -> dict[str, str]:
    """Return what ``save_replay_buffer`` writes, except for identifiers."""
    file = io.BytesIO()
    agent.save_replay_buffer(file)
    file.seek(0)
    return digests(numbers_in(vars(pickle.load(file))))


def imagined_rows(agent: Any) -> dict[str, str]:
    """Return the rows that the imagined buffer draws, and everything that it holds, without names."""
    buffer = getattr(agent, "imagined", None)
    if buffer is None:
        return {}
    rows = {"rows": digest(len(buffer)), "capacity": digest(buffer.capacity)}
    if len(buffer):
        rows |= {f"drawn {name}": value for name, value in digests(buffer.draw(4096, th.Generator().manual_seed(0))).items()}
    tensors = (leaf for _, leaf in flat(vars(buffer)) if isinstance(leaf, (np.ndarray, th.Tensor)))
    return {**rows, "stored": " ".join(sorted(digest(leaf) for leaf in tensors))}


def generators(value: Any, seen: dict[int, Any], depth: int = 8) -> Iterator[str]:
    """Yield the states of all generators that an object, and what it holds of our classes, draws from."""
    if depth == 0 or id(value) in seen or isinstance(value, (th.Tensor, np.ndarray, str, int, float, type)):
        return
    seen[id(value)] = value
    if isinstance(value, th.Generator):
        yield digest(value.get_state())
    elif isinstance(value, np.random.Generator):
        yield digest(value.bit_generator.state)
    elif isinstance(value, (dict, list, tuple)):
        for child in list(value.values() if isinstance(value, dict) else value):
            yield from generators(child, seen, depth - 1)
    elif type(value).__module__.split(".")[0] == "sb3_mbrl" and not isinstance(value, gym.Env):
        yield from generators(getattr(value, "__dict__", {}), seen, depth)


def streams(agent: Any) -> dict[str, str]:
    """Return the states of the global random streams, the environments', and the agent's own, which have no names."""
    states = {
        "python": digest(random.getstate()),
        "numpy": digest(repr(np.random.get_state())),
        "torch": digest(th.get_rng_state()),
        "action space": digest(agent.action_space.np_random.bit_generator.state),
    }
    for index, env in enumerate(getattr(agent.get_env().unwrapped, "envs", ())):
        stream = getattr(
            env.unwrapped, "_np_random", None
        )  # np_random makes one, from the system's entropy, where none is used
        if stream is not None:
            states[f"environment {index}"] = digest(stream.bit_generator.state)
    return {**states, "private": " ".join(sorted(generators(vars(agent), {})))}


def fixed_observations(space: spaces.Space, n: int = 3) -> Any:
    """Draw observations that are always the same."""
    space = copy.deepcopy(space)
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def predictions(agent: Any) -> dict[str, str]:
    """Return three actions in a row, deterministic and drawn; the policy state is handed on."""
    obs, actions = fixed_observations(agent.observation_space), {}
    for deterministic in (True, False):
        state, first = None, np.ones(3, dtype=bool)
        for step in range(3):
            action, state = agent.predict(obs, state, first, deterministic=deterministic)
            actions[f"{'deterministic' if deterministic else 'drawn'} {step}"] = digest(action)
            first = np.zeros(3, dtype=bool)
    return actions


def logged(agent: Any) -> dict[str, str]:
    """Return everything that was logged, except for times."""
    entries = {}
    for kind, values in (("dumped", agent.logger.dumped.values), ("recorded", agent.logger.recorded)):
        entries |= {f"{kind} {key}": digest(repr(value)) for key, value in values.items() if not key.startswith("time/")}
    return entries


def parts_of(agent: Any) -> Parts:
    """Return the digests of an agent."""
    weights, optimisers = parameters(agent)
    model = getattr(agent, "world_model", None)
    normalising = agent.get_vec_normalize_env()
    parts = {
        "weights": weights,
        "optimisers": optimisers,
        "model state": {} if model is None else digests(model.extra_state()),
        "replay buffer": stored(agent) if getattr(agent, "replay_buffer", None) is not None else {},
        "imagined": imagined_rows(agent),
        "logs": logged(agent),
        "counts": digests({name: getattr(agent, name, None) for name in ("num_timesteps", "_n_updates", "_episode_num")}),
        "last observation": digests({"obs": agent._last_obs, "first": agent._last_episode_starts}),
        "normalisation": {} if normalising is None else digests(statistics(normalising)),
        "streams": streams(agent),
    }
    return {**parts, "predictions": predictions(agent)}  # last, since drawing moves the streams


def statistics(env: VecNormalize) -> dict[str, Any]:
    """Return what ``VecNormalize`` has counted."""
    by_key = env.obs_rms if isinstance(env.obs_rms, dict) else {"obs": env.obs_rms}
    return {key: vars(rms) for key, rms in {**by_key, "reward": env.ret_rms}.items()}


def summary_of(agent: Any) -> dict[str, Any]:
    """Return some numbers that a reader can make something of; they are not compared."""
    logs = agent.logger.recorded
    shown = ("rollout/ep_rew_mean", "train/critic_loss", "train/loss", "model/vs_trivial", "model/loss", "imagination/rows")
    weights = [value for name, value in agent.get_parameters().items() if "optimizer" not in name]
    total = sum(float(leaf.double().abs().sum()) for _, leaf in flat(weights) if isinstance(leaf, th.Tensor))
    imagined = getattr(agent, "imagined", None)
    return {
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "sum of absolute weights": round(total, 6),
        "imagined rows": 0 if imagined is None else len(imagined),
        **{f"last {key}": logs[key][-1] for key in shown if key in logs},
    }


def run(name: str) -> dict[str, Any]:
    """Run a case, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agents = CASES[name]()
        agents = agents if isinstance(agents, dict) else {"": agents}
        summaries = {key: summary_of(agent) for key, agent in agents.items()}
        parts = {}
        for key, agent in agents.items():
            parts |= {f"{key}'s {part}" if key else part: value for part, value in parts_of(agent).items()}
    return {"summary": summaries.get("", summaries), "parts": parts}


# ------------------------------------------------------------------------------------------------------------------ comparison


def renamed(part: str, before: dict[str, str], after: dict[str, str]) -> bool:
    """Tell whether a part differs in nothing but names."""
    named_by_attributes = part.endswith(RENAMED_IS_FINE)
    return named_by_attributes and set(before) != set(after) and Counter(before.values()) == Counter(after.values())


def differences(part: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Say what differs within a part."""
    lines = [f"{part} {name}: differs" for name in before if name in after and before[name] != after[name]]
    lines += [f"{part} {name}: not there any more" for name in before if name not in after]
    lines += [f"{part} {name}: new" for name in after if name not in before]
    if lines and Counter(before.values()) == Counter(after.values()):
        lines.insert(0, f"{part}: the same values in other places")
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"{part}: {len(lines) - SHOWN} more of {len(after)} differ"]
    return lines


def compare_case(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what differs between two runs of a case, and what is called something else."""
    wrong, notes = [], []
    for part in {**before["parts"], **after["parts"]}:
        old, new = before["parts"].get(part, {}), after["parts"].get(part, {})
        if renamed(part, old, new):
            names = [name for name in old if name not in new]
            notes.append(f"{part}: renamed only, {len(names)} of {len(old)} (such as {names[0]})")
        else:
            wrong += differences(part, old, new)
    if wrong and before["summary"] != after["summary"]:
        wrong += [f"numbers before: {before['summary']}", f"numbers now:    {after['summary']}"]
    return wrong, notes


def versions() -> dict[str, str]:
    """Return what else decides the bits."""
    modules = {"torch": th, "numpy": np, "gymnasium": gym, "stable_baselines3": sb3, "sb3_contrib": sb3_contrib}
    return {"python": platform.python_version(), **{name: module.__version__ for name, module in modules.items()}}


def chosen_cases(only: str) -> list[str]:
    """Return the names that contain a word."""
    names = [name for name in CASES if only in name]
    if not names:
        sys.exit(f"No case has {only!r} in its name. There are: {', '.join(CASES)}")
    return names


def run_all(only: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Run cases, and yield what they gave, or what was raised; say how long each took."""
    for name in chosen_cases(only):
        start = time.perf_counter()
        try:
            result: dict[str, Any] | str = run(name)
        except Exception as error:
            traceback.print_exc()
            result = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.perf_counter() - start:.1f} s", end="", flush=True)
        yield name, result


def record(path: Path, only: str) -> int:
    """Write the digests of all cases; those of others that are in the file already stay there."""
    recorded = json.loads(path.read_text()) if only and path.exists() else {"cases": {}}
    failed = 0
    for name, result in run_all(only):
        failed += isinstance(result, str)
        print(f", {result}" if isinstance(result, str) else "")
        if not isinstance(result, str):
            recorded["cases"][name] = result
    recorded["versions"] = versions()
    path.write_text(json.dumps(recorded, indent=1, default=float))
    return failed


def compare(path: Path, only: str) -> int:
    """Run the cases, and say what is not as it was recorded."""
    recorded = json.loads(path.read_text())
    if recorded["versions"] != versions():
        print(f"Recorded with {recorded['versions']}, compared with {versions()}")
    failed = 0
    for name, result in run_all(only):
        before = recorded["cases"].get(name)
        if before is None or isinstance(result, str):
            wrong, notes = [result if isinstance(result, str) else "not in the file"], []
        else:
            wrong, notes = compare_case(before, json.loads(json.dumps(result, default=float)))
        failed += bool(wrong)
        print(", DIFFERENT" if wrong else ", the same" + (" under other names" if notes else ""))
        for line in [*wrong, *notes]:
            print(f"  {name}: {line}", flush=True)
    for name in recorded["cases"]:
        if name not in CASES and only in name:
            print(f"{name} is in the file, and no case any more")
    return failed


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="cases that have this in their name")
    options = parser.parse_args()
    th.set_num_threads(1)
    print(f"sb3_mbrl is {Path(sb3_mbrl.__file__).parent}")
    start = time.perf_counter()
    failed = (record if options.what == "record" else compare)(options.file, options.only)
    what = "failed" if options.what == "record" else "differ from what was recorded, or failed"
    print(f"{len(chosen_cases(options.only))} cases in {time.perf_counter() - start:.0f} s; {failed} {what}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
