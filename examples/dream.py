"""
Train SB3 algorithms in a world model that was fitted to saved data: ``python examples/dream.py``. After the data has been
collected, no training step is real.

1. Collect a replay buffer of random actions and save it (``examples/dream/*.pkl``). Yours may come from anywhere.
2. Load the buffer and fit a world model to it.
3. Train PPO, A2C, TRPO, DQN and SAC in ``ModelVecEnv``.
4. Evaluate each of them in the real environment, before and after training.

Writes ``examples/dream/results.json``. Results that exist are not computed again, except with ``--fresh``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecMonitor

from sb3_mbrl import ModelVecEnv
from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.plugins import get_registry

OUTPUT = Path(__file__).with_suffix("")
SEEDS = (0, 1, 2)
REAL_STEPS = {"CartPole-v1": 2_000, "Pendulum-v1": 5_000}
N_ENVS = 16
HORIZON = {"CartPole-v1": 200, "Pendulum-v1": 50}
"""Imagined steps per episode: long enough for the cart to reach the end of its track, else terminations are never imagined"""

_ZOO_DQN = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "learning_starts": 1_000,
    "target_update_interval": 160,
    "train_freq": 16,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}
"""The settings of rl-baselines3-zoo for CartPole-v1, converted to steps of 16 environments"""

DREAMS: dict[str, dict[type[BaseAlgorithm], tuple[int, dict[str, Any]]]] = {
    "CartPole-v1": {
        PPO: (100_000, {"n_steps": 64, "batch_size": 256, "learning_rate": 1e-3, "gae_lambda": 0.9}),
        A2C: (100_000, {"n_steps": 8}),
        TRPO: (100_000, {"n_steps": 64}),
        DQN: (60_000, _ZOO_DQN),
    },
    "Pendulum-v1": {
        PPO: (200_000, {"n_steps": 64, "batch_size": 256, "learning_rate": 1e-3, "gamma": 0.95, "use_sde": True}),
        TRPO: (200_000, {"n_steps": 128, "gamma": 0.95, "use_sde": True}),
        SAC: (40_000, {"learning_rate": 1e-3, "gamma": 0.98, "gradient_steps": 4, "policy_kwargs": {"net_arch": [64, 64]}}),
    },
}
"""The number of imagined steps and the settings, by environment and algorithm"""


def collect(env_id: str, path: Path, steps: int) -> None:
    """Take random actions in the real environment and save them as any replay buffer of SB3."""
    cls = SAC if isinstance(gym.make(env_id).action_space, gym.spaces.Box) else DQN
    agent = cls("MlpPolicy", env_id, learning_starts=steps + 1, buffer_size=steps, seed=0, device="cpu")
    agent.learn(steps, progress_bar=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    agent.save_replay_buffer(path)


def fit(env_id: str, path: Path) -> tuple[WorldModel, ReplayBuffer]:
    """Fit a world model to a saved buffer. Terminations of classic control are known functions; everything else is learned."""
    buffer = load_from_pkl(path)
    env = gym.make(env_id)
    known = get_registry().env_functions(env)
    model = (
        get_registry()
        .resolve("world_model", "ensemble")
        .build(
            env.observation_space,
            env.action_space,
            termination_fn=known.termination_fn,
            device="cpu",
            members=5,
            elites=5,
            hidden=[128, 128],
        )
    )
    metrics = model.fit(ReplayData(buffer), generator=th.Generator().manual_seed(0))
    print(f"{env_id}: fitted to {buffer.size()} real steps, held-out error {metrics['holdout_error']:.4f}")
    return model, buffer


def evaluate(agent: BaseAlgorithm, env_id: str) -> float:
    env = Monitor(gym.make(env_id))
    env.reset(seed=10_000)
    return float(np.mean(evaluate_policy(agent, env, 20, return_episode_rewards=True)[0]))


def dream(cls: type[BaseAlgorithm], env_id: str, model: WorldModel, buffer: ReplayBuffer, seed: int) -> dict[str, Any]:
    """Train in the model, evaluate in the real environment."""
    steps, settings = DREAMS[env_id][cls]
    env = VecMonitor(ModelVecEnv(model, starts=buffer, n_envs=N_ENVS, horizon=HORIZON[env_id], seed=seed))
    agent = cls("MlpPolicy", env, seed=seed, device="cpu", **settings)
    before, began = evaluate(agent, env_id), time.perf_counter()
    agent.learn(steps, progress_bar=True)
    took = time.perf_counter() - began
    agent.save(OUTPUT / f"{cls.__name__.lower()}-{env_id}-{seed}")
    return {"imagined_steps": steps, "before": before, "after": evaluate(agent, env_id), "seconds": round(took, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", default=list(DREAMS), help=" ".join(DREAMS))
    parser.add_argument("--algos", nargs="+", help="any of PPO A2C TRPO DQN SAC (default: all)")
    parser.add_argument("--fresh", action="store_true", help="repeat runs that have results")
    args = parser.parse_args()
    th.set_num_threads(1)
    file = OUTPUT / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for env_id in args.envs:
        path = OUTPUT / f"{env_id}.pkl"
        if not path.is_file():
            collect(env_id, path, REAL_STEPS[env_id])
        model, buffer = fit(env_id, path)
        for cls in DREAMS[env_id]:
            if args.algos and cls.__name__ not in args.algos:
                continue
            for seed in SEEDS:
                name = f"{env_id} {cls.__name__} {seed}"
                if name in results and not args.fresh:
                    continue
                results[name] = {"real_steps": buffer.size()} | dream(cls, env_id, model, buffer, seed)
                file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def show(results: dict[str, Any]) -> None:
    table = Table("environment", "algorithm", "seed", "real steps", "imagined steps", "before", "after", "seconds")
    for name, row in results.items():
        numbers = (str(row["real_steps"]), str(row["imagined_steps"]), f"{row['before']:.0f}", f"{row['after']:.0f}")
        table.add_row(*name.split(), *numbers, str(row["seconds"]))
    Console().print(table)


if __name__ == "__main__":
    main()
