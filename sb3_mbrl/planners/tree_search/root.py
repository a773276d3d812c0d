"""What happens at the roots only: legal actions, sequential halving, Dirichlet noise."""

import math
from functools import lru_cache

import numpy as np

from sb3_mbrl.planners.tree_search.tree import Leaf


def root_logits(root: Leaf, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of the roots, minus infinity at masked edges, and which edges are legal, ``(B, A)`` each."""
    logits = np.array(root.logits, np.float64)
    if logits.ndim != 2 or np.shape(root.value) != logits.shape[:1] or not logits.size:
        raise ValueError(
            f"The root has logits of the shape {logits.shape} and values of {np.shape(root.value)}: give (B, A) and (B,)"
        )
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != logits.shape:
            raise ValueError(f"The mask has the shape {mask.shape}: give {logits.shape}, true where an action is legal")
        logits = np.where(mask.astype(bool), logits, -np.inf)
    legal = logits > -np.inf
    if not legal.any(1).all():
        row = int((~legal.any(1)).argmax())
        raise ValueError(
            f"No action is legal at root {row}: an episode that is over has nothing to search for; leave its row out, or "
            "allow an action whose result is not used"
        )
    return logits, legal


def _halving(m: int, simulations: int) -> list[int]:
    """Return the number of visits that the edge of each simulation has, if ``m`` edges are considered."""
    if m <= 1:
        return list(range(simulations))
    phases = math.ceil(math.log2(m))
    sequence: list[int] = []
    visits = [0] * m
    left = m
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            sequence += visits[:left]
            visits[:left] = [visit + 1 for visit in visits[:left]]
        left = max(2, left // 2)
    return sequence[:simulations]


@lru_cache(maxsize=64)
def considered_visits(most: int, simulations: int) -> np.ndarray:
    """
    Plan sequential halving: the edge that a simulation visits is the best of those with exactly this number of visits.

    With ``m`` edges there are ``log2(m)`` phases of about ``simulations / log2(m)`` visits; each phase shares its visits
    equally among the edges that are left, and ends with dropping the worse half, down to two. With fewer simulations than
    edges, the first phase is cut off: those of the highest scores are visited once.

    :param most: the largest number of considered edges
    :param simulations: the number of simulations
    :return: ``(most + 1, simulations)``: a row per number of considered edges
    """
    table = np.array([_halving(m, simulations) for m in range(most + 1)], np.int32)
    table.flags.writeable = False  # it is shared
    return table


def add_noise(prior: np.ndarray, legal: np.ndarray, alpha: float | None, fraction: float, rng: np.random.Generator) -> None:
    """
    Mix Dirichlet noise into the prior of the root, in place: ``P <- (1 - fraction) P + fraction Dirichlet(alpha)``.

    :param prior: the prior probabilities, ``(B, A)``
    :param legal: ``(B, A)`` booleans: the edges that exist
    :param alpha: the parameter of the distribution; ``None``: 10 over the number of legal actions
    :param fraction: the share of the noise
    :param rng: the source of randomness
    """
    shape = (
        np.full(prior.shape, alpha) if alpha is not None else np.broadcast_to(10 / legal.sum(1, keepdims=True), prior.shape)
    )
    # A Dirichlet sample is a vector of Gamma(alpha) samples over their sum. Small ones may round to 0: log and softmax do not.
    # Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha).
    logs = np.log(rng.standard_gamma(shape + 1)) + np.log1p(-rng.random(prior.shape)) / shape
    logs = np.where(legal, logs, -np.inf)
    noise = np.exp(logs - logs.max(1, keepdims=True))
    prior *= 1 - fraction
    prior += fraction * noise / noise.sum(1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits ``(B, A)`` into probabilities."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
