"""The cost of MBPO beside SAC's own updates: its gradient step, and the remaining time of a run."""

import time
from typing import Any

import gymnasium as gym
from stable_baselines3 import SAC

from sb3_mbrl import MBPO
from tests.benchmarks.measure import interleave, ratio

ENV_ID = "HalfCheetah-v5"
STEPS = 20
"""Gradient steps in one turn"""


class Timed(gym.Wrapper):
    """Adds up the time of the environment's steps."""

    seconds = 0.0

    def step(self, action: Any) -> Any:
        start = time.perf_counter()
        result = self.env.step(action)
        self.seconds += time.perf_counter() - start
        return result


def ready(agent: SAC) -> SAC:
    """With 1,000 real rows, and with imagined ones where there is a model; nothing is due until the next real step."""
    agent.learn(1_000)
    if isinstance(agent, MBPO):
        agent.fit_world_model()
        agent._imagine()
    return agent


def gradient_steps(rounds: int) -> dict[str, Any]:
    """Networks of 256 x 256 and batches of 256, SB3's defaults, for both."""
    common: dict[str, Any] = {"learning_starts": 1_000, "seed": 0, "device": "cpu", "buffer_size": 10_000}
    agents: dict[str, SAC] = {"sac": SAC("MlpPolicy", ENV_ID, **common)}
    model = {"world_model_kwargs": {"members": 2, "elites": 2, "hidden": [64]}, "fit_kwargs": {"max_batches": 100}}
    for real_ratio in (0.05, 0.5):
        agents[f"mbpo_{real_ratio}"] = MBPO("MlpPolicy", ENV_ID, real_ratio=real_ratio, **model, **common)
    for agent in agents.values():
        ready(agent)

    def turn(agent: SAC) -> float:
        agent.train(gradient_steps=STEPS, batch_size=256)
        return STEPS

    results: dict[str, Any] = interleave(rounds, {name: lambda a=agent: turn(a) for name, agent in agents.items()})
    for name in agents:
        if name != "sac":
            results[f"cost_of_{name}"] = round(1 / ratio(results, name, "sac"), 3)
    return {**results, "unit": "gradient steps", "required_cost_at_most": 1.05}


def overhead(steps: int) -> dict[str, Any]:
    """Shares of the wall time of a run with 10 updates a step and the default ensemble."""
    env = Timed(gym.make(ENV_ID))
    agent = MBPO(
        "MlpPolicy", env, learning_starts=500, gradient_steps=10, seed=0, device="cpu", fit_kwargs={"max_batches": 200}
    )
    agent.learn(500)
    env.seconds, start = 0.0, time.perf_counter()
    agent.learn(steps, reset_num_timesteps=False)
    wall = time.perf_counter() - start
    shares = {name: round(seconds / wall, 4) for name, seconds in {**agent.phase_seconds, "env": env.seconds}.items()}
    return {**shares, "everything_else": round(1 - sum(shares.values()), 4), "required_below": 0.05}


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    """
    return {"gradient_step": gradient_steps(5 if quick else 21), "shares_of_wall_time": overhead(60 if quick else 1_000)}
