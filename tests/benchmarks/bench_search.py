"""
The tree search of MuZero, on one thread, with 6 actions and 50 simulations: the tree alone (children that cost nothing, their
numbers drawn beforehand), the search of an agent from observations to improved policies (a model of 64 units, values and
rewards of 51 bins), and a step of its learner (unrolled over 5 steps, 128 windows). Next to LightZero 0.2.0, which lives in an
environment of its own (``lightzero_worker.py``)::

    LIGHTZERO_PYTHON=lightzero-env/bin/python python -m tests.benchmarks search

LightZero's tree is PUCT, so ours of that kind is the one to compare; its training steps include the consistency loss, as ours.
Without ``LIGHTZERO_PYTHON`` only ours is measured. What counts is ``user_cpu_us_per_unit``: the machine may be shared.
"""

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_mbrl import MuZero, jit
from sb3_mbrl.planners.tree_search import Leaf, TreeSearch
from tests.benchmarks.measure import External, Work, Worker, interleave

ACTIONS, SIMULATIONS, OBSERVATION, BATCH = 6, 50, 8, 128
REQUIRED = {"tree_8": 4, "tree_64": 4, "search_8": 1.1, "search_64": 1.1, "learner": 2}
"""How many times faster than LightZero"""
ISSUED = {"tree_8": 349_000, "tree_64": 399_000, "search_8": 34_000, "search_64": 136_000}
"""LightZero's simulations a second when the requirements were written, with scalar values and rewards, on a quiet machine"""


def tree(kind: str, roots: int, searches: int) -> Work:
    """One turn is some searches from the same roots."""
    th.set_num_threads(1)
    rng = np.random.default_rng(0)
    leaves = [
        Leaf(
            None,
            rng.normal(size=(roots, ACTIONS)).astype(np.float32),
            rng.normal(size=roots).astype(np.float32),
            rng.normal(size=roots).astype(np.float32),
            np.full(roots, 0.997, np.float32),
        )
        for _ in range(SIMULATIONS + 1)
    ]
    search = TreeSearch(kind, num_simulations=SIMULATIONS)

    def turn() -> float:
        for _ in range(searches):
            following = iter(leaves)
            search.search(next(following), lambda state, edge, leaves=following: next(leaves), rng=rng)  # type: ignore[misc]
        return searches * roots * SIMULATIONS

    turn()  # compile
    return turn


class Noise(gym.Env[np.ndarray, np.int64]):
    """Observations that are drawn at random, and one long episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION,))
    action_space = gym.spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=OBSERVATION).astype(np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.np_random.normal(size=OBSERVATION).astype(np.float32), 1.0, False, False, {}


def agent(**settings: Any) -> MuZero:
    th.set_num_threads(1)
    return MuZero("MlpPolicy", Noise(), seed=0, device="cpu", num_simulations=SIMULATIONS, **settings)


def search(kind: str, roots: int, searches: int) -> Work:
    """One turn is some searches from observations, with a model whose predictions differ from state to state."""
    searcher = agent(search=kind)
    obs, generator = th.randn(roots, OBSERVATION), th.Generator().manual_seed(0)
    with th.no_grad():
        for parameter in searcher.latent_model.parameters():
            parameter.add_(0.1 * th.randn(parameter.shape, generator=generator))

    def turn() -> float:
        for _ in range(searches):
            searcher.policy.search(obs, generator=generator)
        return searches * roots * SIMULATIONS

    turn()  # compile
    return turn


def learner(updates: int) -> Work:
    """One turn is some updates, each with the draw of its windows, value targets and priorities."""
    learning = agent(learning_starts=10**6, batch_size=BATCH)
    learning.learn(500)

    def turn() -> float:
        learning.train(updates, BATCH)
        return updates

    learning.learning_starts = 0
    turn()
    return turn


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    """
    candidates: dict[str, Work | Worker | External] = {}
    turns = {"tree_8": 200, "tree_64": 50, "search_8": 20, "search_64": 10}
    for name, repeats in turns.items():
        work, roots = name.split("_")
        for kind in ("gumbel", "puct") if jit.COMPILED else ():
            candidates[f"{name}_{kind}"] = Worker(tree if work == "tree" else search, kind, int(roots), repeats)
    candidates["learner_ours"] = Worker(learner, 10)
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # for the other processes, which start now
    try:
        for roots in (8, 64):
            candidates[f"tree_{roots}_plain"] = Worker(tree, "gumbel", roots, 1)
            candidates[f"search_{roots}_plain"] = Worker(search, "gumbel", roots, 1)
    finally:
        del os.environ["NUMBA_DISABLE_JIT"]
    if python := os.environ.get("LIGHTZERO_PYTHON"):
        for name, repeats in turns.items():
            work, roots = name.split("_")
            candidates[f"{name}_lightzero"] = _lightzero(python, work, int(roots), repeats)
            if work == "search":
                candidates[f"{name}_lightzero_scalar"] = _lightzero(python, "search_scalar", int(roots), repeats)
        candidates["learner_lightzero"] = _lightzero(python, "learner", BATCH, 10)
    others = {one.greeting for one in candidates.values() if isinstance(one, External)}
    results: dict[str, Any] = interleave(3 if quick else 11, candidates)
    sizes = {
        "unit": "simulations, or updates",
        "actions": ACTIONS,
        "simulations": SIMULATIONS,
        "command": _COMMAND,
        "theirs": sorted(others),
    }
    return {"search": {**results, **sizes, "ratios": _ratios(results), "required": REQUIRED, "issued": ISSUED}}


_COMMAND = "LIGHTZERO_PYTHON=... python -m tests.benchmarks search"


def _lightzero(python: str, work: str, rows: int, repeats: int) -> External:
    worker = Path(__file__).with_name("lightzero_worker.py")
    return External([python, str(worker), work, "1", str(rows), str(repeats)], {"OMP_NUM_THREADS": "1"})


def _ratios(results: dict[str, Any]) -> dict[str, float]:
    """Return how many times less processor time each of ours takes than LightZero, where that was measured."""
    ours = [name for name in results if name != "others_share" and "lightzero" not in name]
    pairs = {name: f"{name.rpartition('_')[0]}_lightzero" for name in ours}
    return {name: round(_cpu(results[other]) / _cpu(results[name]), 3) for name, other in pairs.items() if other in results}


def _cpu(summary: dict[str, Any]) -> float:
    """Return the processor time of a unit."""
    return summary["user_cpu_us_per_unit"] + summary["system_cpu_us_per_unit"]
