"""Planning updates of ``DynaQ`` per second, through the agent: compiled (the ``jit`` extra) and in plain Python."""

import os
from typing import Any

from stable_baselines3.common.logger import Logger

from sb3_mbrl import DynaQ, jit
from tests.benchmarks.measure import Work, Worker, interleave

REQUIRED = {"compiled": 3_000_000, "plain": 50_000}


def planning(updates: int) -> Work:
    """One turn is one call of ``train`` on the model that 1,000 real steps in the maze have left."""
    agent = DynaQ("QTablePolicy", "DynaMaze-v0", seed=0, gradient_steps=1)
    agent.learn(1_000)
    agent.set_logger(Logger(folder=None, output_formats=[]))

    def turn() -> float:
        agent.train(gradient_steps=updates)
        return updates

    return turn


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    """
    candidates: dict[str, Work | Worker] = {}
    if jit.COMPILED:
        candidates["compiled"] = Worker(planning, 1_000_000)
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # for the other process, which starts now
    try:
        candidates["plain"] = Worker(planning, 20_000)
    finally:
        del os.environ["NUMBA_DISABLE_JIT"]
    results: dict[str, Any] = interleave(3 if quick else 11, candidates)
    for name in candidates:
        results[f"required_{name}"] = REQUIRED[name]
    return {"tabular": {**results, "unit": "planning updates"}}
