"""
Simulations of the tree search per second, with children that cost nothing: the tree alone.

LightZero 0.2.0's compiled tree made 349,000 a second at 8 roots and 399,000 at 64, with 6 actions and 50 simulations, on one
thread of an AMD EPYC; four times that is required. Its sizes are kept here, and the numbers of a child are drawn beforehand.
"""

import os
from typing import Any

import numpy as np
import torch as th

from sb3_mbrl import jit
from sb3_mbrl.planners.tree_search import Leaf, TreeSearch
from tests.benchmarks.measure import Work, Worker, interleave

ACTIONS, SIMULATIONS = 6, 50
LIGHTZERO = {8: 349_000, 64: 399_000}
REQUIRED = 4


def searching(kind: str, roots: int, searches: int) -> Work:
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


def run(quick: bool = False) -> dict[str, Any]:
    """
    :param quick: few repeats, to see that everything runs
    """
    candidates: dict[str, Work | Worker] = {}
    sizes = {8: 200, 64: 50}
    if jit.COMPILED:
        for roots, searches in sizes.items():
            for kind in ("gumbel", "puct"):
                candidates[f"{kind}_{roots}"] = Worker(searching, kind, roots, searches)
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # for the other processes, which start now
    try:
        for roots in sizes:
            candidates[f"gumbel_{roots}_plain"] = Worker(searching, "gumbel", roots, 1)
    finally:
        del os.environ["NUMBA_DISABLE_JIT"]
    results: dict[str, Any] = interleave(3 if quick else 15, candidates)
    for roots, theirs in LIGHTZERO.items():
        results[f"required_{roots}"] = REQUIRED * theirs
    return {"search": {**results, "unit": "simulations", "actions": ACTIONS, "simulations": SIMULATIONS}}
