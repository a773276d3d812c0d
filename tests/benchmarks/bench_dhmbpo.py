"""An update of DHMBPO at HalfCheetah's sizes beside the matrix products that it contains, on random numbers."""

from itertools import pairwise
from typing import Any

import torch as th

from sb3_mbrl import DHMBPO
from tests.benchmarks.measure import Work, Worker, interleave, ratio

UPDATES, BATCH, HORIZON, CRITICS = 10, 256, 5, 5
OBS, ACTIONS, UNITS = 17, 6, (256, 256, 256)


def update() -> Work:
    """Updates alone: the model is fitted, and distribution rollouts are made, before."""
    agent = DHMBPO("MlpPolicy", "HalfCheetah-v5", seed=0, device="cpu", learning_starts=300, fit_kwargs={"max_batches": 30})
    agent.learn(310)
    agent._imagine()
    agent.trainer.trusted = True

    def work() -> float:
        agent.train(UPDATES, BATCH)
        return float(UPDATES)

    return work


def products() -> Work:
    """
    The products of one update, forwards and backwards: the model (no gradients of its weights) and the actor at every step,
    and the critics three times: two targets of them, their own learning, and the actor's objective (no gradients of weights).
    """
    model = [*pairwise((OBS + ACTIONS, *UNITS, 2 * (OBS + 1)))]
    actor, critic = [*pairwise((OBS, *UNITS, 2 * ACTIONS))], [*pairwise((OBS + ACTIONS, *UNITS, 1))]
    pairs = []

    def add(layers: list[tuple[int, int]], stack: tuple[int, ...], backwards: int) -> None:
        for fan_in, fan_out in layers:
            shapes = (
                ((BATCH, fan_in), (fan_in, fan_out)),
                ((BATCH, fan_out), (fan_out, fan_in)),
                ((fan_in, BATCH), (BATCH, fan_out)),
            )
            pairs.extend((th.randn(*stack, *a), th.randn(*stack, *b)) for a, b in shapes[: 1 + backwards])

    for _ in range(HORIZON):
        add(model, (), 1)
    for _ in range(HORIZON + 1):
        add(actor, (), 2)
    for backwards in (0, 2, 1):
        add(critic, (CRITICS,), backwards)

    def work() -> float:
        for _ in range(UPDATES):
            for a, b in pairs:
                a @ b
        return float(UPDATES)

    return work


def run(quick: bool = False) -> dict[str, Any]:
    """:param quick: few repeats, to see that everything runs"""
    times = interleave(3 if quick else 11, {"update": Worker(update), "products": Worker(products)})
    cost = round(1 / ratio(times, "update", "products"), 3)
    return {"dhmbpo_update": {**times, "unit": "updates", "cost_of_update": cost, "required_cost_at_most": 1.3}}
