"""
Runs that are interrupted and resumed, to compare with uninterrupted ones, in processes of their own::

    python -m tests.helpers.resumed begin FOLDER      # uninterrupted runs; and first halves, which are saved
    python -m tests.helpers.resumed resume FOLDER     # second halves

Both write digests of the agents at the end (``tests.digests``). Episodes are numbered, and their number decides where they
begin, so that an environment can be put back to the beginning of an episode. In the cases with ``kept`` environments these are
saved too, in the middle of their episodes.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC
from stable_baselines3 import TD3, HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_mbrl import DHMBPO, MBPO, PETS, SVG, DreamerV3, Dyna, DynaQ, MuZero, model_based
from tests.algorithms.muzero.agents import small as small_muzero
from tests.digests import digest, flat, imagined_rows, parameters, predictions, stored
from tests.digests import streams as streams_of
from tests.helpers.dreamers import MODEL as RSSM
from tests.helpers.dreamers import small

EPISODE = 10


class Numbered(gym.Wrapper):
    """Episodes of :data:`EPISODE` steps, whose number decides where they begin."""

    def __init__(self, env: gym.Env, episode: int) -> None:
        super().__init__(gym.wrappers.TimeLimit(env, EPISODE))
        self.episode = episode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.episode += 1
        return self.env.reset(seed=self.episode - 1, options=options)


class Walk(gym.Env):
    """A slippery walk on a ring of numbered places."""

    observation_space, action_space = spaces.Discrete(7, start=1), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(7))
        return self.place + 1, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        forward = (action == 1) != (self.np_random.random() < 0.2)
        self.place = (self.place + (1 if forward else -1)) % 7
        return self.place + 1, float(self.place == 3), False, False, {}


class Reach(gym.Env):
    """A point that is to reach a goal, with observations as hindsight experience replay needs them."""

    action_space = spaces.Box(-1, 1, (1,))
    observation_space = spaces.Dict(
        {name: spaces.Box(-9, 9, (1,)) for name in ("observation", "achieved_goal", "desired_goal")}
    )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.x, self.goal = self.np_random.uniform(-1, 1, (2, 1)).astype(np.float32)
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.x = np.clip(self.x + 0.2 * action, -9, 9).astype(np.float32)
        return self._obs(), float(self.compute_reward(self.x, self.goal, {})), False, False, {}

    def compute_reward(self, achieved: np.ndarray, goal: np.ndarray, info: Any) -> np.ndarray:
        return -(np.abs(achieved - goal).sum(-1) > 0.1).astype(np.float32)

    def _obs(self) -> dict:
        return {"observation": self.x.copy(), "achieved_goal": self.x.copy(), "desired_goal": self.goal.copy()}


def pendulum() -> gym.Env:
    return gym.make("Pendulum-v1").env.env  # without its own time limit


MODEL = {
    "world_model_kwargs": {"members": 2, "elites": 1, "hidden": (16,)},
    "fit_kwargs": {"max_batches": 20},
    "fit_freq": 50,
    "learning_starts": 30,
    "buffer_size": 1000,
    "seed": 0,
    "device": "cpu",
}
IMAGINED = {
    "imagination_kwargs": {"starts_per_step": 4, "freq": 20, "max_age": 60, "horizon": 2},
    "policy_kwargs": {"net_arch": [16]},
    "gradient_steps": 1,
    "batch_size": 16,
}
PLANNED = {"n_particles": 2, "planner_kwargs": {"horizon": 3, "population": 8, "elites": 3, "iterations": 2}}


class Case(NamedTuple):
    """A class, its settings and its environments."""

    kind: Any
    make: Callable[[VecEnv], Any]
    env: Callable[[], gym.Env] = pendulum
    n_envs: int = 1
    normalised: bool = False
    kept: bool = False
    """Whether the environments are saved too"""

    def venv(self, episode: int) -> VecEnv:
        def one() -> gym.Env:
            return Numbered(self.env(), episode)

        venv: VecEnv = DummyVecEnv([one] * self.n_envs)
        return VecNormalize(venv) if self.normalised else venv

    @property
    def steps(self) -> int:
        """The steps of one half: whole episodes, but not where environments are kept"""
        return 120 if not self.kept else 128


def mbpo(policy: str = "MlpPolicy", **settings: Any) -> Callable[[VecEnv], Any]:
    return lambda env: MBPO(policy, env, **{**MODEL, **IMAGINED, **settings})


def value_gradients(cls: Any) -> Callable[[VecEnv], Any]:
    return lambda env: cls("MlpPolicy", env, **{**MODEL, **IMAGINED, "horizon": 2})


def mountain_car() -> gym.Env:
    return gym.make("MountainCar-v0").env.env


CLASSES = {
    "mbpo": Case(MBPO, mbpo()),
    "dyna": Case(Dyna, lambda env: Dyna("MlpPolicy", env, **{**MODEL, **IMAGINED}), mountain_car),
    "pets": Case(PETS, lambda env: PETS("MlpPolicy", env, **{**MODEL, **PLANNED})),
    "dhmbpo": Case(DHMBPO, value_gradients(DHMBPO)),
    "dyna-q": Case(DynaQ, lambda env: DynaQ("QTablePolicy", env, seed=0, planning="prioritized_sweeping"), Walk),
    "dreamer": Case(DreamerV3, small),
    "muzero": Case(MuZero, lambda env: small_muzero(env, reanalyze_ratio=0.5, exploration=0.2), mountain_car),
}
GAUSSIAN = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
CORRELATED = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))
TD3_MODEL, TQC_MODEL = model_based(TD3), model_based(TQC)

CASES: dict[str, Case] = {
    **CLASSES,
    **{f"{name}-3-envs": case._replace(n_envs=3) for name, case in CLASSES.items()},
    **{f"{name}-kept": case._replace(kept=True, n_envs=2) for name, case in CLASSES.items()},
    "mbpo-normalised": Case(MBPO, mbpo(), normalised=True),
    "dreamer-normalised-kept": Case(DreamerV3, small, normalised=True, kept=True),
    "svg": Case(SVG, value_gradients(SVG)),
    "mbpo-sde": Case(MBPO, mbpo(use_sde=True)),
    "mbpo-n-step": Case(MBPO, mbpo(n_steps=3)),
    "td3-noise": Case(TD3_MODEL, lambda env: TD3_MODEL("MlpPolicy", env, **{**MODEL, **IMAGINED, "action_noise": GAUSSIAN})),
    "td3-correlated-noise-kept": Case(
        TD3_MODEL, lambda env: TD3_MODEL("MlpPolicy", env, **{**MODEL, **IMAGINED, "action_noise": CORRELATED}), kept=True
    ),
    "mbpo-her": Case(MBPO, mbpo(policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer), Reach),
    "pets-cem": Case(PETS, lambda env: PETS("MlpPolicy", env, planner="cem", **{**MODEL, "planner_kwargs": {"horizon": 3}})),
    "pets-rssm": Case(
        PETS,
        lambda env: PETS(
            "MlpPolicy",
            env,
            world_model="rssm",
            **{**MODEL, "world_model_kwargs": {**RSSM, "context": 4}, "planner_kwargs": {"horizon": 3, "population": 8}},
        ),
    ),
    "mbpo-oracle": Case(
        MBPO, mbpo(world_model="oracle", world_model_kwargs={"env": "Pendulum-v1"}), lambda: gym.make("Pendulum-v1")
    ),
    "tqc-mlp": Case(
        TQC_MODEL,
        lambda env: TQC_MODEL("MlpPolicy", env, world_model="mlp", **{**MODEL, **IMAGINED, "world_model_kwargs": {}}),
    ),
    "before-the-first-fit": Case(MBPO, mbpo(learning_starts=120)),
}


def digests_of(agent: Any) -> dict[str, Any]:
    """Return digests of everything that the next steps depend on, and of what was computed."""
    weights, optimisers = parameters(agent)
    imagined = imagined_rows(agent)
    imagined.pop("stored", None)  # the place of a row in the ring is of no consequence
    normalising = agent.get_vec_normalize_env()
    trainer = agent.trainer
    objects = {name: getattr(agent, name) for name in agent.object_names if name not in ("recorder", "parts")}
    return {
        "weights": weights,
        "optimisers": optimisers,
        "replay buffer": stored(agent),
        "imagined": imagined,
        "objects": {
            f"{name}: {path}": digest(value)
            for name, part in objects.items()
            if part is not None
            for path, value in flat(part.state_dict())
            if path != "model_id"  # an identity
        },
        "verdict": {} if trainer is None else {"trusted": trainer.trusted, "fit_at": trainer.fit_at, "rows": trainer.fit_rows},
        "counts": {name: getattr(agent, name) for name in ("num_timesteps", "_n_updates", "_episode_num")},
        "last observation": digest(repr(agent._last_obs)),
        "normalisation": {} if normalising is None else digest(repr((vars(normalising.obs_rms), vars(normalising.ret_rms)))),
        "streams": {name: value for name, value in streams_of(agent).items() if name != "private"},
        "predictions": predictions(agent),
    }


def begin(folder: Path) -> dict[str, Any]:
    """Run all cases without interruption; run their first halves, and save them."""
    whole = {}
    for name, case in CASES.items():
        agent = case.make(case.venv(0)).learn(case.steps)
        whole[name] = digests_of(agent.learn(case.steps, reset_num_timesteps=False))
    for name, case in CASES.items():
        agent = case.make(case.venv(0)).learn(case.steps)
        agent.save(folder / name)
        agent.save_replay_buffer(folder / f"{name}-buffer")
        if case.normalised:
            agent.get_vec_normalize_env().save(folder / f"{name}-statistics")
        if case.kept:
            (folder / f"{name}-env").write_bytes(cloudpickle.dumps(agent.get_env().unwrapped))
    return whole


def resume(folder: Path) -> dict[str, Any]:
    """Run the second halves."""
    resumed = {}
    for name, case in CASES.items():
        if case.kept:
            env = cloudpickle.loads((folder / f"{name}-env").read_bytes())
        else:
            env = case.venv(case.steps // case.n_envs // EPISODE).unwrapped
        if case.normalised:
            env = VecNormalize.load(folder / f"{name}-statistics", env)
        agent = case.kind.load(folder / name, env=env, device="cpu", force_reset=not case.kept)
        agent.load_replay_buffer(folder / f"{name}-buffer")
        resumed[name] = digests_of(agent.learn(case.steps, reset_num_timesteps=False))
    return resumed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    command, folder = sys.argv[1], Path(sys.argv[2])
    result = {"begin": begin, "resume": resume}[command](folder)
    (folder / f"{command}.json").write_text(json.dumps(result, default=str))
