"""
Reproduce the figures of Sutton and Barto (2018), chapter 8, with ``DynaQ``: ``python examples/mazes.py``.

Writes the figures' data as JSON and a plot of them to ``examples/mazes/``. Experiments whose JSON exists are not run again,
except with ``--fresh``.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from rich.progress import track
from stable_baselines3.common.callbacks import BaseCallback

from sb3_mbrl import DynaQ
from sb3_mbrl.envs.mazes import DYNA_MAZE

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OUTPUT = Path(__file__).with_suffix("")
RUNS, EPISODES = 30, 50
CHANGING = {"BlockingMaze-v0": (3_000, 10, 1e-4, 20), "ShortcutMaze-v0": (6_000, 50, 1e-3, 5)}
"""Real steps, planning updates, kappa, runs: as in github.com/ShangtongZhang/reinforcement-learning-an-introduction"""


class Steps(BaseCallback):
    """A callback that notes when episodes end, and stops after ``episodes`` of them or when ``stop`` returns true."""

    def __init__(self, episodes: float = float("inf"), stop: Callable[[DynaQ], bool] | None = None) -> None:
        super().__init__()
        self.episodes, self.stop = episodes, stop
        self.ends: list[int] = []

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            self.ends.append(self.num_timesteps)
        assert isinstance(self.model, DynaQ)
        return len(self.ends) < self.episodes and not (self.stop is not None and self.stop(self.model))


def learn(env_id: str, seed: int, steps: int, callback: BaseCallback, **settings: Any) -> DynaQ:
    agent = DynaQ("QTablePolicy", env_id, seed=seed, **settings)
    return agent.learn(steps, callback=callback)


def dyna_maze() -> dict[str, Any]:
    """Run figure 8.2: steps per episode for 0, 5 and 50 planning updates."""
    curves = {}
    for n in (0, 5, 50):
        lengths = []
        for seed in track(range(RUNS), f"DynaMaze-v0, {n} planning updates"):
            callback = Steps(EPISODES)
            learn("DynaMaze-v0", seed, 10**7, callback, gradient_steps=n)
            lengths.append(np.diff([0, *callback.ends]).tolist())
        curves[str(n)] = lengths
    return curves


def changing_maze(env_id: str) -> dict[str, Any]:
    """Run figure 8.4 or 8.5: cumulative reward of Dyna-Q and Dyna-Q+."""
    steps, n, kappa, runs = CHANGING[env_id]
    curves = {}
    for planning in ("dyna_q", "dyna_q_plus"):
        ends = []
        for seed in track(range(runs), f"{env_id}, {planning}"):
            callback = Steps()
            settings = {"learning_rate": 1.0, "gradient_steps": n, "kappa": kappa, "world_model_kwargs": {"memory": 0.0}}
            learn(env_id, seed, steps, callback, planning=planning, **settings)
            ends.append(callback.ends)
        curves[planning] = ends
    return curves


def greedy_steps(agent: DynaQ) -> int:
    """Compute the length of the greedy path through ``DynaMaze-v0``; 100 if it does not reach the goal."""
    env = gym.make("DynaMaze-v0").unwrapped
    obs, _ = env.reset()
    table = agent.policy.table()
    for step in range(1, 100):
        obs, _, over, _, _ = env.step(int(table[obs].argmax()))
        if over:
            return step
    return 100


def sweeping() -> dict[str, Any]:
    """Run example 8.4: updates until the greedy path is at most 1.2 times as long as the shortest one (14 steps)."""
    results: dict[str, Any] = {}
    settings = {"learning_rate": 0.5, "gradient_steps": 5, "theta": 1e-4}
    for planning in ("dyna_q", "prioritized_sweeping"):
        updates = []
        for seed in track(range(RUNS), f"Updates to the shortest path, {planning}"):
            callback = Steps(stop=lambda agent: greedy_steps(agent) <= 1.2 * 14)
            agent = learn("DynaMaze-v0", seed, 10**6, callback, planning=planning, **settings)
            updates.append({"planned": agent.tabular.n_backups, "steps": agent.num_timesteps})
        results[planning] = updates
    return results


EXPERIMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "dyna_maze": dyna_maze,
    "blocking_maze": lambda: changing_maze("BlockingMaze-v0"),
    "shortcut_maze": lambda: changing_maze("ShortcutMaze-v0"),
    "prioritized_sweeping": sweeping,
}


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Draw the book's figures."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    for n, lengths in results["dyna_maze"].items():
        mean = np.mean(lengths, axis=0)
        axes[0].plot(range(2, EPISODES + 1), mean[1:], label=f"{n} planning updates")
    axes[0].set(title="DynaMaze-v0 (figure 8.2)", xlabel="episode", ylabel="steps per episode", yscale="log")
    for axis, name, env_id in zip(axes[1:], ("blocking_maze", "shortcut_maze"), CHANGING, strict=True):
        steps = CHANGING[env_id][0]
        for planning, ends in results[name].items():
            rewards = np.mean([np.searchsorted(run, np.arange(steps + 1), side="right") for run in ends], axis=0)
            axis.plot(rewards, label={"dyna_q": "Dyna-Q", "dyna_q_plus": "Dyna-Q+"}[planning])
        changed = gym.make(env_id).unwrapped.changes[0][0]
        axis.axvline(changed, color="grey", linestyle=":", label="the maze changes")
        axis.set(title=f"{env_id} (figure 8.{4 + (name == 'shortcut_maze')})", xlabel="real steps", ylabel="cumulative reward")
    for axis in axes:
        axis.legend()
    figure.tight_layout()
    figure.savefig(OUTPUT / "mazes.png", dpi=110)


def print_summary(results: dict[str, dict[str, Any]]) -> None:
    """Print the main numbers of the figures."""
    for n, lengths in results["dyna_maze"].items():
        means = np.mean(lengths, axis=0)
        print(
            f"DynaMaze-v0, {n:>2} planning updates: steps in episode 2 {means[1]:.1f}, 3 {means[2]:.1f}, 10 {means[9]:.1f}, "
            f"41 to 50 {means[40:].mean():.2f}; in episodes 2 to 50 together {means[1:].sum():.0f}"
        )
    for name in ("blocking_maze", "shortcut_maze"):
        rewards = {planning: np.mean([len(run) for run in ends]) for planning, ends in results[name].items()}
        print(f"{name}: cumulative reward {', '.join(f'{planning} {reward:.1f}' for planning, reward in rewards.items())}")
    for planning, runs in results["prioritized_sweeping"].items():
        planned, real = (np.array([run[key] for run in runs]) for key in ("planned", "steps"))
        print(
            f"Updates to a nearly shortest path, {planning}, median: {np.median(planned):.0f} planned, "
            f"{np.median(real):.0f} real, {np.median(planned + real):.0f} together"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    args = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    results = {}
    for name, experiment in EXPERIMENTS.items():
        path = OUTPUT / f"{name}.json"
        if args.fresh or not path.exists():
            start = time.perf_counter()
            data = experiment()
            path.write_text(json.dumps({"seconds": round(time.perf_counter() - start, 1), "data": data}), encoding="utf-8")
        results[name] = json.loads(path.read_text(encoding="utf-8"))["data"]
    draw(results)
    print_summary(results)
    print(f"Maze of example 8.1 ({len(DYNA_MAZE)} rows), plot: {OUTPUT / 'mazes.png'}")


if __name__ == "__main__":
    main()
