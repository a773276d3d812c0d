"""
MuZero's choices: PUCT with Dirichlet noise at the root (*Mastering Atari, Go, chess and shogi by planning with a learned model*,
Schrittwieser et al. 2020, appendix B).
"""

import math

import numpy as np

from sb3_mbrl.jit import jit
from sb3_mbrl.planners.tree_search.gumbel import SIBLINGS, WHOLE_TREE

LOWEST, PARENT = 0, 1
"""Ways to value an edge that was never visited: like the worst, or like its node"""


@jit
def choose_by_puct(tree, row, node, rule):
    """
    Choose the edge of a node (equation 2)::

        argmax_a Q'(a) + P(a) sqrt(N) / (1 + n(a)) [c_init + log((N + c_base + 1) / c_base)]        N = 1 + sum_b n(b)

    ``Q'`` is ``Q`` normalised to [0, 1], by the lowest and highest of the whole tree (as in the paper) or of this node and its
    edges (as in ``mctx``). An edge that was never visited has ``Q' = 0``, or that of its node.
    """
    value, edges = tree.value[row, node], tree.prior.shape[2]
    low, high = 0.0, 1.0
    if rule.q_norm == SIBLINGS:
        low, high = value, value
        for a in range(edges):
            if tree.visits[row, node, a] > 0:
                low, high = min(low, tree.q[row, node, a]), max(high, tree.q[row, node, a])
    elif rule.q_norm == WHOLE_TREE and tree.bounds[row, 0] <= tree.bounds[row, 1]:
        low, high = tree.bounds[row, 0], tree.bounds[row, 1]
    width = max(high - low, rule.min_q_range)
    unvisited = min(max((value - low) / width, 0.0), 1.0) if rule.fpu == PARENT else 0.0
    total = tree.count[row, node]
    factor = math.sqrt(total) * (rule.pb_c_init + math.log((total + rule.pb_c_base + 1) / rule.pb_c_base))
    best, highest = 0, -math.inf
    for a in range(edges):
        prior, visits = tree.prior[row, node, a], tree.visits[row, node, a]
        if prior > 0.0:
            score = (tree.q[row, node, a] - low) / width if visits > 0 else unvisited
            score += factor * prior / (1 + visits)
            if score > highest:
                best, highest = a, score
    return best


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
