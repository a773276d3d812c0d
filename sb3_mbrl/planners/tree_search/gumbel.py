"""
Gumbel MuZero's choices: *Policy improvement by planning with Gumbel*, Danihelka, Guez, Schrittwieser and Silver 2022.

At the root, sequential halving shares the simulations among the ``m`` edges of the highest ``g(a) + logits(a)``, with Gumbel
noise ``g``: they are a sample without replacement from the prior policy. Below, the visits follow the improved policy.
Everything agrees with DeepMind's ``mctx``.
"""

import math
from functools import lru_cache

import numpy as np

from sb3_mbrl.jit import jit

SIBLINGS, WHOLE_TREE, AS_THEY_ARE = 0, 1, 2
"""Ways to normalise Q-values: by the edges of one node, by those of the whole tree, not at all"""


@jit
def mixed_value(tree, row, node):
    """
    Estimate the value of a node from its raw value ``v`` and the visited edges (the paper's appendix D)::

        v_mix = [v + n sum_a P(a) Q(a) / sum_a P(a)] / (1 + n)        sums over visited a;  n = sum_a n(a)
    """
    total, share, weighted = 0, 0.0, 0.0
    for a in range(tree.prior.shape[2]):
        visits = tree.visits[row, node, a]
        if visits > 0:
            prior = max(tree.prior[row, node, a], 1e-38)  # a visited edge counts even if its prior probability is 0
            total += visits
            share += prior
            weighted += prior * tree.q[row, node, a]
    if total == 0:
        return tree.raw_value[row, node]
    return (tree.raw_value[row, node] + total * weighted / share) / (1 + total)


@jit
def complete(tree, row, node, out):
    """
    Write the completed Q-values of a node (equation 10) into ``out``, ``(A,)``::

        completed Q(a) = Q(a) if n(a) > 0 else v_mix
    """
    value = mixed_value(tree, row, node)
    for a in range(tree.prior.shape[2]):
        out[a] = tree.q[row, node, a] if tree.visits[row, node, a] > 0 else value


@jit
def scale(tree, row, node, rule, out):
    """
    Turn completed Q-values into logits, in place (equation 8)::

        sigma(Q) = (c_visit + max_a n(a)) c_scale Q'        Q' = (Q - min Q) / max(max Q - min Q, min_q_range)
    """
    low, high = 0.0, 1.0
    if rule.q_norm == SIBLINGS:
        low, high = out[0], out[0]
        for a in range(1, out.shape[0]):
            low, high = min(low, out[a]), max(high, out[a])
    elif rule.q_norm == WHOLE_TREE and tree.bounds[row, 0] <= tree.bounds[row, 1]:
        low, high = tree.bounds[row, 0], tree.bounds[row, 1]
    most = 0
    for a in range(out.shape[0]):
        most = max(most, tree.visits[row, node, a])
    factor = (rule.c_visit + most) * rule.c_scale / max(high - low, rule.min_q_range)
    for a in range(out.shape[0]):
        out[a] = factor * (out[a] - low)


@jit
def choose_at_root(tree, row, rule, score, considered, out):
    """
    Choose the edge of the root to visit (algorithm 1, sequential halving)::

        argmax over edges with n(a) = considered of g(a) + logits(a) + sigma(completed Q(a))

    :param score: ``g + logits`` of this tree, ``(A,)``; minus infinity for illegal actions
    :param considered: the number of visits of the edges in question, from :func:`considered_visits`
    :param out: room for ``(A,)`` numbers
    """
    complete(tree, row, 0, out)
    scale(tree, row, 0, rule, out)
    best, highest = -1, -math.inf
    for a in range(out.shape[0]):
        if tree.visits[row, 0, a] == considered and score[a] > -math.inf:
            # Scores below -1e9 are all alike, as in mctx.
            value = max(-1e9, score[a] + out[a])
            if value > highest:
                best, highest = a, value
    return best


@jit
def choose_below(tree, row, node, rule, out):
    """
    Choose the edge of an inner node, so that its visits approach the improved policy (equation 14)::

        argmax_a pi'(a) - n(a) / (1 + sum_b n(b))        pi'(a) = P(a) exp sigma(a) / sum_b P(b) exp sigma(b)

    The scores of all edges sum to more than 0, and that of an edge with ``P = 0`` is 0: it is never chosen.
    """
    complete(tree, row, node, out)
    scale(tree, row, node, rule, out)
    largest = -math.inf
    for a in range(out.shape[0]):
        if tree.prior[row, node, a] > 0.0:
            largest = max(largest, out[a])
    total = 0.0
    for a in range(out.shape[0]):
        prior = tree.prior[row, node, a]
        out[a] = prior * math.exp(out[a] - largest) if prior > 0.0 else 0.0
        total += out[a]
    best, highest = 0, -math.inf
    for a in range(out.shape[0]):
        value = out[a] / total - tree.visits[row, node, a] / tree.count[row, node]
        if value > highest and tree.prior[row, node, a] > 0.0:
            best, highest = a, value
    return best


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
