"""
One simulation in all trees, read from top to bottom: selection, expansion, backup. The network lies between selection and
expansion, so the entry point :func:`advance` finishes one simulation (expansion, backup) and begins the next (selection).

Selection is Gumbel MuZero's (*Policy improvement by planning with Gumbel*, Danihelka, Guez, Schrittwieser and Silver 2022,
"Gumbel" below; it agrees with DeepMind's ``mctx``) or MuZero's (*Mastering Atari, Go, chess and shogi by planning with a
learned model*, Schrittwieser et al. 2020).

Compiled where numba is installed, and plain Python elsewhere. The entry points, :func:`advance` and :func:`root_values`, take
the arrays one by one, since a named tuple costs several microseconds per call; inside they are :class:`Arrays` again. All
compiled functions are in this file, because compiled code is stored on disk until its own file changes.
"""

import math
from typing import NamedTuple

import numpy as np

from sb3_mbrl.jit import jit_inline, jit_stored
from sb3_mbrl.planners.tree_search.tree import Arrays

GUMBEL, PUCT = 0, 1
"""Kinds of search"""

SIBLINGS, WHOLE_TREE, AS_THEY_ARE = 0, 1, 2
"""Ways to normalise Q-values: by the edges of one node, by those of the whole tree, not at all"""

LOWEST, PARENT = 0, 1
"""Ways to value an edge that was never visited (PUCT): like the worst, or like its node"""

ROOT, NO_NODE = np.int64(0), np.int64(-1)  # numba compiles a function once more for a plain 0: it is a type of its own


class Rule(NamedTuple):
    """The settings of a search as numbers; see :class:`~sb3_mbrl.planners.tree_search.TreeSearch`."""

    kind: float
    q_norm: float
    min_q_range: float
    c_visit: float
    c_scale: float
    fpu: float
    pb_c_init: float
    pb_c_base: float


# ---- selection: Gumbel


@jit_inline
def mixed_value(tree, row, node):
    """
    Estimate the value of a node from its raw value ``v`` and the visited edges (Gumbel, appendix D)::

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


@jit_inline
def complete(tree, row, node, out):
    """
    Write the completed Q-values of a node (Gumbel, equation 10) into ``out``, ``(A,)``::

        completed Q(a) = Q(a) if n(a) > 0 else v_mix
    """
    value = mixed_value(tree, row, node)
    for a in range(tree.prior.shape[2]):
        out[a] = tree.q[row, node, a] if tree.visits[row, node, a] > 0 else value


@jit_inline
def scale(tree, row, node, rule, out):
    """
    Turn completed Q-values into logits, in place (Gumbel, equation 8)::

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


@jit_inline
def choose_at_root(tree, row, node, rule, score, considered, out):
    """
    Choose the edge of the root to visit (Gumbel, algorithm 1: sequential halving)::

        argmax over edges with n(a) = considered of g(a) + logits(a) + sigma(completed Q(a))

    :param node: the root
    :param score: ``g + logits`` of this tree, ``(A,)``; minus infinity for illegal actions
    :param considered: the number of visits of the edges in question, from :func:`~.root.considered_visits`
    :param out: room for ``(A,)`` numbers
    """
    complete(tree, row, node, out)
    scale(tree, row, node, rule, out)
    best, highest = -1, -math.inf
    for a in range(out.shape[0]):
        if tree.visits[row, node, a] == considered and score[a] > -math.inf:
            # Scores below -1e9 are all alike, as in mctx.
            value = max(-1e9, score[a] + out[a])
            if value > highest:
                best, highest = a, value
    return best


@jit_inline
def choose_below(tree, row, node, rule, out):
    """
    Choose the edge of an inner node, so that its visits approach the improved policy (Gumbel, equation 14)::

        argmax_a pi'(a) - n(a) / (1 + sum_b n(b))        pi'(a) = P(a) exp sigma(a) / sum_b P(b) exp sigma(b)

    The scores of all edges sum to more than 0, and that of an edge with ``P = 0`` is 0: it is never chosen.
    """
    prior, visits = tree.prior[row, node], tree.visits[row, node]
    edges, count = out.shape[0], tree.total[row, node]
    best, highest = 0, -math.inf
    if count == 1:  # nothing is visited yet: sigma is the same for all edges, and pi' = P
        for a in range(edges):
            if prior[a] > highest:
                best, highest = a, prior[a]
        return best
    complete(tree, row, node, out)
    scale(tree, row, node, rule, out)
    largest = -math.inf
    for a in range(edges):
        if prior[a] > 0.0:
            largest = max(largest, out[a])
    total = 0.0
    for a in range(edges):
        out[a] = prior[a] * math.exp(out[a] - largest) if prior[a] > 0.0 else 0.0
        total += out[a]
    for a in range(edges):
        value = out[a] / total - visits[a] / count
        if value > highest and prior[a] > 0.0:
            best, highest = a, value
    return best


# ---- selection: PUCT


@jit_inline
def choose_by_puct(tree, row, node, rule):
    """
    Choose the edge of a node (MuZero, equation 2)::

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
    total = tree.total[row, node]
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


# ---- selection: the walk


@jit_inline
def choose_outcome(tree, row, node):
    """Choose the outcome of a chance node, so that visits approach probabilities: ``argmax_a P(a) / (1 + n(a))``."""
    best, highest = 0, -1.0
    for a in range(tree.prior.shape[2]):
        score = tree.prior[row, node, a] / (1 + tree.visits[row, node, a])
        if score > highest:
            best, highest = a, score
    return best


@jit_inline
def select(tree, row, rule, score, considered, out):
    """
    Walk from the root of one tree along the chosen edges to an edge that has no node yet, or that has ended the episode.

    :param score: the scores ``g + logits`` of the root's edges, ``(A,)`` (Gumbel)
    :param considered: the number of visits of the edges that are considered at the root (Gumbel)
    :param out: room for ``(A,)`` numbers
    :return: the node at which the walk ends, its chosen edge, and the number of edges walked
    """
    node, depth = ROOT, 0
    while True:
        if tree.chance[row, node]:
            edge = choose_outcome(tree, row, node)
        elif rule.kind == PUCT:
            edge = choose_by_puct(tree, row, node, rule)
        elif node == ROOT:
            edge = choose_at_root(tree, row, node, rule, score, considered, out)
        else:
            edge = choose_below(tree, row, node, rule, out)
        depth += 1
        child = tree.children[row, node, edge]
        if child < 0 or tree.discount[row, child] == 0.0:
            return node, edge, depth
        node = child


# ---- expansion


@jit_inline
def expand(tree, row, node, parent, edge, logits, value, reward, discount, chance):
    """
    Add a node to one tree, with the prior ``P = softmax(logits)``.

    :param node: the number of the node
    :param parent: the node before it; -1 for the root
    :param edge: the parent's edge that leads to it
    :param logits: the logits of its edges, ``(A,)``
    :return: whether the numbers are usable: finite, except for logits of minus infinity
    """
    if not (math.isfinite(value) and math.isfinite(reward) and math.isfinite(discount)):
        return False
    edges, largest = logits.shape[0], -math.inf
    for a in range(edges):
        logit = float(logits[a])
        if math.isnan(logit) or logit == math.inf:
            return False
        largest = max(largest, logit)
    total = 0.0
    for a in range(edges):
        # A node without any edge is the end of an episode, from which nothing is ever chosen; the discount says so.
        p = math.exp(float(logits[a]) - largest) if largest > -math.inf else 1.0
        tree.prior[row, node, a] = p
        total += p
    for a in range(edges):
        tree.prior[row, node, a] /= total
    if discount == 0.0:
        value = 0.0  # nothing comes after the end
    tree.value[row, node] = tree.raw_value[row, node] = value
    tree.reward[row, node], tree.discount[row, node] = reward, discount
    tree.parent[row, node], tree.edge[row, node] = parent, edge
    tree.chance[row, node] = chance
    tree.total[row, node] = 1
    if parent >= 0:
        tree.children[row, parent, edge] = node
    return True


# ---- backup


@jit_inline
def backup(tree, row, node, value):
    """
    Add the return of one simulation to every node on the way from a node back to the root::

        G <- r + d G        V <- V + (G - V) / (1 + n)        Q = r + d V(child)

    ``d`` is the discount of the edge: negative where the other player moves next, so that no other code knows about players.

    :param node: the last node of the walk
    :param value: the value from there on, ``G``
    """
    while node > 0:
        parent, edge = tree.parent[row, node], tree.edge[row, node]
        reward, discount = tree.reward[row, node], tree.discount[row, node]
        q = reward + discount * tree.value[row, node]
        tree.q[row, parent, edge] = q
        tree.visits[row, parent, edge] += 1
        tree.bounds[row, 0] = min(tree.bounds[row, 0], q)
        tree.bounds[row, 1] = max(tree.bounds[row, 1], q)
        value = reward + discount * value
        total = tree.total[row, parent]
        tree.value[row, parent] += (value - tree.value[row, parent]) / (total + 1)
        tree.total[row, parent] = total + 1
        node = parent


# ---- the entry points


@jit_stored
def advance(
    node, logits, value, reward, discount, chance, score, considered, settings, where, edges, out,
    children, prior, visits, q, parent, edge, total, values, raw_value, rewards, discounts, chances, bounds, depth,
):  # fmt: skip
    """
    Add a node to every tree, with its backup, and select the edges of the next simulation, if there is one.

    :param node: the number of the new nodes; 0: the roots, for which there is no backup
    :param logits: the logits of the new nodes, ``(B, A)``; ``value``, ``reward``, ``discount`` and ``chance`` are ``(B,)``
    :param score: see :func:`select`, ``(B, A)``
    :param considered: see :func:`select`, for each simulation, ``(N, B)``
    :param settings: the numbers of :class:`Rule`
    :param where: the nodes above the new ones, as places ``node * B + row``, ``(B,)``; receives those of the next simulation
    :param edges: the edges that lead to the new nodes, ``(B,)``; receives those of the next simulation
    :param out: room for ``(A,)`` numbers
    :return: the first tree whose new numbers are not finite, or -1
    """
    tree = Arrays(
        children, prior, visits, q, parent, edge, total, values, raw_value, rewards, discounts, chances, bounds, depth
    )
    rule = Rule(settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6], settings[7])
    rows, simulations = logits.shape[0], considered.shape[0]
    for row in range(rows):
        above, chosen, last = NO_NODE, edges[row], NO_NODE
        if node > 0:
            above = where[row] // rows
            last = np.int64(children[row, above, chosen])
        if last < 0:
            last = node
            if not expand(tree, row, node, above, chosen, logits[row], value[row], reward[row], discount[row], chance[row]):
                return row
        # Otherwise the edge has ended the episode before, and this simulation is one more visit of the end.
        backup(tree, row, last, values[row, last])
        if node < simulations:
            last, chosen, length = select(tree, row, rule, score[row], considered[node, row], out)
            where[row], edges[row] = last * rows + row, chosen
            depth[row] = max(depth[row], length)
    return -1


@jit_stored
def root_values(
    settings, completed, sigma,
    children, prior, visits, q, parent, edge, total, values, raw_value, reward, discount, chance, bounds, depth,
):  # fmt: skip
    """
    Compute the completed Q-values of the roots, and their logits (:func:`complete`, :func:`scale`).

    :param completed: receives the completed Q-values, ``(B, A)``
    :param sigma: receives the logits, ``(B, A)``
    """
    tree = Arrays(children, prior, visits, q, parent, edge, total, values, raw_value, reward, discount, chance, bounds, depth)
    rule = Rule(settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6], settings[7])
    for row in range(completed.shape[0]):
        complete(tree, row, ROOT, completed[row])
        complete(tree, row, ROOT, sigma[row])
        scale(tree, row, ROOT, rule, sigma[row])
